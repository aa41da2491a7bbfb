"""Strict import of weights: every leaf is filled exactly once, or one error names all that is
wrong.

A net says where each tensor of a file goes with a mapping `{name in the file: Slot(path, layout)}`;
for linen modules whose layers carry the names of the file, `slots` writes it. Files are
safetensors, which hold numbers only, or one of `files`; nothing is ever unpickled.

>>> template = {"params": {"fc": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}}
>>> tensors = {"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2)}
>>> fill(template, tensors, slots(template), net="a layer")["params"]["fc"]["kernel"].shape
(3, 2)
"""

from __future__ import annotations

import collections
import fnmatch
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import messages
from perturb.types import PyTree, Record, Variables
from perturb.weights import files

__all__ = [
    "CONV",
    "IGNORED",
    "LINEAR",
    "SAME",
    "Layout",
    "Slot",
    "Tensors",
    "draw",
    "fill",
    "one_source",
    "read_tensors",
    "rename",
    "slots",
    "width",
]

Path = tuple[str, ...]
Shape = tuple[int, ...]
Tensors = Mapping[str, PyTree]

# Counters that training keeps and no forward pass reads.
IGNORED = ("num_batches_tracked", "*.num_batches_tracked")

# Types as safetensors spells them in its header.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16} | {
    f"{kind}{bits}": np.dtype(f"{name}{bits}")
    for kind, name in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}
# Flax's names of leaves, and torch's.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_MAX_HINTS = 20


class Layout(NamedTuple):
    """How a tensor of a file becomes a leaf.

    Attributes:
      load: the tensor of the file, `np.ndarray`, to the leaf.
      shape: the shape of the leaf to the shape that the file must have; errors speak of the latter.
    """

    load: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


SAME = Layout(lambda w: w, lambda s: s)
LINEAR = Layout(lambda w: w.T, lambda s: s[::-1])
# OIHW -> HWIO. It serves depthwise layers too: torch's (C, 1, kh, kw) becomes (kh, kw, 1, C).
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1]))


class Slot(NamedTuple):
    """Where a tensor goes: the path of a leaf in the variables, and how its layout changes."""

    path: Path
    layout: Layout = SAME


def slots(variables: Variables, *, separator: str = ".") -> dict[str, Slot]:
    """Returns the slots of linen variables whose modules carry the layer names of the file.

    `params/features.3/squeeze/kernel` is `features.3.squeeze.weight`, HWIO against OIHW; a batch
    norm has `weight`, `bias`, `running_mean` and `running_var`.

    Args:
      variables: linen variables, or their shapes.
      separator: joins the names of nested modules; the leaf's own name always follows a dot.
    """
    found = {}
    for path, leaf in _leaves(variables).items():
        *modules, kind = path[1:]
        layout = {("kernel", 4): CONV, ("kernel", 2): LINEAR}.get((kind, len(leaf.shape)), SAME)
        found[f"{separator.join(modules)}.{_LEAVES.get(kind, kind)}"] = Slot(path, layout)
    return found


def one_source(net: str, weights: object, key: object, *, hint: str = "") -> None:
    """Refuses a call of a net that gives both weights and a key, or neither.

    Args:
      net: its name, for the error.
      weights: a file, tensors, or None.
      key: random key of random weights, or None.
      hint: put behind the error's words.
    Raises:
      ValueError: unless exactly one is given.

    >>> one_source("vgg16", None, None)
    Traceback (most recent call last):
    ValueError: vgg16 needs weights="FILE.safetensors", or key= for random weights; got neither
    """
    if (weights is None) == (key is None):
        raise ValueError(
            f'{net} needs weights="FILE.safetensors", or key= for random weights; got '
            f"{'neither' if key is None else 'both'}{hint}"
        )


