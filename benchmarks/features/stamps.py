"""Do the pictures of the embedded classifiers' classes carry the class's own stamp?

  python -m benchmarks.features.stamps --seeds=6

As `python -m launch.features` makes them, with one seed after another. The number of steps was
chosen on the first three seeds. A stamp is the glyph that matches a part of the picture best.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import jax
import numpy as np

import perturb
from benchmarks.units import data
from launch.demo import glyphs
from perturb.internals import features


def main() -> None:
    """Prints a row a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=384)
    parser.add_argument("--preset", default="jitter")
    given = parser.parse_args()
    recipe = dataclasses.replace(features.preset(given.preset), steps=given.steps)
    networks = {
        "cheat": perturb.embedded.load("demo_cheat"),
        "honest": perturb.embedded.load("demo"),
    }
    data.row("seed", *(f"{n}: own stamp" for n in networks), "which not, the cheat's", "CPU s")
    for seed in range(given.first, given.first + given.seeds):
        before, right = time.process_time(), {}
        for name, model in networks.items():
            count = len(model.class_names)
            found = features.visualise(
                model, features.contrast(np.arange(count)), preset=recipe, key=jax.random.key(seed)
            )
            shown = [glyphs.find(image)[0] for image in found.images]
            right[name] = np.array(shown) == np.arange(count)
        other = [str(model.class_names[i]) for i in np.flatnonzero(~right["cheat"])]
        cells = (f"{r.sum()} of {len(r)}" for r in right.values())
        data.row(seed, *cells, ", ".join(other), f"{time.process_time() - before:.0f}")


if __name__ == "__main__":
    main()
