"""How a picture gets off the ground: a ReLU that is silent on the first picture has no slope.

Without a rule most units of a deep layer stay grey (of 24 units of SqueezeNet's `features.11` 15
do). In the first steps a silent ReLU lets through what would raise its input (Lucid's redirected
ReLU), per picture and only where its whole plain gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from perturb.taps import swap

__all__ = ["redirected"]


def redirected(f: Callable[..., Any], early: jax.Array) -> Callable[..., Any]:
    """Returns `f`, a function of a batch, with the slopes of its ReLUs redirected.

    Args:
      f: its inner functions `relu` and `relu6`, under any name of JAX's own, are those that change.
      early: `[B]` bool: for which pictures.
    """

    def rule(top: float) -> Callable[..., Any]:
        def change(old: Callable[..., Any], varied: Any, x: jax.Array, *rest: Any) -> Any:
            # Not over the batch (a bias's own ReLU, say): there is no picture that it belongs to.
            if rest or x.ndim < 1 or x.shape[0] != early.shape[0]:
                return old(x, *rest)
            return _redirect(old, x, early, top)

        return change

    return swap(f, {"relu": rule(jnp.inf), "relu6": rule(6.0)})


def _redirect(old: Callable[..., Any], x: jax.Array, early: jax.Array, top: float) -> jax.Array:
    @jax.custom_vjp
    def red(x: jax.Array, early: jax.Array) -> jax.Array:
        return old(x)

    def forward(x: jax.Array, early: jax.Array) -> tuple[jax.Array, Any]:
        return old(x), (x, early)

    def backward(kept: Any, g: jax.Array) -> tuple[Any, None]:
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
