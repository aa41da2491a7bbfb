"""How an object is turned, grown and moved in each image, from a layer's maps and no labels.

What nodes and surroundings do not know is how the object as a whole is turned, and a part without a
corner, like the back of a crescent, is nowhere else than where the turn puts it. Filters answer to
edges of one direction, so the maps of a turned object are not the turned maps; how far the
activations of a place are from those of the background is nearly that. The average of all
images is found together with the pose of each: all start upright, each takes the pose at which
the average fits it, and the average is taken again of the images turned back.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from perturb import display
from perturb.types import ArrayLike, PyTree

__all__ = ["Poses", "carry", "find_poses"]

# Candidates, and how far apart objects are thought to be: degrees, log of the size, share of side.
_TURNS, _SIZES = np.radians(np.arange(-24, 25, 6)), np.log([0.9, 1.0, 1.1])
_SHIFTS = np.arange(-3, 4) / 32
_SPREAD = np.array([np.radians(20), 0.1, 5 / 64, 5 / 64])
# Of the cosine, in the exponent.
_SHARP = 30.0


class Poses(NamedTuple):
    """The pose of the object in each image, against the average one.

    Attributes:
      turn: `[I]` radians, clockwise.
      size: `[I]` factor.
      shift: `[I, 2]` px, row before column.
      middle: px, half the side of the picture: what is turned about.
    """

    turn: np.ndarray
    size: np.ndarray
    shift: np.ndarray
    middle: float

    def __repr__(self) -> str:
        return display.summary(self)


def _figure(maps: ArrayLike) -> np.ndarray:
    """`[I, n, n]`: how far each place's activations are from the background's, around the mean."""
    x = np.asarray(maps, np.float64)
    # Most of a picture is background: the median of each filter is what that makes of it.
    away = np.sqrt(((x - np.median(x, axis=(2, 3), keepdims=True)) ** 2).sum(1))
    found: np.ndarray = away - away.mean((1, 2), keepdims=True)
    return found


def _turn(points: PyTree, turn: ArrayLike, size: ArrayLike) -> np.ndarray:
    """Points `[..., 2]`, row before column, turned clockwise about 0 and grown."""
    cos, sin = np.cos(turn) * size, np.sin(turn) * size
    row, column = points[..., 0], points[..., 1]
    return np.stack([cos * row + sin * column, cos * column - sin * row], -1)


def _read(one: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A map `[n, n]` read between cells, linearly, at cells `[..., 2]`; 0 beyond the border."""
    n = len(one)
    inside = ((at >= -0.5) & (at <= n - 0.5)).all(-1)
    at = np.clip(at, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    (a, b), (r, c) = np.moveaxis(at - low, -1, 0), np.moveaxis(low, -1, 0)
    above = (1 - b) * one[r, c] + b * one[r, c + 1]
    below = (1 - b) * one[r + 1, c] + b * one[r + 1, c + 1]
    found: np.ndarray = inside * ((1 - a) * above + a * below)
    return found


def find_poses(maps: ArrayLike, *, stride: float, rounds: int = 4) -> Poses:
    """Returns how the object is turned by up to 24 degrees, grown and moved in each image.

    Args:
      maps: `[I, C, n, n]` of crops of one kind of object, see `evidence_maps`.
      stride: px of the picture a cell.
      rounds: number of times that the average of all images is fitted to each.
    """
    figure = _figure(maps)
    n = figure.shape[-1]
    line = np.arange(n) - (n - 1) / 2
    cells = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    middle = (n - 1) / 2
    ways = np.array(list(itertools.product(_TURNS, _SIZES, _SHIFTS, _SHIFTS)))
    prior = -((ways / _SPREAD) ** 2).sum(1) / 2
    # Where each cell of a turned picture is in the average.
    back = _turn(cells - ways[:, None, 2:] * n, -ways[:, :1], np.exp(-ways[:, 1:2]))
    flat = figure.reshape(len(figure), -1)
    flat = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12)
    average = figure.mean(0)
    for left in reversed(range(rounds)):
        turned = _read(average, back + middle)
        turned /= np.linalg.norm(turned, axis=1, keepdims=True) + 1e-12
        score = _SHARP * (turned @ flat.T) + prior[:, None]
        share = np.exp(score - score.max(0))
        pose = (share / share.sum(0)).T @ ways
        # An average that is itself turned would fit as well: the mean pose is none.
        pose -= pose.mean(0)
        if left:
            average = np.mean(
                [
                    _read(one, _turn(cells, p[0], np.exp(p[1])) + p[2:] * n + middle)
                    for one, p in zip(figure, pose, strict=True)
                ],
                axis=0,
            ).reshape(n, n)
    return Poses(pose[:, 0], np.exp(pose[:, 1]), pose[:, 2:] * n * stride, n * stride / 2)


def _carried(poses: Poses, rest: ArrayLike) -> np.ndarray:
    """Returns `[I, ..., 2]` px: where each image's pose puts places of the average one.

    Args:
      poses: see `find_poses`.
      rest: `[..., 2]` px, places in the average pose.
    """
    rest = np.asarray(rest, np.float64)
    ones = (1,) * (rest.ndim - 1)
    turn, size = (v.reshape(-1, *ones) for v in (poses.turn, poses.size))
    moved = _turn(rest - poses.middle, turn, size)
    found: np.ndarray = moved + poses.shift.reshape(-1, *ones, 2) + poses.middle
    return found


def carry(poses: Poses, shown: ArrayLike, centres: ArrayLike) -> np.ndarray:
    """Returns `[I, 2]` px: where a part is carried to by the pose of each image.

    Args:
      poses: see `find_poses`.
      shown: `[A]` indices of the annotated images.
      centres: `[A, 2]` px, of the part in these.

    >>> poses = Poses(np.array([0, np.pi / 2]), np.ones(2), np.zeros((2, 2)), 32.0)
    >>> carry(poses, [0], [[32.0, 42.0]])[1].round(6).tolist()
    [42.0, 32.0]
    """
    shown = np.asarray(shown)
    upright = np.asarray(centres, np.float64) - poses.middle - poses.shift[shown]
    rest = _turn(upright, -poses.turn[shown], 1 / poses.size[shown]).mean(0)
    return _carried(poses, rest + poses.middle)
