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
    # A picture of several units is shown several times: batches of one size are one program.
    shown = images[chosen.reshape(-1)]
    cut = list(shown)
    if layer is not None:
        values = internals.activations(model, shown, layer)
        if values.ndim > 2:
            own = values[np.arange(len(shown)), ..., np.repeat(units, chosen.shape[1])]
            peaks = own.reshape(len(shown), -1).argmax(1)
            places = np.stack(np.unravel_index(peaks, values.shape[1:-1]), -1)
            cut, _ = internals.patches(model, images, layer=layer, indices=chosen, places=places)
    tiles = np.stack([pictures.framed(patch, SIDE) for patch in cut])
    return tiles.reshape(*chosen.shape, SIDE, SIDE, 3)
