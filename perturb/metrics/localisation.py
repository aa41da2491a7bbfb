"""How much of a map lies on the object: energy, ranks, and the area under the ROC curve.

Chance is the object's share of the picture for all but the ROC curve (one half); say it beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from perturb import statistics
from perturb.metrics import _common

__all__ = ["energy", "energy_over_chance", "rank_accuracy", "roc_area", "top_share"]


def _door(maps: Any, truth: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    maps = _common.maps_of(maps)
    truth = np.asarray(truth, bool)
    if truth.shape != maps.shape:
        raise ValueError(f"truth must be {maps.shape} like the maps, got {truth.shape}")
    return maps, truth, ~truth.any((1, 2))


def energy(maps: Any, truth: Any) -> np.ndarray:
    """Returns `[B]`: the share of the positive part of a map that lies on the object.

    The energy-based pointing game (Wang et al. 2020), relevance mass in other libraries. 0 for a map
    without a positive value or with a NaN, NaN without ground truth.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.

    >>> truth = np.zeros((1, 4, 4), bool); truth[0, :2] = True
    >>> float(energy(np.ones((1, 4, 4)), truth)[0])
    0.5
    """
    maps, truth, empty = _door(maps, truth)
    positive = np.maximum(np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0), 0)
    total = positive.sum((1, 2))
    inside = (positive * truth).sum((1, 2))
    share = np.where(_common.bad(maps) | (total <= 0), 0.0, inside / np.where(total > 0, total, 1))
    return np.where(empty, np.nan, share)


def energy_over_chance(maps: Any, truth: Any) -> np.ndarray:
    """Returns `[B]`: `energy` divided by the object's share of the picture, that of a flat map.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
    """
    share = energy(maps, truth)
    return share / np.maximum(np.asarray(truth, bool).mean((1, 2)), 1e-12)


def top_share(maps: Any, truth: Any, count: int) -> np.ndarray:
    """Returns `[B]`: the share of the `count` highest pixels that lie on the object.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
      count: number of pixels.
    """
    maps, truth, empty = _door(maps, truth)
    if not 1 <= count <= maps[0].size:
        raise ValueError(f"count must be from 1 to {maps[0].size}, got {count}")
    share = (_common.top(maps, count) & truth).sum((1, 2)) / count
    return np.where(empty, np.nan, np.where(_common.bad(maps), 0.0, share))


def rank_accuracy(maps: Any, truth: Any) -> np.ndarray:
    """Returns `[B]`: `top_share` of as many pixels as the object has (Arras et al. 2022).

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
    """
    maps, truth, empty = _door(maps, truth)
    count = truth.sum((1, 2))
    share = (_common.top(maps, count) & truth).sum((1, 2)) / np.maximum(count, 1)
    return np.where(empty, np.nan, np.where(_common.bad(maps), 0.0, share))


def roc_area(maps: Any, truth: Any) -> np.ndarray:
    """Returns `[B]`: the chance that a pixel of the object is above one beside it, ties by half.

    NaN where the object is nothing or everything.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      truth: `[B, H, W]` booleans, the pixels of the object.
    """
    maps, truth, empty = _door(maps, truth)
    found = np.full(len(maps), np.nan)
    for i, (values, inside) in enumerate(
        zip(maps.reshape(len(maps), -1), truth.reshape(len(maps), -1), strict=True)
    ):
        if empty[i] or inside.all():
            continue
        if not np.isfinite(values).all():
            found[i] = 0.0
            continue
        found[i] = statistics.auc(values, inside)
    return found
