"""ROAR and KAR: remove (or keep) what a map says, train again, and see what is lost (Hooker 2019).

Retraining takes away the doubt that a fall of the score comes from strange pictures rather than
from missing information. Pixels become the data set's mean colour, in training and test pictures
alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from perturb.metrics import _common
from perturb.types import ArrayLike, PyTree

__all__ = ["SHARES", "degrade", "roar"]

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def degrade(
    images: ArrayLike, maps: ArrayLike, share: float, *, keep: bool = False, colour: PyTree = None
) -> np.ndarray:
    """Returns `[B, H, W, C]` with the highest `share` of pixels replaced (KAR: all others).

    Args:
      images: `[B, H, W, C]`.
      maps: `[B, H, W]`, higher where a pixel matters more.
      share: in [0, 1].
      keep: whether to replace the lowest `share` instead, what KAR does.
      colour: `[C]`; None is the mean over all images.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    maps = _common.maps_of(maps)
    images = _common.images_of(images, maps)
    fill = images.mean((0, 1, 2)) if colour is None else np.asarray(colour, np.float32)
    gone = _common.top(-maps if keep else maps, round(share * maps[0].size))
    return np.where(gone[..., None], fill, images)


def roar(
    retrain: Callable[[np.ndarray, np.ndarray, int], float],
    train: tuple[PyTree, PyTree],
    test: tuple[PyTree, PyTree],
    *,
    shares: Sequence[float] = SHARES,
    retrains: int = 5,
    keep: bool = False,
) -> np.ndarray:
    """Returns `[shares, retrains]` test accuracies of networks trained without what the maps mark.

    Args:
      retrain: `(train images, test images, seed) -> accuracy`, from scratch.
      train, test: `(images, maps)`.
      shares: shares of the pixels that are replaced, in (0, 1).
      retrains: seeds a share.
      keep: whether to keep what the maps mark and replace the rest (KAR).
    """
    images, maps = train
    # Of the training pictures, for both: a colour of their own would mark the test pictures.
    colour = np.asarray(images, np.float32).mean((0, 1, 2))
    rows = []
    for share in shares:
        pictures = degrade(images, maps, share, keep=keep, colour=colour)
        checked = degrade(*test, share, keep=keep, colour=colour)
        # Several trainings a share: the seeds' spread is what differences have to exceed.
        rows.append([retrain(pictures, checked, seed) for seed in range(retrains)])
    return np.array(rows, np.float64)
