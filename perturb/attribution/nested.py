"""Nested regions: how much of the answer a pixel brings, by a sweep of areas
(`perturb.importance`).

Each region of the sweep keeps a part of the score. The concave hull of score over area has a slope
for every ring between two regions: score won per share of the picture. That slope is the value of
the ring's pixels: summed over a region and divided by the picture's pixels they are what the region
brings, and small regions that bring much stand out. Within a ring pixels are ordered as if one
region's outline moved to the other's: what is cut from the map between two areas lies between their
regions too.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from perturb import rewards
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
    return heat_of(found)


def heat_of(found: Importance) -> np.ndarray:
    """Returns `[B, H, W]`: the slopes of a sweep's rings, and within a ring a strict order but for
    ties.
    """
    return np.stack([_heat(found, i) for i in range(len(found.masks))])


def _heat(found: Importance, i: int) -> np.ndarray:
    areas = [1.0, *found.areas]
    # The whole picture is the outermost region, of area 1.
    value = slopes(areas, _worth(found, i), float(found.score_floor[i]))
    levels = found.masks[i].sum(0).astype(int)
    # A thousandth of the mean slope puts a ring's pixels in order and leaves the rings' own order.
    tie = 1e-3 * max(float(value.mean()), 1e-6) / len(value)
    if found.score_removed is not None:
        # A field has an order of its own.
        result: np.ndarray = (
            value[levels] + tie * (levels + 0.999 * _within(found, i, levels))
        ).astype(np.float32)
        return result
    result = (value[levels] + tie * (levels + _order(found.masks[i], levels))).astype(np.float32)
    return result


def _worth(found: Importance, i: int) -> list[float]:
    """Scores `[1 + A]` of the whole and of the masks, of what they keep and, of a field, of what
    they take.
    """
    top, floor = found.score_original[i], found.score_floor[i]
    kept = found.score_binary[i]
    # What a region keeps and what its loss takes, averaged: a field is asked both questions.
    if found.score_removed is not None:
        kept = (kept + top + floor - found.score_removed[i]) / 2
    return [top, *kept]


def _within(found: Importance, i: int, levels: np.ndarray) -> np.ndarray:
    """Returns `[H, W]` in [0, 1]: 0 for what a ring loses first, rising to what it loses last."""
    edges = np.array([1.0, *found.areas, 0.0])
    outer, inner = edges[levels], edges[levels + 1]
    result: np.ndarray = np.clip((outer - found.area[i]) / (outer - inner), 0, 1)
    return result


def slopes(areas: ArrayLike, scores: ArrayLike, floor: float) -> np.ndarray:
    """Returns `[A]` slopes of the concave hull of score over area, from 0 and `floor`, at least 0.

    Args:
      areas: `[A]`, falling; entry `n` of the result is that of the ring between it and the next.
      scores: `[A]` at these areas.

    >>> slopes([1.0, 0.5, 0.1], [10.0, 10.0, 4.0], 0.0).tolist()
    [0.0, 15.0, 40.0]
    """
    x = np.array([0.0, *np.asarray(areas, np.float64)[::-1]])
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


def _order(masks: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns `[H, W]` in [0, 1): 0 at the ring's outer edge, rising to its inner one."""
    from scipy import ndimage

    order = np.zeros(levels.shape)
    for level in range(len(masks) + 1):
        ring = levels == level
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
        order[ring] = 0.999 * place[ring]
    return order
