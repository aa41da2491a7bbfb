"""A network that explains the embedded classifier: the curve p(eta), and what is rebuilt.

`python -m benchmarks.explainer_figures [--etas=0,0.01,0.1,1] [--out=out/explainer]`: crops of all
ten classes at 64 px, as large as the classifier was trained on, from the fourth convolution to the
sixth. What is done lies in `--out`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import jax
import numpy as np

from benchmarks.filter_figures import places
from benchmarks.parts import crops
from launch import demo
from perturb import taps
from perturb.internals import interpretable
from perturb.internals.explainer_net import rebuild, share_of_variance, train_explainer
from perturb.metrics.parts import location_instability

LOWER, UPPER, SIZE = "relu#4", "relu#6", 64


def maps_of(model, images):
    """Maps of the two layers and the logits."""
    read = jax.jit(taps.read(model, (LOWER, UPPER)))
    parts = [read(np.float32(images[i : i + 100]) / 255) for i in range(0, len(images), 100)]
    layers = [np.concatenate([np.asarray(p[1][name]) for p in parts]) for name in (LOWER, UPPER)]
    return *layers, np.concatenate([np.asarray(p[0]) for p in parts])


def steadiness(maps, classes, shown):
    """Instability of each live filter on the images of its class, mean."""
    where, peaks = places(maps), maps.max((1, 2))
    found = []
    for c in np.flatnonzero(peaks.mean(0) > 1e-3):
        own = shown.labels == classes[c]
        one = location_instability(
            where[own][:, [c]], peaks[own][:, [c]], shown.marks[own], diagonal=SIZE * 2**0.5
        )
        found.append(one.distance[0])
    return float(np.nanmean(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--etas", default="0,0.01,0.1,1")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/explainer"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = demo.load("demo")
    train, test = (
        crops(number, size=SIZE, seed=seed, scale=0.45, distractors=True)
        for number, seed in ((given.pictures, 11), (600, 1_000_003))
    )
    lower, upper, answers = maps_of(model, train.images)
    below, above, logits = maps_of(model, test.images)
    accuracy = (logits.argmax(1) == test.labels).mean()
    own = interpretable.filter_classes(upper[:1000], answers[:1000].argmax(1), 10)
    print(
        f"the classifier: accuracy {accuracy:.4f}, instability {steadiness(above, own, test):.4f}"
    )
    prefix, suffix = taps.split(model, UPPER)
    live = prefix(np.float32(test.images[:100]) / 255)[1]
    read = jax.jit(suffix)
    for eta in map(float, given.etas.split(",")):
        path = given.out / f"{given.pictures}-{given.steps}-{eta:g}.json"
        if not path.exists():
            begun = time.process_time()
            found = train_explainer(lower, upper, answers.argmax(1), eta=eta, steps=given.steps)
            rebuilt, filters = rebuild(found, below)
            through = np.concatenate(
                [np.asarray(read(rebuilt[i : i + 100], live)) for i in range(0, len(rebuilt), 100)]
            )
            figures = {
                "eta": eta,
                "p": found.p,
                "R2": share_of_variance(rebuilt, above),
                "accuracy": float((through.argmax(1) == test.labels).mean()),
                "same answer": float((through.argmax(1) == logits.argmax(1)).mean()),
                "instability": steadiness(filters, found.classes, test),
                "cpu s": round(time.process_time() - begun, 1),
            }
            path.write_text(json.dumps(figures))
        print({k: round(v, 4) for k, v in json.loads(path.read_text()).items()}, flush=True)


if __name__ == "__main__":
    main()
