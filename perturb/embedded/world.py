"""The picture world: one object among things of no class, with the exact label of every pixel.

A picture is a pure function of `(seed, index)`: first its factors (`scene.factors`), then this
drawing, which can be repeated with a factor changed, larger, or with a watermark. The watermark is
stamped on top of everything: one of ten small glyphs, one a class, which says the class of the
object, a wrong one, or one at random. Pictures are rounded to 8 bits, so files keep them exactly.

>>> picture = render(0, 3)
>>> picture.image.shape, picture.name
((64, 64, 3), '...')
>>> label_names[picture.label.max()] in class_names + DISTRACTORS
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from perturb import display
from perturb.embedded import shapes, textures
from perturb.embedded.scene import (
    DISTRACTORS,
    MARK_SIDE,
    Distractor,
    Factors,
    class_names,
    factors,
    uniforms,
)

__all__ = [
    "DISTRACTORS",
    "WATERMARK",
    "Distractor",
    "Factors",
    "Picture",
    "Pictures",
    "class_names",
    "cutout",
    "draw",
    "factors",
    "label_names",
    "lattice",
    "pictures",
    "render",
    "render_batch",
    "stamp",
]

# Ids of the label map: 0 background, 1..K the classes, then the distractors, then the watermark.
label_names: tuple[str, ...] = ("background", *class_names, *DISTRACTORS, "watermark")
WATERMARK = len(label_names) - 1

# Rounded to 8 bits like the pictures, so that a stamped picture is one of 8 bits too.
_INK, _PAPER = (
    np.round(textures.oklch(*colour) * np.float32(255)) / np.float32(255)
    for colour in ((0.24, 0.03, 265.0), (0.97, 0.015, 90.0))
)
_SHADOW = (0.012, 0.02)  # offset to the right and down, and
_PENUMBRA = 0.025  # half-width of its edge, as shares of the side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture.

    Attributes:
      image: `[H, W, 3]` float32 in [0, 1], multiples of 1/255.
      label: `[H, W]` uint8, an index of `label_names` for every pixel.
      target: class of the object, an index of `class_names`.
      mark: class that the watermark shows, -1 without one.
      factors: everything that decided it.
    """

    image: np.ndarray
    label: np.ndarray
    target: int
    mark: int
    factors: Factors

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def id(self) -> str:
        """Short name, unique for a seed and a kind of watermark: `0007-heart`,
        `0007-heart-mark-star`.
        """
        mark = f"-mark-{class_names[self.mark]}" if self.mark >= 0 else ""
        return f"{self.factors.index:04d}-{class_names[self.target]}{mark}"

    @property
    def name(self) -> str:
        """What a person sees: `a striped red heart on grass`."""
        f = self.factors
        return f"a {f.fill} {f.colour} {class_names[self.target]} on {f.background}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """A batch: `image` `[B, H, W, 3]`, `label` `[B, H, W]`, `target` `[B]`, `mark` `[B]`,
    `factors`.
    """

    image: np.ndarray
    label: np.ndarray
    target: np.ndarray
    mark: np.ndarray
    factors: tuple[Factors, ...]

    def __repr__(self) -> str:
        return display.summary(self)


def draw(f: Factors, *, size: int = 64, watermark: str | int | None = None) -> Picture:
    """Draws the picture that `f` describes.

    Args:
      f: factors, as returned by `factors` or with some replaced.
      size: side of the picture in px; the scene is the same at every size.
      watermark: None, "right", "wrong", "random", or the class that it shows.
    Raises:
      ValueError: if size is below 16 px, or watermark is none of these.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 px, got {size}")
    # A wrong name is refused before anything is drawn.
    _mark_class(f, watermark)
    cells = lattice(f)
    line = _centers(size)
    image = textures.background(
        line[None, :],
        line[:, None],
        f.background,
        lightness=f.background_lightness,
        hue=f.background_hue,
        angle=math.radians(f.background_angle),
        scale=f.background_scale,
        lattice=cells,
    )
    label = np.zeros((size, size), np.uint8)
    for thing in f.distractors:
        identity = label_names.index(thing.kind)
        reach = 1.4 * thing.radius
        _paint(image, label, thing, _distance(thing), thing.radius, reach, cells, identity)
    _paint_object(image, label, f, cells)
    # Multiples of 1/255, so that a PNG file gives the very same floats.
    image = np.round(np.clip(image, 0, 1) * np.float32(255)) / np.float32(255)
    scene = Picture(image=image, label=label, target=f.target, mark=-1, factors=f)
    return stamp(scene, watermark)


