"""How a photograph of any size becomes the model's input: resizing and cropping, nothing else.

A `Geometry` is a short list of steps written the way papers write them. Values stay RGB in [0, 1];
normalisation belongs to the model. Sides and offsets follow the published recipes: bilinear with
antialiasing (Pillow), sides rounded, crops centred.

>>> import PIL.Image
>>> pixels, crop = short_side(256).crop(224).apply(PIL.Image.new("RGB", (500, 375), "red"))
>>> pixels.shape, crop
((224, 224, 3), (...))
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from perturb.types import PyTree

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Geometry", "central", "short_side", "squash"]

Size = tuple[int, int]

_STEPS = ("short_side", "squash", "crop", "central")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Steps from a photograph to the model's input, applied in order.

    Attributes:
      steps: pairs of a name and its argument: `("short_side", n)` scales so that the shorter side
        is `n` px; `("squash", (h, w))` scales to exactly that size; `("crop", (h, w))` cuts the
        centre; `("central", f)` cuts the central share `f` of each side.
    """

    steps: tuple[tuple[str, PyTree], ...] = ()

    def __post_init__(self) -> None:
        for name, _ in self.steps:
            if name not in _STEPS:
                raise ValueError(f"steps must be named {', '.join(_STEPS)}, got {name!r}")

    def crop(self, size: int | Size) -> Geometry:
        """Returns this geometry followed by a centred crop of `size` px (one side or `(h, w)`).

        Args:
          size: px, one side or `(h, w)`.
        """
        return Geometry((*self.steps, ("crop", _pair(size, "crop size"))))

    def squash(self, size: int | Size) -> Geometry:
        """Returns this geometry followed by a resize to exactly `size` px (one side or `(h, w)`).

        Args:
          size: px, one side or `(h, w)`.
        """
        return Geometry((*self.steps, ("squash", _pair(size, "squash size"))))

    @property
    def size(self) -> Size | None:
        """`(height, width)` of the result in px; None where it depends on the photograph."""
        name, value = self.steps[-1] if self.steps else ("", None)
        return value if name in ("crop", "squash") else None

    def apply(self, image: PIL.Image.Image) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """Returns the model's input and the part of the photograph that it shows.

        Args:
          image: a Pillow image, mode RGB or L.
        Returns:
          pixels `[H, W, C]` float32 in [0, 1], and `(left, top, right, bottom)` in px of `image`.
        Raises:
          ValueError: if a crop is larger than the picture it is taken from, or the mode is another:
            Pillow resizes palettes without interpolating, and an alpha channel is no colour.
        """
        import PIL.Image

        if image.mode not in ("RGB", "L"):
            raise ValueError(
                f'image must have mode RGB or L, got {image.mode}; image.convert("RGB")'
            )
        box = (0.0, 0.0, float(image.width), float(image.height))
        for name, value in self.steps:
            width, height = image.size
            if name == "short_side":
                # One division, so that halves are halves: the short side comes out exactly.
                short = min(width, height)
                to = (round(width * value / short), round(height * value / short))
                image = image.resize(to, PIL.Image.Resampling.BILINEAR)
                continue
            if name == "squash":
                h, w = value
                # Pillow speaks of (width, height), this library of (height, width).
                image = image.resize((w, h), PIL.Image.Resampling.BILINEAR)
                continue
            if name == "crop":
                h, w = value
                # torchvision's centre crop rounds the offset; TensorFlow's, below, cuts it off.
                left, top = round((width - w) / 2), round((height - h) / 2)
            else:
                w, h = max(round(value * width), 1), max(round(value * height), 1)
                left, top = (width - w) // 2, (height - h) // 2
            if w > width or h > height:
                raise ValueError(f"crop {w}x{h} px is larger than the image of {width}x{height} px")
            image = image.crop((left, top, left + w, top + h))
            # The box stays in px of the photograph: px of this step are converted back.
            fx, fy = (box[2] - box[0]) / width, (box[3] - box[1]) / height
            box = (
                box[0] + left * fx,
                box[1] + top * fy,
                box[0] + (left + w) * fx,
                box[1] + (top + h) * fy,
            )
        pixels = np.asarray(image, np.float32) / np.float32(255)
        # Mode L has no axis of channels; the model wants one.
        return pixels.reshape(*pixels.shape[:2], -1), box


def short_side(size: int) -> Geometry:
    """Scales the shorter side to `size` px and keeps the shape of the photograph.

    Args:
      size: of the shorter side in pixels.

    >>> short_side(256).crop(224).size
    (224, 224)
    """
    return Geometry((("short_side", _pair(size, "short side")[0]),))


def central(fraction: float, size: int | Size) -> Geometry:
    """Cuts the central `fraction` of each side, then scales to `size` px (TensorFlow's recipe).

    Args:
      fraction: share of each side, in (0, 1].
      size: px, one side or `(h, w)`.

    >>> central(0.875, 224).size
    (224, 224)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    return Geometry((("central", float(fraction)),)).squash(size)


def squash(size: int | Size) -> Geometry:
    """Scales to exactly `size` px without keeping proportions (Caffe's recipe).

    Args:
      size: px, one side or `(h, w)`.

    >>> squash(256).crop(227).size
    (227, 227)
    """
    return Geometry().squash(size)


def _pair(size: int | Size, name: str) -> Size:
    try:
        pair = tuple(map(operator.index, size if isinstance(size, Iterable) else (size, size)))
    except TypeError:
        pair = ()
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be one side or (height, width) in whole px, got {size}")
    return pair
