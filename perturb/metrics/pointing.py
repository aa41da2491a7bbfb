"""The pointing game: does the highest point of a map lie on the object? (Zhang et al. 2016)

The point may miss the object by less than `tolerance` px; the comparison is strict, as in
torchray's code. An image without ground truth counts for nothing. A map with a NaN misses, and so
does one that points nowhere: without a value above 0, or the same everywhere.
"""

from __future__ import annotations

import numpy as np

from perturb import arrays
from perturb.metrics import _common
from perturb.types import ArrayLike, PyTree

__all__ = ["by_class", "pointing", "points"]


def points(maps: ArrayLike) -> np.ndarray:
    """Returns `[B, 2]` row and column of each map's highest value; ties go to the lower index.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
    """
    maps = _common.maps_of(maps)
    xp = arrays.namespace(maps)
    found: np.ndarray = xp.stack(xp.unravel_index(_common.order(maps)[:, 0], maps.shape[1:]), 1)
    return found


def pointing(
    maps: ArrayLike, truth: ArrayLike, *, tolerance: float = 15.0, skip: PyTree = None
) -> np.ndarray:
    """Returns `[B]`: 1 for a hit, 0 for a miss, NaN where there is no ground truth.

    Args:
      maps: `[B, H, W]` at the size of the ground truth, which for the published game is that of the
        original photograph.
      truth: `[B, H, W]` bool, the object's pixels (boxes filled in).
      tolerance: px; a hit has a pixel of the object at a distance below this.
      skip: `[B]` bool, pairs to leave out ("difficult" ones in VOC), NaN.

    >>> maps = np.zeros((1, 40, 40)); maps[0, 0, 0] = 1
    >>> truth = np.zeros((1, 40, 40), bool); truth[0, 0, 15] = True
    >>> float(pointing(maps, truth)[0]), float(pointing(maps, truth, tolerance=15.1)[0])
    (0.0, 1.0)
    """
    maps = _common.maps_of(maps)
    truth = np.asarray(truth, bool)
    if truth.shape != maps.shape:
        raise ValueError(f"truth must be {maps.shape} like the maps, got {truth.shape}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0 px, got {tolerance}")
    hits = np.full(len(maps), np.nan)
    wrong = _common.bad(maps) | _common.empty(maps)
    for i, (row, column) in enumerate(points(maps)):
        if not truth[i].any() or (skip is not None and np.asarray(skip)[i]):
            continue
        y, x = np.nonzero(truth[i])
        # The distance to every pixel of the object, squared: exact, where a mask grown by a
        # disc is not.
        near = ((y - row) ** 2 + (x - column) ** 2).min() < tolerance**2
        hits[i] = float(near and not wrong[i])
    return hits


def by_class(hits: ArrayLike, classes: ArrayLike) -> float:
    """Returns the mean over classes of each class's share of hits; NaN entries are left out.

    Args:
      hits: `[N]`, 1 where the point lies on the object, 0 where not, NaN where unknown.
      classes: `[N]` class indices.
    """
    hits, classes = np.asarray(hits, np.float64), np.asarray(classes)
    if hits.shape != classes.shape:
        raise ValueError(f"classes must be {hits.shape} like the hits, got {classes.shape}")
    counted = ~np.isnan(hits)
    shares = [hits[counted & (classes == c)].mean() for c in np.unique(classes[counted])]
    return float(np.mean(shares)) if shares else float("nan")
