"""How much of a picture a layer still knows, by depth: its inversion, that of the mean, and a
random network's.

  python -m benchmarks.features.depth --network=squeezenet1_1 --size=64 --steps=60
  python -m benchmarks.features.depth --network=cifar_resnet20 --size=32 --steps=60

The error is that of the features over their mean distance between photographs (1: as far as another
photograph). "The mean" is the mean photograph in place of an inversion.
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

LAYERS = {
    "squeezenet1_1": tuple(f"features.{i}" for i in (3, 6, 9, 12)),
    "cifar_resnet20": ("layer1.0", "layer1.2", "layer2.2", "layer3.0", "layer3.2"),
}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="squeezenet1_1")
    parser.add_argument("--photographs", type=int, default=20)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=100)
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
    data.row("network", "layer", "error", "of the mean", "PSNR, dB", "CPU s")
    for name, model in networks.items():
        for layer in LAYERS[given.network]:
            before = time.process_time()
            found = features.invert(
                model, layer, pictures, prior=given.prior, steps=given.steps, key=jax.random.key(0)
            )
            spent = time.process_time() - before
            mean = features.feature_error(
                model, layer, pictures, np.broadcast_to(pictures.mean(0), pictures.shape)
            )
            told = [
                data.told(statistics.mean_interval(x), digits)
                for x, digits in ((found.error, 2), (mean, 2), (found.psnr, 1))
            ]
            data.row(name, f"`{layer}`", *told, f"{spent:.0f}")


if __name__ == "__main__":
    main()
