"""Symmetric relevance gain of attributions on the small embedded transformer, with intervals.

    python -m benchmarks.transformers --pictures=40 --out=out/transformers
    python -m benchmarks.transformers --pictures=40 --objects=2

Pictures were never trained on; only those that the network answers rightly with a probability above
0.5 count. With two objects, of different classes side by side, the right answer is either: a map of
where any object is no longer says what the answer rests on. Prints a Markdown table and writes it
to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time

import jax
import numpy as np

import perturb
from launch import demo
from launch.demo import world
from perturb import attribution, metrics, statistics

NAMES = (
    *("libragrad", "legrad", "attn_lrp", "rollout", "grad_cam"),
    *("integrated_gradients", "input_gradient", "occlusion", "random", "centre"),
)
# Fewer windows, each of which is a pass.
FEWER = {"occlusion": {"window": 8}}


# The seed that training kept apart.
SEED = 1_000_003
# Where two objects lie, and the largest that fits there, as shares of the side and the picture.
PLACES, FITS = ((0.28, 0.5), (0.72, 0.5)), 0.1


def chosen(model: perturb.Model, number: int, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and classes of the first `number` pictures that are answered rightly and
    surely; of two objects either class is right.
    """
    # Six times as many, for not all are answered surely.
    if objects == 1:
        batch = world.render_batch(SEED, range(6 * number))
        images, right = batch.image, batch.target[:, None]
    else:
        pairs = [beside(i) for i in range(6 * number)]
        images, right = (np.stack(column) for column in zip(*pairs, strict=True))
        images, right = (column[right[:, 0] != right[:, 1]] for column in (images, right))
    chance = np.asarray(jax.nn.softmax(model(images)))
    answer = chance.argmax(1)
    good = (right == answer[:, None]).any(1) & (chance.max(1) > 0.5)
    return images[good][:number], answer[good][:number]


def beside(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture `[64, 64, 3]` of two objects side by side and their classes `[2]`."""
    both = [world.factors(SEED, 2 * index + n) for n in range(2)]
    one, other = (
        dataclasses.replace(f, center=place, area=min(f.area, FITS))
        for f, place in zip(both, PLACES, strict=True)
    )
    keep, ink, _ = world.cutout(other)
    return keep * world.draw(one).image + ink, np.array([one.target, other.target])


def maps(model: perturb.Model, images: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns every method's map of every picture, and that of the field of scores."""
    found = {}
    for name in NAMES:
        began = time.monotonic()
        found[name] = attribution.get(name)(model, images, targets, **FEWER.get(name, {}))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    found["libragrad, plain gradient"] = attribution.libragrad(
        model, images, targets, balanced=False
    )
    found["libragrad, positive"] = attribution.libragrad(model, images, targets, positive=True)
    for question in ("enough", "both"):
        began = time.monotonic()
        heat = perturb.importance_map(model, images, targets, question=question).heat
        found[f"map, {question}"] = heat
        print(f"map {question}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--skip", type=int, default=0, help="so many of them, the first")
    parser.add_argument("--objects", type=int, default=1, choices=(1, 2), help="of a picture")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/transformers"))
    given = parser.parse_args()
    model = demo.load("demo_vit")
    found = chosen(model, given.skip + given.pictures, given.objects)
    images, targets = (column[given.skip :] for column in found)
    gains = {}
    for name, found in maps(model, images, targets).items():
        gains[name] = metrics.relevance_gain(model, images, targets, found).value
    ours = ("libragrad", "libragrad, positive")
    heads = ["map", "SRG", "95 %", *(f"{name} less this" for name in ours)]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in sorted(gains, key=lambda n: -gains[n].mean()):
        own = statistics.mean_interval(gains[name])
        # Picture by picture: both methods explain the same ones.
        less = [statistics.paired(gains[one], gains[name]) for one in ours]
        cells = [f"{i.value:+.3f} ({i.low:+.3f} to {i.high:+.3f})" for i in less]
        rows.append(
            f"| {name} | {own.value:.3f} | {own.low:.3f} to {own.high:.3f} | {' | '.join(cells)} |"
        )
    text = f"{len(images)} pictures\n\n" + "\n".join(rows) + "\n"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "srg.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
