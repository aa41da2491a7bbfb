"""Files of weights that are not safetensors: npz, msgpack, Orbax's and PyTorch's, read as numbers
and nothing else.

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

from perturb.types import PyTree

__all__ = ["read_msgpack", "read_npz", "read_orbax", "read_pth"]

MAX_BYTES = 8 << 30
MAX_RATIO = 100  # of a packed file; float weights pack to no less than a tenth
# Trees are walked by recursion.
MAX_DEPTH = 64
MAX_NAMES = 1_000_000
# What zipfile, zlib and NumPy's reader of headers raise on nonsense, besides ValueError.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    SyntaxError,
    RecursionError,
    UnicodeError,
)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` file.

    Raises:
      ValueError: if it is damaged, holds objects, or unpacks to more than its size allows.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # The directory of a zip states unpacked sizes, so a bomb is refused before it goes off.
            total, packed = sum(e.file_size for e in entries), os.path.getsize(path)
            if total > min(MAX_BYTES, MAX_RATIO * packed):
                raise ValueError(f"its {packed} bytes unpack to {total}: refused")
            # The later of them would silently take the place of the first.
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
    # Not np.load: it gives memory for the shape that the header claims before it has seen the
    # bytes.
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        # Version 3.0 is for names of fields beyond Latin-1, and arrays of numbers have no fields.
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
      ValueError: if it is no such file, holds anything but numbers, or one name twice.
    """
    import msgpack

    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"weights: {path} has more than {MAX_BYTES >> 30} GiB: refused")
    try:
        tree = msgpack.unpackb(
            pathlib.Path(path).read_bytes(),
            raw=False,
            strict_map_key=True,
            ext_hook=_extension,
            object_pairs_hook=_once,
            # Flax writes lists as maps; a long list costs eight bytes for each of its own
            max_array_len=0,
            max_map_len=MAX_NAMES,
        )
        found = _flat(tree)
    except Exception as error:  # msgpack has a dozen of its own
        raise ValueError(
            f"weights: {path} is no readable msgpack file of weights ({type(error).__name__}: "
            f"{error})"
        ) from error
    if not found:
        raise ValueError(f"weights: {path} holds no arrays")
    return found


def _once(pairs: list[tuple[str, Any]]) -> Any:
    """Returns a map of the file, or the array that Flax has cut into chunks and written as one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it holds two entries of one name")
    # Flax cuts arrays above 1 GiB into chunks, and writes shape and chunks as maps with the keys 0,
    # 1, ...
    if "__msgpack_chunked_array__" not in found:
        return found
    shape, chunks = (list(found[name].values()) for name in ("shape", "chunks"))
    whole = np.concatenate(chunks)
    if any(n < 0 for n in shape) or math.prod(shape) != whole.size:
        raise ValueError(f"an array of shape {shape} has {whole.size} numbers")
    return whole.reshape(shape)


def _extension(code: int, data: bytes) -> np.ndarray:
    """Returns an array, which Flax writes as extension 1, or as 3 where it has one number."""
    import msgpack

    if code not in (1, 3):
        raise ValueError(f"an entry of kind {code}, which weights do not need")
    shape, name, numbers = msgpack.unpackb(
        data, raw=True, max_array_len=MAX_DEPTH, max_map_len=0, max_ext_len=0
    )
    text = name.decode("ascii")
    dtype = _dtype(text)
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(
            f"an array of shape {list(shape)} and type {text} has {len(numbers)} bytes"
        )
    return np.frombuffer(numbers, dtype).reshape(shape)


def _dtype(name: str) -> np.dtype:
    import jax.numpy as jnp

    # NumPy itself does not know bfloat16 by name.
    dtype = np.dtype(jnp.bfloat16) if name == "bfloat16" else np.dtype(name)
    if dtype != jnp.bfloat16 and dtype.kind not in "fiub":
        raise ValueError(f"an array of the type {name}, which is no number")
    return dtype


def read_orbax(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of an Orbax checkpoint, a folder, nested names joined by `/`.

    What it says of shapes is compared with the folder's size before memory is given; arrays go to
    numpy, not to the devices that it names.

    Raises:
      ValueError: if it is no such checkpoint, is not whole, or holds anything but numbers.
    """
    import warnings

    from orbax.checkpoint import (
        v1 as ocp,  # comes with Flax; importing the module by its name fails
    )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            described = ocp.pytree_metadata(path).metadata
            sizes = {
                name: (tuple(leaf.shape), np.dtype(leaf.dtype))
                for name, leaf in _leaves(described)
                if hasattr(leaf, "shape")
            }
            total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes.values())
            packed = sum(p.stat().st_size for p in pathlib.Path(path).rglob("*") if p.is_file())
            if total > min(MAX_BYTES, MAX_RATIO * packed):
                raise ValueError(f"its {packed} bytes unpack to {total}: refused")
            # Templates that take no memory of their own.
            plain = _mapped(
                described, lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            )
            found = _flat(ocp.load_pytree(path, plain))
    except Exception as error:  # whatever Orbax and TensorStore raise on a folder that is none
        raise ValueError(
            f"weights: {path} is no readable Orbax checkpoint ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error
    if not found:
        raise ValueError(f"weights: {path} holds no arrays")
    return found


def _leaves(tree: PyTree, prefix: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    """Returns the leaves of nested maps and lists with their names."""
    if depth > MAX_DEPTH:
        raise ValueError(f"weights nest more than {MAX_DEPTH} deep: refused")
    if isinstance(tree, (list, tuple)):
        tree = {str(i): value for i, value in enumerate(tree)}
    if not isinstance(tree, Mapping):
        return [(prefix, tree)]
    return [
        leaf
        for key, value in tree.items()
        for leaf in _leaves(value, f"{prefix}/{key}" if prefix else str(key), depth + 1)
    ]


def _mapped(tree: PyTree, function: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_mapped(value, function) for value in tree]
    return function(tree) if hasattr(tree, "shape") else tree


def read_pth(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the one state dict of a `torch.save` file; its instructions are read, none is run.

    Raises:
      ValueError: if it is no such file, names anything that no file of weights needs, or holds
        several.
    """
    from perturb.weights import torchfile

    found = torchfile.parts(torchfile.read_torch(path))
    # Which of a checkpoint's networks is meant, only its owner knows.
    if len(found) > 1:
        raise ValueError(
            f"weights: {path} holds several state dicts ({', '.join(map(repr, found))}); choose "
            "one with python -m launch.convert --source=FILE --part=NAME"
        )
    return next(iter(found.values()))


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
    """Returns the arrays of nested maps by their joined names; numbers are arrays of no dimension.

    Raises:
      ValueError: if there is anything else, or two become one.
    """
    found: dict[str, np.ndarray] = {}
    for name, leaf in _leaves(tree):
        # An entry without a value holds no numbers.
        if leaf is None:
            continue
        if not isinstance(leaf, (np.ndarray, np.generic, bool, int, float)):
            raise ValueError(
                f"{name or 'the whole'} is no array of numbers but {type(leaf).__name__}"
            )
        if name in found:
            raise ValueError(f"it holds {name} twice")
        found[name] = np.asarray(leaf)
    return found
