"""Sums that do not depend on the order of their terms, so not on how many slots run side by side.

XLA adds floats in whatever order suits the shape: the mean of a mask beside one neighbour and beside
seven differs in its last bits, and after twenty steps so does the mask. Integers add up alike in any
order.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

__all__ = ["mean", "total"]


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
        top = jnp.abs(x).max()
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
    coarse = whole.astype(jnp.int32).sum().astype(jnp.float32)
    fine = rest.astype(jnp.int32).sum().astype(jnp.float32)
    value = (coarse + fine * 2.0**-bits) * 2.0**-bits * above
    return jnp.where(jnp.isfinite(top), value, jnp.nan)


def mean(x: jax.Array, *, bound: float | None = None) -> jax.Array:
    """Returns the mean of all of `x`, float32; carries no gradient; `bound` as for `total`."""
    return total(x, bound=bound) / x.size
