"""What a picture of the demo world shows: every factor, drawn at random and independent of the
class.

Only the outline says which class it is. Size, colour, fill, background and place (as far as the
outline fits) are independent of
it, and two to four distractors of no class wear the same colours and fills. The random numbers are
raw Philox words keyed by `(seed, index)`, which NumPy keeps the same between versions.

>>> factors(0, 3) == factors(0, 3)
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from perturb.embedded import shapes, textures

__all__ = [
    "DISTRACTORS",
    "MARK_SIDE",
    "Distractor",
    "Factors",
    "class_names",
    "factors",
    "uniforms",
]

class_names: tuple[str, ...] = tuple(shapes.OUTLINES)
DISTRACTORS = ("blob", "bar", "squiggle")
MARK_SIDE = 10 / 64  # of the watermark, as a share of the picture's side

# Free space around things as a share of the side, and how many places are tried for one.
_EDGE = 0.02
_TRIES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distractor:
    """A thing of no class. Lengths are shares of the side, angles degrees."""

    kind: str
    center: tuple[float, float]
    radius: float
    rotation: float
    colour: str
    lightness: float
    fill: str
    details: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
    """Everything that decides a picture but its watermark.

    Attributes:
      seed, index: where the factors come from; the fine grain of the textures still does.
      target: class of the object, an index of `class_names`.
      center: `(x, y)` of the object's centroid as shares of the side, from the top left.
      area: area of the object as a share of the picture, before rounding to pixels.
      rotation: of the object in degrees, clockwise.
      colour, lightness: name (of `textures.COLOURS`) and OKLCH lightness of the object.
      fill: of the object, one of `textures.FILLS`.
      background: one of `textures.BACKGROUNDS`; with its lightness, hue (degrees), direction
        (degrees) and scale (0 fine to 1 coarse).
      distractors: two to four things of no class, from back to front.
      mark_center: `(x, y)` of the watermark, where one is stamped; always off the object.
      mark_wrong, mark_random: the class that a wrong and a random watermark shows.
    """

    seed: int
    index: int
    target: int
    center: tuple[float, float]
    area: float
    rotation: float
    colour: str
    lightness: float
    fill: str
    background: str
    background_lightness: float
    background_hue: float
    background_angle: float
    background_scale: float
    distractors: tuple[Distractor, ...]
    mark_center: tuple[float, float]
    mark_wrong: int
    mark_random: int


def factors(seed: int, index: int) -> Factors:
    """Returns what picture `index` of world `seed` shows.

    Every ten consecutive indexes from a multiple of ten show each class once.

    Raises:
      ValueError: if seed or index is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be non-negative, got seed {seed}, index {index}")
    k = len(class_names)
    # A shuffled round of all classes, the same for the whole block: sorting random keys shuffles.
    target = int(np.argsort(uniforms(seed, index // k, 0, k), kind="stable")[index % k])
    draws = iter(uniforms(seed, index, 1, 256).tolist())

    def uniform(low: float, high: float) -> float:
        found: float = low + (high - low) * next(draws)
        return found

    def choose(options: Iterable[str]) -> str:
        return (names := tuple(options))[int(next(draws) * len(names))]

    outline = shapes.OUTLINES[class_names[target]]
    area = math.exp(uniform(math.log(0.065), math.log(0.15)))
    radius = outline.radius * math.sqrt(area / outline.area)
    free = min(radius + _EDGE, 0.5)
    center = (uniform(free, 1 - free), uniform(free, 1 - free))
    rotation = uniform(-outline.swing, outline.swing)
    colour, lightness = _colour(choose(textures.COLOURS), uniform(-0.04, 0.04), None)
    # Lighter or darker than the object by enough to see it, and never black or white.
    tones = [t for t in (0.37, 0.48, 0.6, 0.72, 0.86) if abs(t - lightness) > 0.21]
    tone = tones[int(next(draws) * len(tones))] + uniform(-0.04, 0.04)
    look = choose(textures.FILLS), choose(textures.BACKGROUNDS)
    place = uniform(0, 360), uniform(0, 180), uniform(0, 1)

    things: list[Distractor] = []
    taken = [(*center, radius)]
    count = 2 + int(next(draws) * 3)
    # Always four, of which some are kept: what is drawn after them then has its numbers in the same
    # place.
    for _ in range(4):
        kind, size = choose(DISTRACTORS), uniform(0.075, 0.15)
        spots = [(uniform(0.04, 0.96), uniform(0.04, 0.96)) for _ in range(_TRIES)]
        room = [min(math.dist(s, t[:2]) - t[2] for t in taken) - size for s in spots]
        # The first spot that is clear of everything else, or the one that comes closest to it.
        spot = next(
            (s for s, r in zip(spots, room, strict=True) if r > _EDGE), spots[int(np.argmax(room))]
        )
        rotate = uniform(0, 360)
        paint, shade = _colour(choose(textures.COLOURS), uniform(-0.04, 0.04), tone)
        things.append(
            Distractor(
                kind=kind,
                center=spot,
                radius=size,
                rotation=rotate,
                colour=paint,
                lightness=shade,
                fill=choose(textures.FILLS),
                details=tuple(uniform(0, 1) for _ in range(4)),
            )
        )
        taken.append((*spot, size))
    half, reach = MARK_SIDE / 2 + _EDGE, MARK_SIDE * math.sqrt(0.5) + _EDGE
    # Somewhere along the border, else in a corner: the corner opposite the object is always free.
    marks = [_border(uniform(0, 4), half) for _ in range(_TRIES)]
    marks += [(x, y) for x in (half, 1 - half) for y in (half, 1 - half)]
    mark = next(m for m in marks if math.dist(m, center) > radius + reach)
    return Factors(
        seed=seed,
        index=index,
        target=target,
        center=center,
        area=area,
        rotation=rotation,
        colour=colour,
        lightness=lightness,
        fill=look[0],
        background=look[1],
        background_lightness=tone,
        background_hue=place[0],
        background_angle=place[1],
        background_scale=place[2],
        distractors=tuple(things[:count]),
        mark_center=mark,
        mark_wrong=(target + 1 + int(next(draws) * (k - 1))) % k,
        mark_random=int(next(draws) * k),
    )


def uniforms(seed: int, index: int, stream: int, count: int) -> np.ndarray:
    """Returns `count` numbers in [0, 1) float64 that depend on `(seed, index, stream)` alone."""
    words = np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]).random_raw(count)
    # The upper 53 bits, which a float64 holds exactly.
    return (words >> np.uint64(11)) * 2.0**-53


def _colour(name: str, nudge: float, behind: float | None) -> tuple[str, float]:
    """Moves a colour's own lightness by `nudge`, and away from what lies behind it."""
    lightness = textures.COLOURS[name][0] + nudge
    if behind is not None and abs(lightness - behind) < 0.16:
        lightness = behind + math.copysign(0.16, lightness - behind)
    # A fill could not be lighter than white.
    return name, min(lightness, 0.96)


def _border(t: float, inset: float) -> tuple[float, float]:
    """Returns the point at `t` in [0, 4) of a walk around the picture, `inset` from its border."""
    along = inset + (1 - 2 * inset) * (t % 1)
    return ((along, inset), (1 - inset, along), (along, 1 - inset), (inset, along))[int(t)]
