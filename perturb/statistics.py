"""Statistics that all evidence is judged by: bootstrap intervals, ranks, areas under curves,
p-values.

Everything here takes arrays on the host and returns NumPy values; what is not defined is NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from perturb import arrays
from perturb.types import Array, ArrayLike, PyTree

__all__ = [
    "Interval",
    "auc",
    "auc_interval",
    "auc_normal",
    "bootstrap",
    "discoveries",
    "known_mean",
    "mean_interval",
    "p_value",
    "paired",
    "pearson",
    "percentiles",
    "rank_intervals",
    "ranks",
    "resampled",
    "spearman",
]

# Ends of a 95 % interval, as shares.
LEVEL = (0.025, 0.975)


class Interval(NamedTuple):
    """An estimate with its 95 % bootstrap interval.

    Attributes:
      value: number, the estimate from all items.
      low: number, the lower end.
      high: number, the upper end.
      number: how many items it is of.
    """

    value: float
    low: float
    high: float
    number: int


def percentiles(copies: ArrayLike, *, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the 95 % interval of bootstrap copies.

    Args:
      copies: array of the statistic of the resampled items; NaN copies are left out.
      axis: along which the copies lie. Without any copy, both ends are NaN.
    """
    copies = np.asarray(copies, np.float64)
    if not copies.shape[axis]:
        nothing = np.full(np.delete(copies.shape, axis), np.nan)
        return nothing, nothing.copy()
    # A copy may hold no item that the statistic is defined on: it has no value and is left out.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanquantile(copies, LEVEL, axis=axis)
    return low, high


def resampled(number: int, copies: int, *, seed: int = 0) -> np.ndarray:
    """Returns weights `[copies, number]` of the items in each bootstrap copy; each row sums to 1.

    Args:
      number: number of items.
      copies: number of bootstrap copies.
      seed: a whole number; the same seed gives the same draws.
    """
    rng = np.random.default_rng(seed)
    # How often each item is drawn is all that a mean needs: one matrix product gives all copies.
    return rng.multinomial(number, np.full(number, 1 / number), copies) / number


