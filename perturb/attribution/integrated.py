"""Integrated gradients: the gradient along the line from a baseline (Sundararajan et al. 2017)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["integrated_gradients"]


def integrated_gradients(
    model: Model, images: ArrayLike, targets: PyTree, *, steps: int = 50, baseline: ArrayLike = 0.0
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: its sum is the score's rise from the baseline to the image.

    Args:
      model, images, targets: as for `gradient`.
      steps: number of points of the midpoint rule.
      baseline: a number, a colour `[C]` or pictures like the images; 0 is black.

    >>> seen = Model(lambda w, x: (x[:, 2:4, 2:4] ** 2).sum((1, 2)), ())
    >>> round(float(integrated_gradients(seen, np.full((1, 8, 8, 3), 0.5), [0]).sum()), 4)
    1.0
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    pixels, classes, number = _common.checked_batch(model, images, targets)
    from_ = jnp.asarray(baseline, jnp.float32)
    if from_.ndim == pixels.ndim and number == 1 and len(from_) == 1:
        # A single picture is run twice, and so is the picture it starts from.
        from_ = jnp.repeat(from_, 2, 0)
    try:
        start = jnp.broadcast_to(from_, pixels.shape)
    except ValueError as error:
        raise ValueError(
            f"baseline must be a number, a colour [{pixels.shape[-1]}] or pictures "
            f"{list(pixels.shape)}, got shape {list(from_.shape)}"
        ) from error
    found: np.ndarray = arrays.finished(_map(model, pixels, classes, start, steps)[:number])
    return found


@functools.partial(jax.jit, static_argnames="steps")
def _map(
    model: Model, images: jax.Array, targets: jax.Array, start: jax.Array, steps: int
) -> jax.Array:
    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        # Midpoints: their error falls with the square of the number of steps.
        at = start + (i + 0.5) / steps * (images - start)
        return total + _common.pull(model, at, targets)[1], None

    total, _ = jax.lax.scan(add, jnp.zeros_like(images), jnp.arange(steps))
    return ((images - start) * total / steps).sum(-1)
