r"""Two runs of masks, or two networks on the same pictures, side by side on one page.

  perturb-masks compare out/one out/two
  perturb-masks compare demo demo_cheat --areas=0.05
  perturb-masks compare my.nets:old my.nets:new --images=photos --out=out/compared

A and B are folders of finished runs of launch.masks, or both are networks: then each is run first,
into a folder below --out, with the further flags, which are those of launch.masks. Leaves
compared.csv and report/index.html in --out. `python -m launch.compare --first=A --second=B` is the
same.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from absl import flags as absl_flags
from absl import logging

import perturb
from launch import flags, results
from launch.job import store
from launch.jobs.compare import page
from perturb import messages

__all__ = ["OWN", "arguments", "main"]

# Of this launcher alone: others give these names another meaning.
OWN = absl_flags.FlagValues()
_FIRST = absl_flags.DEFINE_string(
    "first", None, "A: the folder of a run of masks, or a network.", flag_values=OWN
)
_SECOND = absl_flags.DEFINE_string("second", None, "B: likewise.", flag_values=OWN)
_OUT = absl_flags.DEFINE_string("out", "out/compare", "Folder of what is written.", flag_values=OWN)
_FURTHER = absl_flags.DEFINE_multi_string(
    "further",
    [],
    "A flag of launch.masks for both networks, as --further=--areas=0.05; may be given several "
    "times.",
    flag_values=OWN,
)


def arguments(argv: Sequence[str]) -> list[str]:
    """Returns the flags of this launcher for `PROGRAM compare A B --areas=0.05`.

    >>> arguments(["masks", "compare", "out/a", "out/b", "--out=c", "--areas=0.1"])[1:]
    ['--first=out/a', '--second=out/b', '--out=c', '--further=--areas=0.1']
    """
    rest = list(argv[2:])
    two = [word for word in rest if not word.startswith("-")]
    given = [word for word in rest if word.startswith("-")]
    found = [f"--{n}={word}" for n, word in zip(("first", "second"), two[:2], strict=False)]
    # All other flags are for launch.masks, which checks them itself.
    alone = {"--out", "--help", "-h"}
    found += [w if w.split("=")[0] in alone else f"--further={w}" for w in given]
    return [f"{argv[0]} compare", *found, *two[2:]]


def main() -> int:
    """Compares what the flags name; returns the exit code."""
    first, second = _FIRST.value, _SECOND.value
    if not first or not second:
        raise ValueError("compare needs two runs or two networks: perturb-masks compare A B")
    out = store.path(_OUT.value)
    store.writable(out)
    # A folder with a run.json is a run, anything else the name of a network.
    runs = [_is_run(name) for name in (first, second)]
    if runs[0] != runs[1]:
        folder, other = (first, second) if runs[0] else (second, first)
        raise ValueError(
            f"{folder} is a run and {other} is none: give two folders of runs, or two networks"
        )
    if all(runs):
        if _FURTHER.value:
            raise ValueError(
                f"{_FURTHER.value[0]} is for two networks: finished runs are compared as they are"
            )
        places = [store.path(first), store.path(second)]
    else:
        # Both, before the first is run: the second name may be the one with a slip.
        for name in (first, second):
            if ":" not in name and name not in perturb.nets.NAMES:
                near = messages.did_you_mean(name, perturb.nets.NAMES)
                raise ValueError(f"{name} is neither a run's folder nor a network's name{near}")
        places = [_ran(out, label, name) for label, name in (("a", first), ("b", second))]
    index = page.write(out, places, (first, second))
    logging.info("done: %s", index)
    return 0


def _is_run(name: str) -> bool:
    return (store.path(name) / "run.json").is_file()


def _ran(out: store.Path, label: str, name: str) -> store.Path:
    """Runs a network in a process of its own, so that neither leaves anything for the other."""
    folder = out / label
    command = [sys.executable, "-m", "launch.masks", f"--model={name}", f"--out={folder}"]
    done = subprocess.run([*command, *_FURTHER.value], check=False)
    # What went wrong, launch.masks has said on stderr, which both processes share.
    if done.returncode:
        raise ValueError(f"{name} could not be run: see the line above")
    # Read once here, so that a folder that is no run after all is named with its network.
    results.settings(folder)
    return folder


if __name__ == "__main__":
    flags.run(main, own=OWN)
