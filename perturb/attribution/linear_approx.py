"""Linear approximation: activation times gradient at a layer, summed over channels."""

from __future__ import annotations

import functools

import jax
import numpy as np

from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["linear_approx"]


def linear_approx(
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`, signed; `layer` None is the last with places left, else as `gradient`.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      layer: name of an activation; None is the last one with places.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    name = layer or _common.last_layer(model, pixels)
    return _common.enlarge(_map(model, pixels, classes, name)[:number], pixels.shape[1:-1])


@functools.partial(jax.jit, static_argnames="layer")
def _map(model: Model, images: jax.Array, targets: jax.Array, layer: str) -> jax.Array:
    activation, slope = _common.pull(model, images, targets, layer)
    return (activation * slope).sum(-1)
