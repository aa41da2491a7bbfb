"""Insertion and deletion: the score while a map's pixels appear, or vanish, highest first.

A number without its conventions means little: one map of one model has deletion areas from .03 to
.12 by steps and fill alone. So every number here carries the name of a `Preset`.

Petsiuk et al., RISE, 2018.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from perturb import arrays, display, messages, progress
from perturb.metrics import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["PRESETS", "Curve", "Preset", "curve", "deletion", "insertion"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """The conventions of a curve.

    Attributes:
      name: printed with every number.
      steps: of the curve, each as many pixels as the others; None takes `pixels` a step instead.
      pixels: pixels a step where `steps` is None; 0 is one row of the image.
      removed: colour of deleted pixels: "mean" (the data set's, zero after normalisation) or a
        number.
      start: what insertion starts from: "blur", "mean" or a number.
      sigma: standard deviation in pixels of that blur.
      side: px to which its kernel is cut and renormalised.
      output: "probability" or "logit".
    """

    name: str
    steps: int | None = None
    pixels: int = 0
    removed: str | float = "mean"
    start: str | float = "blur"
    sigma: float = 5.0
    side: int = 11
    output: str = "probability"


PRESETS = {
    p.name: p
    for p in (
        # The demo of the original, and its run over a whole validation set.
        Preset(name="rise"),
        Preset(name="rise_28", steps=28),
        Preset(name="xplique", steps=10, removed=0.0, start=0.0, output="logit"),
        Preset(name="input_iba", pixels=10, side=9),
    )
}


class Curve(NamedTuple):
    """Insertion or deletion curves of `B` maps.

    Attributes:
      area: `[B]`, the mean height of each curve.
      scores: `[B, n + 1]`, from no pixel changed to all.
      preset: name of the conventions.
    """

    area: np.ndarray
    scores: np.ndarray
    preset: str

    def __repr__(self) -> str:
        return display.summary(self)


def insertion(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    preset: str | Preset = "rise_28",
) -> Curve:
    """Returns the curve while pixels appear, highest first; higher is better.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`, higher where a pixel matters more.
      preset: a name of `PRESETS`, or conventions of one's own.
    """
    return curve(model, images, targets, maps, preset=preset, insert=True)


def deletion(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    preset: str | Preset = "rise_28",
) -> Curve:
    """Returns the curve while pixels vanish, highest first; lower is better.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`, higher where a pixel matters more.
      preset: a name of `PRESETS`, or a `Preset`.
    """
    return curve(model, images, targets, maps, preset=preset, insert=False)


def curve(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    preset: str | Preset,
    insert: bool,
) -> Curve:
    """Returns either curve; a map with a NaN has NaN scores.

    >>> seen = Model(lambda w, x: x.sum((1, 2)), ())
    >>> maps = np.arange(16.0).reshape(1, 4, 4)
    >>> found = curve(seen, np.ones((1, 4, 4, 3)), [0], maps, preset="xplique", insert=False)
    >>> found.scores[0, 0], found.scores[0, -1], found.preset
    (np.float64(16.0), np.float64(0.0), 'xplique')
    """
    chosen = PRESETS.get(preset) if isinstance(preset, str) else preset
    if chosen is None:
        raise messages.one_of("preset", preset, PRESETS)
    images, targets, maps = _common.checked_batch(model, images, targets, maps)
    counts = _counts(maps.shape[1:], chosen)
    xp = arrays.namespace(images, targets, maps)
    rows, wrong = [], _common.bad(maps)
    for i, image in enumerate(progress.each(images, "pictures")):
        # Under jit nothing can be skipped: the row is replaced by NaN at the end.
        if xp is np and wrong[i]:
            rows.append(np.full(len(counts), np.nan))
            continue
        other = _other(image, chosen.start if insert else chosen.removed, chosen)
        first, second = (other, image) if insert else (image, other)
        # Ordered once; each step of the curve is a threshold on the ranks.
        ranks = _common.ranks(maps[i])
        parts = []
        for some in _chunks(counts):
            done = (ranks[None] < some[:, None, None])[..., None]
            views = xp.where(done, second, first)
            parts.append(_common.target_scores(model, views, targets[i], chosen.output))
        rows.append(xp.concatenate(parts))
    scores = xp.where(wrong[:, None], np.nan, xp.stack(rows))
    return Curve(_common.area_under(scores), scores, chosen.name)


def _counts(size: tuple[int, ...], preset: Preset) -> np.ndarray:
    pixels = math.prod(size)
    steps = preset.steps
    if steps is None:
        steps = math.ceil(pixels / (preset.pixels or size[-1]))
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps must be from 1 to {pixels}, got {steps}")
    return np.round(np.linspace(0, pixels, steps + 1)).astype(np.int64)


def _chunks(counts: np.ndarray, most: int = 128) -> Iterator[np.ndarray]:
    for at in range(0, len(counts), most):
        # Views of one step are a picture each: this bounds what is held at once.
        yield counts[at : at + most]


def _other(image: np.ndarray, fill: str | float, preset: Preset) -> np.ndarray:
    """The picture that pixels are taken from, `[H, W, C]`."""
    if not isinstance(fill, str):
        found: np.ndarray = arrays.namespace(image).full_like(image, fill)
        return found
    if fill == "mean":
        # Pictures of other than three channels have no data set's mean here: their own
        # takes its place.
        colour = _common.IMAGENET_MEAN if image.shape[-1] == 3 else image.mean((0, 1))
        xp = arrays.namespace(image)
        found = xp.broadcast_to(xp.asarray(colour, np.float32), image.shape)
        return found
    if fill != "blur":
        raise ValueError(f"fill must be blur, mean or a number, got {fill!r}")
    return boxed_blur(image, preset.sigma, preset.side)


def boxed_blur(image: np.ndarray, sigma: float, side: int) -> np.ndarray:
    """A Gaussian cut to `side` px, zero beyond the border of the normalised picture (its mean)."""
    reach = side // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    mean = _common.IMAGENET_MEAN if image.shape[-1] == 3 else image.mean((0, 1))
    xp = arrays.namespace(image)
    # Zeros around the normalised picture are the mean colour around the plain one.
    out = arrays.as_float(image) - xp.asarray(mean)
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded = xp.pad(out, pad)
        length = out.shape[axis]
        out = sum(w * xp.take(padded, np.arange(k, k + length), axis) for k, w in enumerate(taps))
    found: np.ndarray = (out + xp.asarray(mean)).astype(np.float32)
    return found
