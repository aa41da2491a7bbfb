"""Class activation maps: CAM (Zhou et al. 2016) and Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["cam", "grad_cam"]


def grad_cam(
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`, at least 0: channels weighted by the mean of their gradient.

    Args:
      model, images, targets: as for `gradient`.
      layer: an activation with places by name, channels first or last, or tokens (of which those
        without a place, such as a class token, are left out); None is the last map of places.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    name = layer or _common.last_layer(model, pixels)
    found, _ = _map(model, pixels, classes, name)
    return _common.enlarge(jnp.maximum(found[:number], 0), pixels.shape[1:-1])


def cam(
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: channels weighted by the classifier's own weights.

    The weights are read off as the slope of the score, which is the same at
    every place where what follows the layer is a mean over places and one linear layer.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      layer: name of the last activation with places; None finds it.
    Raises:
      ValueError: if it is not: then there is no such map.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    name = layer or _common.last_layer(model, pixels)
    found, spread = _map(model, pixels, classes, name)
    # Under jit there is no value to look at; the map is then that of the mean slope.
    if not arrays.traced(spread) and float(spread) > 1e-3:
        raise ValueError(
            f"layer {name!r} must be followed by a mean over places and a linear layer, but its "
            "slope differs from place to place: use grad_cam"
        )
    return _common.enlarge(found[:number], pixels.shape[1:-1])


@functools.partial(jax.jit, static_argnames="layer")
def _map(
    model: Model, images: jax.Array, targets: jax.Array, layer: str
) -> tuple[jax.Array, jax.Array]:
    activation, slope = _common.pull(model, images, targets, layer)
    weight = slope.mean(tuple(range(1, slope.ndim - 1)), keepdims=True)
    # Relative to the slope's size: scores may be of any scale.
    uneven = jnp.abs(slope - weight).max() / jnp.maximum(jnp.abs(slope).max(), 1e-30)
    return (activation * weight).sum(-1), uneven
