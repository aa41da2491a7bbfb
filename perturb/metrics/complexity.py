"""How spread a map is: Gini's coefficient and entropy (Chalasani 2020, Bhatt 2020)."""

from __future__ import annotations

import numpy as np

from perturb import arrays
from perturb.metrics import _common
from perturb.types import ArrayLike, PyTree

__all__ = ["entropy", "gini"]


def _shares(maps: PyTree) -> np.ndarray:
    xp = arrays.namespace(maps)
    maps = xp.abs(_common.maps_of(maps)).reshape(len(maps), -1)
    total = maps.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        # An empty map is spread as evenly as any flat one.
        found: np.ndarray = xp.where(total == 0, 1 / maps.shape[1], maps / total)
        return found


def gini(maps: ArrayLike) -> np.ndarray:
    """Returns `[B]` in [0, 1): 0 for a flat map (an empty one too), near 1 for a point.

    Args:
      maps: `[B, H, W]`; only absolute values count.

    >>> point = np.zeros((1, 2, 2)); point[0, 0, 0] = 1
    >>> float(gini(np.ones((1, 2, 2)))[0]), float(gini(point)[0])
    (0.0, 0.75)
    """
    shares = _shares(maps)
    shares = arrays.namespace(shares).sort(shares, 1)
    n = shares.shape[1]
    # Gini's coefficient of sorted shares as a weighted sum: no pairs, and no second sort.
    weights = (2 * np.arange(1, n + 1) - n - 1) / n
    found: np.ndarray = (shares * weights).sum(1)
    return found


def entropy(maps: ArrayLike) -> np.ndarray:
    """Returns `[B]` in nats: log of the number of pixels for a flat map (an empty one too), 0 for a
    point.

    Args:
      maps: `[B, H, W]`; only absolute values count.
    """
    shares = _shares(maps)
    xp = arrays.namespace(shares)
    logs = xp.log(xp.where(shares > 0, shares, 1))
    found: np.ndarray = -(shares * logs).sum(1)
    return found
