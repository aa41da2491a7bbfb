"""Other backward rules for relu: guided backpropagation and the deconvolution network.

Every relu of a JAX model, an inner function named `relu` or `relu6` or one that is written out
(`maximum(x, 0)`, `where(x > 0, x, 0)`), inside `scan` and `cond` too, is exchanged for one with the
same values and another derivative; the model itself is not touched. What cannot be reached is
refused.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb.attribution import _common
from perturb.model import Model
from perturb.taps.swapping import swap
from perturb.types import ArrayLike, Function, PyTree

__all__ = ["deconvnet", "guided_backprop"]

NAMES = ("relu", "relu6")


def _rule(guided: bool) -> Function:
    def rule(old: Function, varied: tuple[bool, ...], x: jax.Array) -> jax.Array:
        @jax.custom_vjp
        def relu(x: jax.Array) -> jax.Array:
            found: jax.Array = old(x)
            return found

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
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`, largest over channels; negative gradients are stopped at every relu.

    Springenberg et al., Striving for Simplicity, 2015.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      layer: name of an activation; None is the pixels.
    Raises:
      ValueError: if the model has no relu, so that there is nothing to guide, or if some of its
        relus lie where the rule cannot reach them.
    """
    found: np.ndarray = _relu_map(model, images, targets, layer, True)
    return found


def deconvnet(
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`: relu on the way back instead of relu's derivative (Zeiler, Fergus 2014).

    It refuses what `guided_backprop` refuses.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      layer: name of an activation; None is the pixels.
    """
    found: np.ndarray = _relu_map(model, images, targets, layer, False)
    return found


def _relu_map(
    model: Model, images: ArrayLike, targets: PyTree, layer: str | None, guided: bool
) -> PyTree:
    pixels, classes, number = _common.checked_batch(model, images, targets)
    reached: list[int] = []

    def count(old: Function, varied: tuple[bool, ...], *operands: object) -> jax.Array:
        reached.append(1)
        found: jax.Array = old(*operands)
        return found

    # Without a relu the map would be the plain gradient under another name.
    jax.eval_shape(swap(lambda x: model(x), dict.fromkeys(NAMES, count)), pixels)
    if not reached:
        raise ValueError(
            f"model {model.name} has no relu: the rule has nothing to act on; use gradient"
        )
    return _common.enlarge(_map(model, pixels, classes, layer, guided)[:number], pixels.shape[1:-1])


@functools.partial(jax.jit, static_argnames=("layer", "guided"))
def _map(
    model: Model, images: jax.Array, targets: jax.Array, layer: str | None, guided: bool
) -> jax.Array:
    swaps = dict.fromkeys(NAMES, _rule(guided))
    return jnp.abs(_common.pull(model, images, targets, layer, swaps)[1]).max(-1)
