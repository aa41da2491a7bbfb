"""Pictures of the world by latent: what each number of a latent vector decides, exactly.

The generator of the demo learns this map from latents to pictures, so what its directions ought to
do is known. A latent is 20 normal numbers; they are turned by a fixed rotation, so that nothing the
world varies lies along a coordinate, and the turned numbers are the factors: which background and
which object (the largest of four numbers each), angles of hue, place, size and lightness.
Everything else of the world is held: one object, no distractors, one grain of the textures.

>>> z = np.zeros(SIZE); scene(z + TURN[FACTORS.index("x")]).center[0] > 0.5
True
"""

from __future__ import annotations

import math

import numpy as np

from perturb.embedded import shapes, textures, world

__all__ = [
    "ANGLES",
    "BACKGROUNDS",
    "COLOURS",
    "FACTORS",
    "NAMES",
    "NUMBERS",
    "OBJECTS",
    "SEGMENTS",
    "SIZE",
    "TURN",
    "extent",
    "numbers",
    "scene",
    "segments",
]

SIZE = 20
BACKGROUNDS = ("grass", "stripes", "checks", "gradient")
OBJECTS = ("disc", "square", "star", "heart")
# Around the circle of hues.
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "violet", "pink")
# What the turned numbers are, in order; the last four decide nothing.
FACTORS = (
    *BACKGROUNDS,
    *OBJECTS,
    *("x", "y", "size", "background lightness"),
    *("background hue cos", "background hue sin", "colour cos", "colour sin"),
    *("nothing 1", "nothing 2", "nothing 3", "nothing 4"),
)
AREA, TONE = (
    (0.09, 0.13),
    (0.4, 0.42),
)  # least and range: of the object, and of the background's lightness
# In degrees, of each background's texture.
ANGLES = {"grass": 90.0, "stripes": 35.0, "checks": 0.0, "gradient": 90.0}
# Of the label map: 0 to 3 the backgrounds, 4 to 7 the objects.
NAMES = (*BACKGROUNDS, *OBJECTS)
# What the embedded segmentation tells apart: it mixes up the objects, not object and background.
SEGMENTS = (*BACKGROUNDS, "object")
# What a predictor can tell about a picture: every factor that decides something.
NUMBERS = FACTORS[:-4]


def _turn() -> np.ndarray:
    words = np.random.Philox(key=[20, 20]).random_raw(2 * SIZE * SIZE)
    u = ((words >> np.uint64(11)) * 2.0**-53).reshape(2, SIZE, SIZE)
    normal = np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])
    q, r = np.linalg.qr(normal)
    return (q * np.sign(np.diag(r))).T


# `[factors, SIZE]`: the direction of each factor in latent space, of length 1, all at right angles.
TURN = _turn()


def scene(latent: np.ndarray) -> world.Factors:
    """Returns the factors of the picture that belongs to a latent `[20]`.

    Raises:
      ValueError: if the latent has another size.
    """
    z = np.asarray(latent, np.float64)
    if z.shape != (SIZE,):
        raise ValueError(f"latent must have shape ({SIZE},), got {z.shape}")
    f = dict(zip(FACTORS, (TURN @ z).tolist(), strict=True))
    name = max(OBJECTS, key=f.__getitem__)
    background = max(BACKGROUNDS, key=f.__getitem__)
    outline = shapes.OUTLINES[name]
    area = AREA[0] + AREA[1] * _share(f["size"])
    free = outline.radius * math.sqrt(area / outline.area) + 0.02
    hue = math.degrees(math.atan2(f["background hue sin"], f["background hue cos"])) % 360
    around = (math.atan2(f["colour sin"], f["colour cos"]) / (2 * math.pi)) % 1
    colour = COLOURS[int(around * len(COLOURS))]
    tone = TONE[0] + TONE[1] * _share(f["background lightness"])
    lightness = textures.COLOURS[colour][0]
    if abs(lightness - tone) < 0.16:  # far enough from what lies behind it to be seen
        lightness = tone + math.copysign(0.16, lightness - tone)
    x, y = (free + _share(f[axis]) * (1 - 2 * free) for axis in ("x", "y"))
    return world.Factors(
        seed=0,
        index=0,
        target=world.class_names.index(name),
        center=(x, y),
        area=area,
        rotation=0.0,
        colour=colour,
        lightness=min(lightness, 0.96),
        fill="speckled",
        background=background,
        background_lightness=tone,
        background_hue=hue,
        background_angle=ANGLES[background],
        background_scale=1.0,
        distractors=(),
        mark_center=(0.1, 0.1),
        mark_wrong=0,
        mark_random=0,
    )


def segments(picture: world.Picture) -> np.ndarray:
    """Returns the label map `[H, W]` uint8 of a picture of `scene`, an index of `NAMES` a pixel."""
    f = picture.factors
    inside = OBJECTS.index(world.class_names[f.target]) + len(BACKGROUNDS)
    return np.where(
        picture.label == 1 + picture.target, inside, BACKGROUNDS.index(f.background)
    ).astype(np.uint8)


def extent(f: world.Factors) -> tuple[float, float, float]:
    """Returns the middle `(x, y)` of the object and its radius, as shares of the side."""
    outline = shapes.OUTLINES[world.class_names[f.target]]
    return (*f.center, outline.radius * math.sqrt(f.area / outline.area))


def numbers(f: world.Factors) -> np.ndarray:
    """Returns what decides a picture, as numbers `[16]` in the order of `NUMBERS`, from what
    `scene` returned.

    1 for the background and the object that it shows, 0 for the others; place and size from 0 to 1;
    cosine and sine of the hues.
    """
    shown = (f.background, world.class_names[f.target])
    free = extent(f)[2] + 0.02
    hue = math.radians(f.background_hue)
    around = 2 * math.pi * (COLOURS.index(f.colour) + 0.5) / len(COLOURS)
    return np.array(
        [float(name in shown) for name in NAMES]
        + [(c - free) / (1 - 2 * free) for c in f.center]
        + [(f.area - AREA[0]) / AREA[1], (f.background_lightness - TONE[0]) / TONE[1]]
        + [math.cos(hue), math.sin(hue), math.cos(around), math.sin(around)]
    )


def _share(x: float) -> float:
    """The share of normal numbers below `x`: uniform in (0, 1)."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
