"""Paired bootstrap intervals: two methods on the same images, resampled together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Interval", "mean_interval", "paired"]


class Interval(NamedTuple):
    """A mean (or median) with its 95 % bootstrap interval over `number` images."""

    value: float
    low: float
    high: float
    number: int


def mean_interval(
    values: Any, *, statistic: str = "mean", draws: int = 10_000, seed: int = 0
) -> Interval:
    """Returns the interval of `values` `[B]`; NaN entries are left out.

    >>> found = mean_interval([1.0, 1.0, 1.0])
    >>> found.value, found.low, found.high, found.number
    (1.0, 1.0, 1.0, 3)
    """
    if statistic not in ("mean", "median"):
        raise ValueError(f"statistic must be mean or median, got {statistic!r}")
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    pick = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    of = np.mean if statistic == "mean" else np.median
    low, high = np.quantile(of(values[pick], axis=1), [0.025, 0.975])
    return Interval(float(of(values)), float(low), float(high), len(values))


def paired(
    ours: Any, theirs: Any, *, statistic: str = "mean", draws: int = 10_000, seed: int = 0
) -> Interval:
    """Returns the interval of `ours - theirs`, image by image; pairs with a NaN are left out.

    Raises:
      ValueError: if the two are not of the same images.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"ours and theirs must both be [B], got {a.shape} and {b.shape}")
    return mean_interval(a - b, statistic=statistic, draws=draws, seed=seed)
