"""How a picture gets off the ground: a ReLU that is silent on the first picture has no slope.

Without a rule most units of a deep layer stay grey (of 24 units of SqueezeNet's `features.11` 15
do). In the first steps a silent ReLU lets through what would raise its input (Lucid's redirected
ReLU), per picture and only where its whole plain gradient is zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perturb.taps import swap
from perturb.types import Function, PyTree

__all__ = ["redirected"]


def redirected(f: Function, early: jax.Array) -> Function:
    """Returns `f`, a function of a batch, with the slopes of its ReLUs redirected.

    Args:
      f: its inner functions `relu` and `relu6`, under any name of JAX's own, are those that change.
      early: `[B]` bool: for which pictures.
    """

    def rule(top: float) -> Function:
        def change(old: Function, varied: PyTree, x: jax.Array, *rest: object) -> jax.Array:
            # Not over the batch (a bias's own ReLU, say): there is no picture that it belongs to.
            if rest or x.ndim < 1 or x.shape[0] != early.shape[0]:
                found: jax.Array = old(x, *rest)
                return found
            return _redirect(old, x, early, top)

        return change

    return swap(f, {"relu": rule(jnp.inf), "relu6": rule(6.0)})


def _redirect(old: Function, x: jax.Array, early: jax.Array, top: float) -> jax.Array:
    @jax.custom_vjp
    def red(x: jax.Array, early: jax.Array) -> jax.Array:
        found: jax.Array = old(x)
        return found

    def forward(x: jax.Array, early: jax.Array) -> tuple[jax.Array, PyTree]:
        return old(x), (x, early)

    def backward(kept: PyTree, g: jax.Array) -> tuple[PyTree, None]:
        x, early = kept
        plain = jnp.where((x > 0) & (x < top), g, 0)
        # The loss is minus the objective: a positive slope pushes x down. Above 6 a ReLU6 may come
        # down.
        opened = jnp.where((x >= top) & (g < 0) | (x < 0) & (g > 0), 0, g)
        axes = tuple(range(1, x.ndim))
        silent = early & ((plain == 0).all(axes))
        return jnp.where(silent.reshape(-1, *[1] * (x.ndim - 1)), opened, plain), None

    red.defvjp(forward, backward)
    return red(x, early)
