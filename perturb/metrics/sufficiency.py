"""The smallest area that suffices, and the smallest whose loss destroys the answer.

Operational forms of the smallest sufficient and destroying regions (Dabkowski and Gal 2017): the
map's highest pixels are kept, all else perturbed, until the probability is `share` of the whole
picture's; or removed until it is a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from perturb import operators, progress, scores
from perturb.evidence import show
from perturb.inputs import random_key
from perturb.metrics import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["AREAS", "destroying_area", "sufficient_area"]

AREAS = tuple(float(a) for a in np.round(np.geomspace(0.005, 0.9, 24), 5))
TOGETHER = 8  # areas tried at once; no more are, once one suffices


def sufficient_area(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    share: float = 0.9,
    areas: Sequence[float] = AREAS,
    operator: str | operators.Operator = "blur",
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B]` areas; 1 where none suffices, or the map has a NaN. Smaller is better.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`, higher where a pixel matters more.
      share: of the whole picture's probability that must be kept; of a score without a probability
        (`perturb.scores`) the share of the way up from everything removed.
      areas: shares of the picture to try, in (0, 1), rising.
      operator: name or operator: what the rest becomes.
      key: random key of the operator's noise; None is `jax.random.key(0)`.
    """
    return _area(model, images, targets, maps, share, areas, operator, key, False)


def destroying_area(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    share: float = 0.1,
    areas: Sequence[float] = AREAS,
    operator: str | operators.Operator = "blur",
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B]` areas whose removal leaves at most `share`; 1 where none does. Smaller is
    better.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`, higher where a pixel matters more.
      share: of the whole picture's probability that may be left, in (0, 1).
      areas: shares of the picture to try, in (0, 1), rising.
      operator: name or operator: what removed pixels become.
      key: random key of the operator's noise; None is `jax.random.key(0)`.
    """
    return _area(model, images, targets, maps, share, areas, operator, key, True)


def _area(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    share: float,
    areas: Sequence[float],
    operator: PyTree,
    key: jax.Array | None,
    delete: bool,
) -> np.ndarray:
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    tried = np.asarray(areas, np.float64)
    if tried.ndim != 1 or not len(tried) or (np.diff(tried) <= 0).any() or not 0 < tried[0] < 1:
        raise ValueError(f"areas must be rising shares in (0, 1), got {areas}")
    images, targets, maps = _common.checked_batch(model, images, targets, maps)
    counts = np.maximum(1, np.round(tried * maps[0].size)).astype(np.int64)
    key = random_key(key)
    found, wrong = np.ones(len(maps)), _common.bad(maps)
    # A probability counts from 0; a score from what is left when everything is removed.
    from_zero = scores.has_probability(model.output)
    for i, image in enumerate(progress.each(images, "pictures")):
        if wrong[i]:
            continue
        ranks = _common.ranks(maps[i])
        for at in range(0, len(counts), TOGETHER):
            kept = ranks < counts[at : at + TOGETHER, None, None]
            # The whole picture and the empty one in the same batch as the areas: their scores
            # compare exactly.
            whole, none = np.ones_like(kept[:1]), np.zeros_like(kept[:1])
            shown = np.concatenate([whole, none, ~kept if delete else kept])
            shown = np.delete(shown, 1, 0) if from_zero else shown
            views = show(
                operators.get(operator), image, jax.random.fold_in(key, i), shown.astype(np.float32)
            )
            rows = _common.target_scores(model, views, targets[i])
            low = 0.0 if from_zero else rows[1]
            way = rows[0] - low
            # A score that removing everything does not move has no shares: NaN, which
            # suffices for nothing.
            left = (rows[1 if from_zero else 2 :] - low) / (way if way else np.nan)
            good = left <= share if delete else left >= share
            if good.any():
                found[i] = tried[at + good.argmax()]
                break
    return found
