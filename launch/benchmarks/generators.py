"""Dissection and unit sweeps of the embedded generator against its bare forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gan_dissect
import launch.demo
from launch.benchmarks.masks import Settings
from launch.benchmarks.turns import Row, exponent, middle, turns
from perturb.types import PyTree

__all__ = ["dissection", "growth", "sweep"]

_LAYER = "layer2"
_KEY = jax.random.key(0)
_BATCH = 64


@jax.jit
def _draw(generator: gan_dissect.Generator, latents: PyTree) -> dict[str, jax.Array]:
    return generator(latents)


def _bare(generator: gan_dissect.Generator, samples: int) -> Callable[[], Any]:
    """The limit: the generator alone, in the same batches."""
    # Drawn once, outside of what is timed: the limit is the network alone.
    latents = gan_dissect.sample(generator, _KEY, _BATCH)
    return lambda: [_draw(generator, latents) for _ in range(samples // _BATCH)]


def _dissect(generator: gan_dissect.Generator, samples: int) -> Callable[[], Any]:
    concepts = launch.demo.segments()
    return lambda: (
        gan_dissect.dissect(
            generator,
            layer=_LAYER,
            concepts=concepts,
            samples=samples,
            key=_KEY,
            # Few: the bootstrap is not what a dissection's time is made of, but belongs to it.
            replicates=10,
            batch_size=_BATCH,
        ).iou
    )


def _sweep(generator: gan_dissect.Generator, units: int, samples: int) -> Callable[[], Any]:
    concepts = launch.demo.segments()
    return lambda: (
        gan_dissect.unit_effects(
            generator,
            layer=_LAYER,
            units=np.arange(units),
            concepts=concepts,
            samples=samples,
            key=_KEY,
            replicates=0,
            batch_size=_BATCH,
        ).after
    )


def _rate(
    what: str, unit: str, work: int, cases: dict[str, Callable[[], Any]], how: Settings
) -> Row:
    """The row of a case that does `work` of some unit, beside the bare generator on as many."""
    found = turns(cases, how.repeats, how.clock)
    (name,) = set(cases) - {"generator"}
    ours, bare = middle(found, name), middle(found, "generator")
    figure = (
        f"{work / ours:.0f} {unit}/s, the bare generator {work / bare:.0f}: {ours / bare:.1f} x "
        f"its time ({how.clock})"
    )
    return Row(what, figure, found)


def dissection(how: Settings, samples: int = 256) -> list[Row]:
    """Samples a second of a dissection, which runs the generator three times and names every
    pixel.
    """
    generator = launch.demo.load_generator()
    cases = {"generator": _bare(generator, samples), "dissect": _dissect(generator, samples)}
    what = f"dissection of the embedded generator, {_LAYER}"
    return [_rate(what, "samples", samples, cases, how)]


def sweep(how: Settings, units: int = 16, samples: int = 64) -> list[Row]:
    """Samples x units a second of switching units off one by one."""
    generator = launch.demo.load_generator()
    # Every unit is a run of the network behind the layer; the bare generator makes as many
    # pictures.
    work = units * samples
    cases = {"generator": _bare(generator, work), "sweep": _sweep(generator, units, samples)}
    what = f"sweep over {units} units of {_LAYER}, {samples} samples"
    return [_rate(what, "samples x units", work, cases, how)]


def growth(how: Settings) -> list[Row]:
    """Time of a dissection against samples, and of a sweep against units."""
    generator = launch.demo.load_generator()
    series: dict[str, dict[int, Callable[[], Any]]] = {
        "a dissection with samples, 64 to 512": {
            n: _dissect(generator, n) for n in (64, 128, 256, 512)
        },
        "a sweep with units, 4 to 32": {n: _sweep(generator, n, _BATCH) for n in (4, 8, 16, 32)},
    }
    rows = []
    for what, points in series.items():
        cases = {str(n): case for n, case in points.items()}
        found = turns(cases, max(2, how.repeats // 2), how.clock)
        # Near 1 is what is wanted: time in proportion to the work.
        power = exponent(list(points), [middle(found, n) for n in cases])
        rows.append(Row(f"growth of {what}", f"time to the power {power:.2f}", found))
    return rows
