"""The one optimisation loop: start, advance, finish, or init and update in a loop of one's own;
step rules.
"""

from perturb.solver.loop import (
    GAMES,
    Adam,
    Items,
    Momentum,
    Normalised,
    Outcome,
    Recipe,
    State,
    advance,
    advance_in_place,
    finish,
    flip_on_even_steps,
    no_change,
    own,
    ready,
    start,
)
from perturb.solver.own_loop import init, update
from perturb.solver.rules import Rule

__all__ = [
    "GAMES",
    "Adam",
    "Items",
    "Momentum",
    "Normalised",
    "Outcome",
    "Recipe",
    "Rule",
    "State",
    "advance",
    "advance_in_place",
    "finish",
    "flip_on_even_steps",
    "init",
    "no_change",
    "own",
    "ready",
    "start",
    "update",
]
