"""Three maps that ignore the network: the least that any method must beat."""

from __future__ import annotations

import functools

import jax
import numpy as np

from perturb import arrays, operators
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["centre", "random", "sobel"]


def random(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
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
    pixels, _, number = _common.checked_batch(model, images, targets)
    size = pixels.shape[1:-1]
    keys = _common.image_keys(key, number)
    found: np.ndarray = arrays.finished(_noise(keys, size, smooth * min(size)))
    return found


@functools.partial(jax.jit, static_argnums=(1, 2))
def _noise(keys: jax.Array, size: tuple[int, ...], sigma: float) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return operators.pyramid(jax.random.normal(key, (*size, 1)), [sigma])[0, ..., 0]

    # One picture at a time, so that its noise does not depend on how many there are.
    found: jax.Array = jax.lax.map(one, keys)
    return found


def centre(model: Model, images: ArrayLike, targets: PyTree) -> np.ndarray:
    """Returns `[B, H, W]`: a Gaussian in the middle of the picture, a quarter of the sides wide.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
    """
    pixels, _, number = _common.checked_batch(model, images, targets)
    size = pixels.shape[1:-1]
    away = np.ix_(*(((np.arange(n) + 0.5) / n - 0.5) ** 2 for n in size))
    one = np.exp(-sum(np.broadcast_arrays(*away)) / (2 * 0.25**2)).astype(np.float32)
    return np.broadcast_to(one, (number, *size)).copy()


def sobel(model: Model, images: ArrayLike, targets: PyTree) -> np.ndarray:
    """Returns `[B, H, W]`: the strength of edges of the grey picture (Sobel's filters).

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
    """
    pixels, _, number = _common.checked_batch(model, images, targets)
    xp = arrays.namespace(pixels)
    grey = xp.asarray(pixels[:number]).mean(-1)
    # The border repeats, for the end of the picture is no edge in it.
    grey = xp.pad(grey, [(0, 0), *[(1, 1)] * (grey.ndim - 1)], mode="edge")
    square: PyTree = 0.0
    for along in range(1, grey.ndim):
        found = grey
        for axis in range(1, grey.ndim):
            low, middle, high = (xp.roll(found, s, axis) for s in (1, 0, -1))
            # A Sobel filter is a difference along one axis and a weighted sum along the others.
            found = high - low if axis == along else low + 2 * middle + high
        square = square + found[(slice(None), *[slice(1, -1)] * (grey.ndim - 1))] ** 2
    result: np.ndarray = xp.sqrt(square).astype(np.float32)
    return result
