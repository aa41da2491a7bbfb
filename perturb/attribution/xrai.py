"""XRAI: regions of a segmentation, the densest in attribution first.

Kapishnikov et al., XRAI: Better Attributions Through Regions, 2019. Segments at several scales
overlap; the one that adds the most attribution per pixel is taken next, and its new pixels get that
density as their value.
"""

from __future__ import annotations

import numpy as np

from perturb.attribution.integrated import integrated_gradients
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["ranked", "xrai"]

SCALES = (50, 100, 150, 250, 500, 1200)


def xrai(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    segments: PyTree = None,
    attributions: PyTree = None,
    steps: int = 50,
    smallest: int = 20,
) -> np.ndarray:
    """Returns `[B, H, W]`: the attribution per pixel of the region that brought each pixel in.

    Args:
      model, images, targets: as for `gradient`.
      segments: `[B][S]` lists of bool `[H, W]`, overlapping as they like; None segments each
        picture (Felzenszwalb) at six scales, which needs scikit-image.
      attributions: `[B, H, W]`, signed; None is the mean of integrated gradients from black and
        from white.
      steps: number of steps of these integrated gradients.
      smallest: least number of pixels that a region must add.
    """
    images = np.asarray(images, np.float32)
    if attributions is None:
        both = [
            integrated_gradients(model, images, targets, steps=steps, baseline=b)
            for b in (0.0, 1.0)
        ]
        attributions = np.mean(both, 0)
    attributions = np.asarray(attributions, np.float64)
    if attributions.shape != images.shape[:-1]:
        raise ValueError(
            f"attributions must be {list(images.shape[:-1])}, got shape {attributions.shape}"
        )
    if segments is None:
        segments = [_segments(image) for image in images]
    return np.stack(
        [
            ranked(one, np.asarray(parts, bool), smallest)
            for one, parts in zip(attributions, segments, strict=True)
        ]
    ).astype(np.float32)


def ranked(attribution: np.ndarray, segments: np.ndarray, smallest: int = 1) -> np.ndarray:
    """Returns `[H, W]`: segments `[S, H, W]` in the order of what each adds per new pixel.

    >>> attribution = np.array([[4.0, 4.0, 1.0, 0.0]])
    >>> parts = np.array([[[1, 1, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 0, 1]]], bool)
    >>> ranked(attribution, parts).tolist()
    [[4.0, 4.0, 1.0, 0.0]]
    """
    flat = segments.reshape(len(segments), -1)
    values = attribution.reshape(-1)
    open_, left = np.ones(values.size, bool), list(range(len(flat)))
    found = np.full(values.size, -np.inf)
    sizes, sums = flat.sum(1).astype(float), flat @ values
    while left:
        # Per new pixel: what a segment shares with the region so far is not counted twice.
        density = {s: sums[s] / sizes[s] for s in left if sizes[s] >= smallest}
        if not density:
            break
        best = max(density, key=lambda s: density[s])
        new = flat[best] & open_
        found[new] = density[best]
        open_ &= ~new
        left.remove(best)
        # Only what others share with the new pixels changes.
        taken = flat[:, new]
        sizes -= taken.sum(1)
        sums -= taken @ values[new]
    if open_.any():
        rest = float(values[open_].mean())
        known = found[~open_]
        # What no segment holds ranks behind all that one does.
        found[open_] = min(rest, float(known.min())) if known.size else rest
    return found.reshape(attribution.shape)


def _segments(image: np.ndarray) -> np.ndarray:
    try:
        from skimage import morphology, segmentation, transform
    except ImportError as error:
        raise ImportError(
            "segments=None needs scikit-image: pip install scikit-image, or give segments"
        ) from error
    # As the authors: at a fixed size in [-1, 1], so that scales mean the same for every picture.
    scaled = transform.resize(image, (224, 224), order=3, mode="constant", anti_aliasing=True)
    parts = []
    for scale in SCALES:
        labels = segmentation.felzenszwalb(2 * scaled - 1, scale=scale, sigma=0.8, min_size=150)
        labels = transform.resize(
            labels,
            image.shape[:2],
            order=0,
            preserve_range=True,
            mode="constant",
            anti_aliasing=False,
        ).astype(int)
        parts += [morphology.dilation(labels == n, morphology.disk(5)) for n in np.unique(labels)]
    return np.stack(parts)
