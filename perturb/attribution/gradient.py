"""The gradient of the target's score (Simonyan, Vedaldi, Zisserman 2014)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["gradient"]


def gradient(
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`: the largest absolute gradient over channels, at the pixels or at a
    layer.

    Args:
      model: returns classes.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      layer: name of an activation; its map is enlarged to the images.
    Raises:
      ValueError: naming the argument that cannot be served.

    >>> seen = Model(lambda w, x: x[:, 2:4, 2:4].sum((1, 2)), ())
    >>> int(gradient(seen, np.ones((1, 8, 8, 3)), [0]).sum())
    4
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    return _common.enlarge(_map(model, pixels, classes, layer)[:number], pixels.shape[1:-1])


@functools.partial(jax.jit, static_argnames="layer")
def _map(model: Model, images: jax.Array, targets: jax.Array, layer: str | None) -> jax.Array:
    return jnp.abs(_common.pull(model, images, targets, layer)[1]).max(-1)
