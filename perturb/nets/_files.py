"""Files of weights that are not safetensors: npz, msgpack and PyTorch's, read as numbers and nothing else.

Nothing is unpickled. Sizes are added up from the files' own directories before memory is given, for
a few bytes can ask for any amount of it.

>>> import tempfile
>>> path = tempfile.mkstemp(suffix=".npz")[1]
>>> np.savez(path, kernel=np.ones((2, 3)))
>>> read_npz(path)["kernel"].shape
(2, 3)
"""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["read_msgpack", "read_npz", "read_pth"]

MAX_BYTES = 8 << 30
MAX_RATIO = 100  # of a packed file; float weights pack to no less than a tenth
MAX_DEPTH = 64
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, TypeError, AttributeError, RuntimeError,
    NotImplementedError, OverflowError, SyntaxError, RecursionError, UnicodeError,
)  # fmt: skip


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` file.

    Raises:
      ValueError: if it is damaged, holds objects, or unpacks to more than its size allows.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total, packed = sum(e.file_size for e in entries), os.path.getsize(path)
            if total > min(MAX_BYTES, MAX_RATIO * packed):
                raise ValueError(f"its {packed} bytes unpack to {total}: refused")
            if len({e.filename for e in entries}) < len(entries):
                raise ValueError("it holds two arrays of one name")
            return {e.filename.removesuffix(".npy"): _npy(archive, e) for e in entries}
    except ValueError as error:
        raise ValueError(f"weights: {path} cannot be read: {error}") from error
    except _DAMAGED as error:
        raise ValueError(
            f"weights: {path} is no readable .npz file ({type(error).__name__}: {error})"
        ) from error


def _npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        head = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if head is None:
            raise ValueError(
                f"{entry.filename} has the version {version}, which weights do not need"
            )
        shape, fortran, dtype = head(file)
        if dtype.hasobject:
            raise ValueError(
                f"{entry.filename} holds objects, which would have to be unpickled: refused"
            )
        if any(n < 0 for n in shape):
            raise ValueError(f"{entry.filename} has the shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        if size > entry.file_size:
            raise ValueError(f"{entry.filename} is said to have {size} bytes and has fewer")
        data = file.read(size)
    if len(data) < size:
        raise ValueError(f"{entry.filename} is cut off")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def read_msgpack(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of `flax.serialization`, nested names joined by `/`.

    Raises:
      ValueError: if it is no such file.
    """
    from flax import serialization

    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"weights: {path} has more than {MAX_BYTES >> 30} GiB: refused")
    try:
        tree = serialization.msgpack_restore(pathlib.Path(path).read_bytes())
    except Exception as error:  # msgpack has a dozen of its own
        raise ValueError(
            f"weights: {path} is no readable msgpack file ({type(error).__name__}: {error})"
        ) from error
    found = _flat(tree, "/")
    if not found:
        raise ValueError(f"weights: {path} holds no arrays")
    return found


def read_pth(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the one state dict of a `torch.save` file; its instructions are read, none is run.

    Raises:
      ValueError: if it is no such file, names anything that no file of weights needs, or holds several.
    """
    from perturb.nets import _torchfile

    found = _torchfile.parts(_torchfile.read_torch(path))
    if len(found) > 1:
        raise ValueError(
            f"weights: {path} holds several state dicts ({', '.join(map(repr, found))}); choose one with "
            "python -m launch.convert --source=FILE --part=NAME"
        )
    return next(iter(found.values()))


def _flat(tree: Any, separator: str, prefix: str = "", depth: int = 0) -> dict[str, np.ndarray]:
    if depth > MAX_DEPTH:
        raise ValueError(f"weights nest more than {MAX_DEPTH} deep: refused")
    if isinstance(tree, Mapping):
        found: dict[str, np.ndarray] = {}
        for key, value in tree.items():
            name = f"{prefix}{separator}{key}" if prefix else str(key)
            found |= _flat(value, separator, name, depth + 1)
        return found
    return {prefix: tree} if isinstance(tree, np.ndarray) else {}
