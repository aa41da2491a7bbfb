"""Photographs from a disk or a store; `perturb.photographs` has the rules of reading them."""

from __future__ import annotations

import io
import os

import numpy as np
import PIL.Image

from launch.job import clients, faults, store
from perturb.geometry import Geometry
from perturb.photographs import (
    EXTENSIONS,
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    BadImage,
    Picture,
    decode,
    picture,
    read_bytes,
)

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "Picture",
    "decode",
    "encode",
    "fetch",
    "picture",
    "read",
]


def read(
    path: str | os.PathLike[str] | store.Address, geometry: Geometry | None, channels: int = 3
) -> Picture:
    """Reads one file, in this process and without a limit of time, and applies the model's
    geometry.

    Raises:
      BadImage: if the file cannot be read or decoded, or its shape does not fit the geometry.
    """
    return picture(fetch(path), geometry, channels)


def fetch(path: str | os.PathLike[str] | store.Address) -> bytes:
    """Returns the bytes of a file or an object; errors that pass are waited for.

    Raises:
      BadImage: if it cannot be read, is no regular file, or is too large.
      Busy: if the store that it lies in is: the picture is not to blame.
    """
    where = store.path(path)
    try:
        # What is asked of a store is repeated there.
        stored = isinstance(where, store.Address)
        return _bytes(where) if stored else faults.retried(lambda: _bytes(where))
    except clients.Busy:
        raise
    except OSError as error:
        raise BadImage("read", error.strerror or str(error)) from error


def _bytes(path: store.Path) -> bytes:
    if isinstance(path, store.Address):
        # The size first: an object may be larger than the memory.
        if store.look(path).size > MAX_BYTES:
            raise BadImage("read", f"larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    return read_bytes(path)


def encode(pixels: np.ndarray) -> np.ndarray:
    """Returns a picture `[H, W, C]` in [0, 1] as the bytes of a small file, `[N]` uint8.

    Small pictures are kept exactly (PNG), larger ones well enough to look at (WebP, quality 90).
    """
    # Rounded, not cut: a picture that came from 8 bits gives the same 8 bits again.
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = PIL.Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels[..., :3])
    buffer = io.BytesIO()
    if levels.shape[0] * levels.shape[1] <= 128**2:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "WEBP", quality=90)
    return np.frombuffer(buffer.getvalue(), np.uint8)
