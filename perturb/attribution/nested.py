"""Nested regions: how much of the answer a pixel brings, by a sweep of areas
(`perturb.importance`).

Each region keeps a part of the score. Between the areas of two regions scores count as rising with
the log of area: of what a ring brings its first pixels bring more. The concave hull of score over
that axis has a slope for every ring, and over its area that is a pixel's value: score won per share
of the picture. Summed over a region and divided by the picture's pixels values are what the region
brings, and small regions that bring much stand out. Within a ring of a sweep pixels are ordered as
if one region's outline moved to the other's: what is cut from the map between two areas lies
between their regions too.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from perturb import rewards, statistics
from perturb.attribution import _common
from perturb.importance import Importance, importance_map
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["AREAS", "nested"]

AREAS = (0.8, 0.6, 0.4, 0.25, 0.15, 0.1, 0.05, 0.025)


def nested(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    areas: Sequence[float] = AREAS,
    reward: str | None = None,
    question: str | None = None,
    first_steps: int = 40,
    steps: int | None = None,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`, at least 0: the score that a pixel's ring brings, per share of the
    picture.

    Args:
      model, images, targets: as for `gradient`.
      reward: what the regions keep; None is the log-probability, of a question `answer`, or the
        score where there is no probability.
      question: "enough", "needed" or "both" for one field of all areas, see
        `perturb.importance_map`; None sweeps the areas.
      areas, first_steps, steps: see there; `steps` of a sweep are 20 an area.
      key: as there, or `[B]` keys of the images.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    # What is removed would be paid without end for a probability that is gone already.
    usual = "log_probability" if question is None else "answer"
    found = importance_map(
        model,
        np.asarray(pixels[:number]),
        jax.tree.map(lambda t: np.asarray(t[:number]), classes),
        areas=areas,
        reward=reward or (usual if model.output in rewards.CLASSES else "score"),
        question=question,
        first_steps=first_steps,
        steps=20 if steps is None and question is None else steps,
        keys=_common.image_keys(key, len(pixels))[:number],
    )
    return heat_of(found, question=question)


def heat_of(found: Importance, *, question: str | None = None) -> np.ndarray:
    """Returns `[B, H, W]`: what the rings of a map bring, in a strict order but for a few ties.

    Args:
      found: of a sweep, or of a question.
      question: what was asked: regions are worth what they keep ("enough", and of a sweep), what
        is lost without them ("needed"), or the mean of both.
    """
    worth = _worth(found, question)
    # NaN of what Ctrl-C came before.
    nothing = np.full(found.area.shape[1:], np.nan, np.float32)
    return np.stack(
        [
            _heat(found, i, worth[i]) if np.isfinite(found.area[i]).all() else nothing
            for i in range(len(found.masks))
        ]
    )


def _heat(found: Importance, i: int, worth: np.ndarray) -> np.ndarray:
    # The whole picture is the outermost region, of area 1.
    edges = np.array([1.0, *found.areas, 0.0])
    value = slopes(edges[:-1], worth, float(found.score_floor[i]))
    levels = found.masks[i].sum(0).astype(int)
    # A field has an order of its own.
    area = found.area[i] if found.score_removed is not None else _within(found.masks[i], edges)
    # By how much the axis of `slopes` grows with area.
    heat = value[levels] / (area + edges[-2] / 2)
    # A thousandth of the mean slope puts the pixels in order that bring nothing.
    tie = 1e-3 * max(float(value.mean()), 1e-6)
    result: np.ndarray = (heat + tie * (1 - area)).astype(np.float32)
    return result


def _worth(found: Importance, question: str | None) -> np.ndarray:
    """Returns `[B, 1 + A]` scores of the whole picture and of the regions."""
    top, floor = found.score_original[:, None], found.score_floor[:, None]
    worth = found.score_binary
    if found.score_removed is not None and question in ("needed", "both"):
        # What is lost without a region, on the scale of what is kept by it.
        lost = top + floor - found.score_removed
        worth = lost if question == "needed" else (worth + lost) / 2
    return np.concatenate([top, worth], 1)


def slopes(areas: ArrayLike, scores: ArrayLike, floor: float) -> np.ndarray:
    """Returns `[A]` slopes of the concave hull of score over `log(1 + 2 area / least)`, at least 0.

    Args:
      areas: `[A]`, falling to `least`; entry `n` of the result is that of the ring between it and
        the next.
      scores: `[A]` at these areas.
      floor: score of nothing.

    >>> slopes([1.0, 0.5, 0.25], [10.0, 10.0, 4.0], 0.0).round(2).tolist()
    [0.0, 6.21, 6.21]
    """
    rising = np.array([0.0, *np.asarray(areas, np.float64)[::-1]])
    # A logarithm with a beginning: the smallest area has a ring too.
    x = np.log1p(2 * rising / rising[1])
    y = np.array([floor, *np.asarray(scores, np.float64)[::-1]])
    # Slopes that may only fall: neighbours that rise are pooled, as widths weigh them.
    pools: list[list[float]] = []
    for width, rise in zip(np.diff(x), np.diff(y), strict=True):
        pools.append([width, rise, 1])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] < pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    flat = np.concatenate([np.full(int(n), rise / width) for width, rise, n in pools])
    found: np.ndarray = np.maximum(flat, 0)[::-1]
    return found


def _within(masks: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns `[H, W]` areas at which pixels go, between those of the masks `[A, H, W]`."""
    from scipy import ndimage

    levels = masks.sum(0).astype(int)
    found = np.zeros(levels.shape)
    for level in range(len(masks) + 1):
        ring = levels == level
        if not ring.any():
            continue
        outer: PyTree = ndimage.distance_transform_edt(masks[level - 1]) if level else None
        inner: PyTree = (
            ndimage.distance_transform_edt(1 - masks[level]) if level < len(masks) else None
        )
        if outer is None:
            place = 1 / (1 + inner)
        elif inner is None:
            place = 1 - 1 / (1 + outer)
        else:
            place = outer / (inner + outer)
        # Ranks, so that the pixels of a ring are spread over its areas.
        part = (statistics.ranks(place[ring]) - 0.5) / ring.sum()
        found[ring] = edges[level] + part * (edges[level + 1] - edges[level])
    return found
