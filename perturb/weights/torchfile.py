"""PyTorch's files of weights and StyleGAN2-ADA's pickles, without PyTorch and without running
anything.

`torch.save` writes a zip of a pickle and one file a storage (since 1.6), or before that five
pickles and the storages behind them. StyleGAN2-ADA pickles the network itself, its source code
included; of that the tensors are taken and the code is passed over.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from perturb.types import PyTree, Record
from perturb.weights import pickles

__all__ = ["ALONE", "parts", "read_torch"]

# The name of a tensor that a file holds without any.
ALONE = "tensor"

MAX_BYTES = 8 << 30
MAX_ENTRIES = 1_000_000  # of dicts, counted as often as they are reached
MAX_DEPTH = 64

# What zipfile and the interpretation of nonsense may raise.
_DAMAGED = (
    zipfile.BadZipFile,
    RecursionError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
)
# The number that a file of before PyTorch 1.6 begins with, pickled.
_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What files of weights name; their meaning is given below, and everything else is refused.
_ALLOWED = (
    "collections.OrderedDict",
    "torch.*Storage",
    "torch.storage.*Storage",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.storage._load_from_bytes",
    "torch.Size",
    "torch.device",
    "torch.float*",
    "torch.nn.modules.*",
    "torch_utils.persistence._reconstruct_persistent_obj",
    "dnnlib.util.EasyDict",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    # Flags, settings and paths that training saves beside the weights: passed over.
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.*Path",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.list",
    "*.AttributeDict",
    "easydict.EasyDict",
    "torch.dtype",
    "torch._utils._rebuild_parameter_with_state",
    "__builtin__.set",
    "builtins.set",
)


class _Storage:
    """A storage: its type and length, and its bytes once they are found."""

    def __init__(self, kind: str, numel: int):
        if kind not in _DTYPES:
            raise ValueError(f"a storage has the type {kind}, which cannot be read")
        self.dtype, self.numel = np.dtype(_DTYPES[kind]), numel
        self.data: bytes | memoryview | None = None

    @property
    def size(self) -> int:
        found: int = self.numel * self.dtype.itemsize
        return found


class _Stored(NamedTuple):
    """The objects of a file before tensors are made of them."""

    root: Any
    storages: dict[str, _Storage]


def read_torch(path: str | os.PathLike[str]) -> Record:
    """Returns the tensors of a `.pth`, `.pt` or StyleGAN2-ADA `.pkl` as nested dicts of arrays.

    A state dict is flat, `{"conv.weight": array}`; a checkpoint of several has one dict each; the
    modules of a pickled network become the names of its state dict. A tensor alone is called
    `ALONE`. Whatever is no tensor is left out.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no such file, names anything that no file of weights needs, or has sizes
        that do not fit.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {name}")
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"{name} has more than {MAX_BYTES >> 30} GiB: refused")
    try:
        with open(path, "rb") as file:
            root = _open(file)
        tree = _tree(root, 0, [MAX_BYTES, MAX_ENTRIES])
    except ValueError as error:
        raise ValueError(f"{name} cannot be converted: {error}") from error
    except _DAMAGED as error:
        raise ValueError(
            f"{name} cannot be converted: it is damaged or of another kind "
            f"({type(error).__name__}: {error})"
        ) from error
    if isinstance(tree, np.ndarray):
        return {ALONE: tree}
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(f"{name} holds no tensors")
    return dict(tree)


