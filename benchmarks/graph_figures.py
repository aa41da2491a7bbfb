"""Graphs of parts on the embedded classifier, whose pictures have exact landmarks.

`python -m benchmarks.graph_figures [--number=100] [--draws=20] [--random=1] [--kinds=arrow]`
prints how steadily raw filters and nodes sit on landmarks of the crops of some kinds of objects:
of the trained network and of some with random weights, as it is and over the same places dealt to
other images; on crops with the object in the middle and on crops where it moves. And how far a part
is missed that is found from three annotations.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parts import crops
from launch import demo
from perturb import taps
from perturb.internals import graphs
from perturb.metrics.parts import chance_instability, location_instability
from perturb.nets import demo as demo_net
from perturb.statistics import mean_interval

SIZE = 64
# Of the largest area that a crop can have: objects then are as large as those trained on.
SCALE = 0.45
KINDS = ("arrow", "heart", "crescent")
# How far the object's middle may lie off, as a share of the side.
CENTRED, MOVED = 0.04, 0.15
WAYS = ("part", "best filter", "ridge", "random", "votes alone", "pose alone")


def steadiness(model, images, marks, layer="relu#6"):
    """Instability of the raw filters' peaks, of as many best nodes and of points that never move at
    the nodes' mean places; that of peaks and nodes over chance; and the fitted layer.
    """
    maps = graphs.evidence_maps(taps.read(model, layer)(jnp.asarray(images))[1][layer])
    n = maps.shape[-1]
    found = graphs.fit_layer(maps, stride=SIZE / n)
    flat = maps.reshape(*maps.shape[:2], -1)
    # The middle of the cell that is strongest, in px of the picture.
    peak = (np.stack(np.unravel_index(flat.argmax(-1), (n, n)), -1) + 0.5) * SIZE / n
    diagonal, top = SIZE * 2**0.5, min(50, len(images))

    def instability(places, scores, measure=location_instability):
        one = measure(places, scores, marks, diagonal=diagonal, top=top)
        return float(np.nanmean(one.distance))

    # A filter that never answers has no peak, and its first cell would count as a steady one.
    live = flat.max(-1).mean(0) > 0
    places = found.places.reshape(len(images), -1, 2)
    # A node's place is one of 36; settled, it lies between them.
    settled = graphs.settle_places(maps, found.places, stride=SIZE / n).reshape(places.shape)
    scores = found.scores.reshape(len(images), -1)
    # As many nodes as there are live filters, or the fewer would be the better ones.
    best = np.argsort(-scores.mean(0), kind="stable")[: live.sum()]
    of_filters = peak[:, live], flat.max(-1)[:, live]
    of_nodes = places[:, best], scores[:, best]
    of_settled = settled[:, best], scores[:, best]
    # A point that never moves, at each node's mean place: what no network is needed for.
    rest = np.broadcast_to(places[:, best].mean(0), places[:, best].shape)
    figures = {
        "filters": instability(*of_filters),
        "nodes": instability(*of_nodes),
        "settled": instability(*of_settled),
        "still": instability(rest, scores[:, best]),
    }
    figures["ratio"] = figures["nodes"] / figures["filters"]
    for name, these in (("filters", of_filters), ("nodes", of_nodes), ("settled", of_settled)):
        figures[f"{name}/chance"] = figures[name] / instability(*these, chance_instability)
    return figures, (found, maps, peak, flat.max(-1))


def few_shot(graph, marks, draws, shots=3, seed=0):
    """Mean normalised distance, a row a draw: see `WAYS`."""
    layer, maps, peak, strength = graph
    places = layer.places.reshape(len(marks), -1, 2)
    scores = layer.scores.reshape(len(marks), -1)
    rows, diagonal = [], SIZE * 2**0.5
    poses = graphs.find_poses(maps, stride=layer.stride)
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
                places[shown], scores[shown], truth[shown], prior=2.0, reach=12.0
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
            part = graphs.find_part(layer, maps, shown, truth[shown])[rest]
            # The control: the same pictures, taught places drawn at random.
            astray = rng.uniform(0, SIZE, (shots, 2))
            random = graphs.find_part(layer, maps, shown, astray)[rest]
            whole = graphs.carry(poses, shown, truth[shown])[rest]
            row.append([error(v) for v in (part, single, ridge, random, votes, whole)])
        rows.append(np.mean(row, 0))
    return np.array(rows)


def show_errors(kind, errors):
    """Prints how far each way misses, and each over ridge regression and the best filter."""
    for name, column in zip(WAYS, errors.T, strict=True):
        found = mean_interval(column)
        print(f"{kind:9} {name:16} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]")
    for way, over in ((0, 1), (0, 2), (4, 2), (5, 2)):
        # Draw by draw: both were taught by the same three pictures.
        found = mean_interval(errors[:, way] / errors[:, over])
        names = f"{WAYS[way]} / {WAYS[over]}"
        print(f"{kind:9} {names:24} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--layer", default="relu#3", help="whose nodes vote for a part")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of objects, with commas")
    parser.add_argument("--seed", type=int, default=11, help="of the pictures")
    parser.add_argument("--random", type=int, default=1, help="networks with random weights")
    given = parser.parse_args()
    trained = demo.load("demo")
    # The same architecture, so that what architecture alone gives is known.
    nets = [("trained", trained)] + [
        (f"random {i}", demo_net.demo(key=jax.random.key(i))) for i in range(given.random)
    ]
    start, errors, table = time.process_time(), [], {}
    for kind in given.kinds.split(","):
        for shift in (CENTRED, MOVED):
            shown = crops(
                given.number, kinds=[kind], size=SIZE, scale=SCALE, shift=shift, seed=given.seed
            )
            images, marks = np.float32(shown.images) / 255, shown.marks
            for name, model in nets:
                figures = steadiness(model, images, marks)[0]
                table.setdefault((shift, name), []).append(list(figures.values()))
                row = ", ".join(f"{k} {v:.4f}" for k, v in figures.items())
                print(f"{kind:9} {shift:.2f} {name:9} {row}", flush=True)
            if shift == CENTRED:
                # A layer with a cell of 4 px tells a place finer than the last one's of 8.
                graph = steadiness(trained, images, marks, layer=given.layer)[1]
                errors.append(few_shot(graph, marks, given.draws))
                show_errors(kind, errors[-1])
    for (shift, name), rows in table.items():
        row = ", ".join(f"{k} {v:.3f}" for k, v in zip(figures, np.mean(rows, 0), strict=True))
        print(f"mean {shift:.2f} {name:9} {row}")
    show_errors("mean", np.mean(errors, 0))
    print(f"{time.process_time() - start:.0f} s of one core")


if __name__ == "__main__":
    main()
