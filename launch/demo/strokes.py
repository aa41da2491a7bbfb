"""Pictures of the world with parts painted in and out, and the exact label of every pixel.

A picture of `launch.demo.latents` is one background and one object. Here either can be switched on
or off at places, as units of a generator are: the picture that ought to come of it is known, so a
generator can be trained, and a segmentation tested, on pictures that no latent has. Rules: what is
switched on stronger than what is there takes its place, and at about the same strength stripes
cover grass, grass checks and checks a gradient; the object covers all backgrounds; where nothing is
left, the bare canvas shows.

>>> sheets = draw(0, 0, 2)
>>> levels = jnp.zeros((2, *GRID, 5)).at[..., 4].set(1)  # the object everywhere
>>> images, labels = compose(sheets, Strokes(levels, jnp.zeros((2, *GRID, 5), bool)))
>>> bool((labels >= 4).all())
True
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.demo import latents, world
from perturb.embedded import textures
from perturb.types import PyTree

__all__ = [
    "BARE",
    "CANVAS",
    "GRID",
    "NAMES",
    "Sheets",
    "Strokes",
    "compose",
    "draw",
    "merged",
    "place",
    "seen",
    "some",
]

# What strokes can switch: the backgrounds, then the object.
NAMES = (*latents.BACKGROUNDS, "object")
BACKGROUNDS = len(latents.BACKGROUNDS)
GRID = (16, 16)
SIDE = 64
CANVAS = (0.93, 0.92, 0.89)
BARE = len(latents.NAMES)  # the label of the canvas, behind those of `latents.NAMES`
# At the same strength the first of these covers the others.
_PRIORITY = {"stripes": 1.15, "grass": 1.05, "checks": 0.95, "gradient": 0.85}
_BARE_LEVEL = 0.45


class Sheets(NamedTuple):
    """The parts of N pictures.

    Attributes:
      latents: `[N, 20]`.
      backgrounds: `[N, 4, 64, 64, 3]` uint8, the picture with each background and no object.
      shown: `[N]`, the background that the latent asks for.
      keep: `[N, 64, 64]` uint8, what object and shadow leave of the background.
      ink: `[N, 64, 64, 3]` uint8, what the object adds.
      inside: `[N, 64, 64]` bool, pixels of the object.
      thing: `[N]`, its kind, of `latents.OBJECTS`.
      colour: `[N, 3]`, of the object.
      numbers: `[N, 16]`, of `latents.NUMBERS`.
    """

    latents: PyTree
    backgrounds: PyTree
    shown: PyTree
    keep: PyTree
    ink: PyTree
    inside: PyTree
    thing: PyTree
    colour: PyTree
    numbers: PyTree

    def rows(self, which: PyTree) -> Sheets:
        """Returns the parts of some of the pictures, by a slice or their numbers."""
        return Sheets(*(column[which] for column in self))


class Strokes(NamedTuple):
    """What is switched at every place of the grid: `[N, 16, 16, 5]`, of `NAMES`.

    Attributes:
      on: level, 1 as strong as where a picture shows it by itself; 0 where nothing is switched on.
      off: bool.
    """

    on: jax.Array
    off: jax.Array

    @property
    def touched(self) -> jax.Array:
        """Where anything is switched, on or off: bool, of the same shape."""
        return (self.on > 0) | self.off


def draw(seed: int, start: int, stop: int) -> Sheets:
    """Returns the parts of the pictures of latents, by index."""
    parts: list[list[PyTree]] = []
    line = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    for i in range(start, stop):
        # A latent is its index: more pictures begin with the same ones.
        z = np.random.default_rng([seed, i]).standard_normal(latents.SIZE)
        f = latents.scene(z)
        cells = world.lattice(f)
        behind = [
            textures.background(
                line[None, :],
                line[:, None],
                name,
                lightness=f.background_lightness,
                hue=f.background_hue,
                angle=math.radians(latents.ANGLES[name]),
                scale=f.background_scale,
                lattice=cells,
            )
            for name in latents.BACKGROUNDS
        ]
        keep, ink, inside = world.cutout(f)
        _, chroma, hue = textures.COLOURS[f.colour]
        parts.append(
            [
                z.astype(np.float32),
                _bytes(np.stack(behind)),
                latents.BACKGROUNDS.index(f.background),
                _bytes(keep[..., 0]),
                _bytes(ink),
                inside,
                latents.OBJECTS.index(world.class_names[f.target]),
                textures.oklch(f.lightness, chroma, hue),
                latents.numbers(f).astype(np.float32),
            ]
        )
    return Sheets(*(np.stack(column) for column in zip(*parts, strict=True)))


def compose(sheets: Sheets, strokes: Strokes | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the pictures `[N, 64, 64, 3]` in [0, 1] and the labels `[N, 64, 64]`: of
    `latents.NAMES`, or `BARE`.

    Strokes have soft corners: their grid is enlarged linearly, then cut.
    """
    shown = jax.nn.one_hot(sheets.shown, BACKGROUNDS)
    if strokes is None:
        none = jnp.zeros((len(sheets.shown), *GRID, len(NAMES)))
        strokes = Strokes(none, none > 0)
    natural = jnp.broadcast_to(shown[:, None, None], (*strokes.on.shape[:3], BACKGROUNDS))
    on, off = strokes
    level = jnp.where(
        on > 0, on, jnp.where(off, 0, jnp.concatenate([natural, 0 * on[..., :1]], -1))
    )
    level = _enlarged(level)
    rank = jnp.asarray([_PRIORITY[name] for name in latents.BACKGROUNDS])
    bare = jnp.full((*level.shape[:3], 1), _BARE_LEVEL)
    kind = jnp.concatenate([level[..., :BACKGROUNDS] * rank, bare], -1).argmax(-1)
    canvas = jnp.broadcast_to(jnp.asarray(CANVAS), (len(kind), 1, SIDE, SIDE, 3))
    behind = jnp.concatenate([sheets.backgrounds / jnp.float32(255), canvas], 1)
    image = jnp.einsum("nkhwc,nhwk->nhwc", behind, jax.nn.one_hot(kind, BACKGROUNDS + 1))
    gone = _enlarged(off[..., BACKGROUNDS:].astype(jnp.float32))[..., 0] > 0.5
    keep = jnp.where(gone, 1.0, sheets.keep / jnp.float32(255))[..., None]
    ink = jnp.where(gone[..., None], 0.0, sheets.ink / jnp.float32(255))
    image = image * keep + ink
    added = level[..., BACKGROUNDS] > 0.5
    flat = jnp.clip(sheets.colour[:, None, None] * (1.01 + 0.11 * _speckles())[..., None], 0, 1)
    # Where the object stands already, its own light stays.
    image = jnp.where((added & ~(sheets.inside & ~gone))[..., None], flat, image)
    thing = added | (sheets.inside & ~gone)
    label = jnp.where(kind == BACKGROUNDS, BARE, kind)
    return image, jnp.where(thing, BACKGROUNDS + sheets.thing[:, None, None], label)


