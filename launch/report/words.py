"""A text with its words coloured by their scores: part of a page.

>>> coloured(["good"], [1.0])
'<p class="words"><span style="background:rgba(196,98,16,0.70)" title="1">good</span></p>'
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from perturb.types import ArrayLike

__all__ = ["coloured"]

# Orange speaks for the answer, blue against it: told apart by all kinds of colour vision.
_FOR, _AGAINST = "196,98,16", "24,96,180"
_STRONGEST = 0.7


def coloured(words: Sequence[str], scores: ArrayLike) -> str:
    """Returns HTML: every word on a ground as strong as its score.

    Args:
      words: as they are printed, white space included.
      scores: one a word, signed; the largest size has the strongest colour.
    Raises:
      ValueError: if there are not as many scores as words.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != (len(words),):
        raise ValueError(f"scores must be one for each of {len(words)} words, got {scores.shape}")
    top = np.abs(scores).max(initial=0.0) or 1.0
    spans = []
    for word, score in zip(words, scores, strict=True):
        colour, strength = (_FOR if score >= 0 else _AGAINST), _STRONGEST * abs(score) / top
        spans.append(
            f'<span style="background:rgba({colour},{strength:.2f})" title="{score:.3g}">'
            f"{html.escape(word)}</span>"
        )
    return f'<p class="words">{"".join(spans)}</p>'
