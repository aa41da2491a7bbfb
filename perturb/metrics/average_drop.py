"""Average drop, increase and gain of the probability when only the map's part is shown.

Chattopadhay et al., Grad-CAM++, 2018, and Zhang et al. 2023 for the gain. The picture is multiplied
by the map scaled to [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perturb import arrays, display, progress, scores
from perturb.metrics import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["Drop", "average_drop", "drop_of"]


class Drop(NamedTuple):
    """What the score of `B` pictures does when only the map is shown.

    Attributes:
      drop: `[B]`, share of the score that is lost.
      increase: `[B]`, 1 where the score rose.
      gain: `[B]`, share gained of what was left to gain.
    """

    drop: np.ndarray
    increase: np.ndarray
    gain: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def drop_of(before: ArrayLike, after: ArrayLike) -> Drop:
    """Returns the three from probabilities of the whole and of the masked pictures, each `[B]`.

    Args:
      before: `[B]` probabilities of the whole pictures.
      after: `[B]` probabilities of the masked ones.

    >>> found = drop_of([0.8, 0.5], [0.4, 0.75])
    >>> found.drop.tolist(), found.increase.tolist(), found.gain.tolist()
    ([0.5, 0.0], [0.0, 1.0], [0.0, 0.5])
    """
    xp = arrays.namespace(before, after)
    p, q = arrays.as_float(before, after), arrays.as_float(after, before)
    drop = xp.maximum(p - q, 0) / xp.maximum(p, 1e-12)
    gain = xp.maximum(q - p, 0) / xp.maximum(1 - p, 1e-12)
    missing = xp.isnan(p) | xp.isnan(q)
    increase = xp.where(missing, np.nan, (q > p).astype(p.dtype))
    return Drop(drop, increase, gain)


def average_drop(model: Model, images: ArrayLike, targets: PyTree, maps: ArrayLike) -> Drop:
    """Returns drop, increase and gain of every image; NaN for a map with a NaN.

    Where the model's targets have no probability (`perturb.scores`) the drop is a share of the
    score's size, and there is no gain.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`; a flat map shows nothing.
    """
    images, targets, maps = _common.checked_batch(model, images, targets, maps)
    wrong = _common.bad(maps)
    before, after = (np.full(len(maps), np.nan) for _ in range(2))
    for i, m in enumerate(progress.each(maps, "pictures")):
        if wrong[i]:
            continue
        scaled = (m - m.min()) / max(m.max() - m.min(), 1e-12)
        # Both in one batch, and no batch of one.
        views = np.stack([images[i], images[i] * scaled[..., None]])
        before[i], after[i] = _common.target_scores(model, views, targets[i])
    drop = drop_of(before, after)
    if scores.has_probability(model.output):
        return drop
    # A score has no upper end to gain towards, and may be below 0.
    lost = np.maximum(before - after, 0) / np.maximum(np.abs(before), 1e-12)
    return drop._replace(drop=lost, gain=np.full(len(maps), np.nan))
