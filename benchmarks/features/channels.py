"""Do pictures of random channels start, and do they excite the channel more than any photograph?

  python -m benchmarks.features.channels --network=squeezenet1_1 --channels=64 --steps=64
  python -m benchmarks.features.channels --preset=maco --learn   # spectrum of the photographs

Channels are drawn with seed 0. A photograph's answer is the channel's mean over its places, as the
picture's is, and none of the transforms are applied to either.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import jax
import numpy as np

import perturb
from benchmarks.units import data
from perturb import taps, weights
from perturb.internals import features
from perturb.nets import vit

LAYERS = {
    "squeezenet1_1": ("features.6", "features.9", "features.11"),
    "mobilenet_v2_tf": tuple(f"MobilenetV2/expanded_conv_{i}/expand" for i in (4, 8, 16)),
    "vit_b_16": tuple(f"encoder.layers.encoder_layer_{i}" for i in (0, 2, 5)),
}
FILES = {"squeezenet1_1": "squeezenet1_1", "mobilenet_v2_tf": "mobilenet_v2_1.0_224"}


def network(name: str, size: int) -> perturb.Model:
    """The network with its real weights, or random ones where there are none."""
    if name == "vit_b_16" and size != 224:
        # Published position embeddings are for 224 px; drawn ones can be for any size.
        net, key = vit.ViT(), jax.random.key(0)
        shape = jax.ShapeDtypeStruct((2, size, size, 3), "float32")
        drawn = weights.draw(jax.eval_shape(net.init, key, shape), key)
        known = vit.vit_b_16
        return perturb.adapters.from_linen(net, drawn, mean=known.mean, std=known.std, name=name)
    if name not in FILES:
        return perturb.load_model(name, key=jax.random.key(0))
    file = data.folder() / "weights" / f"{FILES[name]}.safetensors"
    return perturb.load_model(name, weights=file, size=size)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="squeezenet1_1")
    parser.add_argument("--layers", default="")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--preset", default="lucid")
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--batch_size", type=int, default=16)
    given = parser.parse_args()
    model = network(given.network, given.size)
    shape = (120, given.size, given.size, 3)
    photographs = np.asarray(jax.image.resize(data.photographs(), shape, "linear")).clip(0, 1)
    recipe = features.preset(given.preset)
    if given.learn:
        maco = features.Maco(spectrum=features.learn(photographs))
        recipe = dataclasses.replace(recipe, parametrisation=maco)
    known = taps.names(model, jax.ShapeDtypeStruct((2, *shape[1:]), np.float32))
    data.row(
        *("network", "layer", "channels", "started", "above the best of 120 photographs"),
        *("times the best: least, median", "high frequencies, times photographs'", "CPU s"),
    )
    for layer in given.layers.split(",") if given.layers else LAYERS[given.network]:
        count = known[layer].shape[model.channel_axis(known[layer])]
        units = np.sort(np.random.default_rng(0).permutation(count)[: given.channels])
        before = time.process_time()
        wanted = features.channel(layer, units)
        found = features.visualise(
            model,
            wanted,
            preset=recipe,
            steps=given.steps,
            size=given.size,
            batch_size=given.batch_size,
            key=jax.random.key(0),
        )
        spent = time.process_time() - before
        best = features.evaluate(model, wanted, photographs).max(1)
        high = features.high_share(found.images) / np.median(features.high_share(photographs))
        # Of units that no photograph excites there is no ratio.
        ratio = found.values[best > 0] / best[best > 0]
        data.row(
            *(given.network, f"`{layer}`", len(units), int(found.started.sum())),
            int((found.values > best).sum()),
            f"{ratio.min():.2f}, {np.median(ratio):.2f}",
            f"{np.median(high):.2f}",
            f"{spent:.0f}",
        )


if __name__ == "__main__":
    main()
