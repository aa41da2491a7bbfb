"""Filters of alias-free networks: Kaiser low-pass filters, and sampling rates changed through them.

`Karras et al. 2021 <https://arxiv.org/abs/2106.12423>`_, appendix C. Maps are `[B, h, w, C]`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["downsampled", "lowpass", "upsampled"]


def lowpass(taps: int, cutoff: float, width: float, rate: float, *, radial: bool) -> np.ndarray:
    """Returns a low-pass filter of sum 1: `[taps]`, or radially symmetric `[taps, taps]`.

    Args:
      taps: how many, on a side.
      cutoff, width: the frequency where it passes half, and the width of the transition.
      rate: at which it is sampled, in the unit of these.
      radial: whether it is a jinc, of the distance to its middle, or a sinc for each axis.
    """
    at = np.arange(taps) - (taps - 1) / 2
    window = np.kaiser(taps, _beta(taps, width / (rate / 2)))
    if not radial:
        response = np.sinc(2 * cutoff / rate * at) * window
    else:
        # Only random weights need it: a file brings its filters.
        import scipy.special

        x = at / rate
        # No tap lies in the middle, for their number is even.
        r = np.pi * np.hypot(x[:, None], x[None])
        response = scipy.special.j1(2 * cutoff * r) / r * np.outer(window, window)
    found: np.ndarray = (response / response.sum()).astype(np.float32)
    return found


def _beta(taps: int, width: float) -> float:
    """Kaiser's shape for a transition of `width`, a share of half the rate."""
    # Kaiser's formulas (1974): the attenuation that so many taps reach, and the shape that
    # goes with it.
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        found: float = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
        return found
    return 0.0


def upsampled(
    x: jax.Array, kernel: jax.Array | None, factor: int, ends: tuple[int, int]
) -> jax.Array:
    """Returns maps at `factor` times the rate: zeros between, `ends` more or fewer of them, then
    the filter.

    Every phase of the result is a short filter of its own, so no zero is multiplied.

    Args:
      x: `[B, h, w, C]`.
      kernel: `[taps]` for both axes, or None for none.
      factor: of the rate.
      ends: zeros before and after, of the higher rate; negative ones cut off.
    """
    for axis in (1, 2):
        x = _phases(x, kernel, factor, ends, axis)
    return x


def _phases(
    x: jax.Array, kernel: jax.Array | None, factor: int, ends: tuple[int, int], axis: int
) -> jax.Array:
    if kernel is None:
        gaps = [(0, 0, 0)] * x.ndim
        gaps[axis] = (ends[0], ends[1] + factor - 1, factor - 1)
        return lax.pad(x, jnp.zeros((), x.dtype), gaps)
    taps, length = len(kernel), x.shape[axis] * factor + sum(ends) - len(kernel) + 1
    steps = -(-length // factor)
    spare = steps + taps + abs(ends[0])
    wide = [(0, 0)] * x.ndim
    wide[axis] = (spare, spare)
    x = jnp.pad(x, wide)
    parts = []
    for phase in range(factor):
        first = (phase + taps - 1 - ends[0]) % factor
        start = (phase + taps - 1 - ends[0] - first) // factor + spare
        parts.append(
            sum(
                # Zeros between thin the signal out by `factor`, which the filter makes up for.
                factor * kernel[tap] * lax.slice_in_dim(x, start - m, start - m + steps, axis=axis)
                for m, tap in enumerate(range(first, taps, factor))
            )
        )
    y = jnp.stack(parts, axis + 1)
    y = y.reshape(*x.shape[:axis], steps * factor, *x.shape[axis + 1 :])
    return lax.slice_in_dim(y, 0, length, axis=axis)


def downsampled(x: jax.Array, kernel: jax.Array | None, factor: int) -> jax.Array:
    """Returns maps `[B, h, w, C]`, filtered, at a `factor`-th of the rate.

    Args:
      x: the maps, with what the filter takes at the ends.
      kernel: `[taps]` for both axes, `[taps, taps]`, or None for none.
      factor: of the rate.
    """
    if kernel is None:
        return x[:, ::factor, ::factor]
    if kernel.ndim == 2:
        # One channel at a time: grouped convolutions are slow on a CPU.
        b, h, w, c = x.shape
        planes = x.transpose(0, 3, 1, 2).reshape(b * c, h, w, 1)
        planes = lax.conv_general_dilated(
            planes,
            kernel[::-1, ::-1, None, None],
            (factor, factor),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return planes.reshape(b, c, *planes.shape[1:3]).transpose(0, 2, 3, 1)
    taps = len(kernel)
    for axis in (1, 2):
        last = x.shape[axis] - taps + 1
        x = sum(  # type: ignore[assignment]
            kernel[tap] * lax.slice_in_dim(x, taps - 1 - tap, taps - 1 - tap + last, factor, axis)
            for tap in range(taps)
        )
    return x
