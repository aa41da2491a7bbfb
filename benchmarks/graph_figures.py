"""Graphs of parts on the embedded classifier, whose pictures have exact landmarks.

`python -m benchmarks.graph_figures [--number=100] [--draws=20]` prints, for the crops of three
kinds of objects, how steadily raw filters and nodes sit on landmarks, of the trained network and of
one with random weights; and how far a part is missed that is found from three annotations.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from launch import demo
from perturb import taps
from perturb.embedded import shapes, world
from perturb.internals import graphs
from perturb.metrics.parts import location_instability
from perturb.nets import demo as demo_net
from perturb.statistics import mean_interval

SIZE = 64
# Points of an outline that no symmetry of it moves, in its own frame.
MARKS = {
    "arrow": [(0.0, -0.87), (0.0, 0.91)],
    "heart": [(0.0, 0.604), (0.0, -0.316)],
    "crescent": [(-0.659, 0.0), (0.943, 0.799)],
}


def crops(kind: str, number: int, seed: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `[N, 64, 64, 3]` with one object in the middle, and its landmarks `[N, K, 2]` (y, x)
    px.
    """
    outline = shapes.OUTLINES[kind]
    images, marks, index = [], [], 0
    while len(images) < number:
        f = world.factors(seed, index)
        index += 1
        if world.class_names[f.target] != kind:
            continue
        # By seed and index, so that a picture does not depend on how many there are.
        rng = np.random.default_rng([seed, index])
        f = dataclasses.replace(
            f,
            # Its reach is at most 0.42 of the side and its middle 0.04 off: the whole of it is in
            # view.
            center=tuple(0.5 + rng.uniform(-0.04, 0.04, 2)),
            area=min(0.34, 0.8 * (0.47 / outline.radius) ** 2 * outline.area)
            * rng.uniform(0.75, 1),
            rotation=float(rng.uniform(-20, 20)),
            # Without other things in the picture: a crop shows one object.
            distractors=(),
        )
        images.append(world.draw(f, size=SIZE).image)
        # The landmarks take the same way as the outline: scaled, turned and moved.
        s, a = math.sqrt(f.area / outline.area), math.radians(f.rotation)
        marks.append(
            [
                (
                    SIZE * (f.center[1] + s * (math.sin(a) * x + math.cos(a) * y)),
                    SIZE * (f.center[0] + s * (math.cos(a) * x - math.sin(a) * y)),
                )
                for x, y in MARKS[kind]
            ]
        )
    return np.stack(images), np.array(marks)


def steadiness(model, images, marks, layer="relu#6"):
    """Instability of the raw filters' peaks and of as many best nodes, and the fitted layer."""
    maps = graphs.evidence_maps(taps.read(model, layer)(jnp.asarray(images))[1][layer])
    n = maps.shape[-1]
    found = graphs.fit_layer(maps, stride=SIZE / n)
    flat = maps.reshape(*maps.shape[:2], -1)
    # The middle of the cell that is strongest, in px of the picture.
    peak = (np.stack(np.unravel_index(flat.argmax(-1), (n, n)), -1) + 0.5) * SIZE / n
    diagonal, top = SIZE * 2**0.5, min(50, len(images))
    # A filter that never answers has no peak, and its first cell would count as a steady one.
    live = flat.max(-1).mean(0) > 0
    raw = location_instability(peak, flat.max(-1), marks, diagonal=diagonal, top=top).distance
    places = found.places.reshape(len(images), -1, 2)
    scores = found.scores.reshape(len(images), -1)
    # As many nodes as there are live filters, or the fewer would be the better ones.
    best = np.argsort(-scores.mean(0), kind="stable")[: live.sum()]
    nodes = location_instability(
        places[:, best], scores[:, best], marks, diagonal=diagonal, top=top
    ).distance
    return (
        float(np.nanmean(raw[live])),
        float(np.nanmean(nodes)),
        (places, scores, peak, flat.max(-1)),
    )


def few_shot(graph, marks, draws, shots=3, seed=0):
    """Mean normalised distance: votes of nodes, best filter and offset, ridge regression, votes
    from random places.
    """
    places, scores, peak, strength = graph
    rows, diagonal = [], SIZE * 2**0.5
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        # Three pictures have annotations; all others judge.
        shown = rng.permutation(len(marks))[:shots]
        rest = np.setdiff1d(np.arange(len(marks)), shown)
        row = []
        for k in range(marks.shape[1]):
            truth = marks[:, k]

            def error(found, truth=truth, rest=rest):
                return graphs.normalised_distance(found, truth[rest], diagonal).mean()

            template = graphs.fit_template(
                places[shown], scores[shown], truth[shown], prior=2.0, reach=20.0
            )
            votes = graphs.locate(template, places[rest], scores[rest], width=3.0)
            # How far the filter's peak lies from the part; the steadiest of those that always
            # answer.
            offsets = truth[shown][:, None] - peak[shown]
            one = np.where(strength[shown].min(0) > 0, offsets.var(0).sum(-1), np.inf).argmin()
            single = peak[rest, one] + offsets[:, one].mean(0)
            x = strength - strength[shown].mean(0)
            # Three pictures and many filters: the dual form solves for one number a picture.
            gram = x[shown] @ x[shown].T + 1.0 * np.eye(shots)
            weights = x[shown].T @ np.linalg.solve(gram, truth[shown] - truth[shown].mean(0))
            ridge = truth[shown].mean(0) + x[rest] @ weights
            astray = graphs.fit_template(
                places[shown],
                scores[shown],
                # The control: the same nodes, taught places drawn at random.
                rng.uniform(0, SIZE, (shots, 2)),
                prior=2.0,
                reach=20.0,
            )
            random = graphs.locate(astray, places[rest], scores[rest], width=3.0)
            row.append([error(v) for v in (votes, single, ridge, random)])
        rows.append(np.mean(row, 0))
    return np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    trained = demo.load("demo")
    # The same architecture, so that what architecture alone gives is known.
    random = demo_net.demo(key=jax.random.key(0))
    start, errors = time.perf_counter(), []
    print("kind       net      filters  nodes   ratio")
    for kind in MARKS:
        images, marks = crops(kind, given.number)
        for name, model in (("trained", trained), ("random", random)):
            raw, nodes, graph = steadiness(model, images, marks)
            print(f"{kind:10} {name:8} {raw:.4f}   {nodes:.4f}  {nodes / raw:.2f}", flush=True)
            if name == "trained":
                errors.append(few_shot(graph, marks, given.draws))
    errors = np.mean(errors, 0)
    for name, column in zip(("votes", "best filter", "ridge", "random"), errors.T, strict=True):
        found = mean_interval(column)
        print(f"{name:12} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]")
    for name, column in zip(("best filter", "ridge"), errors.T[1:3], strict=True):
        # Draw by draw: both were taught by the same three pictures.
        found = mean_interval(errors[:, 0] / column)
        print(f"votes / {name:12} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
