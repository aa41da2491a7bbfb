"""What a visualisation is given, checked before anything is compiled, and the keys of its items."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from perturb import taps
from perturb.internals._layers import unknown_layer
from perturb.internals.features.objectives import Objective
from perturb.model import Model
from perturb.types import PyTree

__all__ = ["check", "item_keys", "size_of", "starts_of"]


def size_of(model: Model, size: PyTree, start: PyTree) -> tuple[int, int]:
    if size is None and start is not None:
        size = tuple(np.shape(start)[-3:-1])
    if size is None:
        size = model.geometry.size if model.geometry else None
    if size is None:
        raise ValueError(
            f"size is missing: model {model.name} does not say how large its pictures are"
        )
    height, width = (size, size) if isinstance(size, (int, np.integer)) else size
    if min(height, width) < 4:
        raise ValueError(f"size must be at least 4 px, got {height} x {width}")
    return int(height), int(width)


def check(model: Model, objective: Objective, shape: PyTree) -> None:
    """Refuses layers, units and classes that do not exist, before anything is compiled."""
    example = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    try:
        known = taps.names(model, example)
        outputs = jax.eval_shape(model, example)
    except (TypeError, ValueError) as error:
        words = " ".join(str(error).split())[:120]
        raise ValueError(
            f"size: model {model.name} does not take {tuple(shape)}: {words}"
        ) from error
    for term in objective.terms():
        if term.layer is None:
            count, where = getattr(outputs, "shape", (0,))[-1], f"model {model.name}"
        elif term.layer not in known:
            raise unknown_layer(model, term.layer, known)
        else:
            found = known[term.layer]
            count, where = found.shape[model.channel_axis(found)], f"layer {term.layer}"
        if term.ranks[:1] == (1,) and not term.indexes and term.layer is not None:
            length = term.numbers[0].shape[-1]
            if length != count:
                raise ValueError(f"direction must have {count} numbers for {where}, got {length}")
        if not term.indexes:
            continue
        for number in term.numbers[: term.ranks.index(1) if 1 in term.ranks else None]:
            wrong = [int(n) for n in np.ravel(number) if not 0 <= n < count]
            if wrong:
                kind = "class" if term.layer is None else "unit"
                raise ValueError(f"{kind} {wrong[0]} does not exist: {where} has 0 to {count - 1}")


def item_keys(key: jax.Array, items: Objective, count: int) -> jax.Array:
    """A key an item, from what its objective says: the same alone, or among others in any order."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(items)]
    words = "/".join(f"{t.formula.__name__}:{t.layer}" for t in items.terms()).encode()
    numbers = [
        zlib.crc32(b"".join([words, *(leaf[i].tobytes() for leaf in leaves)])) & 0x7FFFFFFF
        for i in range(count)
    ]
    # A checksum of the item's own numbers, which is the same in every process; Python's
    # hash is not.
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(numbers))


def starts_of(start: PyTree, count: int, shape: tuple[int, int, int]) -> np.ndarray | None:
    if start is None:
        return None
    start = np.asarray(start, np.float32)
    if start.ndim == 3:
        start = np.broadcast_to(start, (count, *start.shape))
    if start.shape != (count, *shape):
        raise ValueError(
            f"start must be [{count}, {shape[0]}, {shape[1]}, {shape[2]}], got {start.shape}"
        )
    found: np.ndarray | None = start
    return found
