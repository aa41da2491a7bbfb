"""LeGrad: how far more attention to a place would raise the score of each block (Bousselham et al.
2025).

Each block's tokens, their mean in place of the token that is read, are given to the network's own
end; that score's derivative with respect to the block's own attention weights, where positive, is
averaged over heads, queries and blocks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb.attribution import _common, _transformers
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["legrad"]


def legrad(model: Model, images: ArrayLike, targets: PyTree) -> np.ndarray:
    """Returns `[B, H, W]`, at least 0.

    Args:
      model: a transformer whose tokens `[B, N, C]` attend to each other in every block.
      images, targets: as for `gradient`.
    Raises:
      ValueError: if it has no tokens, or attends within windows.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    layout = _transformers.token_layout(model, pixels)
    found = _transformers.places(layout, _map(model, pixels, classes, layout.shape[1]))
    return _common.enlarge(found[:number], pixels.shape[1:-1])


@functools.partial(jax.jit, static_argnames="tokens")
def _map(model: Model, images: jax.Array, targets: PyTree, tokens: int) -> jax.Array:
    ends, shapes = _blocks(model, images, tokens)

    def total(probes: list[jax.Array]) -> jax.Array:
        """The sum of all blocks' scores, each a function of its own weights alone."""
        found: list[jax.Array] = []

        def skip(number: int, value: jax.Array) -> jax.Array:
            if number not in ends:
                return value
            found.append(value)
            # Cut here, a block's weights are reached by the score of its own end alone.
            return jax.lax.stop_gradient(value)

        _transformers.threaded(
            lambda x: model(x), weights=lambda number, value: value + probes[number], skips=skip
        )(images)
        return sum((score(value) for value in found), jnp.zeros(()))

    def score(value: jax.Array) -> jax.Array:
        mean = jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)
        end = _transformers.threaded(
            lambda x: model(x), skips=lambda number, y: mean if number == ends[-1] else y
        )
        return _common.score(model, end(images), targets).sum()

    # The slope at zeros that are added is that at the weights, for all blocks in one pass.
    slopes = jax.grad(total)([jnp.zeros(s.shape, s.dtype) for s in shapes])
    # Only weights that would raise the score by growing count; heads and queries count alike.
    return jnp.stack([jnp.maximum(slope, 0).mean((1, 2)) for slope in slopes]).mean(0)


def _blocks(model: Model, images: jax.Array, tokens: int) -> tuple[list[int], list[PyTree]]:
    """Returns the number of the skip connection that ends each block, and the shapes of attention
    weights.

    A block ends with the last skip connection before the next attention.
    """
    weights: list[PyTree] = []
    ends: list[int] = []

    def mix(number: int, value: jax.Array) -> jax.Array:
        weights.append(jax.ShapeDtypeStruct(value.shape, value.dtype))
        return value

    def skip(number: int, value: jax.Array) -> jax.Array:
        if weights and value.ndim == 3 and value.shape[1] == tokens:
            # Later skip connections of the same block replace the earlier.
            ends[len(weights) - 1 :] = [number]
        return value

    jax.eval_shape(_transformers.threaded(lambda x: model(x), weights=mix, skips=skip), images)
    _transformers.check_weights(weights, tokens)
    if len(ends) != len(weights):
        raise ValueError(
            f"model {model.name} has {len(weights)} attentions but skip connections after "
            f"{len(ends)} of them only: this method needs one in each block"
        )
    return ends, weights
