"""SmoothGrad: the gradient averaged over noisy copies of the image (Smilkov et al. 2017)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["smoothgrad"]


def smoothgrad(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    samples: int = 50,
    noise: float = 0.15,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`: the largest absolute mean gradient over channels.

    Args:
      model, images, targets: as for `gradient`.
      samples: noisy copies an image.
      noise: standard deviation as a share of the image's own range.
      key: decides the noise; image `i` uses `fold_in(key, i)`, or `[B]` keys of the images.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    pixels, classes, number = _common.checked_batch(model, images, targets)
    keys = _common.image_keys(key, len(pixels))
    found: np.ndarray = arrays.finished(
        _map(model, pixels, classes, jnp.float32(noise), keys, samples)[:number]
    )
    return found


@functools.partial(jax.jit, static_argnames="samples")
def _map(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    noise: jax.Array,
    keys: jax.Array,
    samples: int,
) -> jax.Array:
    inner = tuple(range(1, images.ndim))
    # Relative to each picture's range, as in the paper.
    width = _common.beside(noise * (images.max(inner) - images.min(inner)), images)

    def add(total: jax.Array, s: jax.Array) -> tuple[jax.Array, None]:
        def draw(key: jax.Array) -> jax.Array:
            # By the picture's key and the number of the copy: neither the batch nor further
            # copies change it.
            own = jax.random.fold_in(key, s)
            return jax.random.normal(own, images.shape[1:], images.dtype)

        noisy = images + width * jax.vmap(draw)(keys)
        return total + _common.pull(model, noisy, targets)[1], None

    total, _ = jax.lax.scan(add, jnp.zeros_like(images), jnp.arange(samples))
    # The mean first, then its size: noise around 0 cancels, where a mean of sizes would keep it.
    return jnp.abs(total / samples).max(-1)
