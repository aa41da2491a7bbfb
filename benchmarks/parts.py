"""Pictures with one object in the middle, and the exact places of its parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perturb.embedded import shapes, world

# Corners, tips and notches of every outline in its own frame. A turn of 20 degrees at most leaves
# each the only one near its place, also where the outline is symmetric. Disc and ring have but a
# middle.
MARKS = {
    "disc": [(0.0, 0.0)],
    "ring": [(0.0, 0.0)],
    "square": [(0.86, 0.86), (-0.86, -0.86)],
    "triangle": [(0.0, -0.97), (0.84, 0.5)],
    "diamond": [(0.0, 0.93), (0.0, -0.93)],
    "star": [(0.0, -0.96), (0.56, 0.78)],
    "cross": [(0.0, -0.92), (0.92, 0.0)],
    "heart": [(0.0, 0.604), (0.0, -0.316)],
    "crescent": [(-0.659, 0.0), (0.943, 0.799)],
    "arrow": [(0.0, -0.87), (0.0, 0.91)],
}


class Crops(NamedTuple):
    """`images` `[N, size, size, 3]`, `labels` `[N]`, `marks` `[N, K, 2]` px, row before column (NaN
    where a class has fewer), `halves` `[N, 2, size, size]`: front and back half of the object.
    """

    images: np.ndarray
    labels: np.ndarray
    marks: np.ndarray
    halves: np.ndarray


def crops(
    number: int,
    *,
    kinds: Sequence[str] = world.class_names,
    seed: int = 11,
    size: int = 64,
    shift: float = 0.04,
    scale: float = 1.0,
    distractors: bool = False,
) -> Crops:
    """Draws `number` crops of the given classes; `shift` is how far the middle may lie off, as a
    share of the side, and `scale` a factor of the area, which is a third of the picture at most.
    """
    images, labels, marks, halves, index = [], [], [], [], 0
    line = np.arange(size) + 0.5
    while len(images) < number:
        f = world.factors(seed, index)
        index += 1
        kind = world.class_names[f.target]
        if kind not in kinds:
            continue
        outline = shapes.OUTLINES[kind]
        # By seed and index, so that a picture does not depend on how many there are.
        rng = np.random.default_rng([seed, index])
        f = dataclasses.replace(
            f,
            # Its reach is at most 0.42 of the side and its middle 0.04 off: the whole of it is in
            # view.
            center=tuple(0.5 + rng.uniform(-shift, shift, 2)),
            area=min(0.34, 0.8 * (0.47 / outline.radius) ** 2 * outline.area)
            * scale
            * rng.uniform(0.75, 1),
            rotation=float(rng.uniform(-20, 20)),
            distractors=f.distractors if distractors else (),
        )
        picture = world.draw(f, size=size)
        images.append(np.round(picture.image * 255).astype(np.uint8))
        labels.append(f.target)
        # The landmarks take the same way as the outline: scaled, turned and moved.
        s, a = math.sqrt(f.area / outline.area), math.radians(f.rotation)
        cos, sin = math.cos(a), math.sin(a)
        found = np.full((2, 2), np.nan)
        for k, (x, y) in enumerate(MARKS[kind]):
            found[k] = (
                size * (f.center[1] + s * (sin * x + cos * y)),
                size * (f.center[0] + s * (cos * x - sin * y)),
            )
        marks.append(found)
        # The object's own up and down, which turn with it.
        along = cos * (line[:, None] - size * f.center[1]) - sin * (line - size * f.center[0])
        inside = picture.label == 1 + f.target
        halves.append(np.stack([inside & (along < 0), inside & (along >= 0)]))
    return Crops(*(np.array(v) for v in (images, labels, marks, halves)))
