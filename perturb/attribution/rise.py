"""RISE: the mean of random masks, weighted by what is left of the score (Petsiuk et al. 2018)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, progress
from perturb import masks as masks_lib
from perturb.attribution import _common
from perturb.inputs import random_key
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["rise", "rise_masks"]


def rise_masks(
    key: jax.Array, number: int, size: tuple[int, ...], *, cells: int = 7, kept: float = 0.5
) -> jax.Array:
    """Returns `[number, H, W]` in [0, 1]: coarse random grids, enlarged and shifted by up to a
    cell.

    Args:
      key: decides the masks.
      number: how many masks.
      size: `(H, W)` of the images, px.
      cells: number of cells of the grid, along each side; at most the pixels of the longer side.
      kept: probability in (0, 1) that a cell is kept.
    """
    # By the longer side: a picture one pixel high has as many cells as it is wide.
    if not 1 <= cells <= max(size):
        raise ValueError(
            f"cells must be from 1 to the picture's longer side, {max(size)} px, got {cells}"
        )
    cell = [math.ceil(n / cells) for n in size]
    # A cell more than fits, so that the shifted window stays inside.
    full = [(cells + 1) * c for c in cell]

    def one(key: jax.Array) -> jax.Array:
        a, b = jax.random.split(key)
        grid = jax.random.bernoulli(a, kept, (cells + 1,) * len(size)).astype(jnp.float32)
        shift = jnp.floor(jax.random.uniform(b, (len(size),)) * jnp.array(cell)).astype(jnp.int32)
        return jax.lax.dynamic_slice(masks_lib.upsample(grid, full), shift, size)

    return jax.vmap(one)(jax.random.split(key, number))


def rise(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    samples: int = 2000,
    cells: int = 7,
    kept: float = 0.5,
    fill: PyTree = 0.0,
    masks: PyTree = None,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`: the mean mask by the target's probability (or its score) under it.

    Args:
      model, images, targets: as for `gradient`.
      samples: number of masks, the same for all images.
      cells: number of cells of a mask along each side; at most the pixels of the longer side.
      kept: probability in (0, 1) that a cell is kept.
      fill: what a masked pixel becomes, a number or a colour `[C]`; 0 is black. The original masks
        after normalisation, where 0 is the data set's mean colour.
      masks: `[samples, H, W]` in place of random ones.
      key: decides the masks.

    >>> seen = Model(lambda w, x: 9 * x[:, :4].mean((1, 2)) * jnp.array([1.0, 0, 0]), ())
    >>> found = rise(seen, np.ones((1, 8, 8, 3)), [0], samples=200, cells=4)
    >>> bool(found[0, :4].mean() > found[0, 4:].mean())
    True
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    pixels, classes, number = _common.checked_batch(model, images, targets)
    key = random_key(key)
    colour = jnp.asarray(fill, jnp.float32)
    if masks is not None:
        given = jnp.asarray(masks, jnp.float32)
        if given.shape[1:] != pixels.shape[1:-1]:
            raise ValueError(f"masks must be [N, H, W] of the images' size, got {given.shape}")
        found: np.ndarray = arrays.finished(_map(model, pixels, classes, colour, given)[:number])
        return found
    total = jnp.zeros(pixels.shape[:-1])
    # Chunks bound the memory: 2,000 masks of a photograph are 400 MB.
    for at in progress.each(range(-(-samples // 100)), "hundreds of masks"):
        take = min(samples - 100 * at, 100)
        drawn = rise_masks(
            jax.random.fold_in(key, at), take, pixels.shape[1:-1], cells=cells, kept=kept
        )
        # A chunk gives its mean; the last one may be shorter.
        total = total + take * _map(model, pixels, classes, colour, drawn)
    found = arrays.finished(total[:number] / samples)
    return found


@jax.jit
def _map(
    model: Model, images: jax.Array, targets: jax.Array, fill: jax.Array, masks: jax.Array
) -> jax.Array:
    # One mask for all pictures at a time: the model sees the batch as it is.
    def add(total: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        outputs = model(mask[..., None] * images + (1 - mask[..., None]) * fill)
        return total + _common.measure(model, outputs, targets).reshape(
            -1, *[1] * mask.ndim
        ) * mask, None

    total, _ = jax.lax.scan(add, jnp.zeros(images.shape[:-1]), masks)
    return total / len(masks)
