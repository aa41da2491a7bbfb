"""What classes lose without their most important units: the embedded networks, CIFAR ResNets, a
LeNet of digits.

  python -m benchmarks.units.ablation --nets=demo,resnet20,resnet56,lenet

Units are ranked on the even pictures together and by log-probability (ours) and by accuracy (as
published), and sets of them tested on the odd ones, the same pictures for each ranking. Then
effects of single units are shuffled among the units, picture by picture, and false discoveries
counted.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np
import PIL.Image

import perturb
from benchmarks.units import data
from launch import demo
from launch.demo import world
from perturb.internals import Answers, UnitTable, ablate, class_units, unit_p_values
from perturb.statistics import Interval, discoveries
from tests import graphnet

SIZES = (1, 2, 4, 8, 16)


def load(name: str) -> tuple[perturb.Model, Any, Any, str]:
    """A network, pictures, classes, and the layer before the last weights."""
    if name in demo.NAMES:
        drawn = world.render_batch(21, range(1200))
        return demo.load(name), drawn.image, drawn.target, "relu#6"
    root = data.folder()
    if name == "lenet":
        kept = np.load(root / "mnist" / "test_1000.npz")
        model = graphnet.model(root / "weights" / "mnist_lenet5.json", channels=1)
        bilinear = PIL.Image.Resampling.BILINEAR
        # LeNet was trained on 32 x 32 px.
        digits = [
            np.asarray(PIL.Image.fromarray(d).resize((32, 32), bilinear)) for d in kept["images"]
        ]
        images = np.stack(digits)[..., None].astype(np.float32) / 255
        return model, images, kept["labels"].astype(int), "fc.relu6"
    kept = np.load(root / "cifar10" / "test_1000.npz")
    model = perturb.load_model(
        f"cifar_{name}", weights=root / "weights" / f"cifar10_{name}.safetensors"
    )
    layer = {"resnet20": "layer3.2", "resnet56": "layer3.8"}[name]
    return model, kept["images"].astype(np.float32) / 255, kept["labels"].astype(int), layer


def shuffled(found: Answers, draws: int) -> tuple[float, float]:
    """Share of units discovered, and of draws with a discovery, where units are exchanged at
    random.
    """
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(draws):
        # Another order of the units for each picture: then which unit is which says nothing.
        order = np.argsort(rng.random(found.log_probability[1:].shape), 0)
        mixed = np.take_along_axis(found.log_probability[1:], order, 0)
        # The first row is the network with nothing off, and stays in its place.
        values = np.concatenate([found.log_probability[:1], mixed])
        p = unit_p_values(found._replace(log_probability=values))
        shares.append(discoveries(p, rate=0.05).mean())
    return float(np.mean(shares)), float((np.array(shares) > 0).mean())


def less(
    model: perturb.Model, images: Any, targets: Any, a: UnitTable, b: UnitTable, **common: Any
) -> list[Interval]:
    """By how much the sets of one table cost more than those of another, paired, for each size."""
    # The odd pictures, for the even ones made the ranking.
    images, targets = images[1::2], targets[1::2]
    classes = np.unique(targets)
    masks = [
        np.isin(np.arange(t.orders.shape[1]), order[:k])
        for k in SIZES
        for t in (a, b)
        for order in t.orders
    ]
    named = ablate(model, images, targets, sets=np.array(masks), **common).predicted[1:]
    named = named.reshape(len(SIZES), 2, len(classes), -1)
    # How often each picture is drawn: a resample as weights, and the estimate in the first row.
    weights = np.random.default_rng(0).multinomial(
        len(targets), np.full(len(targets), 1 / len(targets)), 1000
    )
    weights = np.concatenate([np.ones((1, len(targets)), int), weights])
    found = []
    for rows in named:
        balanced = []
        for table in rows:
            each = []
            for row, c in zip(table, classes, strict=True):
                said, of = row == c, targets == c
                # Shares of the class and of the others, so that nine tenths of others do not
                # decide.
                recall = weights @ (said & of) / (weights @ of)
                each.append((recall + weights @ (~said & ~of) / (weights @ ~of)) / 2)
            balanced.append(np.mean(each, 0))
        # Both rankings under the same weights: the difference is paired.
        gain = balanced[1] - balanced[0]
        low, high = np.quantile(gain[1:], (0.025, 0.975))
        found.append(Interval(float(gain[0]), float(low), float(high), len(targets)))
    return found


def main() -> None:
    """Prints a table a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="demo,resnet20,resnet56,lenet")
    parser.add_argument("--draws", type=int, default=100)
    given = parser.parse_args()
    for name in given.nets.split(","):
        began = time.process_time()
        model, images, targets, layer = load(name)
        common = {"layer": layer, "batch_size": 100, "chunk": 8}
        tables = {
            by: class_units(
                model,
                images,
                targets,
                sizes=SIZES,
                by=by,
                controls=20,
                key=jax.random.key(0),
                **common,
            )
            for by in ("joint", "log_probability", "accuracy")
        }
        ours, alone, published = tables.values()
        more = less(model, images, targets, ours, published, **common)
        print(f"\n{name} `{layer}`, {len(targets)} pictures: balanced accuracy {ours.whole:.3f}\n")
        data.row(
            "k",
            "k most important off",
            "ranked one by one",
            "by the published ranking",
            "less than by the published, paired",
            "random off: mean, lowest",
            "matched off",
            "less than random, paired",
            "only these k",
            "accuracy of all classes",
        )
        for i, k in enumerate(SIZES):
            data.row(
                k,
                data.told(ours.off[i]),
                f"{alone.off[i].value:.3f}",
                data.told(published.off[i]),
                data.told(more[i]),
                f"{ours.random[i].mean():.3f}, {ours.random[i].min():.3f}",
                f"{ours.matched[i].mean():.3f}",
                data.told(ours.lost[i]),
                f"{ours.kept[i].value:.3f}",
                f"{ours.overall[i]:.3f}",
            )
        worse = [o.value <= p.value for o, p in zip(ours.off, published.off, strict=True)]
        single = ablate(model, images, targets, **common)
        real = discoveries(unit_p_values(single), rate=0.05).mean()
        false, any_ = shuffled(single, given.draws)
        print(
            f"\nat least as damaging as the published ranking: {sum(worse)} of {len(worse)} sizes"
        )
        print(
            f"units that cost more than others, FDR .05: {real:.1%}; shuffled: {false:.2%} of "
            "units,"
        )
        print(
            f"any in {any_:.0%} of {given.draws} draws; {time.process_time() - began:.0f} s of CPU"
        )


if __name__ == "__main__":
    main()