def bootstrap(
    statistic: Callable[..., np.ndarray], *columns: object, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Returns the interval of a statistic of items that are resampled together.

    Args:
      statistic: takes arrays `[..., N]`, one a column, and returns `[...]`.
      *columns: `[N]` each; item by item they belong together.
      draws: number of bootstrap copies.
      seed: a whole number; the same seed gives the same draws.
    """
    values = [np.asarray(column, np.float64) for column in columns]
    number = len(values[0])
    if not number:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    pick = np.random.default_rng(seed).integers(0, number, (draws, number))
    low, high = percentiles(statistic(*(column[pick] for column in values)))
    return Interval(float(statistic(*values)), float(low), float(high), number)


def mean_interval(
    values: ArrayLike, *, statistic: str = "mean", draws: int = 10_000, seed: int = 0
) -> Interval:
    """Returns the interval of the mean or median of items; NaN entries are left out.

    >>> found = mean_interval([1.0, 1.0, 1.0])
    >>> found.value, found.low, found.high, found.number
    (1.0, 1.0, 1.0, 3)

    Args:
      values: `[N]`.
      statistic: "mean" or "median".
      draws: number of bootstrap copies.
      seed: a whole number; the same seed gives the same draws.

    Raises:
      ValueError: if the statistic is another one.
    """
    if statistic not in ("mean", "median"):
        raise ValueError(f"statistic must be mean or median, got {statistic!r}")
    values = np.asarray(values, np.float64)
    of = np.mean if statistic == "mean" else np.median
    return bootstrap(lambda v: of(v, axis=-1), values[~np.isnan(values)], draws=draws, seed=seed)


def known_mean(values: ArrayLike, axis: int = 0) -> np.ndarray:
    """Returns means along an axis of what is not NaN, NaN where nothing is; `np.nanmean` warns
    there.

    Args:
      values: of any shape.
      axis: the axis to take means along.

    >>> known_mean([[1.0, np.nan], [3.0, np.nan]]).tolist()
    [2.0, nan]
    """
    values = np.asarray(values)
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    found: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def rank_intervals(columns: Sequence[ArrayLike], *, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Returns `[A, 2]`: between which ranks the means of `A` columns lie, 1 the highest.

    Items are resampled together, as in `bootstrap`; ends hold 95 % of the draws. Items that one of
    the columns does not have are left out.

    Args:
      columns: `[N]` each; item by item they belong together.
      draws: number of bootstrap copies.
      seed: a whole number; the same seed gives the same draws.

    >>> rank_intervals([[3.0, 4.0, 5.0], [0.0, 1.0, 2.0], [0.1, 0.9, 2.0]]).tolist()
    [[1, 1], [2, 3], [2, 3]]
    """
    values = np.array([np.asarray(column, np.float64) for column in columns])
    if not values.size:
        return np.zeros((len(values), 2), int)
    values = values[:, np.isfinite(values).all(0)]
    number = values.shape[1]
    if not number:
        return np.tile([1, len(values)], (len(values), 1))
    pick = np.random.default_rng(seed).integers(0, number, (draws, number))
    means = np.stack([row[pick].mean(1) for row in values])
    # Columns that are level share the better rank.
    above = (means[:, None] > means[None]).sum(0) + 1
    found: np.ndarray = np.stack(
        [np.quantile(above, end, axis=1, method="nearest") for end in LEVEL], 1
    )
    return found.astype(int)


def paired(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    statistic: str = "mean",
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Returns the interval of `ours - theirs`, item by item; pairs with a NaN are left out.

    Args:
      ours: `[N]`.
      theirs: `[N]`, of the same items.
      statistic: "mean" or "median" of the differences.
      draws: number of bootstrap copies.
      seed: a whole number; the same seed gives the same draws.

    Raises:
      ValueError: if the two are not of the same items.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"ours and theirs must both be [B], got {a.shape} and {b.shape}")
    return mean_interval(a - b, statistic=statistic, draws=draws, seed=seed)


def ranks(values: PyTree) -> np.ndarray:
    """Returns ranks from 1 along the last axis, ties at their mean rank.

    Args:
      values: `[..., N]`.

    >>> ranks([0.3, 0.1, 0.3]).tolist()
    [2.5, 1.0, 2.5]
    """
    if arrays.traced(values):
        found: np.ndarray = arrays.ranks(values)
        return found
    # Here, since scipy.stats takes longer to import than the whole library.
    from scipy import stats

    return np.asarray(stats.rankdata(np.asarray(values), axis=-1), np.float64)


def pearson(a: Array, b: Array) -> np.ndarray:
    """Returns the correlation of `a` and `b` along the last axis; NaN where one is constant.

    Args:
      a: `[..., N]`.
      b: `[..., N]`.
    """
    xp = arrays.namespace(a, b)
    a, b = arrays.as_float(a, b), arrays.as_float(b, a)
    # Centred first: in one pass, sums of squares would cancel where the mean is large.
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    size = xp.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = xp.where(size > 0, (a * b).sum(-1) / size, np.nan)
        return found


def spearman(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Returns the rank correlation along the last axis; NaN where one is constant.

    Args:
      a: `[..., N]`.
      b: `[..., N]`.

    >>> float(spearman([1, 2, 3], [10, 20, 15]))
    0.5
    """
    return pearson(ranks(a), ranks(b))


def auc(values: ArrayLike, present: Array) -> np.ndarray:
    """Returns the area under the ROC curve: the chance that a positive item is above a negative
    one.

    >>> auc([0.1, 0.4, 0.35, 0.8], [[0], [0], [1], [1]]).tolist()
    [0.75]

    Args:
      values: `[N]`; ties count half.
      present: `[N]` or `[N, K]`, 1 or True for positive items.

    Returns:
      `[]` or `[K]`; NaN where all items are of one kind.
    """
    xp, rank = arrays.namespace(values, present), ranks(values)
    present = arrays.as_float(present, values)
    positive = present.sum(0)
    pairs = positive * (len(rank) - positive)
    # Mann and Whitney's count by ranks: no pair is formed, so N may be large.
    wins = rank @ present - positive * (positive + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = xp.where(pairs > 0, wins / pairs, np.nan)
        return found


def auc_interval(
    values: ArrayLike, present: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Returns `auc` with its bootstrap interval; both kinds are resampled apart.

    Args:
      values: `[N]`.
      present: `[N]`, positive items; their number and that of the others are part of the design.
      draws: number of bootstrap copies.
      seed: a whole number; the same seed gives the same draws.
    """
    values, present = np.asarray(values, np.float64), np.asarray(present, bool)
    yes, no = values[present][:, None], values[~present]
    # All pairs are compared once; a copy then only picks rows and columns of the table.
    above = (yes > no) + 0.5 * (yes == no)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, above.shape[0], (draws, above.shape[0]))
    columns = rng.integers(0, above.shape[1], (draws, above.shape[1]))
    copies = [above[np.ix_(i, j)].mean() for i, j in zip(rows, columns, strict=True)]
    low, high = percentiles(copies)
    return Interval(float(above.mean()), float(low), float(high), len(values))


def auc_normal(values: ArrayLike, present: ArrayLike) -> Interval:
    """Returns `auc` with the interval of its normal approximation (DeLong et al. 1988).

    Args:
      values: `[N]`; ties count half.
      present: `[N]`, positive items.

    Returns:
      An interval within [0, 1]; NaN where all items are of one kind.
    """
    values, present = np.asarray(values, np.float64), np.asarray(present, bool)
    yes, no = np.sort(values[present]), np.sort(values[~present])
    if not len(yes) or not len(no):
        return Interval(float("nan"), float("nan"), float("nan"), len(values))
    # For each positive the share of negatives below it, and the reverse.
    above, below = _placement(no, yes), 1 - _placement(yes, no)
    area = float(above.mean())
    # The area is a mean over positives and one over negatives: DeLong's variance is the sum
    # of theirs.
    spread = sum(part.var(ddof=1) / len(part) for part in (above, below) if len(part) > 1)
    half = 1.959964 * float(np.sqrt(spread))
    return Interval(area, max(0.0, area - half), min(1.0, area + half), len(values))


def _placement(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of `ordered` below each value, ties half."""
    left, right = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")
    found: np.ndarray = (left + right) / (2 * len(ordered))
    return found


def p_value(observed: ArrayLike, null: ArrayLike, *, sides: int = 2) -> np.ndarray:
    """Returns the share of random controls at least as extreme, the observed value counted among
    them.

    Args:
      observed: `[...]`.
      null: `[R, ...]`, the same statistic of R random controls.
      sides: 2, or 1 for controls that are as high.

    Returns:
      `[...]`, never below `sides / (1 + R)` (`Phipson and Smyth 2010
      <https://arxiv.org/abs/1603.05766>`_); NaN without controls.
    """
    observed, null = np.asarray(observed, np.float64), np.asarray(null, np.float64)
    if not len(null):
        return np.full(observed.shape, np.nan)
    above = (null >= observed).sum(0)
    if sides == 1:
        found: np.ndarray = (1 + above) / (1 + len(null))
        return found
    below = (null <= observed).sum(0)
    # Twice the smaller tail; both tails hold the observed value, so that it may exceed 1.
    result: np.ndarray = np.minimum(1, 2 * (1 + np.minimum(below, above)) / (1 + len(null)))
    return result


def discoveries(p_values: ArrayLike, *, rate: float = 0.05) -> np.ndarray:
    """Returns which effects to believe if at most a share `rate` of them may be chance.

    `Benjamini and Hochberg 1995 <https://doi.org/10.1111/j.2517-6161.1995.tb02031.x>`_, over all
    entries together. A p-value from R random sets is never below 2 / (1 + R): take enough of them.

    >>> discoveries([0.001, 0.5, 0.012, 0.03], rate=0.05).tolist()
    [True, False, True, True]

    Args:
      p_values: array of any shape, in [0, 1]; NaN is never believed, and not counted.
      rate: in (0, 1).

    Raises:
      ValueError: if rate or a p-value is out of range.
    """
    p = np.asarray(p_values, np.float64)
    counted = p[~np.isnan(p)]
    if not 0 < rate < 1 or (counted.size and not (counted.min() >= 0 and counted.max() <= 1)):
        raise ValueError(f"rate must be in (0, 1) and p_values in [0, 1], got rate {rate}")
    ordered = np.sort(counted)
    # A step-up rule: the largest p-value under its line decides, and all smaller ones pass with it.
    below = np.flatnonzero(ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1))
    return np.nan_to_num(p, nan=np.inf) <= (ordered[below[-1]] if below.size else -1)
