"""How steadily a unit or a node sits on a part: location instability (Zhang et al. 2018, 5.2.2).

For a filter and a landmark: among the images on which the filter is strongest, the deviation of the
distance between the two. It is a deviation of a distance, so a unit that circles a landmark scores
0; the deviation of the offset itself stands beside it.

Both are small for whatever hardly moves, so they compare two detectors only where both move alike.
`chance_instability` is what a detector's places give in other images than their own: over it, a
detector that does not see the image is at 1, however still it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perturb import display, statistics
from perturb.types import ArrayLike, PyTree

__all__ = [
    "Instability",
    "chance_instability",
    "location_instability",
    "part_interpretability",
]


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
    # A filter may have no landmark at all.
    mean = statistics.known_mean(found, 2)
    return Instability(mean[0], mean[1])


def chance_instability(
    points: PyTree,
    scores: ArrayLike,
    landmarks: PyTree,
    *,
    diagonal: float,
    top: int = 100,
    draws: int = 5,
    seed: int = 0,
) -> Instability:
    """Returns the location instability of the same places, dealt to other images: the level to
    divide `location_instability` by.

    Args:
      points, scores, landmarks, diagonal, top: as of `location_instability`.
      draws: number of random deals that are averaged, at least 1.
      seed: a whole number, of the deals.
    Raises:
      ValueError: if there are no deals, or fewer than two images to deal to.

    >>> still = np.zeros((50, 1, 2)); marks = np.random.default_rng(0).normal(size=(50, 1, 2))
    >>> own = location_instability(still, np.ones((50, 1)), marks, diagonal=1.0).distance
    >>> dealt = chance_instability(still, np.ones((50, 1)), marks, diagonal=1.0).distance
    >>> bool(np.allclose(own / dealt, 1))
    True
    """
    points, scores = np.asarray(points), np.asarray(scores)
    if draws < 1 or len(points) < 2:
        raise ValueError(
            f"draws must be at least 1 and points of at least 2 images, got draws={draws} and "
            f"{len(points)} images"
        )
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        # A ring through all images in random order: none keeps its own places.
        ring = rng.permutation(len(points))
        dealt = np.empty(len(points), int)
        dealt[ring] = np.roll(ring, 1)
        found.append(
            location_instability(
                points[dealt], scores[dealt], landmarks, diagonal=diagonal, top=top
            )
        )
    return Instability(*(np.mean(values, 0) for values in zip(*found, strict=True)))


def part_interpretability(
    maps: ArrayLike,
    parts: ArrayLike,
    *,
    stride: float,
    field: float,
    quantile: float = 0.995,
    overlap: float = 0.2,
) -> np.ndarray:
    """Returns `[F]`: on how large a share of the images each filter covers its best part (Zhang et
    al. 2018, 5.2.1); NaN of a filter that is silent on all.

    A filter is on where it is above its own quantile over all images; what it covers is the union
    of the receptive fields there. It covers a part where their intersection over union is above
    `overlap`.

    Args:
      maps: `[N, n, n, F]` of images of the filters' class.
      parts: `[N, K, H, W]` of booleans, in the size of the images; none is absent.
      stride: pixels from a place of the map to the next.
      field: side of a receptive field in pixels; it is cut at the border of the image.
      quantile: share of the places that lie below the threshold.
      overlap: least intersection over union.

    >>> maps = np.zeros((2, 4, 4, 1)); maps[:, 1, 1] = 1
    >>> parts = np.zeros((2, 1, 16, 16), bool); parts[0, 0, 4:8, 4:8] = True
    >>> float(part_interpretability(maps, parts, stride=4, field=4, quantile=0.9)[0])
    0.5
    """
    maps, parts = np.asarray(maps), np.asarray(parts, bool)
    (number, n, _, filters), (height, width) = maps.shape, parts.shape[2:]
    centre = (np.arange(n) + 0.5) * stride
    # `[n, H]` and `[n, W]`: which rows and columns the field of each place holds.
    rows, columns = (
        np.abs(np.arange(side) + 0.5 - centre[:, None]) < field / 2 for side in (height, width)
    )
    found = np.full(filters, np.nan)
    for f in range(filters):
        threshold = np.quantile(maps[..., f], quantile)
        on = maps[..., f] > threshold
        if not on.any():
            continue
        covers = np.zeros(parts.shape[1])
        for i in range(number):
            seen = rows.T @ on[i] @ columns
            both = (parts[i] & seen).sum((1, 2))
            either = (parts[i] | seen).sum((1, 2))
            covers += both > overlap * np.maximum(either, 1)
        found[f] = covers.max() / number
    return found
