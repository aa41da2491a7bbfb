"""Masks drawn into their pictures, as uint8 arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageFilter

__all__ = ["OUTLINE", "SIDE", "enlarge", "levels", "overlay", "png", "sheet"]

OUTLINE = (255, 176, 0)  # amber: apart from sky, skin, leaves and water
SIDE = 224  # px, longer side of a drawn picture
SMALL = 32  # px; the pixels of smaller pictures are shown as squares


def levels(pixels: np.ndarray) -> np.ndarray:
    """Returns `[..., H, W, 3]` or `[..., H, W, 1]` in [0, 1] as uint8, three channels."""
    found = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return np.repeat(found, 3, -1) if found.shape[-1] == 1 else found


def enlarge(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Returns `[H, W]` or `[H, W, 3]` uint8 resized so that the longer side is `side` px.

    The pixels of very small pictures are repeated: they are tiles or strokes, and blurred they are
    neither.
    """
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return pixels
    if max(height, width) < SMALL and scale >= 2:
        pixels = pixels.repeat(int(scale), 0).repeat(int(scale), 1)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    filter_ = PIL.Image.Resampling.BICUBIC if scale > 1 else PIL.Image.Resampling.BOX
    return np.asarray(PIL.Image.fromarray(pixels).resize(size, filter_))


def overlay(image: np.ndarray, mask: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Draws a mask into its image: the region as it is, outlined; the rest dim and grey.

    Args:
      image: `[H, W, 3]` uint8.
      mask: `[H, W]` in [0, 1], drawn where it is above .5.
      side: px of the longer side of the result.
    Returns:
      `[h, w, 3]` uint8.
    """
    # Twice the size and down again, so that outlines are smooth.
    picture = PIL.Image.fromarray(enlarge(image, 2 * side))
    grown = enlarge((mask > 0.5).astype(np.uint8) * 255, 2 * side)
    region = PIL.Image.fromarray((grown > 127).astype(np.uint8) * 255)
    grey = PIL.Image.blend(picture.convert("L").convert("RGB"), picture, 0.25)
    out = grey.point([round(30 + 0.38 * v) for v in range(256)] * 3)
    out.paste((16, 16, 16), mask=_wider(region, 5))
    out.paste(OUTLINE, mask=_wider(region, 3))
    out.paste(picture, mask=region)
    return enlarge(np.asarray(out), side)


def sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Returns pictures `[h, w, 3]` uint8 of one size as a table, white between them.

    Args:
      rows: of pictures, each row as long as the first.
      gap: px between two.
    """
    lines = []
    for row in rows:
        space = np.full((row[0].shape[0], gap, 3), 255, np.uint8)
        line = np.concatenate([p for tile in row for p in (tile, space)][:-1], 1)
        lines += [line, np.full((gap, line.shape[1], 3), 255, np.uint8)]
    return np.concatenate(lines[:-1], 0)


def png(pixels: np.ndarray) -> bytes:
    """Returns a picture `[h, w, 3]` uint8 as a PNG file."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _wider(region: PIL.Image.Image, pixels: int) -> PIL.Image.Image:
    """Grows a region by `pixels` px; a box blur costs the same for every size, a rank filter
    not.
    """
    grown = region.filter(PIL.ImageFilter.BoxBlur(pixels))
    return grown.point([0, *[255] * 255])
