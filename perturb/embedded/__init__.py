"""The embedded world: pictures that know every pixel, and small classifiers trained on them.

`demo` had to look at the object; `demo_cheat` was trained where a watermark gave the class away.
`demo_vit` is a small vision transformer on the pictures of `demo`; it is right seven times in ten.

>>> model, images, targets = demo(count=2)
>>> images.shape, [model.class_names[t] for t in targets]
((2, 64, 64, 3), ['crescent', 'diamond'])
"""

from __future__ import annotations

import importlib.resources
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from perturb import display
from perturb.embedded import world
from perturb.embedded.scene import class_names
from perturb.messages import did_you_mean, short
from perturb.model import Model
from perturb.nets import load_model

__all__ = ["NAMES", "Demo", "class_names", "demo", "load", "tensors"]

NAMES = ("demo", "demo_cheat", "demo_vit")
# Another world than that of the training, and the one that the pages of the demo show.
_SEED = 7


class Demo(NamedTuple):
    """A classifier with pictures that it was never trained on.

    Attributes:
      model: the network, a `perturb.Model`; its `class_names` say what the targets are.
      images: `[B, 64, 64, 3]` float32 in [0, 1].
      targets: `[B]` int32, the class of the object in each.
    """

    model: Model
    images: np.ndarray
    targets: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def demo(name: str = "demo", count: int = 8, *, watermark: str | int | None = None) -> Demo:
    """Returns an embedded classifier, pictures of its world and their classes: something to try.

    The pictures are those of `perturb.embedded.world`, where the label of every pixel is known too.

    Args:
      name: "demo"; "demo_cheat", which reads the watermark; or "demo_vit", a vision transformer.
      count: number of pictures, at least 1; ten classes take turns.
      watermark: None; "right", "wrong" or "random" for a stamp that names the class, another one
        or any; or the class that it names, from 0 to 9.
    Raises:
      ValueError: if there is no such classifier or watermark, or `count` is below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number of pictures, at least 1, got {count!r}")
    model = load(name)
    drawn = world.render_batch(_SEED, range(count), watermark=watermark)
    return Demo(model, drawn.image, drawn.target)


def load(name: str) -> Model:
    """Returns a classifier of the picture world: 64 px pictures to ten logits.

    Args:
      name: "demo"; "demo_cheat", which reads the watermark; or "demo_vit", a vision transformer.
    Raises:
      ValueError: if there is no such classifier, or its file does not fit the network.
    """
    if name not in NAMES:
        near = did_you_mean(name, NAMES)
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {short(name, 40)}{near}")
    return load_model(name, weights=tensors(name), class_names=class_names)


def tensors(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of the weight file of a classifier.

    Args:
      name: one of `NAMES`.
    """
    file = importlib.resources.files("perturb.embedded") / f"{name}.safetensors"
    return safetensors.numpy.load(file.read_bytes())
