"""Digests of masks that are promised to be the same bits, as one JSON object.

  python -m tests.bits [--net=demo] [--weights=FILE] [--side=64] [--number=3] [--steps=6]
  [--batches=1,2,3]

One line a way of working through the same pictures: in batches of several sizes, shuffled, and as a
job that was stopped between two pictures. `tests/test_reproducible.py` compares them, and those of
other processes.
"""

import argparse
import hashlib
import json

import jax
import numpy as np

import perturb
from tests import planted


def digest(results, order):
    """Of masks, what they are cut from, scores and the steps kept, image by image."""
    parts = [
        # argsort undoes the order in which the images were worked out.
        np.concatenate([np.asarray(getattr(r, name)) for r in results])[np.argsort(order)]
        for name in ("masks", "scores", "score_binary", "steps")
    ]
    return hashlib.sha256(b"".join(p.tobytes() for p in parts)).hexdigest()[:16]


def digests(model, side, *, number=3, steps=6, batches=(1, 2, 3), **options):
    """Returns a digest by the way in which the masks of `number` images were worked out."""
    rng = np.random.default_rng(5)
    images = rng.random((number, side, side, 3), np.float32)
    # Every image has a class and an area of its own: rows that changed places would show.
    targets, areas = np.arange(number) % 4, np.linspace(0.05, 0.4, number)[:, None]
    # A key goes with its image: drawn by the place in the batch, the shuffled ones would differ.
    keys = jax.random.split(jax.random.key(0), number)

    def solved(order, **more):
        result = perturb.extremal(
            model,
            images[order],
            targets[order],
            areas=areas[order],
            keys=keys[order],
            steps=steps,
            **options,
            **more,
        )
        return [result]

    # Three images in batches of 2: the last one is not full.
    straight, shuffled = np.arange(number), rng.permutation(number)
    found = {f"batches of {n}": digest(solved(straight, batch_size=n), straight) for n in batches}
    found["shuffled"] = digest(solved(shuffled, batch_size=batches[-1]), shuffled)
    # As a job does that was stopped after its first picture.
    stopped = [solved(rows)[0] for rows in (straight[:1], straight[1:])]
    found["stopped and continued"] = digest(stopped, straight)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", default="demo")
    parser.add_argument("--weights")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--number", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batches", default="1,2,3")
    given = parser.parse_args()
    if given.net == "small":
        model = planted.small_network()
    elif given.weights:
        model = perturb.load_model(given.net, weights=given.weights)
    else:
        model = perturb.load_model(given.net, key=jax.random.key(0))
    batches = tuple(int(n) for n in given.batches.split(","))
    found = digests(model, given.side, number=given.number, steps=given.steps, batches=batches)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
