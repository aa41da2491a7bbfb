"""Peak memory of a dissection of a hundred times as many pictures.

  python -m benchmarks.units.memory --few=10000 --many=1000000

Pictures of 32 px are made slice by slice; each number of them is dissected in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from benchmarks.units import data
from perturb import taps
from perturb.internals import layer_tables


class Synthetic:
    """`count` arrays cut out of a fixed pool, each in its own way, as slices are asked for."""

    def __init__(self, pool: np.ndarray, count: int):
        self._pool, self._count = pool, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: slice) -> np.ndarray:
        index = np.arange(*at.indices(self._count))
        # A step that is prime to the pool's size visits all of it in another order.
        found = self._pool[index * 7919 % len(self._pool)]
        # Each round over the pool is shifted by a pixel: 32 of them differ.
        return np.roll(found, int(index[0]) // len(self._pool) % 32, 1) if len(index) else found


def dissect(count: int) -> None:
    """Dissects so many pictures and prints the peak and the CPU time."""
    rng = np.random.default_rng(0)
    images = rng.random((512, 32, 32, 3), np.float32)
    masks = images[..., :2] > 0.7

    def net(w: jax.Array, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x, w, (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return taps.tag(jax.nn.relu(y), "units").mean((1, 2))

    weights = jax.random.normal(jax.random.key(0), (5, 5, 3, 8))
    found = layer_tables(
        perturb.Model(net, jnp.asarray(weights)),
        Synthetic(images, count),
        layers=["units"],
        masks=Synthetic(masks, count),
        concepts=["a", "b"],
        replicates=20,
        batch_size=256,
    )["units"]
    # Linux gives kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.1f} {time.process_time():.1f} {found.pixels}")


def main() -> None:
    """Prints the peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--one", type=int)
    given = parser.parse_args()
    # In a process of its own, for a peak never falls.
    if given.one:
        return dissect(given.one)
    peaks = []
    data.row("pictures", "peak, MiB", "CPU, s")
    for count in (given.few, given.many):
        command = [sys.executable, "-m", "benchmarks.units.memory", f"--one={count}"]
        peak, cpu, _ = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.split()
        peaks.append(float(peak))
        data.row(count, peak, cpu)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")
    return None


if __name__ == "__main__":
    main()
