"""A batch as the model takes it, checked and never of one, and the scores of its rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from perturb import scores
from perturb.model import Model, check_inputs
from perturb.types import ArrayLike, PyTree

__all__ = ["beside", "checked_batch", "measure", "score"]


def checked_batch(
    model: Model, images: ArrayLike, targets: PyTree
) -> tuple[jax.Array, PyTree, int]:
    """Checks the arguments of an attribution; never hands on a batch of one.

    Returns:
      images `[max(B, 2), *size, C]`, targets alike (the last repeated), and B.
    Raises:
      ValueError: see `perturb.check_inputs`.
    """
    pictures, wanted, _ = check_inputs(model, images, targets)
    number = len(pictures)
    if number == 1:
        # XLA compiles a batch of one to other arithmetic than any larger one.
        pictures, wanted = jax.tree.map(lambda t: jnp.repeat(t, 2, 0), (pictures, wanted))
    return jnp.asarray(pictures), jax.tree.map(jnp.asarray, wanted), number


def score(model: Model, outputs: PyTree, targets: PyTree) -> jax.Array:
    """Returns `[B]` scores of the targets, see `perturb.scores`."""
    return jax.vmap(functools.partial(scores.score, model.output))(outputs, targets)


def measure(model: Model, outputs: PyTree, targets: PyTree) -> jax.Array:
    """Returns `[B]` probabilities of the targets, or scores where they have none."""
    return jax.vmap(functools.partial(scores.measure, model.output))(outputs, targets)


def beside(values: jax.Array, like: jax.Array) -> jax.Array:
    """Returns `[B]` values with further axes of 1, to be multiplied with an array `[B, ...]`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
