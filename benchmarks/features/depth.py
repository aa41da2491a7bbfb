"""How much of a picture comes back from a layer, by depth: its inversion, that of the mean, and a
random network's.

  python -m benchmarks.features.depth --network=squeezenet1_1 --size=64 --steps=300
  python -m benchmarks.features.depth --network=cifar_resnet20 --size=32 --steps=300

Errors of pictures and of features are over the mean distance between photographs (1: as far as
another photograph). "The mean" is the inversion of the layer's mean over the photographs, which
knows nothing of any one of them. Below each network the rank correlation of depth and error,
photograph by photograph.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

import perturb
from benchmarks.units import data
from perturb import statistics
from perturb.internals import features
from perturb.internals.features import inversion

LAYERS = {
    "squeezenet1_1": tuple(f"features.{i}" for i in (3, 6, 9, 12)),
    "cifar_resnet20": ("layer1.0", "layer1.2", "layer2.2", "layer3.0", "layer3.2"),
}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="squeezenet1_1")
    parser.add_argument("--photographs", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prior", default="tv")
    given = parser.parse_args()
    whole = data.photographs()[: given.photographs]
    shape = (len(whole), given.size, given.size, 3)
    pictures = np.asarray(jax.image.resize(whole, shape, "linear")).clip(0, 1)
    stored = given.network.replace("cifar_", "cifar10_")
    file = data.folder() / "weights" / f"{stored}.safetensors"
    # The residual network is of one size alone.
    size = None if given.network.startswith("cifar") else given.size
    networks = {
        given.network: perturb.load_model(given.network, weights=file, size=size),
        "random weights": perturb.load_model(given.network, key=jax.random.key(0), size=size),
    }
    data.row(
        *("network", "layer", "error of the picture", "of the mean", "error of the features"),
        *("of the mean", "PSNR, dB", "CPU s"),
    )
    for name, model in networks.items():
        errors = []
        for layer in LAYERS[given.network]:
            before = time.process_time()
            found = features.invert(
                model, layer, pictures, prior=given.prior, steps=given.steps, key=jax.random.key(0)
            )
            mean = _mean_inverted(model, layer, pictures, given.prior, given.steps)
            spent = time.process_time() - before
            columns = (
                picture_error(pictures, found.images.clip(0, 1)),
                picture_error(pictures, mean.clip(0, 1)),
                found.error,
                features.feature_error(model, layer, pictures, mean),
                found.psnr,
            )
            told = [
                data.told(statistics.mean_interval(x), digits)
                for x, digits in zip(columns, (2, 2, 2, 2, 1), strict=True)
            ]
            data.row(name, f"`{layer}`", *told, f"{spent:.0f}")
            errors.append((columns[0], columns[2]))
        told = [data.told(rank_order(x), 2) for x in np.moveaxis(np.array(errors), 0, -1)]
        data.row(name, "rank correlation with depth", told[0], "", told[1], "", "", "")


def picture_error(pictures: np.ndarray, made: np.ndarray) -> np.ndarray:
    """How far pictures are from those that they are of, over the mean distance between these."""
    distance, _, usual = inversion._distances(made, pictures)
    found: np.ndarray = distance / usual
    return found


def rank_order(errors: np.ndarray) -> statistics.Interval:
    """Rank correlation of depth and error `[photographs, layers]`: the mean over photographs."""
    depth = np.broadcast_to(np.arange(errors.shape[1]), errors.shape)
    return statistics.mean_interval(statistics.spearman(depth, errors))


def _mean_inverted(
    model: perturb.Model, layer: str, pictures: np.ndarray, prior: str, steps: int
) -> np.ndarray:
    """The picture of the layer's mean, once for each photograph."""
    mean = inversion._read(model, pictures, layer).mean(0, keepdims=True)
    found = features.visualise(
        model,
        inversion._objective(layer, mean, prior),
        preset=inversion._recipe(prior, steps, None),
        size=pictures.shape[1:3],
        key=jax.random.key(0),
    )
    return np.broadcast_to(found.images, pictures.shape)


if __name__ == "__main__":
    main()
