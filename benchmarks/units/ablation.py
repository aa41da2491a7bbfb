"""What classes lose without their most important units: the embedded networks, CIFAR ResNets, a
LeNet of digits.

  python -m benchmarks.units.ablation --nets=demo,resnet20,resnet56,lenet

Units are ranked on the even pictures by log-probability (ours) and by accuracy (as published), and
sets of them tested on the odd ones. Then effects of single units are shuffled among the units,
picture by picture, and false discoveries counted.
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
from perturb.internals import Answers, ablate, class_units, unit_p_values
from perturb.statistics import discoveries
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
        order = np.argsort(rng.random(found.log_probability[1:].shape), 0)
        mixed = np.take_along_axis(found.log_probability[1:], order, 0)
        values = np.concatenate([found.log_probability[:1], mixed])
        p = unit_p_values(found._replace(log_probability=values))
        shares.append(discoveries(p, rate=0.05).mean())
    return float(np.mean(shares)), float((np.array(shares) > 0).mean())


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
            for by in ("log_probability", "accuracy")
        }
        ours, published = tables.values()
        print(f"\n{name} `{layer}`, {len(targets)} pictures: balanced accuracy {ours.whole:.3f}\n")
        data.row(
            "k",
            "k off",
            "by the published ranking",
            "random off: mean, lowest",
            "matched off",
            "lost more than random",
            "only these k",
            "accuracy of all classes",
        )
        for i, k in enumerate(SIZES):
            data.row(
                k,
                data.told(ours.off[i]),
                data.told(published.off[i]),
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
