"""Symmetric relevance gain: least important pixels first, minus most important first.

Deletion alone is gamed by maps that break the picture into a texture no network knows, insertion by
smooth blobs, and both depend on the fill. Here one order is followed from both ends, and the area
between the two curves is the number: what the fill or the pattern of what is left does to either
order it does to both. A random order has 0 in expectation, the reversed map has the opposite value,
exactly.

Blücher et al., Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks,
2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perturb import display, progress
from perturb.metrics import _common
from perturb.metrics.insertion_deletion import Preset, _counts, _other
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["FILLS", "RelevanceGain", "relevance_gain"]

# Colour of the data set's mean, a blur of 5 px, black.
FILLS: tuple[str | float, ...] = ("mean", "blur", 0.0)


class RelevanceGain(NamedTuple):
    """The gain of `B` maps under `F` fills.

    Attributes:
      value: `[B]`, the mean over fills.
      by_fill: `[B, F]`.
      least: `[B, F, n + 1]`, curves with the least relevant pixels removed first.
      most: `[B, F, n + 1]`, curves with the most relevant ones first.
    """

    value: np.ndarray
    by_fill: np.ndarray
    least: np.ndarray
    most: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def relevance_gain(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    fills: Sequence[str | float] = FILLS,
    steps: int = 28,
    output: str = "probability",
) -> RelevanceGain:
    """Returns the gain of each map, in [-1, 1] for probabilities; higher is better. A map with a
    NaN has NaN.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`, higher where a pixel matters more.
      fills: what removed pixels become, each "mean", "blur" or a number.
      steps: number of steps of each curve.
      output: "probability" or "logit".

    >>> seen = Model(lambda w, x: x.mean(-1).reshape(len(x), -1)[:, :1], ())
    >>> maps = np.eye(1, 16).reshape(1, 4, 4)
    >>> images = np.ones((1, 4, 4, 3))
    >>> found = relevance_gain(seen, images, [0], maps, fills=[0.0], steps=16, output="logit")
    >>> float(found.value[0])
    0.9375
    """
    if not fills:
        raise ValueError(f"fills must be at least one, got {fills!r}")
    maps = _common.maps_of(maps)
    images = _common.images_of(images, maps)
    preset = Preset(name="srg", steps=steps, output=output)
    counts = _counts(maps.shape[1:], preset)
    curves = np.full((2, len(maps), len(fills), len(counts)), np.nan)
    wrong = _common.bad(maps)
    for i, f in progress.each(list(np.ndindex(len(maps), len(fills))), "curves"):
        if not wrong[i]:
            other = _other(images[i], fills[f], preset)
            curves[:, i, f] = _both(model, images[i], targets[i], maps[i], other, counts, output)
    least, most = curves
    # Per fill, and averaged last: what one fill does to both orders has cancelled by then.
    gain = _common.area_under(least) - _common.area_under(most)
    return RelevanceGain(gain.mean(1), gain, least, most)


def _both(
    model: Model,
    image: np.ndarray,
    target: PyTree,
    one: np.ndarray,
    other: np.ndarray,
    counts: np.ndarray,
    output: str,
) -> np.ndarray:
    """Returns `[2, n + 1]` scores while least, and most, important pixels vanish first."""
    orders = [_common.ranks(one)]
    if len(np.unique(one)) < one.size:
        # Of equal pixels either may come first: the mean of both orders makes the reversed map the
        # reverse.
        orders.append(one.size - 1 - _common.ranks(-one))
    pixels, found = one.size, []
    for ranks in orders:
        gone = [ranks[None] < counts[:, None, None]]
        gone.insert(0, pixels - 1 - ranks[None] < counts[:, None, None])
        views = np.where(np.concatenate(gone)[..., None], other, image)
        scores = _common.target_scores(model, views, target, output)
        found.append(scores.reshape(2, len(counts)))
    result: np.ndarray = np.mean(found, 0)
    return result
