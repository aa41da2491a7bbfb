"""Parts that several pages have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from launch.report import pictures
from launch.report.html import text

__all__ = ["VERDICTS", "asked", "badge", "figure", "table"]

# What the verdict on a region means, beside it.
VERDICTS = {
    "holds": "The region alone still gives the answer, under other fills too, and does better than "
    "copies of itself elsewhere in the picture.",
    "doubtful": "The region alone gives the answer, but something speaks against it being the "
    "reason: the first lines below.",
    "fails": "The region alone does not give the answer, or a copy of it elsewhere does as well: "
    "do not take it for the reason of the answer.",
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


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    """Returns a table of many columns, which on a telephone is a block a row: there every value
    stands behind the name of its column.

    Args:
      head: names of the columns, plain text.
      rows: of safe HTML, the first cell being the row's own name.
      kinds: a CSS class for every row, or none.

    >>> table(["unit", "IoU"], [["3", ".2"]])[-83:]
    '<tr class=""><th scope="row">3</th><td data-head="IoU">.2</td></tr></tbody></table>'
    """
    lines = []
    for at, (name, *cells) in enumerate(rows):
        kind = text(kinds[at]) if kinds else ""
        drawn = "".join(
            f'<td data-head="{text(column)}">{cell}</td>'
            for column, cell in zip(head[1:], cells, strict=True)
        )
        lines.append(f'<tr class="{kind}"><th scope="row">{name}</th>{drawn}</tr>')
    names = "".join(f'<th scope="col">{text(column)}</th>' for column in head)
    return (
        f'<table class="summary wide"><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def asked(found: str, sure: str, then: str, *, first: str = "What did the network look at?") -> str:
    """Returns the three questions of a reader with their answers, which are safe HTML.

    Args:
      found, sure, then: the answers.
      first: the first question, plain text; the others are the same on every page.
    """
    pairs = (
        (first, found),
        ("How sure is that?", sure),
        ("What should I do next?", then),
    )
    parts = "".join(f"<dt>{text(question)}</dt><dd>{answer}</dd>" for question, answer in pairs)
    return f'<dl class="asked">{parts}</dl>'
