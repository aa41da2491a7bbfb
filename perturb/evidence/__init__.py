"""Is a region the reason, or an artefact of how it was found? Cards, controls and stability."""

from perturb.evidence.cards import (
    AREAS,
    VERDICTS,
    Evidence,
    card,
    gain,
    held_out,
    outputs_of,
    shifts,
    show,
)

__all__ = [
    "AREAS",
    "VERDICTS",
    "Evidence",
    "card",
    "gain",
    "held_out",
    "outputs_of",
    "shifts",
    "show",
]