def parts(tree: Mapping[str, PyTree]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the flat state dicts in nested ones: `{"G_ema": {"mapping.fc0.weight": array}, ...}`.

    Tensors at the top are the part "".
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if inner := _flat(value):
                found[key] = inner
        else:
            found.setdefault("", {})[key] = value
    return found


def _flat(tree: Mapping[str, PyTree], prefix: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _open(file: BinaryIO) -> Any:
    head = file.read(4)
    file.seek(0)
    if head == b"PK\x03\x04":
        return _zipped(file)
    first = _unpickle(file, {})
    if first == _MAGIC:
        return _legacy(file)
    return first


def _unpickle(file: BinaryIO, storages: dict[str, _Storage]) -> Any:
    def persistent(identity: object) -> _Storage:
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise ValueError("the pickle refers to something that is no storage: refused")
        # The fourth is the device that the storage was on, which is of no matter here.
        _, kind, key, _, numel = identity[:5]
        view = identity[5] if len(identity) > 5 else None
        if view is not None:
            raise ValueError(
                "a storage is a view of another one, as very old files have: save it again"
            )
        if not isinstance(kind, pickles.Name) or not isinstance(numel, int) or numel < 0:
            raise ValueError("a storage has no type or length")
        # The key names an entry of the zip below.
        if not isinstance(key, (str, int)):
            raise ValueError("a storage has no key")
        found = storages.setdefault(str(key), _Storage(kind.name, numel))
        if (found.dtype, found.numel) != (np.dtype(_DTYPES.get(kind.name, object)), numel):
            raise ValueError(f"storage {key} is given two types or lengths")
        return found

    return pickles.read(file, allowed=_ALLOWED, persistent=persistent)


def _zipped(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise ValueError("the zip holds no data.pkl, as torch.save writes it")
        folder = roots[0].removesuffix("data.pkl")
        # Stored entries cannot unpack to more than the file has.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("the zip is compressed, which torch.save never does: refused")
        # Nor do they share bytes: a short file could otherwise be read many times over.
        if sum(entry.file_size for entry in entries.values()) > _size(file):
            raise ValueError("the entries of the zip are larger than the file: refused")
        # Newer files say it; older ones are of little-endian machines.
        order = folder + "byteorder"
        if order in entries and archive.read(order) != b"little":
            raise ValueError("the numbers are big-endian, which cannot be read")
        storages: dict[str, _Storage] = {}
        root = _unpickle(io.BytesIO(archive.read(roots[0])), storages)
        for key, storage in storages.items():
            entry = entries.get(f"{folder}data/{key}")
            if entry is None or entry.file_size < storage.size:
                raise ValueError(f"storage {key} is missing or shorter than {storage.size} bytes")
            storage.data = archive.read(entry)
    return root


def _size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(here)
    return size


def _legacy(file: BinaryIO) -> Any:
    """The rest of a file of before PyTorch 1.6, behind its magic number."""
    # Behind the magic number: protocol, system, the object, the keys of its storages, and then for
    # each of these its length in 8 bytes and its numbers.
    protocol, system = _unpickle(file, {}), _unpickle(file, {})
    if protocol != 1001 or not isinstance(system, dict) or not system.get("little_endian", True):
        raise ValueError("no torch file of a known kind (protocol 1001, little-endian)")
    storages: dict[str, _Storage] = {}
    root = _unpickle(file, storages)
    keys = _unpickle(file, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the storages have no keys")
    if set(keys) != set(storages):
        raise ValueError("the storages are not those that the pickle names")
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != storage.numel:
            raise ValueError(f"storage {key} has another length than the pickle says")
        # Before memory is given: a file may claim any length.
        if storage.size > _size(file) - file.tell():
            raise ValueError(f"storage {key} is cut off")
        storage.data = file.read(storage.size)
    return root


def _tree(value: object, depth: int, left: list[int]) -> Any:
    """Returns nested dicts of arrays, None for anything else. `left` are the budgets of bytes and
    entries.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"the file nests more than {MAX_DEPTH} deep: refused")
    if isinstance(value, pickles.Call):
        return _called(value, depth, left)
    if not isinstance(value, dict):
        return None
    # Every step costs, so that shared dicts cannot be unfolded without end.
    left[1] -= 1 + len(value)
    if left[1] < 0:
        raise ValueError("the file unfolds to more than it may: refused")
    if "_modules" in value and "_parameters" in value:
        return _module(value, depth, left)
    found = {}
    for key, inner in value.items():
        tree = _tree(inner, depth + 1, left)
        if tree is not None and not (isinstance(tree, dict) and not tree):
            found[str(key)] = tree
    return found


def _module(state: dict[PyTree, PyTree], depth: int, left: list[int]) -> Record:
    """The parameters, buffers and submodules of a pickled `torch.nn.Module`."""
    found: Record = {}
    # Hooks and settings of the module hold no tensors.
    for kind in ("_parameters", "_buffers", "_modules"):
        tree = _tree(state.get(kind), depth + 1, left)
        found |= tree or {}
    return found


def _called(call: pickles.Call, depth: int, left: list[int]) -> Any:
    name, given = str(call.function), call.arguments
    if not isinstance(given, tuple):
        raise ValueError(f"{name} is given no arguments")
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        return _tensor(given, left)
    if name.startswith("torch._utils._rebuild_parameter"):
        return _tree(given[0], depth + 1, left) if given else None
    # StyleGAN2-ADA pickles a module's source beside its state; the source is never looked at.
    if name == "torch_utils.persistence._reconstruct_persistent_obj":
        meta = given[0] if given else None
        meta = dict(meta.items) if isinstance(meta, pickles.Call) else meta
        return _tree((meta or {}).get("state"), depth + 1, left)
    if name in ("collections.OrderedDict", "dnnlib.util.EasyDict"):
        # Pairs are set on the object after it is made, or given to its constructor in old files.
        pairs = list(call.items)
        if given and isinstance(given[0], list):
            pairs += [tuple(pair) for pair in given[0]]
        return _tree(dict(pairs), depth, left)
    if name.startswith("torch.nn.modules.") and isinstance(call.state, dict):
        return _tree(call.state, depth, left)
    return None


def _tensor(given: tuple[PyTree, ...], left: list[int]) -> np.ndarray:
    if len(given) < 4:
        raise ValueError("a tensor has no storage, offset, size and stride")
    storage, offset, size, stride = given[:4]
    if (
        isinstance(storage, pickles.Call)
        and str(storage.function) == "torch.storage._load_from_bytes"
    ):
        # A storage that was pickled by itself is a torch file within the file.
        storage = _open(io.BytesIO(bytes(storage.arguments[0])))
    size, stride = (
        tuple(s.arguments[0]) if isinstance(s, pickles.Call) else s for s in (size, stride)
    )
    # Python's integers have no limit, as_strided's have; and it checks nothing itself.
    numbers = [offset, *size, *stride]
    sound = len(size) <= 32 and all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers)
    if not isinstance(storage, _Storage) or not sound:
        raise ValueError("a tensor has no storage, offset, size and stride")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else 0
    # A stride of 0 repeats a number: that would let a few bytes ask for any amount of memory.
    if count > storage.numel or (count and last >= storage.numel):
        raise ValueError(
            f"a tensor of shape {list(size)} does not fit its storage of {storage.numel}"
        )
    left[0] -= count * storage.dtype.itemsize
    if left[0] < 0:
        raise ValueError("the tensors take more memory than they may: refused")
    if storage.data is None:
        raise ValueError("a storage has no data")
    flat = np.frombuffer(storage.data, storage.dtype, storage.numel)
    strides = [s * storage.dtype.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False).copy()