def read_tensors(weights: str | os.PathLike[str] | Tensors) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, or of a dict already loaded, as numpy arrays.

    Args:
      weights: a path of a safetensors file (local, or any that etils.epath reads), a local .npz,
        .msgpack, .pth or .pt file, a local Orbax checkpoint (a folder), or `{name: array}`. epath
        reads gs:// through TensorFlow where that is installed, unless EPATH_USE_TF=false.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is none of these, is damaged, or names code. Nothing is unpickled:
        that runs whatever code the file carries.
    """
    # Tensors that are loaded already, from a framework at hand or in a test.
    if isinstance(weights, Mapping):
        return {name: np.asarray(value) for name, value in weights.items()}
    import safetensors
    from etils import epath

    path = epath.Path(weights)
    if path.suffix.lower() in (".pkl", ".pickle", ".ckpt", ".th", ".bin"):
        raise ValueError(
            f"weights must be a .safetensors file, got {path}: pickled checkpoints are never "
            "opened; convert it with python -m launch.convert --source=FILE, or where it comes "
            "from with safetensors.torch.save_file(model.state_dict(), ...)"
        )
    # An Orbax checkpoint is a folder; this file is how it is told from any other.
    if path.is_dir() and any(path.glob("*CHECKPOINT_METADATA")):
        return files.read_orbax(path)
    if path.is_dir() or not path.exists():
        raise FileNotFoundError(f"weights: there is no file {path}")
    other = {
        ".npz": files.read_npz,
        ".msgpack": files.read_msgpack,
        ".pth": files.read_pth,
        ".pt": files.read_pth,
    }.get(path.suffix.lower())
    if other is not None:
        return other(path)
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights: {path} is no readable safetensors file ({error})") from error
    tensors = {}
    for name, entry in entries:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(
                f"weights: {name} in {path} has the type {entry['dtype']}, which cannot be read; "
                "store it as F32, F16 or BF16"
            )
        # A view of the bytes that were read: nothing is copied until a leaf is filled.
        tensors[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return tensors


def rename(named: Mapping[str, PyTree], parts: Mapping[str, str]) -> Record:
    """Returns the mapping under other names: every pattern of `parts` (as in `re.sub`) in turn.

    Raises:
      ValueError: if two names become one.
    """
    renamed: Record = {}
    for name, value in named.items():
        new = name
        for pattern, text in parts.items():
            new = re.sub(pattern, text, new)
        if new in renamed:
            raise ValueError(f"weights: the file holds {new} twice, once under another name")
        renamed[new] = value
    return renamed


def width(tensors: Tensors, *seen: tuple[str, int], default: int) -> int:
    """Returns the layer width that most of the tensors agree on.

    A majority, because one mis-shaped tensor must be named as such rather than be taken for the
    width of a net that then does not fit anywhere else.

    Args:
      tensors: `{name: array}`.
      *seen: pairs of a tensor's name and the axis on which the width shows.
      default: the published width, where the file has none of these tensors.
    """
    # A bias is the same under the name that Flax itself writes.
    own = [
        (f"params/{name.removesuffix('.bias')}/bias", axis)
        for name, axis in seen
        if name.endswith(".bias")
    ]
    sizes = [
        tensors[name].shape[axis]
        for name, axis in (*seen, *own)
        if name in tensors and axis < tensors[name].ndim
    ]
    return collections.Counter(sizes).most_common(1)[0][0] if sizes else default


def fill(
    template: Any,
    tensors: Tensors,
    slots: Mapping[str, Slot],
    *,
    net: str,
    ignore: Sequence[str] = IGNORED,
) -> Any:
    """Returns `template` with every leaf filled from exactly one tensor, in float32.

    Args:
      template: nested dict of arrays or shapes, as `jax.eval_shape(module.init, ...)` gives it.
      tensors: `{name: array}`; float16, bfloat16 and float64 become float32.
      slots: for every name that the file must have, its leaf and layout.
      net: what is being filled, for the error.
      ignore: patterns (as in `fnmatch`) of names that the file may have in excess.
    Raises:
      ValueError: one error that names every missing, extra and mis-shaped tensor with the shapes
        expected and found, every tensor that is not of a float type or not finite, and every leaf
        that `slots` fill twice or not at all. Its first line stands alone.
    """
    leaves = _leaves(template)
    paths = collections.Counter(slot.path for slot in slots.values())
    # A mistake of the net's mapping, not of the file: without this check a leaf would be missing,
    # or take the last of two tensors.
    uneven = [p for p in {**leaves, **paths} if paths[p] != 1 or p not in leaves]
    if uneven:
        raise ValueError(
            f"slots must fill every leaf of {net} exactly once, but "
            + ", ".join(f"{'/'.join(p)} is filled {paths[p]} times" for p in uneven)
        )
    ours = {"/".join(path): Slot(path) for path in leaves}
    # Flax's own checkpoints have the net's own names and layouts.
    if slots.keys().isdisjoint(tensors) and not ours.keys().isdisjoint(tensors):
        slots = ours
    extra = [
        name
        for name in tensors
        if name not in slots and not any(fnmatch.fnmatchcase(name, p) for p in ignore)
    ]
    missing = [name for name in slots if name not in tensors]
    wrong: dict[str, list[str]] = {"missing": [], "extra": [], "mis-shaped": [], "unusable": []}
    for i, name in enumerate(missing):
        expected = slots[name].layout.shape(leaves[slots[name].path].shape)
        # Each hint walks all extra names; a file of another net would ask for hundreds.
        near = messages.nearest(name, extra) if i < _MAX_HINTS else None
        hint = f" (the nearest name in the file is {near})" if near else ""
        wrong["missing"].append(f"{name} {_show(expected)}{hint}")
    wrong["extra"] = [f"{name} {_show(np.shape(tensors[name]))}" for name in extra]

    filled: dict[Path, jax.Array] = {}
    for name, (path, layout) in slots.items():
        if name not in tensors:
            continue
        tensor, expected = np.asarray(tensors[name]), layout.shape(leaves[path].shape)
        if tensor.shape != expected:
            wrong["mis-shaped"].append(
                f"{name}: expected {_show(expected)}, found {_show(tensor.shape)}"
            )
        # Integers are counters or quantised weights; read as numbers they would give a wrong
        # network.
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            wrong["unusable"].append(f"{name}: expected a float type, found {tensor.dtype}")
        else:
            with np.errstate(over="ignore"):  # what float32 cannot hold is named below
                leaf = np.ascontiguousarray(layout.load(tensor.astype(np.float32)))
            if bad := int((~np.isfinite(leaf)).sum()):
                wrong["unusable"].append(f"{name}: {bad} of {leaf.size} values are not finite")
            filled[path] = jnp.asarray(leaf)
    if any(wrong.values()):
        counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in wrong.items() if lines)
        other = "; no name matches, these are the weights of another net" if not filled else ""
        lines = [f"  {kind} {line}" for kind, found in wrong.items() for line in found]
        raise ValueError("\n".join([f"weights do not fit {net}: {counts}{other}", *lines]))
    return _nest(filled)


def draw(template: Any, key: jax.Array) -> Any:
    """Returns `template` with random weights: kernels normal with variance 1 / fan-in, scales and
    variances 1, the rest 0.

    Not the modules' own initialisers: one draw for all leaves needs no compilation of the net.

    Args:
      template: as in `fill`.
      key: consumed.
    """
    leaves = _leaves(template)
    kernels = {p: leaf.shape for p, leaf in leaves.items() if p[-1] in ("kernel", "embedding")}
    # One draw for all kernels: a draw each would compile for every shape.
    noise = np.asarray(jax.random.normal(key, (sum(map(math.prod, kernels.values())),)))
    filled, start = {}, 0
    for path, leaf in leaves.items():
        values = np.full(leaf.shape, float(path[-1] in ("scale", "var")), np.float32)
        if path in kernels:
            fan_in = math.prod(leaf.shape[:-1])
            # Variance 1 / fan-in keeps activations of one size from layer to layer.
            values = noise[start : start + values.size].reshape(leaf.shape) * fan_in**-0.5
            start += values.size
        filled[path] = jnp.asarray(values, jnp.float32)
    return _nest(filled)


def _leaves(tree: PyTree, path: Path = ()) -> dict[Path, Any]:
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {p: leaf for key, sub in tree.items() for p, leaf in _leaves(sub, (*path, key)).items()}


def _nest(leaves: Mapping[Path, Any]) -> Record:
    tree: Record = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _show(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
