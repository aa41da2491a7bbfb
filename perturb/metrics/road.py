"""ROAD: remove and debias, with pixels imputed from their neighbours (Rong et al. 2022).

A removed pixel becomes the weighted mean of its eight neighbours, removed ones included, which is
one sparse linear system; a little noise hides where it was. Weights are 1/6 for the four nearest
and 1/12 for the diagonal ones, renormalised at the border. No retraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perturb import display, progress, scores
from perturb.metrics import _common
from perturb.model import Model
from perturb.types import Array, ArrayLike, PyTree

__all__ = ["PERCENTAGES", "Road", "impute", "road"]

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
_STEPS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


class Road(NamedTuple):
    """What the network says of `B` pictures after `P` shares of their pixels are removed.

    Where the model's targets have no probability (`perturb.scores`), `right` is NaN and
    `probability` holds scores.

    Attributes:
      right: `[B, P]`, 1 where the class still wins.
      probability: `[B, P]`, of the class.
      percentages: `[P]` shares removed, in percent.
    """

    right: np.ndarray
    probability: np.ndarray
    percentages: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def impute(
    image: Array, missing: Array, *, noise: float = 0.01, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Returns `image` `[H, W, C]` with the pixels of `missing` `[H, W]` bool filled in.

    Args:
      image: `[H, W, C]`.
      missing: `[H, W]` booleans.
      noise: standard deviation of what is added to imputed pixels.
      rng: NumPy generator of the noise; None is `np.random.default_rng(0)`.
    Raises:
      ValueError: if every pixel is missing.

    >>> image = np.zeros((3, 3, 1)); image[:, 2] = 6.0
    >>> missing = np.zeros((3, 3), bool); missing[1, 1] = True
    >>> round(float(impute(image, missing, noise=0.0)[1, 1, 0]), 6)  # 6 (1/12 + 1/6 + 1/12)
    2.0
    """
    from scipy import sparse
    from scipy.sparse import linalg

    out = np.array(image, np.float64)
    missing = np.asarray(missing, bool)
    if missing.shape != out.shape[:2]:
        raise ValueError(f"missing must be {out.shape[:2]} like the image, got {missing.shape}")
    if not missing.any():
        return out
    if missing.all():
        raise ValueError("missing must leave a pixel, got all of them")
    height, width = missing.shape
    ys, xs = np.nonzero(missing)
    # The place of each removed pixel among the unknowns; -1 is a known one.
    number = np.full(missing.shape, -1)
    number[ys, xs] = np.arange(len(ys))
    total = np.zeros(len(ys))
    known = np.zeros((len(ys), out.shape[-1]))
    rows, columns, values = [], [], []
    for dy, dx in _STEPS:
        weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
        y, x = ys + dy, xs + dx
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        y, x = y[inside], x[inside]
        # Neighbours beyond the border are dropped, and their weight from the diagonal with them.
        total[inside] += weight
        there = number[y, x] < 0
        known[inside[there]] += weight * out[y[there], x[there]]
        rows.append(inside[~there])
        columns.append(number[y[~there], x[~there]])
        values.append(np.full((~there).sum(), -weight))
    rows.append(np.arange(len(ys)))
    columns.append(np.arange(len(ys)))
    values.append(total)
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    # Never singular: every removed pixel hangs, by way of others, on one that is known.
    system = sparse.csc_matrix(entries, shape=(len(ys), len(ys)))
    found = linalg.spsolve(system, known).reshape(len(ys), -1)
    if noise:
        # The noise hides the smoothness by which a network could see what was removed.
        rng = np.random.default_rng(0) if rng is None else rng
        found = found + noise * rng.standard_normal(found.shape)
    out[ys, xs] = found
    return out


def road(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    most_relevant_first: bool = True,
    noise: float = 0.01,
    key: PyTree = None,
) -> Road:
    """Removes growing shares of the pixels and asks whether the class still wins.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`, higher where a pixel matters more.
      percentages: shares removed, in percent.
      most_relevant_first: lower is better; False removes the least relevant, higher is better.
      noise: see `impute`.
      key: random key, or `[B]` keys of the images; None is `jax.random.key(0)`.
    """
    images, targets, maps = _common.checked_batch(model, images, targets, maps)
    if not all(0 < p < 100 for p in percentages):
        raise ValueError(f"percentages must be between 0 and 100, got {percentages}")
    pixels, wrong = maps[0].size, _common.bad(maps)
    counts = [round(p / 100 * pixels) for p in percentages]
    right, chance = (np.full((len(maps), len(counts)), np.nan) for _ in range(2))
    for i, rng in enumerate(progress.each(_common.keys_of(key, len(maps)), "pictures")):
        if wrong[i]:
            continue
        # The order of the negated map: ties go to the lower index either way.
        value = maps[i : i + 1] if most_relevant_first else -maps[i : i + 1]
        gone = [_common.top(value, c)[0] for c in counts]
        views = np.stack([impute(images[i], g, noise=noise, rng=rng) for g in gone])
        if scores.has_probability(model.output):
            right[i] = _common.target_scores(model, views, targets[i], "top1")
        chance[i] = _common.target_scores(model, views, targets[i])
    return Road(right, chance, np.asarray(percentages, np.float64))
