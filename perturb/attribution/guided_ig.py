"""Guided integrated gradients: the path moves first those pixels whose gradient is small.

Kapishnikov et al., Guided Integrated Gradients: an Adaptive Path Method for Removing Noise, 2021,
algorithm 1. The straight path of integrated gradients crosses regions where the network says
something unrelated with large gradients; this one leaves the pixels with the largest gradients for
last, within a fraction of the straight line.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["guided_integrated_gradients"]


def guided_integrated_gradients(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    steps: int = 100,
    fraction: float = 0.25,
    max_dist: float = 0.02,
    baseline: ArrayLike = 0.0,
) -> np.ndarray:
    """Returns `[B, H, W]`, signed.

    Args:
      model, images, targets: as for `gradient`.
      steps: of the path.
      fraction: share of the values that may move at a time, in (0, 1]: those with the smallest
        gradients.
      max_dist: how far a value may leave the straight line, as a share of the way; 0 is
        integrated gradients.
      baseline: a number or a colour `[C]`.

    >>> seen = Model(lambda w, x: x[:, 2:4, 2:4].sum((1, 2)), ())
    >>> found = guided_integrated_gradients(seen, np.full((1, 8, 8, 3), 0.5), [0], steps=20)
    >>> round(float(found.sum()), 3)
    2.0
    """
    if steps < 1 or not 0 < fraction <= 1 or not 0 <= max_dist <= 1:
        raise ValueError(
            "steps must be at least 1, fraction in (0, 1] and max_dist in [0, 1], "
            f"got {steps}, {fraction}, {max_dist}"
        )
    pixels, classes, number = _common.checked_batch(model, images, targets)
    start = jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), pixels.shape)
    found = _map(model, pixels, classes, start, steps, float(fraction), float(max_dist))
    result: np.ndarray = arrays.finished(found[:number])
    return result


@functools.partial(jax.jit, static_argnames=("steps", "fraction", "max_dist"))
def _map(
    model: Model,
    images: jax.Array,
    targets: PyTree,
    start: jax.Array,
    steps: int,
    fraction: float,
    max_dist: float,
) -> jax.Array:
    axes = tuple(range(1, images.ndim))
    way = images - start
    whole = jnp.abs(way).sum(axes)

    def along(alpha: jax.Array) -> jax.Array:
        return start + alpha * way

    def share(x: jax.Array) -> jax.Array:
        """How far each value has come, `[B, ...]` in [0, 1]; 1 where there is no way."""
        return jnp.where(way == 0, 1.0, (x - start) / jnp.where(way == 0, 1.0, way))

    def step(carry: PyTree, n: jax.Array) -> tuple[PyTree, None]:
        x, total = carry
        grads = _common.pull(model, x, targets)[1]
        # Where 64-bit arithmetic is on, a quotient of whole numbers would be float64.
        alpha = ((n + 1) / steps).astype(images.dtype)
        low = along(jnp.maximum(alpha - max_dist, 0.0))
        high = along(jnp.minimum(alpha + max_dist, 1.0))
        goal = whole * (1 - alpha)

        def unmet(inner: PyTree) -> jax.Array:
            _, _, left, rounds = inner
            # A guard only: a round ends where its way is done or nothing is left to move.
            found: jax.Array = left.any() & (rounds < 64)
            return found

        def move(inner: PyTree) -> PyTree:
            x, total, left, rounds = inner
            before = x
            # Whatever lies behind the strip around the line catches up first.
            x = jnp.where(share(x) < jnp.maximum(alpha - max_dist, 0.0), low, x)
            now = jnp.abs(images - x).sum(axes)
            # A float32's rounding short of the limit counts as there.
            free = share(x) < jnp.minimum(alpha + max_dist, 1.0) - 1e-7
            # What has reached its limit must not be among the smallest.
            size = jnp.where(free, jnp.abs(grads), jnp.inf)
            # One of the values themselves, for interpolating towards infinity gives
            # infinity or NaN.
            cut = jnp.quantile(size.reshape(len(x), -1), fraction, axis=1, method="lower")
            some = (size <= cut.reshape(-1, *[1] * (x.ndim - 1))) & free
            room = jnp.where(some, jnp.abs(high - x), 0.0).sum(axes)
            gap = jnp.maximum(now - goal, 0.0)
            part = jnp.where(room > 0, jnp.minimum(gap / jnp.maximum(room, 1e-20), 1.0), 0.0)
            part = part.reshape(-1, *[1] * (x.ndim - 1))
            x = jnp.where(some, x + part * (high - x), x)
            still = left.reshape(part.shape)
            x = jnp.where(still, x, before)
            total = total + (x - before) * jnp.where(jnp.isfinite(grads), grads, 0.0)
            met = jnp.abs(images - x).sum(axes) <= goal + 1e-5 * whole
            return x, total, left & ~met & (room > 0), rounds + 1

        every = jnp.ones(len(x), bool)
        x, total, _, _ = jax.lax.while_loop(unmet, move, (x, total, every, jnp.int32(0)))
        return (x, total), None

    (_, total), _ = jax.lax.scan(step, (start, jnp.zeros_like(images)), jnp.arange(steps))
    return total.sum(-1)
