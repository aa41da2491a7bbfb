"""The outlines of the picture world as signed distances, and the glyphs of its watermarks.

Every outline is a function of points in its own frame (x to the right, y down, unit scale),
negative inside, and close to the true distance near the edge, so that one clip gives an
anti-aliased picture and one comparison gives the exact label. The formulas are the classic closed
forms, derived here: distance to a segment, to a circle, and folding by the symmetry of the outline.

>>> import numpy as np
>>> bool(OUTLINES["disc"].distance(np.float32(0.2), np.float32(0.1)) < 0)
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

__all__ = ["GLYPHS", "OUTLINES", "Outline", "blob", "segment", "squiggle"]

Field = np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """One class of objects.

    Attributes:
      distance: `(x, y) -> signed distance`, arrays of one shape, unit frame.
      area: area of the inside in the unit frame; scales the outline to an exact share of a picture.
      radius: largest distance of an inside point from the origin.
      swing: rotations within ± `swing` degrees leave the class what it is (a square turned by 45
        degrees would be called a diamond).
    """

    distance: Callable[[Field, Field], Field]
    area: float
    radius: float
    swing: float


def segment(x: Field, y: Field, a: tuple[float, float], b: tuple[float, float]) -> Field:
    """Returns the distance to the segment from `a` to `b`; minus a radius it is a round bar."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    px, py = x - a[0], y - a[1]
    t = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(px - t * dx, py - t * dy)


def blob(x: Field, y: Field, waves: tuple[tuple[int, float, float], ...]) -> Field:
    """Returns the distance to a lopsided puddle: a circle whose radius varies with the angle.

    Args:
      x, y: points.
      waves: `(lobes, amplitude, phase)` of each harmonic of the radius around 1.
    """
    angle = np.arctan2(y, x)
    radius, slope = np.ones_like(angle), np.zeros_like(angle)
    for lobes, amplitude, phase in waves:
        radius = radius + amplitude * np.cos(lobes * angle + phase)
        slope = slope - lobes * amplitude * np.sin(lobes * angle + phase)
    # The slope of the radius tilts the edge; dividing by it keeps one pixel of softness everywhere.
    found: Field = (np.hypot(x, y) - radius) / np.sqrt(1 + (slope / radius) ** 2)
    return found


def squiggle(x: Field, y: Field, waves: float, height: float, width: float) -> Field:
    """Returns the distance to a wavy stroke of length 2 along x, `waves` periods, half-width
    `width`.
    """
    inside = np.clip(x, -1, 1)
    k = math.pi * waves
    dy = y - height * np.sin(k * inside)
    steep = np.sqrt(1 + (height * k * np.cos(k * inside)) ** 2)
    found: Field = np.hypot(dy / steep, x - inside) - width
    return found


def _disc(x: Field, y: Field) -> Field:
    found: Field = np.hypot(x, y) - 1
    return found


def _ring(x: Field, y: Field) -> Field:
    found: Field = np.abs(np.hypot(x, y) - 0.72) - 0.28
    return found


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    found: Field = outside + np.minimum(np.maximum(dx, dy), 0)
    return found


def _square(x: Field, y: Field) -> Field:
    return _box(x, y, 0.8, 0.8) - 0.06


def _polygon(x: Field, y: Field, corners: list[tuple[float, float]]) -> Field:
    """Distance to a closed polygon; inside by the parity of edges crossed to the right."""
    distance = np.full_like(x, np.inf)
    inside = np.zeros(np.shape(x), bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        distance = np.minimum(distance, segment(x, y, (ax, ay), (bx, by)))
        if ay != by:
            crosses = (y < ay) != (y < by)
            inside ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return np.where(inside, -distance, distance)


def _spokes(count: int, *radii: float) -> list[tuple[float, float]]:
    step = 2 * math.pi / (count * len(radii))
    return [
        (radii[i % len(radii)] * math.sin(i * step), -radii[i % len(radii)] * math.cos(i * step))
        for i in range(count * len(radii))
    ]


_STAR = _spokes(5, 0.96, 0.45)
_TRIANGLE = _spokes(3, 0.9)
_ARROW = [(0.0, -0.87), (0.84, -0.03), (0.25, -0.03), (0.25, 0.91)]
_ARROW = _ARROW + [(-px, py) for px, py in reversed(_ARROW[1:])]


def _triangle(x: Field, y: Field) -> Field:
    return _polygon(x, y, _TRIANGLE) - 0.07


def _diamond(x: Field, y: Field) -> Field:
    # Folded to one quadrant, where the rhombus is the half plane below one line.
    x, y = np.abs(x), np.abs(y)
    return (
        np.where(
            y > 0.93 + 0.58 / 0.93 * x, np.hypot(x, y - 0.93), (x / 0.58 + y / 0.93 - 1) * 0.4921
        )
        - 0.04
    )


def _star(x: Field, y: Field) -> Field:
    return _polygon(x, y, _STAR) - 0.04


def _cross(x: Field, y: Field) -> Field:
    found: Field = np.minimum(_box(x, y, 0.92, 0.28), _box(x, y, 0.28, 0.92)) - 0.04
    return found


def _heart(x: Field, y: Field) -> Field:
    # Half a heart: a quarter turn of a circle on top of the diagonal that meets the axis at the
    # tip.
    x, y = np.abs(x) / 0.92, 0.656 - y / 0.92
    upper = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    along = np.maximum(x + y, 0) / 2
    lower = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, upper, lower) * 0.92


def _crescent(x: Field, y: Field) -> Field:
    found: Field = np.maximum(np.hypot(x - 0.341, y) - 1, 0.8 - np.hypot(x - 0.991, y))
    return found


def _arrow(x: Field, y: Field) -> Field:
    return _polygon(x, y, _ARROW) - 0.05


# Areas and radii in the unit frame, by counting a fine grid; a test counts again.
OUTLINES: dict[str, Outline] = {
    "disc": Outline(distance=_disc, area=3.142, radius=1.0, swing=180.0),
    "ring": Outline(distance=_ring, area=2.533, radius=1.0, swing=180.0),
    "square": Outline(distance=_square, area=2.955, radius=1.191, swing=18.0),
    "triangle": Outline(distance=_triangle, area=1.395, radius=0.97, swing=180.0),
    "diamond": Outline(distance=_diamond, area=1.259, radius=0.97, swing=18.0),
    "star": Outline(distance=_star, area=1.535, radius=1.0, swing=180.0),
    "cross": Outline(distance=_cross, area=2.045, radius=1.002, swing=180.0),
    "heart": Outline(distance=_heart, area=0.756, radius=0.603, swing=30.0),
    "crescent": Outline(distance=_crescent, area=1.769, radius=1.236, swing=180.0),
    "arrow": Outline(distance=_arrow, area=1.479, radius=0.994, swing=180.0),
}

# The left half of each class's 4 x 4 watermark glyph, row by row; the right half mirrors it. The
# words are those of weight four of the extended Hamming code: every glyph has the same number of
# light cells, so that blurred glyphs look alike, and any two differ in at least half of them.
_WORDS = (
    "01101001",
    "00111100",
    "10101010",
    "00110011",
    "10010110",
    "11000011",
    "01010101",
    "01100110",
    "11001100",
    "10011001",
)


def _glyph(word: str) -> np.ndarray:
    half = np.array([int(c) for c in word], bool).reshape(4, 2)
    return np.concatenate([half, half[:, ::-1]], axis=1)


GLYPHS: tuple[np.ndarray, ...] = tuple(_glyph(word) for word in _WORDS)
