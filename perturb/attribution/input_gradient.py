"""Input times gradient: what each pixel contributes if the network were linear (Shrikumar 2016)."""

from __future__ import annotations

import jax
import numpy as np

from perturb import arrays
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["input_gradient"]


def input_gradient(model: Model, images: ArrayLike, targets: PyTree) -> np.ndarray:
    """Returns `[B, H, W]`, signed: pixel value times gradient, summed over channels.

    Pixels are those in [0, 1] that the model is given, not normalised ones.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.

    >>> seen = Model(lambda w, x: x[:, 2:4, 2:4].sum((1, 2)), ())
    >>> float(input_gradient(seen, np.full((1, 8, 8, 3), 0.5), [0]).sum())
    2.0
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    found: np.ndarray = arrays.finished(_map(model, pixels, classes)[:number])
    return found


@jax.jit
def _map(model: Model, images: jax.Array, targets: jax.Array) -> jax.Array:
    return (images * _common.pull(model, images, targets)[1]).sum(-1)
