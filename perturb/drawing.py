"""Masks drawn into their pictures, as uint8 arrays."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageFilter

__all__ = [
    "OUTLINE",
    "SIDE",
    "enlarge",
    "heat",
    "levels",
    "over_range",
    "overlay",
    "png",
    "sheet",
    "tiles",
]

OUTLINE = (255, 176, 0)  # amber: apart from sky, skin, leaves and water
SIDE = 224  # px, longer side of a drawn picture
# Dark to amber to white: lightness rises evenly, so that it reads without colour too.
RAMP = ((16, 18, 22), (227, 154, 28), (255, 250, 235))
MOST = 24  # pictures in a notebook's cell; the rest is counted
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


def over_range(values: np.ndarray) -> np.ndarray:
    """Returns maps `[..., H, W]` in [0, 1], each over its own range; what is not a number is 0."""
    found = np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf)
    known = np.where(np.isfinite(found), found, np.nan)
    low = np.nanmin(np.where(np.isnan(known).all((-2, -1), keepdims=True), 0, known), (-2, -1))
    high = np.nanmax(np.where(np.isnan(known).all((-2, -1), keepdims=True), 1, known), (-2, -1))
    low, high = low[..., None, None], high[..., None, None]
    share: np.ndarray = np.clip((found - low) / np.where(high > low, high - low, 1), 0, 1)
    return share


def heat(values: np.ndarray) -> np.ndarray:
    """Returns maps `[..., H, W]` as pictures `[..., H, W, 3]` uint8, each over its own range.

    What is not a number is drawn as the lowest value.
    """
    share = over_range(values)
    ramp = np.asarray(RAMP, np.float64)
    at = np.linspace(0, 1, len(ramp))
    drawn = np.stack([np.interp(share, at, ramp[:, c]) for c in range(3)], -1)
    return np.asarray(np.rint(drawn), np.uint8)


def tiles(pictures: Sequence[np.ndarray], captions: Sequence[str], side: int = 96) -> str:
    """Returns pictures `[h, w, 3]` uint8 with a line below each, as HTML for a notebook's cell.

    Args:
      pictures: of any sizes; the first `MOST` are drawn.
      captions: one a picture, plain text.
      side: px of the longer side of a drawing.
    """
    drawn = []
    for pixels, caption in zip(pictures[:MOST], captions, strict=False):
        source = base64.b64encode(png(enlarge(pixels, side))).decode()
        words = html.escape(caption)
        drawn.append(
            '<figure style="display:inline-block;margin:4px;text-align:center">'
            f'<img alt="{words}" src="data:image/png;base64,{source}">'
            f"<figcaption>{words}</figcaption></figure>"
        )
    more = len(pictures) - MOST
    return "".join(drawn) + (f"<p>and {more} more</p>" if more > 0 else "")


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
