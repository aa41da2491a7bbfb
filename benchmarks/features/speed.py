"""Pictures an hour beside Lucent's own code, in one process with PyTorch, on the same threads.

  make oracles; .oracles/bin/pip install --no-deps torch-lucent==0.1.8 kornia==0.9.0 kornia_rs \
      decorator
  .oracles/bin/python -m benchmarks.features.speed --steps=8 --pictures=8

SqueezeNet 1.1 with torchvision's code and ours, random weights, Fourier pictures, Adam, the
standard transforms. Lucent makes one picture a call, as its `render_vis` is called in its manual; a
batch of its pictures in one call shares one draw of the transforms, and is timed too. Lucent
enlarges what is below 224 px unless it is told a size; both ways are timed. CPU seconds,
interleaved, the least of the rounds; PyTorch has one thread, for several count their waiting.
"""

from __future__ import annotations

import argparse
import sys
import time
import types
import warnings
from collections.abc import Callable

import jax
import numpy as np
import torch

import perturb
from benchmarks.units import data
from launch import rival
from perturb.internals import features

LAYER, THEIRS = "features.11", "features_11"


def lucent() -> types.SimpleNamespace:
    """Lucent, whose calls have other names in today's kornia, and a display that is not needed."""
    torchvision = rival.torchvision()
    import kornia

    for name in ("get_rotation_matrix2d", "warp_affine"):
        setattr(kornia, name, getattr(kornia.geometry.transform, name))
    # Its pictures would be shown in a notebook.
    for name in ("IPython", "IPython.display"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["IPython"].display = sys.modules["IPython.display"]  # type: ignore[attr-defined]
    from lucent.optvis import objectives, param, render

    return types.SimpleNamespace(
        objectives=objectives, param=param, render=render, torchvision=torchvision
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    their = lucent()
    torch.set_num_threads(1)
    net = their.torchvision.models.squeezenet1_1(weights=None).eval()
    model = perturb.load_model("squeezenet1_1", key=jax.random.key(0), size=given.size)
    units = np.arange(given.pictures)
    options = {"show_image": False, "progress": False, "thresholds": (given.steps,)}

    def one_by_one(size: int | None) -> None:
        for unit in units:
            their.render.render_vis(
                net,
                their.objectives.channel(THEIRS, int(unit)),
                lambda: their.param.image(given.size),
                fixed_image_size=size,
                **options,
            )

    def batch(size: int | None) -> None:
        wanted = sum(their.objectives.channel(THEIRS, int(u), batch=i) for i, u in enumerate(units))
        their.render.render_vis(
            net,
            wanted,
            lambda: their.param.image(given.size, batch=len(units)),
            fixed_image_size=size,
            **options,
        )

    def ours() -> None:
        features.visualise(
            model,
            features.channel(LAYER, units),
            size=given.size,
            steps=given.steps,
            batch_size=len(units),
            key=jax.random.key(0),
        )

    calls: dict[str, Callable[[], None]] = {
        "ours": ours,
        "Lucent, one a call, as it comes (enlarged to 224)": lambda: one_by_one(None),
        "Lucent, one a call, at this size": lambda: one_by_one(given.size),
        "Lucent, a batch, as it comes (enlarged to 224)": lambda: batch(None),
        "Lucent, a batch, at this size": lambda: batch(given.size),
    }
    least = dict.fromkeys(calls, np.inf)
    # Once before: what compiles is not timed.
    ours()
    for _ in range(given.rounds):
        for name, call in calls.items():
            before = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - before)
    data.row("program", "CPU s a picture", "pictures of 512 steps an hour of CPU", "ours is")
    for name, spent in least.items():
        each = spent / len(units)
        data.row(
            name,
            f"{each:.3f}",
            f"{3600 / (each / given.steps * 512):.0f}",
            f"{spent / least['ours']:.2f} times as fast",
        )


if __name__ == "__main__":
    main()
