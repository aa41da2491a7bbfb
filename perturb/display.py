"""How records show themselves: one line a field, arrays as their type and shape."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

from perturb.types import PyTree

__all__ = ["ROWS", "interval", "plain", "summary", "table", "value"]

# Lines of a record; what has more fields names the rest in one line.
_LINES = 18
_WIDTH = 88
# Rows of a table in a notebook's cell.
ROWS = 12


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


def interval(value: float, low: float, high: float) -> str:
    """Returns an estimate and its 95 % interval, which may be missing.

    >>> interval(0.5, 0.25, 0.75), interval(0.5, math.nan, math.nan)
    ('0.500 (0.250 to 0.750)', '0.500')
    """
    if not math.isfinite(low + high):
        return f"{value:.3f}"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a table for a notebook's cell (safe HTML), of the first `ROWS` rows.

    Args:
      caption: what it is of.
      header: a name a column.
      rows: values of each row, shown by `str`.
    """

    def line(tag: str, cells: Sequence[object]) -> str:
        style = 'style="text-align:left"'
        return f"<tr>{''.join(f'<{tag} {style}>{html.escape(str(c))}</{tag}>' for c in cells)}</tr>"

    said = caption if len(rows) <= ROWS else f"{caption}; the first {ROWS} of {len(rows)}"
    body = "".join(line("td", row) for row in rows[:ROWS])
    return (
        f'<table><caption style="text-align:left">{html.escape(said)}</caption>'
        f"<thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"
    )


def plain(record: Any) -> str:
    """Returns `repr(record)` for a cell (safe HTML): of a record without what a table needs."""
    return f"<pre>{html.escape(repr(record))}</pre>"
