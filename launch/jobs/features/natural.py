"""What a unit answers to among natural pictures, to lie beside the picture that was made for it."""

from __future__ import annotations

import numpy as np

import perturb
from launch.report import pictures
from perturb import internals

__all__ = ["SIDE", "TOP", "patches"]

TOP = 3  # patches a unit
SIDE = 48  # px of a patch: hundreds of units lie on one page


def patches(
    model: perturb.Model,
    layer: str | None,
    units: np.ndarray,
    images: np.ndarray,
    strongest: np.ndarray,
) -> np.ndarray:
    """Returns `[N, TOP, SIDE, SIDE, 3]` uint8: what each unit sees where it answers the most.

    Args:
      model: the network.
      layer: the units' layer; None: what is shown is the whole picture, as for a layer that has
        no places.
      units: `[N]` their numbers.
      images: `[B, H, W, C]` natural pictures.
      strongest: `[N, at least TOP]` those that each unit answers to most, the first one the most.
    """
    chosen = strongest[:, :TOP]
    shown, at = np.unique(chosen, return_inverse=True)
    values = None
    if layer is not None:
        # One more than are looked at: never a batch of one, which has a program of its own.
        batch = images[np.append(shown, shown[0])]
        values = internals.activations(model, batch, layer)
    if layer is None or values is None or values.ndim < 3:
        cut = list(images[chosen.reshape(-1)])
    else:
        grid = values.shape[1:-1]
        own = values[at.reshape(chosen.shape), ..., units[:, None]]
        peaks = own.reshape(chosen.size, -1).argmax(1)
        places = np.stack(np.unravel_index(peaks, grid), -1)
        cut, _ = internals.patches(model, images, layer=layer, indices=chosen, places=places)
    tiles = np.stack([pictures.framed(patch, SIDE) for patch in cut])
    return tiles.reshape(*chosen.shape, SIDE, SIDE, 3)
