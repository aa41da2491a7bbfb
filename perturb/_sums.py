"""Sums that do not depend on the order of their terms, so not on how many slots run side by side.

XLA adds floats in whatever order suits the shape: the mean of a mask beside one neighbour and beside
seven differs in its last bits, and after twenty steps so does the mask. Integers add up alike in any
order.

They are added 32 at a time, side by side in memory: XLA's CPU backend turns that into vector instructions
and works out the terms on the way, where it sums a whole picture at once four times slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perturb._xla import by_platform

__all__ = ["count", "mean", "total"]

_GROUP = 32


def total(x: jax.Array, *, bound: float | None = None) -> jax.Array:
    """Returns the sum of all of `x`, float32; carries no gradient.

    Terms are split into two integers of the same power-of-two unit, at least 20 bits together below the
    largest term: closer than a sum of float32.

    Args:
      x: any shape.
      bound: a power of two that no term exceeds in size, which saves looking for the largest.

    >>> x = jnp.linspace(-1.0, 2.0, 1001)
    >>> bool(total(x) == total(x[::-1])), float(total(jnp.ones(7)))
    (True, 7.0)
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    bits = 29 - math.ceil(math.log2(max(x.size, 2)))
    if bound is None:
        top = _fold(jnp.abs(x), jnp.max)
        # The exponent of the largest term alone: a power of two scales without rounding.
        above = jax.lax.bitcast_convert_type(
            jax.lax.bitcast_convert_type(jnp.maximum(top, 1e-25), jnp.int32) & 0x7F800000,
            jnp.float32,
        )
    else:
        top, above = jnp.float32(0), jnp.float32(bound)
    high = x / above * 2.0**bits
    whole = jnp.round(high)
    rest = jnp.round((high - whole) * 2.0**bits)
    coarse = _fold(whole.astype(jnp.int32), jnp.sum).astype(jnp.float32)
    fine = _fold(rest.astype(jnp.int32), jnp.sum).astype(jnp.float32)
    value = (coarse + fine * 2.0**-bits) * 2.0**-bits * above
    return jnp.where(jnp.isfinite(top), value, jnp.nan)


def mean(x: jax.Array, *, bound: float | None = None) -> jax.Array:
    """Returns the mean of all of `x`, float32; carries no gradient; `bound` as for `total`."""
    return total(x, bound=bound) / x.size


def count(x: jax.Array) -> jax.Array:
    """Returns how many of the booleans `x`, any shape, are true; int32.

    >>> int(count(jnp.arange(1001) % 3 == 0))
    334
    """
    return _fold(x.astype(jnp.int32), jnp.sum)


def _fold(x: jax.Array, reduce: Callable[..., jax.Array]) -> jax.Array:
    """`reduce` over all of `x`; not on a GPU by groups, of which zeros fill the last one up."""

    def by_groups(x: jax.Array) -> jax.Array:
        while x.size > _GROUP:
            x = jnp.pad(x, (0, -x.size % _GROUP))
            x = reduce(x.reshape(-1, _GROUP), 1)
        return reduce(x, 0)

    return by_platform(lambda x: reduce(x, 0), by_groups, x.reshape(-1))
