"""Grid pointing: does a map find the picture of its class in a mosaic? (Böhle et al. 2021)

The ground truth is made, not drawn: in a mosaic of n x n pictures of different classes, all that
speaks for a class should lie in its own cell. A flat map scores 1 / n².
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from perturb.metrics import _common
from perturb.types import ArrayLike, PyTree

__all__ = ["Mosaics", "cell_share", "grid_pointing", "mosaics"]


class Mosaics:
    """`M` pictures, each put together from `n` by `n` others.

    Attributes:
      images: `[M, H, W, C]` in [0, 1].
      targets: `[M, n * n]` class indices, row by row.
      n: number of pictures along each side.
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray, n: int):
        self.images, self.targets, self.n = images, targets, n


def mosaics(
    images: ArrayLike,
    targets: PyTree,
    *,
    n: int,
    number: int,
    size: int | None = None,
    seed: int = 42,
) -> Mosaics:
    """Puts pictures of different classes together, `n` by `n`.

    Args:
      images: `[B, h, w, C]`, best those that the model is sure of.
      targets: `[B]` class indices.
      n: number of pictures along each side of a mosaic.
      number: number of mosaics.
      size: side of a mosaic in px; None is `n` times a picture's, else the cells are made
        smaller.
      seed: a whole number; the same seed gives the same draws.
    Raises:
      ValueError: if there are fewer than `n * n` classes.
    """
    images, targets = np.asarray(images, np.float32), np.asarray(targets)
    classes = np.unique(targets)
    if len(classes) < n * n:
        raise ValueError(f"targets must have at least {n * n} classes, got {len(classes)}")
    rng = np.random.default_rng(seed)
    side = images.shape[1:3] if size is None else (size // n, size // n)
    shape = (len(images), *side, images.shape[-1])
    # All pictures at once: a picture is used in many mosaics.
    small = np.asarray(jax.image.resize(images, shape, "linear", antialias=True))
    made, shown = [], []
    for _ in range(number):
        # Each class once, or another cell would speak for the target too, and rightly.
        chosen = rng.choice(classes, n * n, replace=False)
        rows = [rng.choice(np.flatnonzero(targets == c)) for c in chosen]
        grid = small[rows].reshape(n, n, *small.shape[1:])
        made.append(np.concatenate([np.concatenate(list(row), 1) for row in grid], 0))
        shown.append(chosen)
    return Mosaics(np.stack(made), np.stack(shown), n)


def cell_share(maps: ArrayLike, n: int, cells: ArrayLike) -> np.ndarray:
    """Returns `[B]`: the share of the positive part of a map in its own cell of `n` by `n`.

    Args:
      maps: `[B, H, W]` over mosaics.
      n: number of cells along each side.
      cells: `[B]` index of each map's own cell, row by row from 0.

    0 where the positive part is below 1e-7 or the map has a NaN.

    >>> float(cell_share(np.ones((1, 8, 8)), 2, [3])[0])
    0.25
    """
    maps = _common.maps_of(maps)
    cells = np.asarray(cells)
    if cells.shape != maps.shape[:1] or cells.min() < 0 or cells.max() >= n * n:
        raise ValueError(f"cells must be [B] in 0 to {n * n - 1}, got {cells}")
    h, w = (side // n for side in maps.shape[1:])
    positive = np.maximum(np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0), 0)
    # Pixels beyond the last whole cell are in no cell, but in the total.
    blocks = positive[:, : n * h, : n * w].reshape(len(maps), n, h, n, w).sum((2, 4))
    own = blocks.reshape(len(maps), -1)[np.arange(len(maps)), cells]
    total = positive.sum((1, 2))
    fine = (total > 1e-7) & ~_common.bad(maps)
    return np.where(fine, own / np.where(fine, total, 1), 0.0)


def grid_pointing(
    attribution: Callable[[PyTree, PyTree], np.ndarray], made: Mosaics, *, cells: int = 1
) -> np.ndarray:
    """Returns `[M, cells]` shares, for the first `cells` pictures of every mosaic.

    Args:
      attribution: `(images, targets) -> [B, H, W]`, a method with its model bound.
      made: what `mosaics` returned.
      cells: number of pictures of every mosaic that are looked for, from the first.
    """
    if not 1 <= cells <= made.n**2:
        raise ValueError(f"cells must be from 1 to {made.n**2}, got {cells}")
    found = []
    for cell in range(cells):
        maps = attribution(made.images, made.targets[:, cell])
        found.append(cell_share(maps, made.n, np.full(len(maps), cell)))
    return np.stack(found, 1)
