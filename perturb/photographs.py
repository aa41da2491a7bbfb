"""Photographs as they come, read the same way everywhere.

The rules, one a kind: EXIF orientation is applied. Alpha is composited on white. 16-bit grey is
scaled to 8 bits by 1/257, never cut. CMYK, palette, grey and bilevel pictures become RGB (grey
where the model takes one channel). Of an animation the first frame counts. Embedded colour profiles
are not applied, as in the pipelines that the networks were trained with. Refused: other formats,
floating-point pictures, files that end early, more than 50 million pixels.

This module knows Pillow and NumPy, not JAX: processes that do nothing but decode load it alone.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import warnings
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from perturb import display
from perturb.geometry import Geometry

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "Picture",
    "decode",
    "picture",
    "read_bytes",
]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What a folder is searched for; a path that is named may have any.
EXTENSIONS = frozenset(
    f".{kind}"
    for kind in [
        "bmp",
        "gif",
        "jpe",
        "jpeg",
        "jpg",
        "pbm",
        "pgm",
        "png",
        "pnm",
        "ppm",
        "tif",
        "tiff",
        "webp",
    ]
)
MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 2**20

# Pillow warns from 89 million pixels on; our own cap is lower, so its warning is a refusal too.
warnings.filterwarnings("error", category=PIL.Image.DecompressionBombWarning)
PIL.Image.init()  # loads the plugins once, before threads ask for them at the same time


class BadImage(ValueError):
    """A file that cannot be used, with the stage at which that showed: read, decode or geometry."""

    def __init__(self, stage: str, message: str, sha256: str = ""):
        super().__init__(message)
        self.stage, self.sha256 = stage, sha256


class Picture(NamedTuple):
    """A decoded photograph.

    Attributes:
      pixels: `[H, W, C]` float32 in [0, 1], the model's input.
      crop: left, top, right, bottom of the part shown, in px of the upright photograph.
      size: width and height of the upright photograph in px.
      sha256: of the file's bytes, in hex.
    """

    pixels: np.ndarray
    crop: tuple[float, float, float, float]
    size: tuple[int, int]
    sha256: str

    def __repr__(self) -> str:
        return display.summary(self)


def picture(data: bytes, geometry: Geometry | None, channels: int = 3) -> Picture:
    """Decodes the bytes of a file and applies the model's geometry.

    Raises:
      BadImage: if they are no picture that is accepted, or its shape does not fit the geometry.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = decode(data, channels)
    except BadImage as error:
        raise BadImage(error.stage, str(error), sha256) from error.__cause__
    try:
        pixels, crop = (geometry or Geometry()).apply(image)
    except ValueError as error:
        raise BadImage("geometry", str(error), sha256) from error
    return Picture(pixels, crop, image.size, sha256)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a regular file on a disk.

    Args:
      path: of the file.
    Raises:
      BadImage: if it is no regular file, or is too large.
      OSError: if it cannot be read.
    """
    # Without O_NONBLOCK a pipe that is named like a picture would never open.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise BadImage("read", "not a regular file")
        if found.st_size > MAX_BYTES:
            raise BadImage("read", f"larger than {MAX_BYTES >> 20} MiB")
        return file.read(MAX_BYTES + 1)


def decode(data: bytes, channels: int = 3) -> PIL.Image.Image:
    """Returns the upright picture in mode RGB (`channels=3`) or L (`channels=1`).

    Raises:
      BadImage: if `data` is not a whole picture of an accepted kind and size.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise BadImage("decode", f"{pixels / 1e6:.0f} million pixels, at most 50 are read")
            if image.mode == "F":
                raise BadImage("decode", "floating-point pictures have no fixed range")
            image.load()
            upright = PIL.ImageOps.exif_transpose(image)
            return _plain(upright, "L" if channels == 1 else "RGB")
    except BadImage:
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadImage("decode", _looks_like(data)) from error
    # Pillow's plugins raise almost anything on broken files: SyntaxError, EOFError, struct.error,
    # ...
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if any(word in said for word in _CUT_OFF):
            raise BadImage(
                "decode", f"cut off: the file ends before the picture ({said})"
            ) from error
        raise BadImage("decode", f"damaged ({said})") from error


# What Pillow says of files that are not whole.
_CUT_OFF = (
    "truncated",
    "Truncated",
    "broken data stream",
    "not enough image data",
    "unexpected end",
)
# How files that are no pictures begin, or where the mark lies, and what they are.
_KINDS = (
    (0, b"%PDF", "a PDF document, not a picture"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the picture itself: run git lfs pull"),
    (0, b"PK\x03\x04", "a zip archive, not a picture"),
    (0, b"\x1f\x8b", "a gzip archive, not a picture"),
    (0, b"<svg", "a drawing in SVG, not a picture: save it as PNG"),
    (4, b"ftyphei", "a HEIC picture, which is not read: save it as JPEG or PNG"),
    (4, b"ftypmif", "a HEIC picture, which is not read: save it as JPEG or PNG"),
    (4, b"ftypavif", "an AVIF picture, which is not read: save it as JPEG or PNG"),
    (4, b"ftyp", "a video, not a picture"),
    (0, b"\x93NUMPY", "an array of NumPy, not a picture"),
)


def _looks_like(data: bytes) -> str:
    """Returns what bytes that no decoder takes are, in words."""
    if not data:
        return "an empty file"
    if not data.strip(b"\0"):
        return f"not a picture: {len(data)} bytes, all of them zero"
    for at, mark, words in _KINDS:
        if data[at : at + len(mark)] == mark:
            return words
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a picture: what was to be downloaded was not there"
    return f"not a picture in {', '.join(FORMATS)}"


def _plain(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion cuts at 255
        grey = np.asarray(image).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("decode", "more than 16 bits a pixel")
        return PIL.Image.fromarray(np.rint(grey / 257).astype(np.uint8), "L").convert(mode)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = PIL.Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert(mode)
