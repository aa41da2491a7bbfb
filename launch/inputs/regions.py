"""Masks and label maps of pictures, in whatever kind of PNG a labelling program left them.

Both go through the resizing and cropping of their picture, or the two would not lie on each other.
"""

from __future__ import annotations

import io
import os

import numpy as np
import PIL.Image
import PIL.ImageOps

from launch.inputs import images
from launch.inputs.images import BadImage
from perturb.geometry import Geometry

__all__ = ["UNKNOWN", "label_map", "mask"]

UNKNOWN = 255  # of a label map: nobody has said what is there


def mask(path: str | os.PathLike[str], geometry: Geometry | None) -> np.ndarray:
    """Returns where a mask is set, `[H, W]` booleans.

    That is half of white and more; 1 where a file has nothing but 0 and 1; every colour but the
    first of a coloured palette; and nothing that is transparent.

    Raises:
      BadImage: if the file is no picture, or does not fit the geometry.
    """
    grey = _grey(images.fetch(path))
    pixels, _ = _laid(grey, geometry)
    # Half of white: masks are smoothed where they are resized.
    found: np.ndarray = pixels[..., 0] > 0.5
    return found


def label_map(path: str | os.PathLike[str], geometry: Geometry | None) -> np.ndarray:
    """Returns the number of each pixel, `[H, W]` int64: a grey value or the index of a palette.

    Raises:
      BadImage: if the file is no such picture, or does not fit the geometry.
    """
    data = images.fetch(path)
    upright = images.decode(data, 1)
    with PIL.Image.open(io.BytesIO(data), formats=images.FORMATS) as raw:
        if raw.mode not in ("L", "P", "1") and not raw.mode.startswith("I"):
            raise BadImage(
                "decode", f"mode {raw.mode}: a label map has one number a pixel, grey or a palette"
            )
        numbers = np.asarray(PIL.ImageOps.exif_transpose(raw)).astype(np.int64)
    pixels, (left, top, right, bottom) = _laid(upright, geometry)
    # The nearest pixel: a mixture of two numbers would be a third class.
    height, width = pixels.shape[:2]
    rows = (top + (np.arange(height) + 0.5) * (bottom - top) / height).astype(int)
    columns = (left + (np.arange(width) + 0.5) * (right - left) / width).astype(int)
    found: np.ndarray = numbers[rows][:, columns]
    return found


def _laid(
    picture: PIL.Image.Image, geometry: Geometry | None
) -> tuple[np.ndarray, tuple[float, ...]]:
    """The pixels as the model takes them, and the part of the file's picture that they show."""
    try:
        return (geometry or Geometry()).apply(picture)
    except ValueError as error:
        raise BadImage("geometry", str(error)) from error


def _grey(data: bytes) -> PIL.Image.Image:
    """A mask as grey levels, black where it is not."""
    plain = images.decode(data, 1)
    with PIL.Image.open(io.BytesIO(data), formats=images.FORMATS) as raw:
        if raw.mode == "P" and raw.palette is not None:
            index = np.asarray(raw)
            used = np.asarray(raw.convert("RGB")).reshape(-1, 3)
            # Colours of a palette stand for numbers, and their lightness says nothing; the greys
            # of one are an ordinary picture.
            if (used != used[:, :1]).any():
                return _levels((index != 0) & (index != UNKNOWN))
        if raw.has_transparency_data:
            # Pictures are laid on white, which in a mask would be the concept.
            on = PIL.Image.new("RGBA", raw.size, "black")
            on.alpha_composite(raw.convert("RGBA"))
            plain = on.convert("L")
    values = np.asarray(plain)
    return _levels(values == 1) if values.max(initial=0) == 1 else plain


def _levels(set_: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.where(set_, 255, 0).astype(np.uint8), "L")
