"""Published boundaries in latent space: the files of InterFaceGAN and HiGAN.

Arrays only. Some HiGAN files are pickled dicts in a .npy: a pickle runs whatever code it carries, so
those are refused; their .npz twins hold the same arrays.
"""

from __future__ import annotations

import os
import zipfile
from typing import NamedTuple

import numpy as np

__all__ = ["Boundary", "read_boundary", "write_boundary"]


class Boundary(NamedTuple):
    """A published boundary.

    Attributes:
      normal: `[D]`, or `[layers, D]` where each layer has its own; of length 1 in each row.
      layers: numbers of the layers that it is meant to be used in, or empty.
      kind: "attribute", "category", ..., or "".
    """

    normal: np.ndarray
    layers: tuple[int, ...] = ()
    kind: str = ""


def read_boundary(path: str | os.PathLike[str], *, size: int | None = None) -> Boundary:
    """Returns the boundary of a `.npy` (an array) or `.npz` (`boundary`, `manipulate_layers`, `type`).

    The published files hold no intercept: it was thrown away.

    Args:
      path: of the file.
      size: D of the generator it is for; None accepts any.
    Raises:
      ValueError: if the file is pickled or no array, if it is not finite or 0, or if the boundary is
        of another latent size.
      FileNotFoundError: if there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"boundary: there is no file {os.fspath(path)}")
    layers: tuple[int, ...] = ()
    kind = ""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                array = found["boundary"]
                if "manipulate_layers" in found:
                    layers = _numbers(str(found["manipulate_layers"]))
                kind = str(found["type"]) if "type" in found else ""
        else:
            array = found
    except KeyError as error:
        raise ValueError(f"boundary: {os.fspath(path)} has no array called 'boundary'") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"boundary: {os.fspath(path)} is no plain array ({error}); pickled files are never opened: "
            "store the array alone by numpy.save, or as boundary= by numpy.savez"
        ) from error
    normal = np.asarray(array)
    if normal.dtype.kind != "f" or normal.ndim < 1:
        raise ValueError(f"boundary: {os.fspath(path)} holds {normal.dtype}{list(normal.shape)}")
    normal = normal.astype(np.float64)
    # Leading axes of one: (1, D) as InterFaceGAN stores it, (1, layers, D) as idinvert does.
    while normal.ndim > 1 and len(normal) == 1:
        normal = normal[0]
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    if normal.ndim > 2 or not np.isfinite(normal).all() or not length.all():
        raise ValueError(
            f"boundary: {os.fspath(path)} must hold one finite direction that is not 0 (or one a "
            f"layer), got shape {np.shape(array)}"
        )
    if size is not None and normal.shape[-1] != size:
        raise ValueError(
            f"boundary: {os.fspath(path)} is for latents of size {normal.shape[-1]}, the generator's "
            f"have {size}"
        )
    return Boundary(normal / length, layers, kind)


def write_boundary(path: str | os.PathLike[str], normal: np.ndarray) -> None:
    """Writes a direction `[D]` as InterFaceGAN's own files are, `[1, D]` float64 in a `.npy`."""
    normal = np.asarray(normal, np.float64)
    if normal.ndim != 1 or not np.isfinite(normal).all():
        raise ValueError(f"normal must be finite [D], got shape {normal.shape}")
    with open(path, "wb") as file:
        np.save(file, normal[None])


def _numbers(text: str) -> tuple[int, ...]:
    """`"6-11"` and `"0,2-3"` as numbers."""
    found: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        ends = [int(n) for n in part.split("-")]
        found.extend(range(ends[0], ends[-1] + 1))
    return tuple(found)
