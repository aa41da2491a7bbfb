"""Parts that several pages have in common."""

from __future__ import annotations

import numpy as np

from launch.report import pictures
from launch.report.html import text

__all__ = ["figure"]


def figure(kind: str, pixels: np.ndarray, alt: str, title: str, below: str) -> str:
    """Returns a picture `[h, w, 3]` uint8 with a caption; `below` is safe HTML, the rest plain
    text.
    """
    # With its size, so that the page does not jump while pictures are decoded.
    height, width = pixels.shape[:2]
    return (
        f'<figure class="{kind}"><img src="{pictures.data_uri(pixels)}" width="{width}" '
        f'height="{height}" '
        f'alt="{text(alt)}"><figcaption><b>{text(title)}</b>{below}</figcaption></figure>'
    )
