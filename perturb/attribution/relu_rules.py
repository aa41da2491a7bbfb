"""Other backward rules for relu: guided backpropagation and the deconvolution network.

The inner functions named `relu` and `relu6` of any JAX model are exchanged for ones with the same
values and another derivative; the model itself is not touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb import taps
from perturb.attribution import _common
from perturb.model import Model

__all__ = ["deconvnet", "guided_backprop"]

NAMES = ("relu", "relu6")


def _rule(guided: bool) -> Callable[..., Any]:
    def rule(old: Callable[..., Any], varied: tuple[bool, ...], x: jax.Array) -> jax.Array:
        @jax.custom_vjp
        def relu(x: jax.Array) -> jax.Array:
            return old(x)

        def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return old(x), x

        def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
            g = jnp.maximum(g, 0)
            # Where the function stands still (also above 6), nothing passes under the guided rule.
            return (jnp.where(old(x) == x, g, 0) * (x > 0) if guided else g,)

        relu.defvjp(forward, backward)
        return relu(x)

    return rule


def guided_backprop(
    model: Model, images: Any, targets: Any, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`, largest over channels; negative gradients are stopped at every relu.

    Springenberg et al., Striving for Simplicity, 2015. Args: as for `gradient`.
    Raises:
      ValueError: if the model has no inner function named relu: there is nothing to guide.
    """
    return _relu_map(model, images, targets, layer, True)


def deconvnet(model: Model, images: Any, targets: Any, *, layer: str | None = None) -> np.ndarray:
    """Returns `[B, H, W]`: relu on the way back instead of relu's derivative (Zeiler, Fergus 2014).

    Args and Raises: as for `guided_backprop`.
    """
    return _relu_map(model, images, targets, layer, False)


def _relu_map(model: Model, images: Any, targets: Any, layer: str | None, guided: bool) -> Any:
    pixels, classes, number = _common.open_door(model, images, targets)
    bases = {name.rpartition("/")[2].partition("#")[0] for name in taps.names(model, pixels)}
    if not bases & set(NAMES):
        raise ValueError(f"model {model.name} has no jax.nn.relu: the rule has nothing to act on")
    return _common.enlarge(_map(model, pixels, classes, layer, guided)[:number], pixels.shape[1:3])


@functools.partial(jax.jit, static_argnames=("layer", "guided"))
def _map(
    model: Model, images: jax.Array, targets: jax.Array, layer: str | None, guided: bool
) -> jax.Array:
    swaps = dict.fromkeys(NAMES, _rule(guided))
    return jnp.abs(_common.pull(model, images, targets, layer, swaps)[1]).max(-1)