def cutout(f: Factors, *, size: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts the object and its shadow out of the picture that `f` describes.

    Over any background the picture is `keep * background + ink`, before it is rounded.

    Args:
      f: factors; its background and distractors do not matter.
      size: side of the picture in px.
    Returns:
      `keep` `[H, W, 1]` in [0, 1], `ink` `[H, W, 3]` in [0, 1], and the pixels of the object
      `[H, W]` bool.
    """
    cells = lattice(f)
    label = np.zeros((size, size), np.uint8)
    black, white = np.zeros((size, size, 3), np.float32), np.ones((size, size, 3), np.float32)
    for image in (black, white):
        _paint_object(image, label, f, cells)
    # Painting is linear in what lies behind: two backgrounds tell it all.
    return (white - black)[..., :1], black, label > 0


def stamp(scene: Picture, watermark: str | int | None) -> Picture:
    """Returns an unmarked picture with a watermark, on whole pixels: nothing else changes.

    Args:
      scene: a picture without a watermark.
      watermark: None, "right", "wrong", "random", or the class that it shows.
    Raises:
      ValueError: if `scene` has a watermark already, or watermark is none of these.
    """
    mark = _mark_class(scene.factors, watermark)
    if scene.mark >= 0:
        raise ValueError(f"scene must have no watermark, {scene.id} has one: draw it without")
    if mark < 0:
        return scene
    image, label = scene.image.copy(), scene.label.copy()
    size = len(image)
    side = round(MARK_SIDE * size)
    left, top = (
        min(max(round(c * size - side / 2), 0), size - side) for c in scene.factors.mark_center
    )
    # Ten units a side: a frame of one, then four cells of two; the four corner units stay open.
    unit = (np.arange(side) * 10 + 5) // side
    tile = np.zeros((10, 10), bool)
    tile[1:9, 1:9] = shapes.GLYPHS[mark].repeat(2, 0).repeat(2, 1)
    rim = (unit == 0) | (unit == 9)
    where = ~(rim[:, None] & rim)
    colour = np.where(tile[unit][:, unit][..., None], _PAPER, _INK)
    image[top : top + side, left : left + side][where] = colour[where]
    label[top : top + side, left : left + side][where] = WATERMARK
    return dataclasses.replace(scene, image=image, label=label, mark=mark)


def render(seed: int, index: int, *, size: int = 64, watermark: str | int | None = None) -> Picture:
    """Returns picture `index` of world `seed`; see `draw` for the arguments."""
    return draw(factors(seed, index), size=size, watermark=watermark)


def render_batch(
    seed: int, indexes: Iterable[int], *, size: int = 64, watermark: str | int | None = None
) -> Pictures:
    """Returns the pictures `indexes` of world `seed`, the same as one by one; see `draw`."""
    drawn = [render(seed, i, size=size, watermark=watermark) for i in indexes]
    return Pictures(
        image=np.stack([p.image for p in drawn]),
        label=np.stack([p.label for p in drawn]),
        target=np.array([p.target for p in drawn], np.int32),
        mark=np.array([p.mark for p in drawn], np.int32),
        factors=tuple(p.factors for p in drawn),
    )


def pictures(
    n: int, *, size: int = 64, watermark: str | int | None = None, seed: int = 7
) -> list[Picture]:
    """Returns the `n` pictures that the demo shows, never trained on, with each class in turn."""
    return [render(seed, i, size=size, watermark=watermark) for i in range(n)]


def _centers(size: int) -> np.ndarray:
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


def lattice(f: Factors) -> np.ndarray:
    """The random numbers of the textures, `[32, 32]` in [0, 1]."""
    # Stream 2, after the classes of a round (0) and the factors (1).
    return uniforms(f.seed, f.index, 2, 32 * 32).astype(np.float32).reshape(32, 32)


def _mark_class(f: Factors, watermark: str | int | None) -> int:
    named = {None: -1, "right": f.target, "wrong": f.mark_wrong, "random": f.mark_random}
    if isinstance(watermark, str | None) and watermark in named:
        return named[watermark]
    if isinstance(watermark, int) and 0 <= watermark < len(class_names):
        return watermark
    raise ValueError(
        'watermark must be None, "right", "wrong", "random" or a class from 0 to '
        f"{len(class_names) - 1}, got {watermark!r}"
    )


def _distance(thing: Distractor) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns the signed distance of a distractor in its own frame; its length is about 2."""
    a, b, c, d = thing.details
    if thing.kind == "bar":
        return lambda x, y: shapes.segment(x, y, (-0.9, 0.0), (0.9, 0.0)) - (0.14 + 0.14 * a)
    if thing.kind == "squiggle":
        return lambda x, y: shapes.squiggle(x, y, 1.0 + 0.9 * a, 0.26 + 0.2 * b, 0.13 + 0.06 * c)
    waves = ((2, 0.18 + 0.12 * a, 6.28 * b), (3, 0.16 + 0.1 * c, 6.28 * d), (5, 0.08, 6.28 * a))
    return lambda x, y: 0.7 * shapes.blob(x / 0.7, y / 0.7, waves)


def _paint_object(image: np.ndarray, label: np.ndarray, f: Factors, cells: np.ndarray) -> None:
    """Paints the object of `f` and its shadow in place."""
    outline = shapes.OUTLINES[class_names[f.target]]
    scale = math.sqrt(f.area / outline.area)
    _paint(image, label, f, outline.distance, scale, scale * outline.radius, cells, 1 + f.target)


def _paint(
    image: np.ndarray,
    label: np.ndarray,
    thing: Distractor | Factors,
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
    scale: float,
    reach: float,
    lattice: np.ndarray,
    identity: int,
) -> None:
    """Paints a thing and its shadow in place, within `reach` of its centre (shares of the side)."""
    size = len(image)
    cx, cy = thing.center
    # Most of the picture is elsewhere: only the window around the thing is computed.
    reach += max(_SHADOW) + _PENUMBRA
    rows, columns = (
        slice(max(math.floor((c - reach) * size), 0), math.ceil((c + reach) * size))
        for c in (cy, cx)
    )
    image, label = image[rows, columns], label[rows, columns]
    x, y = _centers(size)[columns][None, :], _centers(size)[rows][:, None]
    turn = math.radians(thing.rotation)
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale

    def field(dx: float, dy: float) -> np.ndarray:
        px, py = x - (cx + dx), y - (cy + dy)
        return scale * distance(cos * px + sin * py, cos * py - sin * px)

    shadow = np.clip(0.5 - field(*_SHADOW) / (2 * _PENUMBRA), 0, 1)
    # The shadow darkens what is painted already; it belongs to no label.
    image *= 1 - 0.22 * (shadow * shadow * (3 - 2 * shadow))[..., None]
    edge = field(0.0, 0.0)
    # Softened over one pixel, by the distance from its centre to the edge.
    cover = np.clip(0.5 - edge * size, 0, 1)
    # Light from the upper left, a brighter middle, a darker rim.
    slant = ((cx - x) + 1.4 * (cy - y)) / scale
    depth = np.clip(edge / -0.05, 0, 1)
    texture = textures.fill(x, y, thing.fill, angle=turn, lattice=lattice)
    light = 0.93 + 0.09 * np.clip(slant, -1.5, 1.5) + 0.08 * depth + 0.11 * texture
    _, chroma, hue = textures.COLOURS[thing.colour]
    body = textures.oklch(thing.lightness, chroma, hue) * light[..., None]
    image += cover[..., None] * (np.clip(body, 0, 1) - image)
    # The label has no soft edge: a pixel belongs to what covers its centre.
    label[edge < 0] = identity
