"""How records show themselves: one line a field, arrays as their type and shape."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from perturb.types import PyTree

__all__ = ["summary", "value"]

# Lines of a record; what has more fields names the rest in one line.
_LINES = 18
_WIDTH = 88


def value(found: PyTree) -> str:
    """Returns a value in a few words: an array as `float32[2, 8]`, a tree by its size."""
    # Here: processes that decode pictures import this file, and load no JAX.
    import jax

    if hasattr(found, "shape") and hasattr(found, "dtype"):
        # A traced scalar has no value to show.
        if found.shape == () and not isinstance(found, jax.core.Tracer):
            return f"{found}"
        return f"{found.dtype}[{', '.join(map(str, found.shape))}]"
    if isinstance(found, dict) or (isinstance(found, tuple | list) and len(found) > 6):
        # Weights have hundreds of arrays, and a prompt shows one line a field.
        arrays = [leaf for leaf in jax.tree.leaves(found) if hasattr(leaf, "shape")]
        if arrays:
            numbers = sum(math.prod(leaf.shape) for leaf in arrays)
            return f"<{len(arrays)} arrays, {numbers:,} numbers>"
        return f"<{type(found).__name__} of {len(found)}>"
    if isinstance(found, tuple | list) and any(hasattr(x, "shape") for x in found):
        return f"({', '.join(map(value, found))})"
    text = " ".join(repr(found).split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "\N{HORIZONTAL ELLIPSIS}"


def summary(record: Any) -> str:
    """Returns a record as at most twenty lines, for a notebook's cell or a prompt."""
    names = (
        [f.name for f in dataclasses.fields(record)]
        if dataclasses.is_dataclass(record)
        else list(record._fields)
    )
    shown = [f"  {name}={value(getattr(record, name))}," for name in names[:_LINES]]
    if names[_LINES:]:
        rest = ", ".join(names[_LINES:])
        shown[-1:] = [f"  and {names[_LINES - 1]}, {rest}"]
    return "\n".join([f"{type(record).__name__}(", *shown, ")"])
