"""Colours, backgrounds and fills of the picture world, on a picture whose sides run from 0 to 1.

Colours are picked in OKLCH (lightness, chroma, hue), where equal steps look equal: two things with
lightness 0.2 apart can be told apart whatever their hues. Björn Ottosson, "A perceptual color space
for image processing", 2020.

>>> oklch(1.0, 0.0, 0.0).round(3).tolist()
[1.0, 1.0, 1.0]
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["BACKGROUNDS", "COLOURS", "FILLS", "background", "fill", "noise", "oklch"]

Field = np.ndarray

# Lightness, chroma, hue in degrees.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.58, 0.19, 27.0),
    "orange": (0.72, 0.16, 55.0),
    "yellow": (0.86, 0.15, 92.0),
    "green": (0.65, 0.15, 145.0),
    "teal": (0.68, 0.10, 195.0),
    "blue": (0.55, 0.16, 258.0),
    "violet": (0.52, 0.17, 300.0),
    "pink": (0.75, 0.13, 355.0),
    "cream": (0.94, 0.03, 90.0),
    "ink": (0.30, 0.04, 265.0),
}
BACKGROUNDS = ("clouds", "stripes", "checks", "gradient", "grass")
FILLS = ("striped", "dotted", "checked", "speckled")


def oklch(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """Returns the sRGB colour `[3]` in [0, 1], clipped to what a screen can show; hue in
    degrees.
    """
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    # Ottosson's constants: from OKLab to the responses of the eye's cones, and to linear sRGB.
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.clip(
        (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ),
        0,
        1,
    )
    # The transfer curve of sRGB.
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return curve.astype(np.float32)


def noise(x: Field, y: Field, lattice: np.ndarray) -> Field:
    """Returns smooth noise in [0, 1] at points `x`, `y` in cells of `lattice` `[n, n]`, which
    repeats.
    """
    n = len(lattice)
    left, top = np.floor(x), np.floor(y)
    fx, fy = x - left, y - top
    # A smooth step, so that the cells of the lattice leave no creases.
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    i, j = left.astype(np.intp) % n, top.astype(np.intp) % n
    if x.shape[0] == 1 and y.shape[1] == 1:
        # On a grid along the sides: whole rows first, then columns.
        j, i = j[:, 0], i[0]
        rows = lattice[j] * (1 - fy) + lattice[(j + 1) % n] * fy
        found: Field = rows[:, i] * (1 - fx) + rows[:, (i + 1) % n] * fx
        return found
    cells, right, j, below = lattice.ravel(), (i + 1) % n, j * n, (j + 1) % n * n
    upper = cells.take(j + i) * (1 - fx) + cells.take(j + right) * fx
    lower = cells.take(below + i) * (1 - fx) + cells.take(below + right) * fx
    found = upper * (1 - fy) + lower * fy
    return found


def background(
    x: Field,
    y: Field,
    family: str,
    *,
    lightness: float,
    hue: float,
    angle: float,
    scale: float,
    lattice: np.ndarray,
) -> np.ndarray:
    """Returns a picture `[H, W, 3]` in [0, 1] of one of the `BACKGROUNDS`.

    Args:
      x, y: the pixel centres as shares of the side, `[1, W]` and `[H, 1]`.
      family: one of `BACKGROUNDS`.
      lightness: mean OKLCH lightness; the texture stays within about 0.08 of it.
      hue: OKLCH hue in degrees; grass stays green whatever the hue asked.
      angle: direction of the texture in radians.
      scale: size of the texture, 0 fine to 1 coarse.
      lattice: random numbers in [0, 1] `[n, n]`.
    """
    along, across = (
        math.cos(angle) * x + math.sin(angle) * y,
        math.cos(angle) * y - math.sin(angle) * x,
    )
    chroma, drift, contrast = 0.045, 40.0, 0.055
    if family == "clouds":
        f = 2.5 + 2 * (1 - scale)
        height = 0.55 * noise(x * f, y * f, lattice) + 0.3 * noise(
            x * 2 * f + 7, y * 2 * f, lattice
        )
        height = 1.3 * (height + 0.15 * noise(x * 5 * f, y * 5 * f + 3, lattice)) - 0.15
    elif family == "stripes":
        height = _soft_square(along, 0.10 + 0.12 * scale)
    elif family == "checks":
        period = 0.16 + 0.14 * scale
        height = 0.5 + 2 * (_soft_square(along, period) - 0.5) * (
            _soft_square(across, period) - 0.5
        )
    elif family == "gradient":
        height = 0.5 + 0.62 * (along - 0.5 * (math.cos(angle) + math.sin(angle)))
        height = height + 0.35 * (noise(x * 2 + 5, y * 2, lattice) - 0.5)
        drift, contrast = 90.0, 0.075
    elif family == "grass":
        lean = 0.5 * math.sin(angle)
        f = 22 + 10 * (1 - scale)
        blades = (
            noise((x + lean * y) * f, y * 4.5, lattice),
            noise((x - 0.3 * lean * y) * f * 0.7 + 9, y * 3.5, lattice),
        )
        height = 0.25 + 0.95 * (0.6 * blades[0] + 0.4 * blades[1] - 0.25) - 0.25 * (y - 0.5)
        chroma, drift, hue, contrast = 0.075, 18.0, 118.0 + hue / 12, 0.085
    else:
        raise ValueError(f"family must be one of {', '.join(BACKGROUNDS)}, got {family!r}")
    dark = oklch(lightness - contrast, chroma, hue)
    light = oklch(lightness + contrast, chroma * 0.8, hue + drift)
    # A fine grain everywhere: no background is so flat that a blur would not change it.
    grain = noise(x * 41, y * 41, lattice) - 0.5
    found: np.ndarray = dark + (light - dark) * height[..., None] + 0.03 * grain[..., None]
    return found


def fill(x: Field, y: Field, kind: str, *, angle: float, lattice: np.ndarray) -> Field:
    """Returns how much lighter or darker each point of a thing is, about -1 to 1, for one of
    `FILLS`.

    Args:
      x, y: the pixel centres as shares of the side, `[1, W]` and `[H, 1]`.
      kind: one of `FILLS`.
      angle: direction of the texture in radians.
      lattice: random numbers in [0, 1] `[n, n]`.
    """
    along, across = (
        math.cos(angle) * x + math.sin(angle) * y,
        math.cos(angle) * y - math.sin(angle) * x,
    )
    if kind == "striped":
        return 2 * _soft_square(along, 0.085) - 1
    if kind == "checked":
        return 4 * (_soft_square(along, 0.15) - 0.5) * (_soft_square(across, 0.15) - 0.5)
    if kind == "dotted":
        # Two waves across each other peak at dots.
        wave = np.cos(along * (2 * math.pi / 0.095)) + np.cos(across * (2 * math.pi / 0.095))
        return np.clip(1.6 * wave - 1, -0.8, 1)
    if kind == "speckled":
        return 2.2 * (noise(x * 24, y * 24 + 5, lattice) - 0.5)
    raise ValueError(f"kind must be one of {', '.join(FILLS)}, got {kind!r}")


def _soft_square(t: Field, period: float) -> Field:
    return 0.5 + 0.5 * np.clip(1.8 * np.sin(t * (2 * math.pi / period)), -1, 1)
