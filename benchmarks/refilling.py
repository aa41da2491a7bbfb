r"""Slots that are refilled against batches that wait for their slowest, on real convergence times.

  PERTURB_DATA=... python -m benchmarks.refilling [--number=12] [--side=96] [--slots=8] \
      [--patience=20]

SqueezeNet 1.1 on photographs. Both ways stop a mask by the same patience; a fixed batch goes on
until its last mask has stopped. Prints calls of a step, processor seconds and whether the masks are
the same.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from benchmarks import quality
from perturb import solver


class Counted:
    """Counts the steps that the solver is asked for."""

    def __init__(self):
        self.steps, self._real = 0, solver.advance_in_place

    # Stands in for the solver's step and calls it.
    def __call__(self, model, recipe, items, state, k, **counts):
        self.steps += int(k)
        return self._real(model, recipe, items, state, k, **counts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=12)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--patience", type=int, default=20)
    given = parser.parse_args()
    data = pathlib.Path(os.environ["PERTURB_DATA"])
    model = perturb.load_model(
        "squeezenet1_1", weights=data / "weights" / "squeezenet1_1.safetensors"
    )
    photographs = quality.load(data, given.number)
    shape = (len(photographs.images), given.side, given.side, 3)
    images = np.clip(np.asarray(jax.image.resize(photographs.images, shape, "linear")), 0, 1)
    areas = (0.05, 0.1)
    # By the photograph's number: both ways must draw the same numbers for the same mask.
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(len(images)))
    each = given.slots // len(areas)  # photographs that fill the slots once
    groups = [
        (images[at : at + each], photographs.targets[at : at + each], keys[at : at + each])
        for at in range(0, len(images), each)
    ]
    options = {"areas": areas, "steps": given.steps, "batch_size": given.slots}

    def all_steps():
        return [perturb.extremal(model, x, t, keys=k, **options) for x, t, k in groups[:1]]

    def fixed():
        # From here on for both ways, so that only the waiting differs.
        options["patience"] = given.patience
        return [perturb.extremal(model, x, t, keys=k, **options) for x, t, k in groups]

    def refilled():
        return list(perturb.stream(perturb.extremal, model, groups, **options))

    # Two steps, which compile what a hundred would.
    perturb.extremal(model, *groups[0][:2], keys=groups[0][2], **{**options, "steps": 2})
    found, results = {}, {}
    # The first one only compiles what is left to compile.
    for way in (all_steps, fixed, refilled):
        counted, begin, wall = Counted(), time.process_time(), time.monotonic()
        solver.advance_in_place = counted
        results[way.__name__] = way()
        # Put back before the next way is counted.
        solver.advance_in_place = counted._real
        spent = round(time.process_time() - begin, 1), round(time.monotonic() - wall, 1)
        found[way.__name__] = {"steps": counted.steps, "cpu_s": spent[0], "wall_s": spent[1]}
    a, b = results["fixed"], results["refilled"]
    same = all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a, b, strict=True)
        for name in ("masks", "scores", "score_binary", "steps")
    )
    report = {
        "masks": len(images) * len(areas),
        "slots": given.slots,
        "without stopping": given.steps * len(groups),
        **found,
        "ratio of steps": round(found["fixed"]["steps"] / found["refilled"]["steps"], 2),
        "ratio of cpu": round(found["fixed"]["cpu_s"] / found["refilled"]["cpu_s"], 2),
        "results identical": same,
    }
    print(json.dumps(report, indent=1))
    # A faster way to other masks is none.
    sys.exit(not same)


if __name__ == "__main__":
    main()
