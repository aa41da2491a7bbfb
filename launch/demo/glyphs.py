"""Which stamp does a picture show? Matches the ten glyphs of the picture world at every place and
size.

>>> from launch.demo import world
>>> best, share = find(world.render(0, 3, watermark="right").image)
>>> int(best) == world.render(0, 3).target
True
"""

from __future__ import annotations

import numpy as np

from perturb.embedded import shapes

__all__ = ["correlations", "find"]

SIDES = tuple(range(8, 19))  # px, of a glyph's tile


def correlations(picture: np.ndarray) -> np.ndarray:
    """Returns the largest correlation of each glyph with any part of the picture, `[10]`.

    Args:
      picture: `[H, W, C]` in [0, 1]; colours are averaged. A glyph is light on dark, a cell of 4 x
        4 each, at 8 to 18 px a side.
    """
    grey = np.asarray(picture, np.float64).mean(-1)
    best = np.full(len(shapes.GLYPHS), -1.0)
    for side in SIDES:
        if side > min(grey.shape):
            break
        cells = (np.arange(side) * 10 + 5) // side
        parts = np.lib.stride_tricks.sliding_window_view(grey, (side, side))
        parts = parts.reshape(-1, side * side)
        parts = parts - parts.mean(1, keepdims=True)
        length = np.linalg.norm(parts, axis=1)
        for i, glyph in enumerate(shapes.GLYPHS):
            tile = np.zeros((10, 10))
            tile[1:9, 1:9] = np.asarray(glyph).repeat(2, 0).repeat(2, 1)
            template = tile[cells][:, cells].ravel()
            template = template - template.mean()
            # Flat parts of the picture have no contrast that could match anything.
            match = parts @ template / (length * np.linalg.norm(template) + 1e-3)
            best[i] = max(best[i], match.max())
    return best


def find(picture: np.ndarray) -> tuple[int, float]:
    """Returns the class whose glyph fits best, and its correlation."""
    found = correlations(picture)
    return int(found.argmax()), float(found.max())
