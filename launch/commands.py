"""Entry points of the installed package: `perturb-masks` is `python -m launch.masks`, and so on."""

from __future__ import annotations

import runpy
import sys

__all__ = [
    "compare",
    "completion",
    "convert",
    "dissect",
    "evaluate",
    "features",
    "masks",
    "studio",
    "walk",
]


def _run(name: str) -> None:
    # As the main module, or `--help` would list no flag: absl shows those of the program itself.
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
    sys.exit(0)


def masks() -> None:
    """Runs `launch.masks`."""
    _run("masks")


def compare() -> None:
    """Runs `launch.compare`: `perturb-compare A B` is `perturb-masks compare A B`."""
    sys.argv.insert(1, "compare")
    _run("masks")


def completion() -> None:
    """Runs `launch.completion`."""
    _run("completion")


def evaluate() -> None:
    """Runs `launch.evaluate`."""
    _run("evaluate")


def dissect() -> None:
    """Runs `launch.dissect`."""
    _run("dissect")


def walk() -> None:
    """Runs `launch.walk`."""
    _run("walk")


def convert() -> None:
    """Runs `launch.convert`."""
    _run("convert")


def features() -> None:
    """Runs `launch.features`."""
    _run("features")


def studio() -> None:
    """Runs `launch.studio`."""
    _run("studio")
