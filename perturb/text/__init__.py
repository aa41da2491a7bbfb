"""Text and other sequences: masks over tokens, scores of tokens, and what contexts are good for.

`text_model` takes a model of text apart; `find`, `attribute`, `erasure` and `card` are to it what
`extremal`, the attributions and their evidence are to a model of pictures.
"""

from perturb.text import characters, context
from perturb.text.evidence import Erasure, TokenCard, card, erasure, stretches
from perturb.text.tokens import Fill, Text, attribute, fill, find, text_model, words

__all__ = [
    "Erasure",
    "Fill",
    "Text",
    "TokenCard",
    "attribute",
    "card",
    "characters",
    "context",
    "erasure",
    "fill",
    "find",
    "stretches",
    "text_model",
    "words",
]
