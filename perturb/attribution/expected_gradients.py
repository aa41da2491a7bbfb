"""Expected gradients: integrated gradients over baselines drawn from a bank of pictures.

Erion et al., Improving performance of deep learning models with axiomatic attribution priors and
expected gradients, 2021, equation 4. One black baseline calls dark pixels unimportant; other
pictures do not.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import Array, ArrayLike, PyTree

__all__ = ["expected_gradients"]


def expected_gradients(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    bank: PyTree = None,
    samples: int = 50,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: in expectation its sum is the score above the bank's mean score.

    Args:
      model, images, targets: as for `gradient`.
      bank: `[N, H, W, C]` pictures to come from; None is uniform noise, as many as `samples`, where
        no picture is at hand.
      samples: number of pairs of a baseline and a place on the way; the places are stratified.
      key: decides both, or `[B]` keys of the images.

    >>> seen = Model(lambda w, x: (x[:, 2:4, 2:4] * 2).sum((1, 2)), ())
    >>> bank = np.zeros((1, 8, 8, 3))
    >>> round(float(expected_gradients(seen, np.full((1, 8, 8, 3), 0.5), [0], bank=bank).sum()), 4)
    4.0
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    pixels, classes, number = _common.checked_batch(model, images, targets)
    if bank is not None:
        bank = np.asarray(bank, np.float32)
        if bank.ndim != pixels.ndim or bank.shape[1:] != pixels.shape[1:] or not len(bank):
            raise ValueError(f"bank must be [N, *{pixels.shape[1:]}], got shape {bank.shape}")
        bank = jnp.asarray(bank)
    keys = _common.image_keys(key, len(pixels))
    found: np.ndarray = arrays.finished(_map(model, pixels, classes, bank, keys, samples)[:number])
    return found


@functools.partial(jax.jit, static_argnames="samples")
def _map(
    model: Model, images: jax.Array, targets: PyTree, bank: Array, keys: jax.Array, samples: int
) -> jax.Array:
    def draw(key: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        # By the number of the sample, so that a baseline does not depend on how many follow.
        which, place = jax.random.split(jax.random.fold_in(key, i))
        # One place in each of equal stretches of the way: the mean is less noisy than of
        # places at random.
        alpha = (i + jax.random.uniform(place, (), images.dtype)) / samples
        if bank is None:
            return jax.random.uniform(which, images.shape[1:], images.dtype), alpha
        return bank[jax.random.randint(which, (), 0, len(bank))], alpha

    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        start, alpha = jax.vmap(draw, (0, None))(keys, i)
        way = images - start
        at = start + alpha.reshape(-1, *[1] * (images.ndim - 1)) * way
        return total + way * _common.pull(model, at, targets)[1], None

    # One sample after the other: the memory is that of one gradient.
    total, _ = jax.lax.scan(add, jnp.zeros_like(images), jnp.arange(samples))
    return (total / samples).sum(-1)
