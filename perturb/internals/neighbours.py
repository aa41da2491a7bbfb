"""What a map of pictures keeps: neighbours that are true, neighbours that are lost, classes; and a
layout of thumbnails.

A map always looks like something. So `map_quality` says how far its neighbours are those of the
codes (`Venna and Kaski 2001 <https://doi.org/10.1007/3-540-44668-0_68>`_) and how well the class of
a picture is that of its neighbours; print it beside the same figures of a network with random
weights.

>>> line = np.arange(20.0)[:, None]
>>> found = map_quality(line, np.hstack([line, 0 * line]), np.arange(20) // 10, near=3)
>>> found.trustworthiness, found.continuity, round(found.accuracy.value, 2)
(1.0, 1.0, 0.95)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perturb.statistics import Interval, mean_interval
from perturb.types import ArrayLike, PyTree

__all__ = ["MapQuality", "grid_places", "map_quality", "neighbour_ranks", "without_overlap"]


class MapQuality(NamedTuple):
    """How much of the codes a map keeps.

    Attributes:
      trustworthiness: 1 where all neighbours on the map are neighbours among the codes.
      continuity: 1 where all neighbours among the codes are neighbours on the map.
      accuracy: share of the pictures that have the class of most of their neighbours on the map,
        with its interval over the pictures; NaN without classes.
      code_accuracy: the same by neighbours among the codes.
      near: how many neighbours were compared.
    """

    trustworthiness: float
    continuity: float
    accuracy: Interval
    code_accuracy: Interval
    near: int


def map_quality(
    codes: ArrayLike, places: ArrayLike, targets: PyTree = None, *, near: int = 12
) -> MapQuality:
    """Compares neighbours on a map with neighbours among the codes.

    Args:
      codes: `[N, D]`.
      places: `[N, 2]`, of any layout.
      targets: `[N]` classes, or None.
      near: neighbours, below N / 2.
    """
    codes, places = np.asarray(codes, np.float64), np.asarray(places, np.float64)
    number = len(codes)
    if places.shape[:1] != (number,) or not 1 <= near < number / 2:
        raise ValueError(
            f"places must be one for each of {number} codes and near 1 to below {number / 2}, got "
            f"{len(places)} places and near {near}"
        )
    high, low = neighbour_ranks(codes), neighbour_ranks(places)
    # The largest sum of ranks that can be wrong, by Venna and Kaski, for near below N / 2.
    most = number * near * (2 * number - 3 * near - 1) / 2
    # By how many ranks the neighbours of one space are too far in the other.
    false = np.where((low <= near) & (high > near), high - near, 0).sum() / most
    lost = np.where((high <= near) & (low > near), low - near, 0).sum() / most
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)
    on_map = among = nothing
    if targets is not None:
        on_map, among = (_accuracy(r, np.asarray(targets), near) for r in (low, high))
    return MapQuality(float(1 - false), float(1 - lost), on_map, among, near)


def neighbour_ranks(points: ArrayLike) -> np.ndarray:
    """Returns `[N, N]`: in row i, the rank of each point by its distance from i; 1 is the nearest.

    A point is not its own neighbour (its rank is N); equal distances in order of the points.
    """
    points = np.asarray(points, np.float64)
    norms = (points**2).sum(1)
    distances = norms[:, None] + norms - 2 * points @ points.T
    # Last in its own row: a point is not its own neighbour.
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, 1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(points) + 1)[None], 1)
    return ranks


def grid_places(places: ArrayLike, *, columns: int | None = None) -> np.ndarray:
    """Returns a cell for every point, `[N, 2]` integers (row, column), no two the same.

    The sum of the squared distances from the points to their cells is the least there is (an exact
    assignment), so thumbnails drawn in the cells keep the map and cannot overlap.

    Args:
      places: `[N, 2]`: x to the right, y upwards; N of some thousands at most.
      columns: of the grid; None makes it about square.
    """
    from scipy import optimize
    from scipy.spatial import distance

    places = np.asarray(places, np.float64)
    number = len(places)
    columns = max(round(np.sqrt(number)), 1) if columns is None else columns
    if places.shape != (number, 2) or not number or columns < 1:
        raise ValueError(
            f"places must be [N, 2] and columns at least 1, got {list(places.shape)} and {columns}"
        )
    rows = -(-number // columns)
    low, high = places.min(0), places.max(0)
    # A map on which all points have one x, or one y, has no extent to divide by.
    unit = (places - low) / np.where(high > low, high - low, 1)
    at = np.stack([unit[:, 0] * (columns - 1), (1 - unit[:, 1]) * (rows - 1)], 1)
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    points, chosen = optimize.linear_sum_assignment(distance.cdist(at, cells, "sqeuclidean"))
    found = np.empty((number, 2), int)
    found[points] = cells[chosen][:, ::-1]
    return found


def without_overlap(places: ArrayLike, side: float) -> np.ndarray:
    """Returns indices of points whose squares of a side do not overlap, in order: the first one
    stays.

    Args:
      places: `[N, 2]`, centres, most important first.
      side: of the squares.
    """
    kept: list[int] = []
    places = np.asarray(places, np.float64)
    for i, place in enumerate(places):
        if not kept or (np.abs(places[kept] - place).max(1) >= side).all():
            kept.append(i)
    return np.array(kept, int)


def _accuracy(ranks: np.ndarray, targets: np.ndarray, near: int) -> Interval:
    _, classes = np.unique(targets, return_inverse=True)
    votes = np.stack(
        [((ranks <= near) & (classes == c)).sum(1) for c in range(classes.max() + 1)], 1
    )
    return mean_interval((votes.argmax(1) == classes) * 1.0, draws=2000)
