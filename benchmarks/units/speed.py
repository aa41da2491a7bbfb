"""Time of a dissection beside three bare passes of the network over the same pictures, CPU seconds.

  python -m benchmarks.units.speed --pictures=1000

Two passes find exact thresholds and one counts, so three passes are what the network itself takes.
CPU time does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

import perturb
from benchmarks.units import data
from perturb.internals import layer_tables

LAYERS = ("features.6", "features.9", "features.12")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--part", type=int, default=1000)
    parser.add_argument("--concepts", type=int, default=10)
    parser.add_argument("--enlarge", default="nearest")
    given = parser.parse_args()
    model = perturb.load_model("squeezenet1_1", key=jax.random.key(0))
    rng = np.random.default_rng(0)
    # One part in memory, gone through again and again where more pictures are asked for.
    images = rng.random((given.part, 224, 224, 3), np.float32)
    masks = rng.integers(0, 10, (given.part, 224, 224, given.concepts), np.uint8) == 0
    run = jax.jit(lambda m, x: m(x))

    def bare() -> None:
        for first in range(0, given.part, 50):
            np.asarray(run(model, images[first : first + 50]))

    def dissect(some: slice = slice(None)) -> None:
        layer_tables(
            model,
            images[some],
            layers=LAYERS,
            masks=masks[some],
            replicates=100,
            batch_size=50,
            concepts=[str(k) for k in range(given.concepts)],
            enlarge=given.enlarge,
        )

    # Both once before: what compiles is not timed.
    np.asarray(run(model, images[:50]))
    dissect(slice(100))
    times: list[tuple[float, float, float, float]] = []
    data.row(
        "pictures", "three bare passes, CPU s", "dissection, CPU s", "ratio", "ratio of wall time"
    )
    for _ in range(given.pictures // given.part):
        stamps = [(time.process_time(), time.monotonic())]
        for work in (bare, bare, bare):
            work()
        stamps.append((time.process_time(), time.monotonic()))
        dissect()
        stamps.append((time.process_time(), time.monotonic()))
        (a, x), (b, y), (c, z) = stamps
        times.append((b - a, c - b, y - x, z - y))
    # Of sums, so that a part that met a busy machine counts no more than its time.
    p, q, x, y = np.sum(times, 0)
    data.row(given.pictures, f"{p:.1f}", f"{q:.1f}", f"{q / p:.2f}", f"{y / x:.2f}")


if __name__ == "__main__":
    main()
