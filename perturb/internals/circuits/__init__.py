"""Weights between units, edits of them with their cost, and detectors built by hand."""

from perturb.internals.circuits.detectors import Curves, arc, curves, gabor, respond
from perturb.internals.circuits.edits import (
    Change,
    compare,
    exchange_units,
    random_families,
    restored,
)
from perturb.internals.circuits.expanded import Expanded, expanded_weights

__all__ = [
    "Change",
    "Curves",
    "Expanded",
    "arc",
    "compare",
    "curves",
    "exchange_units",
    "expanded_weights",
    "gabor",
    "random_families",
    "respond",
    "restored",
]
