"""Does a map predict what the network does when pixels change? Sensitivity-n, infidelity,
stability.

For a linear network and its exact attribution, sensitivity-n is 1 for every n and infidelity is 0;
the tests hold them to that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from perturb import progress
from perturb.metrics import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["infidelity", "max_sensitivity", "sensitivity_n"]


def sensitivity_n(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    maps: ArrayLike,
    *,
    n: int | float,
    subsets: int = 100,
    baseline: ArrayLike = 0.0,
    output: str = "logit",
    key: PyTree = None,
) -> np.ndarray:
    """Returns `[B]` correlations between a subset's sum and the fall of the score without it.

    Ancona et al. 2018. 0 for a flat map, which predicts nothing; NaN where the score does not vary,
    or the map has a NaN.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      maps: `[B, H, W]`; contributions, such as input times gradient.
      n: pixels a subset; below 1 a share of the picture.
      subsets: number of subsets drawn at random.
      baseline: value of removed pixels, a number or a colour.
      output: "logit" or "probability".
      key: random key, or `[B]` keys of the images; None is `jax.random.key(0)`.
    """
    images, targets, maps = _common.checked_batch(model, images, targets, maps)
    pixels = maps[0].size
    count = round(n * pixels) if 0 < n < 1 else int(n)
    if not 1 <= count <= pixels or subsets < 2:
        raise ValueError(
            f"n must be from 1 to {pixels} and subsets at least 2, got {n} and {subsets}"
        )
    found = np.full(len(maps), np.nan)
    for i, rng in enumerate(progress.each(_common.keys_of(key, len(maps)), "pictures")):
        # The n lowest of random numbers are a random subset of n.
        draws = rng.random((subsets, pixels)).argpartition(count - 1, axis=1)[:, :count]
        gone = np.zeros((subsets, pixels), bool)
        np.put_along_axis(gone, draws, True, 1)
        sums = (gone * maps[i].reshape(-1)).sum(1)
        blank = np.broadcast_to(np.asarray(baseline, np.float32), images[i].shape)
        views = np.where(gone.reshape(subsets, *maps[i].shape, 1), blank, images[i])
        stack = np.concatenate([images[i : i + 1], views])
        scores = _common.target_scores(model, stack, targets[i], output)
        falls = scores[0] - scores[1:]
        # Below rounding nothing varies: a correlation of noise is no correlation.
        if sums.std() <= 1e-9 * np.abs(sums).max() and np.isfinite(sums).all():
            found[i] = 0.0
        elif sums.std() > 1e-9 * np.abs(sums).max() and falls.std() > 1e-7 * np.abs(scores).max():
            found[i] = np.corrcoef(sums, falls)[0, 1]
    return found


def infidelity(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    attributions: ArrayLike,
    *,
    perturb: Callable[[np.random.Generator, np.ndarray], np.ndarray] | None = None,
    samples: int = 100,
    scaled: bool = False,
    output: str = "logit",
    key: PyTree = None,
) -> np.ndarray:
    """Returns `[B]`: the mean square of what a map fails to predict (Yeh et al. 2019, definition
    2.1).

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      attributions: `[B, H, W]`, the same for all channels, or `[B, H, W, C]`.
      perturb: `(rng, image) -> I [samples..., H, W, C]` taken off the image, drawn one at a time;
        None is Gaussian noise of deviation .2.
      samples: perturbations an image.
      scaled: first multiply the map by the best factor, as the authors' code does.
      output: "logit" or "probability".
      key: random key, or `[B]` keys of the images; None is `jax.random.key(0)`.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    values = np.array(attributions, np.float64)
    if values.ndim == 3:
        values = values[..., None]
    # Checks the sides; the channels are checked next.
    images, targets, _ = _common.checked_batch(model, images, targets, values[..., 0])
    if values.shape[-1] not in (1, images.shape[-1]):
        raise ValueError(f"attributions must fit images {images.shape}, got {values.shape}")
    draw = perturb or (lambda rng, x: 0.2 * rng.standard_normal(x.shape))
    found = np.full(len(images), np.nan)
    for i, rng in enumerate(_common.keys_of(key, len(images))):
        # One after the other, so that more samples begin with the same ones.
        change = np.stack([draw(rng, images[i]) for _ in range(samples)])
        stack = np.concatenate([images[i : i + 1], images[i] - change]).astype(np.float32)
        scores = _common.target_scores(model, stack, targets[i], output)
        falls = scores[0] - scores[1:]
        # What was really taken off, after rounding to the picture's own precision.
        predicted = ((images[i] - stack[1:]).astype(np.float64) * values[i]).sum((1, 2, 3))
        factor = (falls * predicted).mean() / max((predicted**2).mean(), 1e-30) if scaled else 1.0
        found[i] = ((factor * predicted - falls) ** 2).mean()
    return found


def max_sensitivity(
    attribution: Callable[[PyTree, PyTree], np.ndarray],
    images: ArrayLike,
    targets: PyTree,
    *,
    radius: float = 0.02,
    samples: int = 10,
    key: PyTree = None,
) -> np.ndarray:
    """Returns `[B]`: the largest relative change of a map under small noise (Yeh et al. 2019).

    Args:
      attribution: `(images, targets) -> [B, H, W]`, a method with its model bound.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      radius: of the uniform noise, in units of the pixels, which stay in [0, 1].
      samples: number of noisy copies of each picture.
      key: random key, or `[B]` keys of the images; None is `jax.random.key(0)`.
    """
    images = np.asarray(images, np.float32)
    before = np.asarray(attribution(images, targets), np.float64)
    size = np.sqrt((before**2).sum((1, 2)))
    worst = np.zeros(len(images))
    rngs = _common.keys_of(key, len(images))
    for _ in progress.each(range(samples), "noisy copies"):
        noise = np.stack([rng.uniform(-radius, radius, images.shape[1:]) for rng in rngs])
        noisy = np.clip(images + noise, 0, 1).astype(np.float32)
        after = np.asarray(attribution(noisy, targets), np.float64)
        change = np.sqrt(((after - before) ** 2).sum((1, 2)))
        # A map of zeros that changes at all changes without bound.
        worst = np.maximum(worst, change / np.maximum(size, 1e-30))
    return worst
