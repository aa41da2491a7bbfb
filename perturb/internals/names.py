"""A name for every unit, from scores of concepts on pictures; "no name" is an answer.

Scores come from anywhere: exact factors, a classifier's labels, cosines of CLIP. A unit is named on
the even pictures and tested on the odd ones, so the best of many names is not flattered; and it is
named by itself: other units of the call change nothing, to the last bit.

The measures: the area under the ROC curve as in INVERT (`Bykov et al. 2023
<https://arxiv.org/abs/2311.13594>`_), intersection over union of the top shares, and the pointwise
mutual information of CLIP-Dissect (`Oikarinen and Weng 2023 <https://arxiv.org/abs/2204.10965>`_)
with a prior over the pictures in the place of theirs over the units of the call, which made a name
depend on its neighbours. Concepts may be joined to formulas (AND, OR, NOT) as in `Mu and Andreas
2020 <https://arxiv.org/abs/2006.14032>`_.

>>> rng = np.random.default_rng(0)
>>> scores = (rng.random((2000, 3)) < 0.2).astype(float)
>>> activations = np.stack([scores[:, 1] + rng.normal(size=2000), rng.normal(size=2000)], 1)
>>> name_units(activations, scores, names=["sky", "sea", "sand"]).names
('sea', None)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perturb import display, statistics
from perturb.types import ArrayLike

__all__ = ["METHODS", "Names", "name_units"]

METHODS = ("auc", "iou", "wpmi")
_TOP = 28  # pictures of a unit that WPMI looks at
_PRIOR = 0.6  # how much of a concept's overall frequency WPMI takes off


class Names(NamedTuple):
    """What units are called. U units, K concepts (or formulas).

    Attributes:
      names: `[U]`, a name or None.
      best: `[U]`, the name that fits best on the even pictures, believed or not.
      score: `[U]`, of the best name on the odd pictures, by the method asked for.
      auc: `[U]`, area under the curve of the best name on the odd pictures.
      auc_low: `[U]`, lower end of its 95 % interval.
      auc_high: `[U]`, upper end.
      p_value: `[U]`, one-sided, of the unit being no better than chance at telling the best name's
        pictures from others, on the odd pictures (Mann-Whitney; or of a rank correlation where
        scores are no yes or no).
    """

    names: tuple[str | None, ...]
    best: tuple[str, ...]
    score: np.ndarray
    auc: np.ndarray
    auc_low: np.ndarray
    auc_high: np.ndarray
    p_value: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        if self.auc.ndim != 1:
            return display.plain(self)
        rows = [
            (
                u,
                name or f"no name (best: {self.best[u]})",
                display.interval(self.auc[u], self.auc_low[u], self.auc_high[u]),
                f"{self.p_value[u]:.2g}",
            )
            for u, name in enumerate(self.names)
        ]
        said = f"{sum(n is not None for n in self.names)} of {len(rows)} units have a name"
        return display.table(said, ("unit", "name", "AUC", "p"), rows)


def name_units(
    activations: ArrayLike,
    scores: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    method: str = "auc",
    length: int = 1,
    beam: int = 5,
    alpha: float = 0.01,
    least: float = 0.55,
    share: float = 0.05,
) -> Names:
    """Names every unit by the concept that it follows best.

    Args:
      activations: `[N, U]`, one number a picture: the mean or the maximum over places.
      scores: `[N, K]`, how much of a concept is in each picture: 0 and 1, or any numbers.
      names: `[K]`; None is "0", "1", ....
      method: "auc", "iou" or "wpmi": what is the highest for the best name.
      length: concepts that a formula may join; 1 is single concepts.
      beam: formulas kept at each length, for every unit.
      alpha: a name is given where its p-value on the odd pictures is at most this; over many units
        pass `p_value` to a control of false discoveries besides.
      least: lowest AUC on the odd pictures at which a name is given, in [0, 1].
      share: of its pictures on which a unit counts as active, for "iou".
    Raises:
      ValueError: if shapes do not fit, there are under 8 pictures, or an option is out of its
        range.
    """
    activations, scores = np.asarray(activations, np.float64), np.asarray(scores, np.float64)
    if activations.ndim != 2 or scores.ndim != 2 or len(activations) != len(scores):
        raise ValueError(
            "activations must be [pictures, units] and scores [pictures, concepts] of the same "
            f"pictures, got shapes {activations.shape} and {scores.shape}"
        )
    labels = [str(k) for k in range(scores.shape[1])] if names is None else [str(n) for n in names]
    if len(labels) != scores.shape[1] or len(activations) < 8:
        raise ValueError(
            f"names must be one for each of {scores.shape[1]} concepts, and pictures at least 8, "
            f"got {len(labels)} names and {len(activations)} pictures"
        )
    if method not in METHODS or length < 1 or not 0 < alpha < 1 or not 0 < share < 1:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, length at least 1, alpha and share in "
            f"(0, 1), got {method!r}, {length}, {alpha}, {share}"
        )
    if not (np.isfinite(activations).all() and np.isfinite(scores).all()):
        raise ValueError("activations and scores must be finite, got NaN or infinite values")
    found = [
        _name(activations[:, u], scores, labels, method, length, beam, share)
        for u in range(activations.shape[1])
    ]
    best, score, area, low, high, p = zip(*found, strict=True) if found else ((),) * 6
    given = tuple(
        name if q <= alpha and a >= least else None
        for name, a, q in zip(best, area, p, strict=True)
    )
    return Names(given, best, *(np.array(x, np.float64) for x in (score, area, low, high, p)))


class _Formula(NamedTuple):
    text: str
    used: frozenset[int]
    values: np.ndarray


def _name(
    unit: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    method: str,
    length: int,
    beam: int,
    share: float,
) -> tuple[str, float, float, float, float, float]:
    even, odd = unit[::2], unit[1::2]
    # Chosen on the even pictures only; everything reported below is of the odd ones.
    fit = _fit(even, scores[::2], method, share)
    order = np.argsort(-fit, kind="stable")[: beam if length > 1 else 1]
    kept = [(fit[k], _Formula(labels[k], frozenset([int(k)]), scores[:, k])) for k in order]
    for _ in range(1, length):
        wider = [f for _, parent in kept for f in _joined(parent, scores, labels)]
        if not wider:
            break
        fits = _fit(even, np.stack([f.values[::2] for f in wider], 1), method, share)
        # A longer formula must earn its place.
        pool = [*kept, *((a - 1e-9, f) for a, f in zip(fits, wider, strict=True))]
        kept = sorted(pool, key=lambda pair: -pair[0])[:beam]
    chosen = kept[0][1]
    column = chosen.values[1::2, None]
    score = float(_fit(odd, column, method, share)[0])
    present = column > _cut(column)
    area = float(np.nan_to_num(statistics.auc(odd, present)[0], nan=0.5))
    positive = int(present.sum())
    error = _error(area, positive, len(odd) - positive)
    p = _tail(odd, column[:, 0])
    return chosen.text, score, area, max(0.0, area - 1.96 * error), min(1.0, area + 1.96 * error), p


def _joined(parent: _Formula, scores: np.ndarray, labels: Sequence[str]) -> list[_Formula]:
    found = []
    for k, label in enumerate(labels):
        if k in parent.used:
            continue
        used = parent.used | {k}
        # "Not" of a score is its distance from the top of the scale, which is 1 at least.
        other, absent = scores[:, k], scores.max(initial=1.0) - scores[:, k]
        for word, values in (
            ("AND", np.minimum(parent.values, other)),
            ("OR", np.maximum(parent.values, other)),
            ("AND NOT", np.minimum(parent.values, absent)),
        ):
            found.append(_Formula(f"({parent.text} {word} {label})", used, values))
    return found


def _cut(scores: np.ndarray) -> np.ndarray:
    """Above this a picture holds the concept: half way for yes and no, the upper quarter for
    others.
    """
    low, high = scores.min(0), scores.max(0)
    binary = ((scores == low) | (scores == high)).all(0)
    found: np.ndarray = np.where(binary, (low + high) / 2, np.quantile(scores, 0.75, axis=0))
    return found


def _fit(unit: np.ndarray, scores: np.ndarray, method: str, share: float) -> np.ndarray:
    present = scores > _cut(scores)
    if method == "auc":
        found: np.ndarray = np.nan_to_num(statistics.auc(unit, present), nan=0.5)
        return found
    if method == "iou":
        # Above and not at it: a unit that is mostly 0 is not active where it is 0.
        active = unit > np.quantile(unit, 1 - share)
        both = (active[:, None] & present).sum(0)
        found = both / np.maximum((active[:, None] | present).sum(0), 1)
        return found
    top = np.argsort(-unit, kind="stable")[:_TOP]
    # A thousandth keeps the logarithm finite where none of the top pictures holds the concept.
    rate = np.log((present[top].mean(0) + 1e-3) / (present.mean(0) + 1e-3) ** _PRIOR)
    return np.where(present.any(0), rate, -np.inf)


def _error(area: float, positive: int, negative: int) -> float:
    """Standard error of an AUC, Hanley and McNeil 1982, eq. 1."""
    if not positive or not negative:
        # Nothing is known of an area without both kinds: half of the scale either way.
        return 0.5
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)
    return float(np.sqrt(max(variance, 0.0) / (positive * negative)))


def _tail(unit: np.ndarray, scores: np.ndarray) -> float:
    """One-sided p-value of the rank correlation, normal; for yes and no it is Mann and
    Whitney's.
    """
    from scipy.special import ndtr

    found = statistics.spearman(unit, scores)
    return 1.0 if np.isnan(found) else float(ndtr(-found * np.sqrt(len(unit) - 1)))
