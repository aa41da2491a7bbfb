"""Attention rollout: where the class token's information can have come from (Abnar, Zuidema 2020).

It follows the attention weights alone, the mean over heads, half of each block being its shortcut.
It knows no class: the map is the same whatever is asked.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb.attribution import _common, _transformers
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["attention_weights", "rollout"]


def rollout(model: Model, images: ArrayLike, targets: PyTree) -> np.ndarray:
    """Returns `[B, H, W]`, at least 0; `targets` change nothing.

    Of a model without a class token the map is the mean over all tokens.

    Args:
      model: a transformer whose tokens `[B, N, C]` attend to each other in every block.
      images, targets: as for `gradient`.
    Raises:
      ValueError: if it has no tokens, or attends within windows.
    """
    pixels, _, number = _common.checked_batch(model, images, targets)
    layout = _transformers.token_layout(model, pixels)
    flow = _rolled(attention_weights(model, pixels), layout.shape[1])
    # The class token comes first, where there is one.
    row = flow[:, 0] if layout.before else flow.mean(1)
    found = _transformers.places(layout, row)
    return _common.enlarge(found[:number], pixels.shape[1:-1])


@jax.jit
def attention_weights(model: Model, images: jax.Array) -> list[jax.Array]:
    """Returns the attention weights `[B, heads, queries, keys]` of every block, in the order of
    execution.
    """
    found: list[jax.Array] = []

    def note(number: int, weights: jax.Array) -> jax.Array:
        found.append(weights)
        return weights

    _transformers.threaded(lambda x: model(x), weights=note)(images)
    return found


@functools.partial(jax.jit, static_argnames="tokens")
def _rolled(weights: list[jax.Array], tokens: int) -> jax.Array:
    _transformers.check_weights(weights, tokens)
    eye = jnp.eye(tokens)
    total = eye[None]
    for one in weights:
        # Rows sum to 1 with the shortcut as without.
        total = (one.mean(1) + eye) / 2 @ total
    return total
