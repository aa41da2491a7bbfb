"""Do the things known of one unit agree? Its top pictures, its whole range, its cost, and its ties
to other layers.

Dissection names a unit by its strongest places. That name is worth more where the top pictures hold
the concept, where the unit tells pictures with it from pictures without it along its whole range,
where the answer loses something without the unit, and where the units it goes with in other layers
bear the same name. `agreement` says which of these hold; what cannot be checked (a concept in every
picture) is None.

>>> present = np.arange(40) < 10
>>> activation = present + np.linspace(0, 0.1, 40)
>>> found = agreement(present, activation, top=[0, 1, 2], cost_low=0.2, ties=[True, True])
>>> found.verdict, found.checks
('agree', {'top': True, 'range': True, 'cost': True, 'ties': True})
>>> agreement(present, np.ones(40) * ~present, top=[39, 38, 37], cost_low=-1.0).verdict
'disagree: top, range, cost'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from perturb.statistics import auc_interval
from perturb.types import ArrayLike, PyTree

__all__ = ["Agreement", "agreement", "strongest_ties"]


class Agreement(NamedTuple):
    """Whether what is known of a unit fits its concept.

    Attributes:
      checks: `top`, `range`, `cost` and `ties`: True, False, or None where it cannot be checked.
      verdict: "agree", "disagree: ..." with the checks that fail, or "not known" where fewer than
        two can be checked.
    """

    checks: dict[str, bool | None]
    verdict: str


def agreement(
    present: ArrayLike,
    activation: ArrayLike,
    *,
    top: Sequence[int],
    cost_low: float | None = None,
    ties: Sequence[bool] = (),
) -> Agreement:
    """Holds the four against each other.

    Args:
      present: `[N]` booleans, whether the unit's concept is in each picture.
      activation: `[N]` numbers, the unit's highest activation in each of the same pictures.
      top: indices among these pictures of those that the unit answers to most.
      cost_low: the lower end of the interval of what the answer loses without the unit, or None.
      ties: booleans, whether the unit it goes with most in each other layer has the same concept.
    """
    present, activation = np.asarray(present, bool), np.asarray(activation, np.float64)
    if present.shape != activation.shape or present.ndim != 1:
        raise ValueError(
            f"present and activation must both be [N], got {present.shape} and {activation.shape}"
        )
    checks: dict[str, bool | None] = {"top": None, "range": None, "cost": None, "ties": None}
    if 0 < present.sum() < len(present):
        share = present[np.asarray(top, int)].mean()
        # At least half, and more than among all pictures: a concept that is nearly everywhere is no
        # merit.
        checks["top"] = bool(share >= 0.5 and share > present.mean())
        checks["range"] = bool(auc_interval(activation, present, draws=500).low > 0.5)
    if cost_low is not None:
        checks["cost"] = bool(cost_low > 0)
    if len(ties):
        checks["ties"] = bool(np.mean(ties) >= 0.5)
    known = [v for v in checks.values() if v is not None]
    failed = [name for name, v in checks.items() if v is False]
    if len(known) < 2:
        return Agreement(checks, "not known")
    return Agreement(checks, f"disagree: {', '.join(failed)}" if failed else "agree")


def strongest_ties(
    codes: Mapping[str, PyTree], layer: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns for each other layer which of its units every unit goes with most, and how closely.

    Args:
      codes: `{layer: [N, units]}`, of the same pictures, as of `layer_codes`.
      layer: the name of the one whose units are compared.
    Returns:
      `{other layer: (units [U], correlations [U] over the pictures)}`; a unit that never changes
      has 0.
    """
    own = _standard(codes[layer])
    found = {}
    for name, other in codes.items():
        if name != layer:
            # Columns of length 1: their products are correlations.
            r = own.T @ _standard(other)
            best = r.argmax(1)
            found[name] = best, r[np.arange(len(r)), best]
    return found


def _standard(codes: ArrayLike) -> np.ndarray:
    x = np.asarray(codes, np.float64)
    x = x - x.mean(0)
    size = np.sqrt((x**2).sum(0))
    # A unit that never changes becomes 0, and correlates with nothing.
    found: np.ndarray = x / np.where(size > 1e-12, size, np.inf)
    return found
