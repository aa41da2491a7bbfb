"""Three maps that have not looked at the network: what any method must beat."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from perturb import operators
from perturb.attribution import _common
from perturb.model import Model

__all__ = ["centre", "random", "sobel"]


def random(
    model: Model,
    images: Any,
    targets: Any,
    *,
    smooth: float = 0.1,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`: smoothed noise, so that regions cut from it are blobs.

    Args:
      model, images, targets: as for `gradient`; only the images' size is used.
      smooth: sigma of the smoothing as a share of the shorter side.
      key: decides the noise; image `i` uses `fold_in(key, i)`, or `[B]` keys of the images.
    """
    pixels, _, number = _common.open_door(model, images, targets)
    size = pixels.shape[1:3]
    keys = _common.image_keys(key, number)
    return np.asarray(_noise(keys, size, smooth * min(size)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _noise(keys: jax.Array, size: tuple[int, ...], sigma: float) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return operators.pyramid(jax.random.normal(key, (*size, 1)), [sigma])[0, ..., 0]

    return jax.lax.map(one, keys)


def centre(model: Model, images: Any, targets: Any) -> np.ndarray:
    """Returns `[B, H, W]`: a Gaussian in the middle of the picture, a quarter of the sides wide."""
    pixels, _, number = _common.open_door(model, images, targets)
    h, w = pixels.shape[1:3]
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in (h, w))
    one = np.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2)).astype(np.float32)
    return np.broadcast_to(one, (number, h, w)).copy()


def sobel(model: Model, images: Any, targets: Any) -> np.ndarray:
    """Returns `[B, H, W]`: the strength of edges of the grey picture (Sobel's filters)."""
    pixels, _, number = _common.open_door(model, images, targets)
    grey = np.pad(np.asarray(pixels[:number]).mean(-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    columns = grey[:, :, :-2] + 2 * grey[:, :, 1:-1] + grey[:, :, 2:]
    across = rows[:, :, 2:] - rows[:, :, :-2]
    down = columns[:, 2:] - columns[:, :-2]
    return np.hypot(across, down).astype(np.float32)
