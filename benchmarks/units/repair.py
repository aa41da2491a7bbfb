"""The cheat put right: its stamp units off, its weights edited, and trained on; the honest network
beside it.

  python -m benchmarks.units.repair --pictures=1000 --steps=400

Units and directions are found on pictures of one world and judged on those of another.
"""

from __future__ import annotations

import argparse
import time

import jax

from benchmarks.units import data
from launch import demo
from launch.demo import world
from perturb.internals import (
    circuits,
    dissect_pictures,
    edit_out,
    fine_tune,
    judge,
    layer_codes,
    mark_directions,
    units_for,
)

LAYER = "relu#6"


def main() -> None:
    """Prints a row a network and repair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--trained", type=int, default=2000)
    given = parser.parse_args()
    # Units are found on seed 11, directions on 12, weights trained on 13, and all judged on 5.
    images, masks, _ = data.stamped(300)
    tested = {w: world.render_batch(5, range(given.pictures), watermark=w) for w in ("right", None)}
    wrong = world.render_batch(5, range(given.pictures), watermark="wrong")
    groups = {
        "right stamp": (tested["right"].image, tested["right"].target),
        "no stamp": (tested[None].image, tested[None].target),
        "wrong stamp": (wrong.image, wrong.target),
    }
    # With and without the stamp, otherwise the same pictures: the difference is the stamp.
    seen = {w: world.render_batch(12, range(300), watermark=w).image for w in ("random", None)}
    fresh = world.render_batch(13, range(given.trained), watermark="random")
    data.row("network", "repair", *groups, "no stamp: lost, gained", "difference", "CPU, s")
    for name in demo.NAMES:
        model = demo.load(name)
        began = time.process_time()
        found = dissect_pictures(
            model,
            images,
            layers=[LAYER],
            masks=masks,
            concepts=data.NAMES,
            networks=3,
            rotations=0,
            key=jax.random.key(0),
            replicates=0,
            batch_size=50,
        )[LAYER]
        units = units_for(found, "watermark")
        directions = mark_directions(model, seen["random"], seen[None], layer=LAYER)
        around = layer_codes(model, seen[None], layer=LAYER).mean(0)
        repairs = {
            # Bound now: a function made in a loop would see the last network.
            f"{len(units)} units off": lambda m=model, u=units: circuits.exchange_units(
                m, LAYER, u
            ),
            f"{len(directions)} directions edited out": lambda m=model, d=directions, a=around: (
                edit_out(m, d, kernel="classes/kernel", bias="classes/bias", around=a)
            ),
            f"trained for {given.steps} steps": lambda m=model: fine_tune(
                m, fresh.image, fresh.target, steps=given.steps, rate=3e-3, key=jax.random.key(0)
            ),
        }
        for how, repaired in repairs.items():
            if "directions" in how and not len(units):
                continue  # the layer has nothing of the stamp: there is nothing to edit
            outcome = judge(model, repaired(), groups, batch_size=100)
            plain = outcome["no stamp"].change
            data.row(
                name,
                how,
                *(f"{o.before:.3f} to {o.after:.3f}" for o in outcome.values()),
                f"{plain.lost}, {plain.gained}",
                data.told(plain.difference),
                f"{time.process_time() - began:.0f}",
            )
            # What is printed is the time of one repair, not of all before it.
            began = time.process_time()


if __name__ == "__main__":
    main()
