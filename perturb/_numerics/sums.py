"""Sums that do not depend on the order of their terms, so not on how many slots run side by side.

XLA adds floats in whatever order suits the shape: the mean of a mask beside one neighbour and
beside seven differs in its last bits, and after twenty steps so does the mask. Integers add up
alike in any order.

They are added 32 at a time, side by side in memory: XLA's CPU backend turns that into vector
instructions and works out the terms on the way, where it sums a whole picture at once four times
slower.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturb._numerics.xla import by_platform
from perturb.types import PyTree

__all__ = ["count", "extremes", "mean", "means", "total", "totals"]

_GROUP = 32
# On a GPU, so many terms are one row.
_FEW = 2048


def total(x: jax.Array, *, bound: float | None = None) -> jax.Array:
    """Returns the sum of all of `x`, float32; carries no gradient.

    Terms become integers of the same power-of-two unit, at least 18 bits below the largest term (20
    where two integers hold a term, as on a CPU): closer than a sum of float32.

    Args:
      x: any shape.
      bound: a power of two that no term exceeds in size, which saves looking for the largest.

    >>> x = jnp.linspace(-1.0, 2.0, 1001)
    >>> bool(total(x) == total(x[::-1])), float(total(jnp.ones(7)))
    (True, 7.0)
    """
    return totals((x,), bounds=(bound,))[0]


def totals(terms: Sequence[jax.Array], *, bounds: Sequence[float | None]) -> list[jax.Array]:
    """Returns the `total` of each, all of one shape; on a GPU they are summed by the same
    kernels.
    """
    flat = [jax.lax.stop_gradient(x).astype(jnp.float32).reshape(-1) for x in terms]
    together = functools.partial(_together, bounds=tuple(bounds))
    in_two = functools.partial(_in_two, bounds=tuple(bounds))
    return by_platform(together, in_two, *flat)


def _in_two(*terms: jax.Array, bounds: Sequence[float | None]) -> list[jax.Array]:
    """Sums every term as two integers, all in one loop; another loop finds the largest terms."""
    unknown = [jnp.abs(x) for x, bound in zip(terms, bounds, strict=True) if bound is None]
    largest = iter(_by_groups(unknown, 0, jnp.maximum) if unknown else ())
    tops = [next(largest) if bound is None else jnp.float32(bound) for bound in bounds]
    units = [_power_of_two(top) for top in tops]
    # A term is below two units, so N of them, scaled by 2^bits and rounded, sum to at most 2^30 in
    # size: int32 cannot overflow.
    bits = 29 - math.ceil(math.log2(max(terms[0].size, 2)))
    high = [x / unit * 2.0**bits for x, unit in zip(terms, units, strict=True)]
    whole = [jnp.round(x) for x in high]
    # What rounding has cut off, exact in float32, becomes a second integer: twice the bits.
    rest = [jnp.round((x - w) * 2.0**bits) for x, w in zip(high, whole, strict=True)]
    integers = [x.astype(jnp.int32) for x in (*whole, *rest)]
    found = [x.astype(jnp.float32) for x in _by_groups(integers, 0, jnp.add)]
    return [
        # No integer stands for infinity or NaN: the sum is NaN then, rather than some number.
        jnp.where(jnp.isfinite(top), (coarse + fine * 2.0**-bits) * 2.0**-bits * unit, jnp.nan)
        for coarse, fine, unit, top in zip(
            found[: len(terms)], found[len(terms) :], units, tops, strict=True
        )
    ]


def _power_of_two(top: jax.Array) -> jax.Array:
    """The exponent of the largest term alone: a power of two scales without rounding."""
    # Zeros alone would leave nothing to divide by. 1e-25 is about 2^-84: even the lowest of 28 more
    # bits is a normal float32, which a CPU does not flush to zero.
    bits = jax.lax.bitcast_convert_type(jnp.maximum(top, 1e-25), jnp.int32)
    # The mask keeps the eight bits of the exponent; sign and mantissa become 0.
    return jax.lax.bitcast_convert_type(bits & 0x7F800000, jnp.float32)


def _together(*terms: jax.Array, bounds: Sequence[float | None]) -> list[jax.Array]:
    """Takes two kernels, or four where the largest term has to be found, for any number of sums."""
    rows = [_rows(x) for x in terms]
    by_row = [_row(r, bound) for r, bound in zip(rows, bounds, strict=True)]
    if rows[0].shape[0] == 1:
        return [r[0] for r in by_row]
    if None in bounds:
        return list(_row(jnp.stack(by_row), None))
    length = rows[0].shape[1]
    # A row sums to at most its length times the bound: both are powers of two, as `_row` wants.
    return list(_row(jnp.stack(by_row), length * jnp.array(bounds, jnp.float32)[:, None]))


def _row(rows: jax.Array, bound: PyTree) -> jax.Array:
    """Sums each row as integers, in a unit chosen for that row."""
    bits = 29 - math.ceil(math.log2(max(rows.shape[-1], 2)))
    top = jnp.abs(rows).max(-1, keepdims=True) if bound is None else jnp.float32(bound)
    above = _power_of_two(top) if bound is None else top
    # Rounded up from ever lower fractions along a row: terms that are all alike do not all round
    # alike.
    length = rows.shape[-1]
    part = (np.arange(length, dtype=np.float32) + 0.5) / length
    whole = jnp.floor(rows / above * 2.0**bits + part).astype(jnp.int32).sum(-1, keepdims=True)
    value = whole.astype(jnp.float32) * 2.0**-bits * above
    return jnp.where(jnp.isfinite(top), value, jnp.nan)[..., 0]


def _rows(x: jax.Array) -> jax.Array:
    """`[rows, 256]`, filled up with zeros; longer for more than a million terms, one row for
    few.
    """
    # The 256 grow with the array so that at most 4096 rows are left for the second kernel.
    length = x.size if x.size <= _FEW else max(256, 1 << max(0, math.ceil(math.log2(x.size)) - 12))
    return jnp.pad(x, (0, -x.size % length)).reshape(-1, length)


def mean(x: jax.Array, *, bound: float | None = None) -> jax.Array:
    """Returns the mean of all of `x`, float32; carries no gradient; `bound` as for `total`."""
    return total(x, bound=bound) / x.size


def means(terms: Sequence[jax.Array], *, bounds: Sequence[float | None]) -> list[jax.Array]:
    """Returns the `mean` of each, all of one shape, as `totals` sums them."""
    return [value / terms[0].size for value in totals(terms, bounds=bounds)]


def count(x: jax.Array) -> jax.Array:
    """Returns how many of the booleans `x`, any shape, are true; int32.

    >>> int(count(jnp.arange(1001) % 3 == 0))
    334
    """
    ones = x.reshape(-1).astype(jnp.int32)
    # Integers add up alike in any order, so a GPU may use its own sum; on a CPU the groups are
    # faster. Where 64-bit arithmetic is on, `jnp.sum` would make int64 of int32.
    whole = functools.partial(jnp.sum, dtype=jnp.int32)
    return by_platform(whole, lambda x: _by_groups([x], 0, jnp.add)[0], ones)


def extremes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the least and the largest of all of `x`, any shape."""
    flat = x.reshape(-1)
    # The least is the largest of the negatives: one reduction finds both in one loop.
    low, high = _by_groups([-flat, flat], -jnp.inf, jnp.maximum)
    return -low, high


def _by_groups(
    terms: Sequence[jax.Array], fill: float, combine: Callable[[jax.Array, jax.Array], jax.Array]
) -> Sequence[jax.Array]:
    """Combines each of `terms` to one number, group by group; the last group is padded.

    One loop serves all terms: what they have in common is computed once.
    """
    fills = tuple(jnp.asarray(fill, x.dtype) for x in terms)

    def reduce(terms: Sequence[jax.Array], axis: int) -> Sequence[jax.Array]:
        found: Sequence[jax.Array] = jax.lax.reduce(
            tuple(terms), fills, lambda a, b: tuple(map(combine, a, b)), (axis,)
        )
        return found

    while terms[0].size > _GROUP:
        # What is filled up with leaves the result as it is: 0 for sums, minus infinity for maxima.
        gap = -terms[0].size % _GROUP
        padded = [jnp.pad(x, (0, gap), constant_values=fill) for x in terms]
        terms = reduce([x.reshape(-1, _GROUP) for x in padded], 1)
    return reduce(terms, 0)
