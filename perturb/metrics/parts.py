"""How steadily a unit or a node sits on a part: location instability (Zhang et al. 2018, 5.2.2).

For a filter and a landmark: among the images on which the filter is strongest, the deviation of the
distance between the two. It is a deviation of a distance, so a unit that circles a landmark scores
0; the deviation of the offset itself stands beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perturb import display
from perturb.types import ArrayLike, PyTree

__all__ = ["Instability", "location_instability"]


class Instability(NamedTuple):
    """Per filter, mean over landmarks; NaN where fewer than two images remain.

    Attributes:
      distance: `[F]` sample deviation of the distance, as a share of the picture's diagonal.
      offset: `[F]` root of the summed sample variances of the offset, in the same unit.
    """

    distance: np.ndarray
    offset: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def location_instability(
    points: PyTree, scores: ArrayLike, landmarks: PyTree, *, diagonal: float, top: int = 100
) -> Instability:
    """Returns the location instability of filters or nodes.

    Args:
      points: `[N, F, 2]` place of each on each image, px.
      scores: `[N, F]`, by which the images are chosen.
      landmarks: `[N, K, 2]` px, NaN where an image lacks one: it is left out before the best `top`
        are chosen.
      diagonal: of the picture, px.
      top: images a filter and landmark.

    >>> circle = [[[np.cos(a), np.sin(a)]] for a in np.linspace(0, 6, 50)]
    >>> found = location_instability(circle, np.ones((50, 1)), np.zeros((50, 1, 2)), diagonal=1.0)
    >>> found.distance.round(3).tolist(), bool(found.offset[0] > 0.9)
    ([0.0], True)
    """
    points, scores, landmarks = (np.asarray(v, np.float64) for v in (points, scores, landmarks))
    filters, marks = points.shape[1], landmarks.shape[1]
    found = np.full((2, filters, marks), np.nan)
    order = np.argsort(-scores, axis=0, kind="stable")
    for k in range(marks):
        # Images without the landmark go before the best are chosen, so that `top` of them remain.
        present = ~np.isnan(landmarks[:, k]).any(-1)
        for f in range(filters):
            chosen = order[:, f][present[order[:, f]]][:top]
            if len(chosen) < 2:
                continue
            offset = (landmarks[chosen, k] - points[chosen, f]) / diagonal
            found[0, f, k] = np.hypot(*offset.T).std(ddof=1)
            found[1, f, k] = np.sqrt(offset.var(0, ddof=1).sum())
    count = (~np.isnan(found)).sum(2)
    total = np.nansum(found, axis=2)
    # `np.nanmean` would warn where a filter has no landmark at all.
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return Instability(mean[0], mean[1])
