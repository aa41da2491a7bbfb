"""VGG-16 and VGG-19, `Simonyan and Zisserman 2014 <https://arxiv.org/abs/1409.1556>`_,
configurations D and E.

Layers carry torchvision's names; timm's files are read too. Dropout is left out: inference only.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from perturb import weights as weights_lib
from perturb.geometry import short_side
from perturb.nets._net import Net
from perturb.nets._pool import max_pool, mean_to

__all__ = ["VGG", "vgg16", "vgg19"]

# Table 1: convolutions in each of the five stages.
_D = (2, 2, 3, 3, 3)
_E = (2, 2, 4, 4, 4)
_CHANNELS = (64, 128, 256, 512, 512)
# The maps end at this many pixels a side, whatever the picture's size.
_SIDE = 7


class VGG(nn.Module):
    """Images `[B, H, W, 3]`, normalised, to logits `[B, classes]`; 224 px is the published size.

    Attributes:
      stages: number of 3x3 convolutions in each stage.
      classes: number of classes.
    """

    stages: tuple[int, ...]
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        i = 0
        for convolutions, channels in zip(self.stages, _CHANNELS, strict=True):
            for _ in range(convolutions):
                x = jax.nn.relu(nn.Conv(channels, (3, 3), padding=1, name=f"features.{i}")(x))
                # torchvision numbers its layers with the relu after each convolution and the pool
                # after each stage.
                i += 2
            x = max_pool(x, 2, 2)
            i += 1
        x = mean_to(x, _SIDE).reshape(x.shape[0], -1)
        x = jax.nn.relu(nn.Dense(4096, name="classifier.0")(x))
        x = jax.nn.relu(nn.Dense(4096, name="classifier.3")(x))
        return nn.Dense(self.classes, name="classifier.6")(x)


def _rows(w: np.ndarray) -> np.ndarray:
    """The first dense layer reads its maps channel by channel in the file, pixel by pixel here."""
    maps = w.reshape(len(w), -1, _SIDE, _SIDE)
    return maps.transpose(2, 3, 1, 0).reshape(-1, len(w))


def _slots(template: weights_lib.Tensors, separator: str) -> dict[str, weights_lib.Slot]:
    slots = weights_lib.slots(template, separator=separator)
    first = slots["classifier.0.weight"]
    # The shapes are those of any dense layer, only the order of the rows is another.
    layout = weights_lib.Layout(_rows, weights_lib.LINEAR.shape)
    return {**slots, "classifier.0.weight": first._replace(layout=layout)}


_TIMM = {
    r"^pre_logits\.fc1\.": "classifier.0.",
    r"^pre_logits\.fc2\.": "classifier.3.",
    r"^head\.fc\.": "classifier.6.",
}


def _spell(tensors: weights_lib.Tensors) -> dict[str, np.ndarray]:
    """timm's names, and its dense layers written as convolutions, in torchvision's way."""
    spelt = weights_lib.rename(tensors, _TIMM)
    # timm has them as convolutions over the last map; seen from there, 7 x 7 and 1 x 1 kernels.
    dense = {n for n in spelt if n.startswith("classifier.") and spelt[n].ndim == 4}
    return {n: w.reshape(len(w), -1) if n in dense else w for n, w in spelt.items()}


def _net(name: str, stages: tuple[int, ...]) -> Net:
    def module(tensors: weights_lib.Tensors) -> VGG:
        shows = (("classifier.6.weight", 0), ("classifier.6.bias", 0))
        return VGG(stages, weights_lib.width(tensors, *shows, default=1000))

    geometry = short_side(256).crop(224)
    return Net(name=name, module=module, geometry=geometry, slots=_slots, spell=_spell)


vgg16, vgg19 = _net("vgg16", _D), _net("vgg19", _E)