def merged(labels: np.ndarray) -> np.ndarray:
    """Returns labels of `compose`, or of `latents.segments`, as those of `latents.SEGMENTS`, all
    objects being one; the canvas comes behind them.
    """
    found: np.ndarray = np.where(labels == BARE, BACKGROUNDS + 1, np.minimum(labels, BACKGROUNDS))
    return found


def seen(masks: np.ndarray) -> np.ndarray:
    """Returns the labels, as `merged` gives them, of masks `[N, 64, 64, 5]` of which one at most
    is set at a pixel; where none is, there is the canvas.
    """
    found: np.ndarray = np.where(masks.any(-1), masks.argmax(-1), len(latents.SEGMENTS))
    return found


@functools.partial(jax.jit, static_argnames="count")
def some(key: jax.Array, shown: jax.Array, count: int) -> Strokes:
    """Returns random strokes for `count` pictures whose backgrounds are `shown` `[count]`.

    Two pictures of five have none, as many have one, the others two. A place is the whole picture,
    a rectangle, a disc or what a smooth random field leaves.
    """

    def one(key: jax.Array, shown: jax.Array) -> Strokes:
        keys = jax.random.split(key, 3)
        strokes = jax.random.choice(keys[0], 3, p=jnp.asarray([0.4, 0.4, 0.2]))
        on, off = jnp.zeros((*GRID, len(NAMES))), jnp.zeros((*GRID, len(NAMES)), bool)
        for i in range(2):
            kinds = jax.random.split(keys[1 + i], 5)
            where = (place(kinds[0]) & (strokes > i))[..., None]
            adds = jax.random.bernoulli(kinds[1], 0.6)
            concept = jax.random.randint(kinds[2], (), 0, len(NAMES))
            # What is not there cannot be taken away: mostly what is.
            there = jnp.where(jax.random.bernoulli(kinds[2], 0.5), shown, BACKGROUNDS)
            usual = jax.random.bernoulli(kinds[3], 0.7)
            concept = jnp.where(~adds & usual, there, concept)
            which = where & (jnp.arange(len(NAMES)) == concept)
            level = jax.random.uniform(kinds[4], minval=0.75, maxval=2.25)
            on = jnp.where(which, jnp.where(adds, level, 0), on)
            off = jnp.where(which, ~adds, off)
        return Strokes(on, off)

    return jax.vmap(one)(jax.random.split(key, count), shown)


def place(key: jax.Array) -> jax.Array:
    """Returns a random part of the grid, `[16, 16]` bool."""
    keys = jax.random.split(key, 6)
    side = GRID[0]
    row, column = jnp.arange(side)[:, None], jnp.arange(side)[None, :]
    low = jax.random.randint(keys[0], (2,), 0, side - 3)
    size = jax.random.randint(keys[1], (2,), 3, side)
    rectangle = (
        (row >= low[0])
        & (row < low[0] + size[0])
        & (column >= low[1])
        & (column < low[1] + size[1])
    )
    middle = jax.random.uniform(keys[2], (2,), maxval=side)
    radius = jax.random.uniform(keys[3], minval=1.5, maxval=6)
    disc = (row + 0.5 - middle[0]) ** 2 + (column + 0.5 - middle[1]) ** 2 < radius**2
    field = jax.image.resize(jax.random.normal(keys[4], (4, 4)), GRID, "cubic")
    kind = jax.random.choice(keys[5], 4, p=jnp.asarray([0.2, 0.25, 0.3, 0.25]))
    found: jax.Array = jnp.stack([jnp.ones(GRID, bool), rectangle, disc, field > 0.2])[kind]
    return found


def _enlarged(x: jax.Array) -> jax.Array:
    found: jax.Array = jax.image.resize(x, (len(x), SIDE, SIDE, x.shape[-1]), "linear")
    return found


@functools.cache
def _speckles() -> np.ndarray:
    """The fill of objects, which stands still, `[64, 64]`."""
    line = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    f = latents.scene(np.zeros(latents.SIZE))
    found: np.ndarray = textures.fill(
        line[None, :], line[:, None], f.fill, angle=0.0, lattice=world.lattice(f)
    )
    return found


def _bytes(x: np.ndarray) -> np.ndarray:
    levels: np.ndarray = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return levels
