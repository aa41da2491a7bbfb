"""Published directions in latent space: the files of InterFaceGAN, HiGAN and GANSpace.

Arrays only. Some HiGAN files are pickled dicts in a .npy: a pickle runs whatever code it carries,
so those are refused; their .npz twins hold the same arrays.
"""

from __future__ import annotations

import os
import zipfile
from typing import NamedTuple

import numpy as np

from gan_dissect.factors import Factors
from perturb import display
from perturb.weights import torchfile

__all__ = [
    "Boundary",
    "read_boundary",
    "read_components",
    "write_boundary",
    "write_components",
]


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

    def __repr__(self) -> str:
        return display.summary(self)


def read_boundary(path: str | os.PathLike[str], *, size: int | None = None) -> Boundary:
    """Returns the boundary of a `.npy` (an array) or `.npz` (`boundary`, `manipulate_layers`,
    `type`).

    A `.pt` or `.pth` that holds one tensor, as encoder4editing publishes directions, is read too.

    The published files hold no intercept: it was thrown away.

    Args:
      path: of the file.
      size: D of the generator it is for; None accepts any.
    Raises:
      ValueError: if the file is pickled or no array, if it is not finite or 0, or if the boundary
        is of another latent size.
      FileNotFoundError: if there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"boundary: there is no file {os.fspath(path)}")
    layers: tuple[int, ...] = ()
    kind = ""
    try:
        if os.fspath(path).endswith((".pt", ".pth")):
            found = _alone(path)
        else:
            # A pickle runs code when it is opened.
            found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                array = found["boundary"]
                # HiGAN's hint as text, "6-11": optional, and a hint only.
                if "manipulate_layers" in found:
                    layers = _numbers(str(found["manipulate_layers"]))
                kind = str(found["type"]) if "type" in found else ""
        else:
            array = found
    # An archive reads its members when they are asked for, so a missing one shows here.
    except KeyError as error:
        raise ValueError(f"boundary: {os.fspath(path)} has no array called 'boundary'") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"boundary: {os.fspath(path)} is no plain array ({error}); pickled files are never "
            "opened: store the array alone by numpy.save, or as boundary= by numpy.savez"
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
            f"boundary: {os.fspath(path)} is for latents of size {normal.shape[-1]}, the "
            f"generator's have {size}"
        )
    return Boundary(normal / length, layers, kind)


def write_boundary(path: str | os.PathLike[str], normal: np.ndarray) -> None:
    """Writes a direction `[D]` as InterFaceGAN's own files are, `[1, D]` float64 in a `.npy`."""
    normal = np.asarray(normal, np.float64)
    if normal.ndim != 1 or not np.isfinite(normal).all():
        raise ValueError(f"normal must be finite [D], got shape {normal.shape}")
    # An open file, for given a name that does not end in it numpy adds ".npy".
    with open(path, "wb") as file:
        np.save(file, normal[None])


def read_components(path: str | os.PathLike[str], *, size: int | None = None) -> Factors:
    """Returns the latent directions of a GANSpace `.npz`: `lat_comp`, `lat_stdev`, `lat_mean`,
    `var_ratio`.

    Args:
      path: of the file.
      size: D of the generator it is for; None accepts any.
    Returns:
      `Factors`: directions `[k, D]` of length 1, their standard deviations, shares of the variance.
    Raises:
      ValueError: if the file is pickled, lacks an array, or is for latents of another size.
      FileNotFoundError: if there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"components: there is no file {os.fspath(path)}")
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {
                k: np.asarray(found[k], np.float64)
                for k in ("lat_comp", "lat_stdev", "lat_mean", "var_ratio")
            }
    except KeyError as error:
        raise ValueError(f"components: {os.fspath(path)} is no GANSpace file: {error}") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"components: {os.fspath(path)} is no .npz of plain arrays ({error}); pickled files "
            "are never opened"
        ) from error
    directions = arrays["lat_comp"].reshape(len(arrays["lat_comp"]), -1)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    if not (np.isfinite(directions).all() and lengths.all()):
        raise ValueError(f"components: {os.fspath(path)} holds directions that are 0 or not finite")
    mean, count = arrays["lat_mean"].ravel(), len(directions)
    if size not in (None, directions.shape[1]) or mean.shape != directions.shape[1:]:
        raise ValueError(
            f"components: {os.fspath(path)} is for latents of size {directions.shape[1]} (mean "
            f"{mean.size}), the generator's have {size}"
        )
    values, share = (arrays[k].ravel()[:count] for k in ("lat_stdev", "var_ratio"))
    return Factors(directions / lengths, values, share, mean)


def write_components(path: str | os.PathLike[str], factors: Factors) -> None:
    """Writes directions `[k, D]` as GANSpace's own files are; of a layer's activations it holds
    none.
    """
    directions = np.asarray(factors.directions, np.float32)
    mean = np.asarray(factors.mean, np.float32)
    if mean.shape != directions.shape[1:]:
        # The mean of a layer's activations is not a latent, and GANSpace's file has no
        # other place for it.
        mean = np.zeros(directions.shape[1:], np.float32)
    with open(path, "wb") as file:
        np.savez(
            file,
            # With the axis that GANSpace has for latents of layers.
            lat_comp=directions[:, None],
            lat_stdev=np.asarray(factors.values, np.float32),
            lat_mean=mean[None, None],
            var_ratio=np.asarray(factors.share, np.float32),
        )


def _alone(path: str | os.PathLike[str]) -> np.ndarray:
    tree = torchfile.read_torch(path)
    if list(tree) != [torchfile.ALONE]:
        raise ValueError(f"it holds {', '.join(list(tree)[:3])}, not one tensor")
    return np.asarray(tree[torchfile.ALONE], np.float64)


def _numbers(text: str) -> tuple[int, ...]:
    """`"6-11"` and `"0,2-3"` as numbers."""
    found: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        ends = [int(n) for n in part.split("-")]
        found.extend(range(ends[0], ends[-1] + 1))
    return tuple(found)
