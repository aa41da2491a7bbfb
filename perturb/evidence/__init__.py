"""What is reported with every mask: is the region the reason, or an artefact of how it was found?

A mask that keeps 99 % of the score under the blur it was optimised with may keep a third under any
other fill, and a shifted copy of it may do as well. So every region is shown again: under the fills
it was found with and four it never saw, against shifted copies of itself, and at eight other areas
of the same scores: those under the fill that scores, and under the others only where that may
decide which area is enough. Everything is forward passes: about 36 a mask, where 100 steps of
optimisation cost some 300.

Shares are on the way from the score with everything removed (0) to that of the whole picture (1),
each operator with its own floor: `gain`. The verdict is about the answer: see
`perturb.evidence.verdict`.

>>> round(float(gain(8.0, 10.0, 2.0)), 2), round(float(gain(8.0, 10.0, 2.0, delete=True)), 2)
(0.75, 0.25)
"""

from perturb.evidence.answering import Answers, answers, gain
from perturb.evidence.cards import AREAS, Evidence, card
from perturb.evidence.fills import held_out, outputs_of, shifts, show
from perturb.evidence.verdict import VERDICTS

__all__ = [
    "AREAS",
    "VERDICTS",
    "Answers",
    "Evidence",
    "answers",
    "card",
    "gain",
    "held_out",
    "outputs_of",
    "shifts",
    "show",
]
