"""Parts that several pages have in common."""

from __future__ import annotations

import numpy as np

from launch.report import pictures
from launch.report.html import text

__all__ = ["VERDICTS", "asked", "badge", "figure"]

# What the verdict on a region means, beside it.
VERDICTS = {
    "holds": "The region alone is still answered, under other fills too, and does better than "
    "copies of itself elsewhere in the picture.",
    "doubtful": "The region alone is answered, but something speaks against it being the reason: "
    "the first lines below.",
    "fails": "The region alone is not answered, or a copy of it elsewhere does as well: do not "
    "take it for the reason of the answer.",
}


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


def badge(name: str, meaning: str, *, quiet: bool = False) -> str:
    """Returns a badge that opens into what it means; both are plain text.

    >>> badge("wrong answer", "the picture shows a cross")[:42]
    '<details class="badge"><summary>wrong answ'
    """
    kind = "badge quiet" if quiet else "badge"
    return (
        f'<details class="{kind}"><summary>{text(name)}</summary><p>{text(meaning)}</p></details>'
    )


def asked(looked: str, sure: str, then: str) -> str:
    """Returns the three questions of a reader with their answers, which are safe HTML."""
    pairs = (
        ("What did the network look at?", looked),
        ("How sure is that?", sure),
        ("What should I do next?", then),
    )
    parts = "".join(f"<dt>{question}</dt><dd>{answer}</dd>" for question, answer in pairs)
    return f'<dl class="asked">{parts}</dl>'
