"""SqueezeNet 1.0 and 1.1, `SqueezeNet <https://arxiv.org/abs/1602.07360>`_, as torchvision has
them.

Layers carry torchvision's names. Dropout before the classifier is left out: inference only.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from perturb import weights as weights_lib
from perturb.geometry import short_side
from perturb.nets._net import Net
from perturb.nets._pool import max_pool

__all__ = ["SqueezeNet", "squeezenet1_0", "squeezenet1_1"]

_POOL = (0, 0)
# Fire modules as (squeeze, expand) channels, from layer `features.2` on.
_LAYERS_1_0 = (
    *(_POOL, (16, 64), (16, 64), (32, 128)),
    *(_POOL, (32, 128), (48, 192), (48, 192), (64, 256)),
    *(_POOL, (64, 256)),
)
_LAYERS_1_1 = (
    *(_POOL, (16, 64), (16, 64)),
    *(_POOL, (32, 128), (32, 128)),
    *(_POOL, (48, 192), (48, 192), (64, 256), (64, 256)),
)


class Fire(nn.Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions side by side: `[B, H, W, 2 * expand]`."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(nn.Conv(self.squeeze, (1, 1), name="squeeze")(x))
        one = jax.nn.relu(nn.Conv(self.expand, (1, 1), name="expand1x1")(x))
        three = jax.nn.relu(nn.Conv(self.expand, (3, 3), padding=1, name="expand3x3")(x))
        return jax.numpy.concatenate([one, three], axis=-1)


class SqueezeNet(nn.Module):
    """Images `[B, H, W, 3]`, normalised, to logits `[B, classes]`.

    Attributes:
      stem: channels and side of the first kernel.
      layers: `(squeeze, expand)` for a fire module, `(0, 0)` for a pool, from `features.2` on.
      classes: number of classes.
    """

    stem: tuple[int, int]
    layers: tuple[tuple[int, int], ...]
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, side = self.stem
        x = nn.Conv(channels, (side, side), (2, 2), padding="VALID", name="features.0")(x)
        x = jax.nn.relu(x)
        for i, layer in enumerate(self.layers, start=2):
            x = (
                # A last window may hang over the edge: Caffe's rule, which torchvision keeps.
                max_pool(x, 3, 2, ceil=True)
                if layer == _POOL
                else Fire(*layer, name=f"features.{i}")(x)
            )
        # classifier.0 is the dropout.
        x = jax.nn.relu(nn.Conv(self.classes, (1, 1), name="classifier.1")(x))
        return x.mean((1, 2))


def _net(name: str, stem: tuple[int, int], layers: tuple[tuple[int, int], ...]) -> Net:
    def module(tensors: weights_lib.Tensors) -> SqueezeNet:
        shows = (("classifier.1.weight", 0), ("classifier.1.bias", 0))
        return SqueezeNet(stem, layers, weights_lib.width(tensors, *shows, default=1000))

    return Net(name=name, module=module, geometry=short_side(256).crop(224), sizes=True)


squeezenet1_0 = _net("squeezenet1_0", (96, 7), _LAYERS_1_0)
squeezenet1_1 = _net("squeezenet1_1", (64, 3), _LAYERS_1_1)
