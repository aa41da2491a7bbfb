"""Detectors built by hand: Gabor filters, lines, and curves made of lines (Cammarata et al. 2021).

Lines are Gabor filters of even phase; a curve unit adds the lines that lie along an arc and
subtracts those that lie across it or along the arc that bends the other way. Orientations from 90
degrees on are the earlier ones turned by whole quarters, and all weights are multiples of 1/64, so
that sums of 8-bit pixels are exact in single precision, whatever their order: an image turned by a
quarter gives the turned answer bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.types import ArrayLike

__all__ = ["Curves", "arc", "curves", "gabor", "respond"]

_STEP = 64.0
# Lines are rounded to this before curves add them up: exact sums need few bits.
_FINE = 16.0


def gabor(
    size: int,
    *,
    angle: float,
    wavelength: float,
    sigma: float,
    phase: float = 0.0,
    aspect: float = 0.5,
) -> np.ndarray:
    """Returns `[size, size]`, a Gabor filter of mean 0 and length 1.

    Args:
      size: side of the filter in pixels.
      angle: of its stripes, degrees from the x axis towards y (down).
      wavelength: length of a period in pixels, across the stripes.
      sigma: width of the Gaussian in pixels, across the stripes.
      phase: degrees; 0 is a light line in the middle, 90 an edge.
      aspect: ratio of sigma across to sigma along, positive.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    a = np.deg2rad(angle)
    along, across = np.cos(a) * x + np.sin(a) * y, -np.sin(a) * x + np.cos(a) * y
    envelope = np.exp(-(across**2 + (aspect * along) ** 2) / (2 * sigma**2))
    wave = envelope * np.cos(2 * np.pi * across / wavelength - np.deg2rad(phase))
    # A flat ground must give 0: the mean is taken off in the envelope's shape, so that no
    # edge arises.
    wave -= envelope * wave.sum() / envelope.sum()
    found: np.ndarray = wave / np.sqrt((wave**2).sum())
    return found


class Curves(NamedTuple):
    """Weights of a bank of curve detectors.

    Attributes:
      lines: `[s, s, 1, lines]`, line detectors, 180 degrees around.
      arcs: `[t, t, lines, curves]`, from lines to curves.
      bias: `[curves]`: what a straight line gives.
      angles: `[curves]` degrees: where the middle of the arc lies, seen from the centre of its
        circle.
    """

    lines: np.ndarray
    arcs: np.ndarray
    bias: np.ndarray
    angles: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def _quarters(first: list[np.ndarray], turns: int) -> np.ndarray:
    """The kernels, then all of them turned by a quarter, and so on (clockwise on the screen)."""
    return np.stack([np.rot90(k, -q) for q in range(turns) for k in first], -1)


def curves(
    *, radius: float = 14.0, number: int = 16, lines: int = 16, side: int = 9, reach: int = 23
) -> Curves:
    """Returns a bank of detectors of light curves on a dark ground.

    Args:
      radius: of the curves in pixels.
      number: of curve orientations, a multiple of 4.
      lines: of line orientations, a multiple of 2.
      side: of the line filters in pixels.
      reach: side of the arcs in pixels, odd.
    """
    if number % 4 or lines % 2:
        raise ValueError(
            f"number must be a multiple of 4 and lines of 2 for exact quarter turns, got "
            f"{number} and {lines}"
        )
    step = 180 / lines
    first = [gabor(side, angle=i * step, wavelength=6.0, sigma=2.0) for i in range(lines // 2)]
    bank = np.round(_quarters(first, 2) * _STEP) / _STEP
    y, x = np.mgrid[:reach, :reach] - (reach - 1) / 2
    units = []
    for k in range(number // 4):
        a = np.deg2rad(k * 360 / number)
        normal = np.cos(a), np.sin(a)
        unit = np.zeros((reach, reach, lines))
        # The arc itself, and the one that touches it from the other side.
        for sign in (1, -1):
            cx, cy = (-sign * radius * n for n in normal)
            dx, dy = x - cx, y - cy
            off = np.hypot(dx, dy) - radius
            tangent = np.rad2deg(np.arctan2(dy, dx)) + 90
            outward = sign * (normal[0] * dx + normal[1] * dy) / np.hypot(dx, dy)
            window = np.exp(-(off**2) / 2) * (outward > np.cos(np.deg2rad(50)))
            for i in range(lines):
                unit[..., i] += sign * window * np.cos(2 * np.deg2rad(i * step - tangent))
        units.append(unit)
    # A quarter turn of the picture turns places and, by half their number, the lines themselves.
    arcs = np.stack(
        [np.roll(np.rot90(u, -q), q * lines // 2, axis=2) for q in range(4) for u in units],
        -1,
    )
    # Finer steps than the lines': an arc adds up hundreds of them.
    arcs = np.round(arcs / np.abs(arcs).sum((0, 1, 2)).max() * _STEP * 16) / (_STEP * 16)
    found = Curves(
        bank[:, :, None].astype(np.float32),
        arcs.astype(np.float32),
        np.zeros(number, np.float32),
        np.arange(number) * 360 / number,
    )
    straight = arc(8 * reach, radius=1e6, angle=0.0)[None, :, :, None]
    middle = np.asarray(respond(found, straight, rectify=False))[0]
    # The same threshold for all orientations, since all are turns of the first quarter's.
    return found._replace(bias=np.full(number, max(float(middle.max()), 0.0), np.float32))


def respond(bank: Curves, images: ArrayLike, *, rectify: bool = True) -> jax.Array:
    """Returns `[B, h, w, curves]` of grey images `[B, H, W, 1]`, whole windows only.

    Args:
      bank: what `curves` returned.
      images: `[B, H, W, 1]`, grey.
      rectify: whether negative answers become 0.
    """

    def conv(x: jax.Array, kernel: np.ndarray) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, jnp.asarray(kernel), (1, 1), "VALID", dimension_numbers=numbers
        )

    lines = jnp.maximum(conv(jnp.asarray(images, jnp.float32), bank.lines), 0)
    lines = jnp.round(lines * _FINE) / _FINE
    found = conv(lines, bank.arcs) - bank.bias
    return jnp.maximum(found, 0) if rectify else found


def arc(
    size: int, *, radius: float, angle: float, span: float = 100.0, width: float = 1.2
) -> np.ndarray:
    """Returns `[size, size]`: a light arc through the middle, in 8-bit steps.

    Args:
      size: side of the picture, px.
      radius: of the circle in pixels; a very large one gives a straight line.
      angle: where the middle of the arc lies, seen from the centre of its circle, degrees.
      span: of the arc, degrees; of a straight line the length of that of radius 14 px.
      width: half of the stroke's width in pixels.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    a = np.deg2rad(angle)
    n, t = (np.cos(a), np.sin(a)), (-np.sin(a), np.cos(a))
    along = t[0] * x + t[1] * y
    depth = n[0] * x + n[1] * y + radius
    off = np.hypot(along, depth) - radius
    inside = np.abs(np.arctan2(along, depth)) <= np.deg2rad(span / 2)
    if radius > 1e4:
        inside = np.abs(along) <= 14 * np.deg2rad(span / 2)
    found: np.ndarray = (
        np.round(255 * np.clip(width + 0.5 - np.abs(off), 0, 1) * inside) / 256
    ).astype(np.float32)
    return found
