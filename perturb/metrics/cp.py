"""The conciseness-preciseness score: probability kept per share of the picture shown.

Kolek et al., Explaining Image Classifiers with Multiscale Directional Image Representations, 2023,
equation 7, over pixels: there over wavelet coefficients.
"""

from __future__ import annotations

import numpy as np

from perturb.metrics import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["conciseness_preciseness"]


def conciseness_preciseness(
    model: Model, images: ArrayLike, targets: PyTree, masks: ArrayLike, *, fill: ArrayLike = 0.0
) -> np.ndarray:
    """Returns `[B]`: the share of the probability kept over the share of the pixels' values shown.

    Above 1 the region is denser in answer than the picture; NaN where a mask shows nothing, or is
    not finite.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      masks: `[B, H, W]` in [0, 1].
      fill: what is blended in where a mask is 0: a number, a colour `[C]` or pictures `[B, H, W,
        C]`.

    >>> seen = Model(lambda w, x: x[:, :, :2].mean((1, 2)), (), output="probabilities")
    >>> masks = np.zeros((1, 4, 4))
    >>> masks[:, :, :2] = 1
    >>> conciseness_preciseness(seen, np.ones((1, 4, 4, 3)), [0], masks).tolist()
    [2.0]
    """
    masks = _common.maps_of(masks, name="masks")
    images = _common.images_of(images, masks)
    wrong = _common.bad(masks)
    if not wrong.all() and (np.nanmin(masks) < 0 or np.nanmax(masks) > 1):
        raise ValueError(
            f"masks must lie in [0, 1], got values from {np.nanmin(masks):g} to "
            f"{np.nanmax(masks):g}"
        )
    # A mask that is not finite has NaN as its result; here it must not spoil the blend of
    # the others.
    shown = np.nan_to_num(masks)[..., None]
    blend = shown * images + (1 - shown) * np.asarray(fill, np.float32)
    found = np.full(len(masks), np.nan)
    for i in range(len(masks)):
        # Of a black picture nothing is shown: a share of 0, and NaN below.
        share = (shown[i] * np.abs(images[i])).sum() / max(np.abs(images[i]).sum(), 1e-30)
        if wrong[i] or not share:
            continue
        views = np.stack([images[i], blend[i]]).astype(np.float32)
        whole, kept = _common.target_scores(model, views, targets[i])
        found[i] = kept / whole / share
    return found
