"""Cases that take turns, and what is made of their times."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["CLOCKS", "Row", "Seconds", "exponent", "middle", "process", "turns"]

# Of the wall, and of all threads of this process: on a busy machine only the second repeats itself.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

Seconds = dict[str, list[float]]


class Row(NamedTuple):
    """One line of the table; `seconds` are those of every turn of every case."""

    what: str
    figure: str
    seconds: Seconds


def turns(cases: Mapping[str, Callable[[], Any]], repeats: int, clock: str = "wall") -> Seconds:
    """Returns the seconds of `repeats` turns of every case, after one that compiles.

    A case that returns a float has timed itself.
    """
    now = CLOCKS[clock]
    found: Seconds = {name: [] for name in cases}
    for turn in range(repeats + 1):
        # In turns, so that a machine that slows down slows all cases alike.
        for name, case in cases.items():
            begin = now()
            own = jax.block_until_ready(case())
            spent = own if isinstance(own, float) else now() - begin
            if turn:
                found[name].append(spent)
    return found


def middle(found: Seconds, name: str) -> float:
    """Returns the median of a case's turns."""
    return statistics.median(found[name])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Returns the slope of a straight line through the logarithms.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def process(code: str) -> float:
    """Returns the number that `code` prints last, run in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.strip().splitlines()[-1])
