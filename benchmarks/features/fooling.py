"""Is a fooling circuit in the embedded network flagged, and is the clean network let through?

  python -m benchmarks.features.fooling --seeds=20

A seed draws the circuit's two units, the pictures that its detector learns from, and the picture's
noise. The measure and its threshold were chosen on seeds 100 to 109.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

from benchmarks.units import data
from perturb.embedded import world
from perturb.internals import features
from tests import fooling


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=128)
    given = parser.parse_args()
    natural = world.render_batch(6, range(given.pictures)).image.astype(np.float32)
    wanted = features.channel("fooled", 0)
    rows: dict[str, list[np.ndarray]] = {}
    flagged = {"fooled": 0, "clean": 0}
    same = 0
    for seed in range(given.first, given.first + given.seeds):
        both = fooling.circuit(seed)
        values = [features.evaluate(model, wanted, natural) for model in both]
        same += int((values[0] == values[1]).sum())
        for model in both:
            found = features.visualise(
                model, wanted, preset="maco", steps=given.steps, key=jax.random.key(seed)
            )
            known = features.quality(model, wanted, found, natural, layers=fooling.BEFORE)
            flagged[model.name] += known.verdict[0].startswith("takes another way")
            rows.setdefault(model.name, []).append(
                np.concatenate([known.path[0], known.route[0], [known.reach[0]]])
            )
    count = given.seeds * given.pictures
    print(f"natural pictures that the circuit answers to as the clean unit: {same} of {count}")
    names = [f"{kind} {layer}" for kind in ("path", "route") for layer in fooling.BEFORE]
    data.row("network", "flagged", *(f"{n}: least to most" for n in names), "reach, least")
    for name, found in rows.items():
        each = np.array(found)
        spans = [f"{a:.2f} to {b:.2f}" for a, b in zip(each.min(0), each.max(0), strict=True)]
        data.row(name, f"{flagged[name]} of {given.seeds}", *spans[:-1], f"{each[:, -1].min():.2f}")


if __name__ == "__main__":
    main()
