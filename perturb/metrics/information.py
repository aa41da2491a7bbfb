"""Performance information curves: score against the information shown (Kapishnikov et al. 2019).

A map's highest pixels are shown on a picture interpolated from 1 % of its pixels; how much is shown
is measured by the length of a lossless WebP file, so maps that show flat sky gain nothing. SIC
takes the class's probability, AIC whether it wins. The WebP encoder's version moves the numbers a
little.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from perturb import display, progress
from perturb.metrics import _common
from perturb.model import Model
from perturb.scores import has_probability
from perturb.types import Array, ArrayLike, PyTree

__all__ = ["THRESHOLDS", "Information", "aggregate", "entropy", "information", "interpolated"]

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75)
POINTS = 1000


class Information(NamedTuple):
    """Information curves of `B` maps.

    NaN rows: the class is below `least`, or the empty picture is no worse than the whole one.

    Attributes:
      area: `[B]`, the area under each curve.
      curves: `[B, 1001]` over the share of information shown, 0 to 1.
    """

    area: np.ndarray
    curves: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def entropy(image: np.ndarray) -> int:
    """Returns the length in bytes of a uint8 picture as a lossless WebP file."""
    import PIL.Image

    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(image[..., 0] if image.shape[-1:] == (1,) else image)
    picture.save(buffer, "WEBP", lossless=True, quality=100)
    return len(buffer.getvalue())


def interpolated(image: Array, shown: Array) -> np.ndarray:
    """Returns `[H, W, C]`: the shown pixels and the corners, linearly interpolated in between.

    >>> image = np.array([[0.0, 0, 0], [1, 8, 1], [0, 0, 0]])[..., None]
    >>> shown = np.zeros((3, 3), bool); shown[1, 0] = True
    >>> interpolated(image, shown)[1, :, 0].tolist()
    [1.0, 0.5, 0.0]
    """
    from scipy import interpolate

    image = np.asarray(image)
    shown = np.array(shown, bool)
    shown[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    if shown.all():
        return image.copy()
    out = image.astype(np.float64)
    known, unknown = np.argwhere(shown), np.argwhere(~shown)
    # One triangulation for all channels; the corners make it cover the picture.
    found = interpolate.LinearNDInterpolator(known, out[shown])(unknown)
    found = np.where(np.isnan(found), out.mean((0, 1)), found)
    out[~shown] = found
    return np.round(out).astype(image.dtype) if image.dtype.kind in "iu" else out


def information(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    output: str = "probability",
    least: float = 0.8,
    monotone: bool = True,
    key: PyTree = None,
) -> Information:
    """Returns the curve of every image.

    Args:
      model, images, targets: as for an attribution; pixels are rounded to 8 bits.
      maps: `[B, H, W]`.
      output: "probability" (SIC) or "top1" (AIC).
      least: images with less than this on the whole picture are skipped (probability; top1 0.5);
        a score without a probability has no such bound.
      monotone: whether a curve never falls, as published.
      key: decides the 1 % of pixels that all maps of an image start from.
    """
    images, targets, maps = _common.checked_batch(model, images, targets, maps)
    area = np.full(len(maps), np.nan)
    curves = np.full((len(maps), POINTS + 1), np.nan)
    wrong = _common.bad(maps)
    is_chance = has_probability(model.output)
    for i, rng in enumerate(progress.each(_common.keys_of(key, len(maps)), "pictures")):
        if wrong[i]:
            continue
        # Information is the length of a file, and files hold 8 bits.
        picture = np.round(255 * np.clip(images[i], 0, 1)).astype(np.uint8)
        seed = np.zeros(maps[i].size, bool)
        seed[rng.choice(seed.size, int(0.01 * seed.size), replace=False)] = True
        seed = seed.reshape(maps[i].shape)
        views = [picture, interpolated(picture, seed)]
        for share in THRESHOLDS:
            # With all that equals the quantile, as published: a map with ties shows more
            # than the share.
            kept = maps[i] >= np.quantile(maps[i], 1 - share)
            views.append(interpolated(picture, kept | seed))
        scores = _common.target_scores(model, np.stack(views) / 255.0, targets[i], output)
        sizes = np.array([entropy(v) for v in views], np.float64)
        if is_chance and scores[0] < (least if output == "probability" else 0.5):
            continue
        # The scale from the seed's picture to the whole one would be 0 or turned around.
        if scores[1] >= scores[0] or sizes[1] >= sizes[0]:
            continue
        x = np.clip((sizes[2:] - sizes[1]) / (sizes[0] - sizes[1]), 0, 1)
        y = np.clip((scores[2:] - scores[1]) / (scores[0] - scores[1]), 0, 1)
        if monotone:
            y = np.maximum.accumulate(y)
        at = np.linspace(0, 1, POINTS + 1)
        # Files need not grow with what is shown; `np.interp` needs rising positions.
        by = np.argsort(x, kind="stable")
        curves[i] = np.interp(at, [0, *x[by], 1], [0, *y[by], 1])
        area[i] = _common.area_under(curves[i])
    return Information(area, curves)


def aggregate(curves: ArrayLike, *, method: str = "median") -> tuple[np.ndarray, float]:
    """Returns the median (or mean) curve of the images that count, and the area under it.

    Args:
      curves: `[B, 1001]`; NaN rows do not count.
      method: "median" or "mean".
    """
    if method not in ("median", "mean"):
        raise ValueError(f"method must be median or mean, got {method!r}")
    curves = np.asarray(curves, np.float64)
    kept = curves[~np.isnan(curves).any(1)]
    if not len(kept):
        return np.full(curves.shape[1], np.nan), float("nan")
    one = np.median(kept, 0) if method == "median" else kept.mean(0)
    return one, float(_common.area_under(one))
