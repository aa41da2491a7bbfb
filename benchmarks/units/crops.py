"""Does a gradient ever reach outside the crop of a unit? A thousand units and places of four
networks.

python -m benchmarks.units.crops --count=1000
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

import perturb
from benchmarks.units import data
from perturb.nets.vit import ViT
from tests.internals.test_receptive import check

CASES = {
    "squeezenet1_1": ((96, 96), ("features.0", "features.3", "features.6", "features.9")),
    "mobilenet_v2": ((96, 96), ("features.0/0", "features.3", "features.6", "features.9")),
    "cifar_resnet20": ((32, 32), ("conv1", "layer1.2", "layer2.0", "layer2.2")),
    "vit": ((64, 64), ("conv_proj", "encoder.layers.encoder_layer_0")),
}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--nets", default=",".join(CASES))
    given = parser.parse_args()
    data.row(
        "network",
        "units and places",
        "gradients outside the crop",
        "all rectifiers open: whole crop reached",
        "CPU, s",
    )
    for name in given.nets.split(","):
        size, layers = CASES[name]
        began = time.process_time()
        model = name
        if name == "vit":
            net = ViT(classes=10, patch=16, width=48, heads=3, hidden=96, layers=2)
            model = perturb.Model(net.apply, net.init(jax.random.key(0), jnp.zeros((1, *size, 3))))
        # Rounded up, so that no fewer than asked are looked at.
        each = -(-given.count // len(layers))
        outside, _ = check(model, size, layers, each)
        # With all rectifiers open nothing is cut off by chance: the whole crop has to be reached.
        missed, whole = check(model, size, layers[:2], 20, straight=True)
        data.row(
            name,
            each * len(layers),
            outside + missed,
            f"{whole} of 40",
            f"{time.process_time() - began:.0f}",
        )


if __name__ == "__main__":
    main()
