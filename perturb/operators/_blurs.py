"""Pictures that are blurred: by Gaussians, exactly, and by medians."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturb.masks.upsampling import gaussian_taps
from perturb.types import ArrayLike, PyTree

__all__ = ["median", "pyramid"]


def _band(sigma: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The blur of a line as a matrix `[length, length]`, and `[length]` what falls beyond its
    ends.
    """
    # A matrix rather than a convolution: a kernel of 161 px over a side of 224 is nearly full
    # anyway, and what falls beyond the border is two columns, to be added where the padding says.
    taps = gaussian_taps(sigma)
    reach = taps.size // 2
    band = np.zeros((length, length + 2 * reach))
    for i in range(length):
        band[i, i : i + taps.size] = taps
    left, right = band[:, :reach].sum(1), band[:, length + reach :].sum(1)
    return band[:, reach : length + reach], np.stack([left, right])


def _blur(image: jax.Array, sigmas: Sequence[float], padding: PyTree) -> jax.Array:
    for axis, sigma in enumerate(sigmas):
        if sigma == 0:
            continue
        inside, (left, right) = _band(sigma, image.shape[axis])
        if isinstance(padding, str):
            # The border repeats: its pixel takes all that falls beyond it.
            inside[:, 0] += left
            inside[:, -1] += right
        # HIGHEST: a GPU or TPU would otherwise round float32 factors to ten bits or fewer.
        matrix = jnp.asarray(inside, image.dtype)
        moved = jnp.tensordot(matrix, image, (1, axis), precision=jax.lax.Precision.HIGHEST)
        if not isinstance(padding, str):
            beyond = jnp.asarray(left + right, image.dtype).reshape(-1, *[1] * (image.ndim - 1))
            moved = moved + beyond * padding
        image = jnp.moveaxis(moved, 0, axis)
    return image


def pyramid(
    image: jax.Array,
    sigmas: Sequence[float],
    *,
    padding: ArrayLike = "edge",
    aspect: Sequence[float] | None = None,
) -> jax.Array:
    """Blurs an image by several Gaussians.

    Args:
      image: `[*size, C]`.
      sigmas: px, one a level; 0 leaves the image as it is. Kernels reach to `ceil(4 sigma)`.
      padding: "edge" repeats the border; a colour `[C]` or number continues the image with it.
      aspect: factors of sigma, one an axis; None is 1 along all. 0 leaves an axis as it is.
    Returns:
      `[L, *size, C]`.
    """
    if not isinstance(padding, str):
        padding = jnp.asarray(padding, image.dtype)
    elif padding != "edge":
        raise ValueError(f"padding must be 'edge' or a colour, got {padding!r}")
    axes = (1,) * (image.ndim - 1) if aspect is None else tuple(aspect)
    if len(axes) != image.ndim - 1:
        raise ValueError(f"aspect must be one factor an axis of {image.shape[:-1]}, got {aspect}")
    return jnp.stack(
        # Not blurred by 0: the last level is the image to the bit, so that a mask of 1 shows just
        # that.
        [image if s == 0 else _blur(image, [s * a for a in axes], padding) for s in sigmas]
    )


def median(image: jax.Array, side: int = 11) -> jax.Array:
    """Returns each channel's median over windows of `side` px; the border repeats (`[*size, C]`).

    Args:
      image: `[*size, C]`.
      side: of the window in pixels, odd.
    """
    reach = side // 2
    padded = jnp.pad(image, [(reach, reach)] * (image.ndim - 1) + [(0, 0)], mode="edge")
    shifts = itertools.product(range(side), repeat=image.ndim - 1)
    windows = [
        jax.lax.slice(
            padded,
            (*at, 0),
            (*(a + n for a, n in zip(at, image.shape[:-1], strict=True)), image.shape[-1]),
        )
        for at in shifts
    ]
    return jnp.median(jnp.stack(windows), axis=0)
