"""The same arithmetic on the host and under `jit`, `vmap` and `grad`.

Figures of finished arrays are worked out by NumPy in float64, where no compiler is waited for;
traced arrays, which have no values yet, go through `jax.numpy`. A function asks `namespace` which
it is.
"""

from __future__ import annotations

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from perturb.types import ArrayLike, PyTree

__all__ = ["as_float", "finished", "namespace", "ranks", "traced"]


def traced(*values: object) -> bool:
    """Returns whether any leaf is an array without a value yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def namespace(*values: object) -> ModuleType:
    """Returns `jax.numpy` where any value is traced, else `numpy`."""
    return jnp if traced(*values) else np


def as_float(value: ArrayLike, *others: object) -> PyTree:
    """Returns an array of the widest floats: float64 on the host; traced, as wide as jax is set
    to.
    """
    if traced(value, *others):
        # float64 stays under jax.enable_x64; half precision would round sums over many items.
        return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))
    return np.asarray(value, np.float64)


def finished(value: ArrayLike) -> PyTree:
    """Returns a NumPy array, or a traced one as it is."""
    return value if traced(value) else np.asarray(value)


def ranks(values: jax.Array) -> PyTree:
    """Returns ranks from 1 along the last axis, ties at their mean rank, of traced values."""

    def line(v: jax.Array) -> jax.Array:
        ordered = jnp.sort(v)
        # Counts of what is below and of what is not above: ties get the mean of their ranks.
        below = jnp.searchsorted(ordered, v, side="left")
        rank = (below + jnp.searchsorted(ordered, v, side="right") + 1) / 2
        # NaN has no place in an order; as in scipy's rankdata it makes all ranks NaN.
        return jnp.where(jnp.isnan(v).any(), jnp.nan, rank)

    return jnp.vectorize(line, signature="(n)->(n)")(values)
