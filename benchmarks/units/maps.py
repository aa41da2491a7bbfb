"""Maps of codes and information by depth, of the embedded networks beside one of random weights.

  python -m benchmarks.units.maps --pictures=600
  python -m benchmarks.units.maps --pictures=200 --no-probes  # the maps alone

The map is t-SNE where scikit-learn is installed, and the first two principal components everywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from typing import Any

import jax
import numpy as np

import perturb
from benchmarks.units import data
from launch import demo
from launch.demo import world
from perturb.internals import (
    information_by_depth,
    layer_codes,
    map_quality,
    pca,
    random_network,
    tsne,
)

LAYERS = ("relu", "relu#2", "relu#4", "relu#6")


def factors(drawn: world.Pictures) -> dict[str, Any]:
    """What is known of each picture of the world: words and whole numbers are classes, angles
    points of a circle.
    """
    f = drawn.factors
    # An angle as a point of the circle: 359 and 1 degrees are neighbours.
    turn = np.radians([x.rotation for x in f])
    return {
        "class": drawn.target,
        "stamp": drawn.mark,
        "colour": np.array([x.colour for x in f]),
        "fill": np.array([x.fill for x in f]),
        "background": np.array([x.background for x in f]),
        "things of no class": np.array([len(x.distractors) for x in f]),
        "area": np.array([x.area for x in f]),
        "place": np.array([x.center for x in f]),
        "rotation": np.stack([np.cos(turn), np.sin(turn)], 1),
        "lightness": np.array([x.lightness for x in f]),
        "background lightness": np.array([x.background_lightness for x in f]),
        "place of the stamp": np.array([x.mark_center for x in f]),
    }


def main() -> None:
    """Prints a table of maps and one of probes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--probes", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    began = time.process_time()
    # A world of another seed than the one trained on.
    drawn = world.render_batch(31, range(given.pictures), watermark="random")
    random = random_network(demo.load("demo"), jax.random.key(0))
    nets: dict[str, perturb.Model] = {n: demo.load(n) for n in demo.NAMES} | {"random": random}
    laid = ["components"] + ["t-SNE"] * bool(importlib.util.find_spec("sklearn"))
    data.row(
        "network, `relu#6`",
        "map",
        "trustworthiness",
        "continuity",
        "12 neighbours give the class",
        "among the codes",
        "the stamp",
    )
    for name, net in nets.items():
        codes = layer_codes(net, drawn.image, layer="relu#6")
        for kind in laid:
            if kind == "components":
                places = pca(net, drawn.image, layer="relu#6", number=2).project(codes)
            else:
                places = tsne(codes).places
            q = map_quality(codes, places, drawn.target)
            mark = map_quality(codes, places, drawn.mark).accuracy
            data.row(
                name,
                kind,
                f"{q.trustworthiness:.3f}",
                f"{q.continuity:.3f}",
                data.told(q.accuracy),
                data.told(q.code_accuracy),
                data.told(mark),
            )
    print(f"{time.process_time() - began:.0f} s of CPU")
    if not given.probes:
        return
    print()
    data.row("factor", "chance", *(f"{n}: `{layer}`" for n in nets for layer in LAYERS))
    known = factors(drawn)
    found = {
        n: information_by_depth(net, drawn.image, known, layers=LAYERS) for n, net in nets.items()
    }
    for factor in known:
        rows = [[p for p in found[n] if p.factor == factor] for n in nets]
        chance = rows[0][0].chance
        data.row(
            factor,
            f"{chance:.2f}" if rows[0][0].kind == "class" else "R^2",
            *(f"{p.score.value:.2f}" for each in rows for p in each),
        )
    # The widest, so that a reader knows how little two digits may differ.
    widest = max(p.score.high - p.score.low for each in found.values() for p in each)
    print(f"widest interval {widest:.2f}; {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
