"""How much of a map lies on the object: energy, ranks, and the area under the ROC curve.

Chance is the object's share of the picture for all but the ROC curve (one half); say it beside
them.
"""

from __future__ import annotations

import numpy as np

from perturb import arrays, statistics
from perturb.metrics import _common
from perturb.types import ArrayLike, PyTree

__all__ = ["energy", "energy_over_chance", "rank_accuracy", "roc_area", "top_share"]


def _checked(maps: PyTree, truth: PyTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    maps = _common.maps_of(maps)
    truth = arrays.namespace(truth).asarray(truth, bool)
    if truth.shape != maps.shape:
        raise ValueError(f"truth must be {maps.shape} like the maps, got {truth.shape}")
    return maps, truth, ~truth.any((1, 2))


def energy(maps: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Returns `[B]`: the share of the positive part of a map that lies on the object.

    The energy-based pointing game (Wang et al. 2020), relevance mass in other libraries. 0 for a
    map without a positive value or with a NaN, NaN without ground truth.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.

    >>> truth = np.zeros((1, 4, 4), bool); truth[0, :2] = True
    >>> float(energy(np.ones((1, 4, 4)), truth)[0])
    0.5
    """
    maps, truth, empty = _checked(maps, truth)
    xp = arrays.namespace(maps, truth)
    # Not finite values are taken out first, for one of them would make NaN of both sums.
    positive = xp.maximum(xp.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0), 0)
    total = positive.sum((1, 2))
    inside = (positive * truth).sum((1, 2))
    share = xp.where(_common.bad(maps) | (total <= 0), 0.0, inside / xp.where(total > 0, total, 1))
    found: np.ndarray = xp.where(empty, np.nan, share)
    return found


def energy_over_chance(maps: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Returns `[B]`: `energy` divided by the object's share of the picture, that of a flat map.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
    """
    share = energy(maps, truth)
    xp = arrays.namespace(share, truth)
    # Without an object the energy is NaN already; only the division is guarded.
    found: np.ndarray = share / xp.maximum(xp.asarray(truth, bool).mean((1, 2)), 1e-12)
    return found


def top_share(maps: ArrayLike, truth: ArrayLike, count: int) -> np.ndarray:
    """Returns `[B]`: the share of the `count` highest pixels that lie on the object.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
      count: number of pixels.
    """
    maps, truth, empty = _checked(maps, truth)
    if not 1 <= count <= maps[0].size:
        raise ValueError(f"count must be from 1 to {maps[0].size}, got {count}")
    xp = arrays.namespace(maps, truth)
    share = (_common.top(maps, count) & truth).sum((1, 2)) / count
    found: np.ndarray = xp.where(empty, np.nan, xp.where(_common.bad(maps), 0.0, share))
    return found


def rank_accuracy(maps: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Returns `[B]`: `top_share` of as many pixels as the object has (Arras et al. 2022).

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
    """
    maps, truth, empty = _checked(maps, truth)
    count = truth.sum((1, 2))
    xp = arrays.namespace(maps, truth)
    share = (_common.top(maps, count) & truth).sum((1, 2)) / xp.maximum(count, 1)
    found: np.ndarray = xp.where(empty, np.nan, xp.where(_common.bad(maps), 0.0, share))
    return found


def roc_area(maps: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Returns `[B]`: the chance that a pixel of the object is above one beside it, ties by half.

    NaN where the object is nothing or everything.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
    """
    maps, truth, _ = _checked(maps, truth)
    values, inside = maps.reshape(len(maps), -1), truth.reshape(len(maps), -1)
    wrong, xp = _common.bad(maps), arrays.namespace(maps, truth)
    # A rank among values that are not finite means nothing; such a map is put right afterwards.
    whole = xp.where(wrong[:, None], 0.0, values)
    found = xp.stack([statistics.auc(v, t) for v, t in zip(whole, inside, strict=True)])
    result: np.ndarray = xp.where(wrong & ~xp.isnan(found), 0.0, found)
    return result
