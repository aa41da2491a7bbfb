"""What is done to a perturbed view before the network sees it: nothing, or a mirror every other
step.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ["flip_on_even_steps", "mirrored", "no_change"]


def no_change(view: jax.Array, mask: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the perturbed image as it is.

    Args:
      view: `[*size, C]`, the perturbed image.
      mask: `[*size]` in [0, 1].
      key: random key of the step.
      step: number of the step, from 0.
    """
    return view


def flip_on_even_steps(
    view: jax.Array, mask: jax.Array, key: jax.Array, step: jax.Array
) -> jax.Array:
    """Mirrors the perturbed image left to right on every even step, as extremal perturbations do.

    Args:
      view: `[*size, C]`, the perturbed image.
      mask: `[*size]` in [0, 1]; not used.
      key: random key of the step; not used.
      step: number of the step, from 0; may be traced.
    """
    return mirrored(view, step % 2 == 0)


@jax.custom_batching.custom_vmap
def _mirror(view: jax.Array, which: jax.Array) -> jax.Array:
    return jnp.where(which, jnp.flip(view, -2), view)


@_mirror.def_vmap
def _mirror_slots(
    slots: int, batched: Sequence[bool], views: jax.Array, which: jax.Array
) -> tuple[jax.Array, bool]:
    """One place to read from: of a choice of two a CPU works out both, with all that leads to them,
    and a GPU writes out the view before. But a TPU reads its pictures in order.
    """
    if not batched[1]:
        return _mirror(views, which), True
    if not batched[0]:
        views = jnp.broadcast_to(views, (slots, *views.shape))

    def choose(views: jax.Array, which: jax.Array) -> jax.Array:
        some = which.reshape(-1, *[1] * (views.ndim - 1))
        return jnp.where(some, jnp.flip(views, -2), views)

    def gather(views: jax.Array, which: jax.Array) -> jax.Array:
        width, channels = views.shape[-2:]
        pixels = views.reshape(-1, channels)
        at = jnp.arange(len(pixels)).reshape(slots, -1, width)
        mirrored = at + width - 1 - 2 * jnp.arange(width)
        at = jnp.where(which[:, None, None], mirrored, at).reshape(-1)
        return jnp.take(pixels, at, 0, mode="clip").reshape(views.shape)

    return jax.lax.platform_dependent(views, which, tpu=choose, default=gather), True


@jax.custom_vjp
def mirrored(view: jax.Array, which: jax.Array) -> jax.Array:
    found: jax.Array = _mirror(view, which)
    return found


# The gradient of a mirror is the mirror.
mirrored.defvjp(
    lambda view, which: (_mirror(view, which), which), lambda which, g: (_mirror(g, which), None)
)
