"""How much more units do than fewer, and which of many effects are not chance.

>>> discoveries([0.001, 0.5, 0.012, 0.03], rate=0.05).tolist()
[True, False, True, True]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from perturb import display
from perturb.statistics import discoveries
from perturb.units.interventions import Effects, unit_effects
from perturb.units.subject import Subject

__all__ = ["Dose", "discoveries", "dose_response"]


class Dose(NamedTuple):
    """The effect of the first n units of an order, for each n asked for.

    Attributes:
      sizes: `[S]`, numbers of units.
      ratio: `[S, concepts]`, what is left of each concept.
      ratio_low: `[S, concepts]`, lower end of its 95 % interval.
      ratio_high: `[S, concepts]`, upper end.
      control_low: `[S, concepts]`, the lowest ratio of random sets of each size.
      control_high: `[S, concepts]`, the highest.
      half: `[concepts]`, the fewest units of those asked for that leave half of a concept or less;
        0 where none do.
      effects: `Effects`: all that was measured, the sets in the order of sizes.
    """

    sizes: np.ndarray
    ratio: np.ndarray
    ratio_low: np.ndarray
    ratio_high: np.ndarray
    control_low: np.ndarray
    control_high: np.ndarray
    half: np.ndarray
    effects: Effects

    def __repr__(self) -> str:
        return display.summary(self)


def dose_response(
    generator: Subject,
    *,
    layer: str,
    order: Sequence[int] | np.ndarray,
    sizes: Sequence[int] = (1, 2, 4, 8, 16),
    controls: int = 10,
    **options: Any,
) -> Dose:
    """Sets the first 1, 2, 4, ... units of an order, beside random sets as large.

    Args:
      generator, layer: see `unit_effects`.
      order: units, the most important first, as `ranked` and `ace` give them.
      sizes: how many of them, rising.
      controls: random sets of each size, at least 1.
      **options: of `unit_effects`: concepts, samples, key, value, where, ....
    Raises:
      ValueError: if a size is not in 1 to the length of the order, or as `unit_effects`.
    """
    units = [int(u) for u in order]
    wanted = [int(n) for n in sizes]
    if (
        not wanted
        or sorted(set(wanted)) != wanted
        or not 1 <= wanted[0] <= wanted[-1] <= len(units)
    ):
        raise ValueError(f"sizes must rise within 1 to {len(units)}, got {list(sizes)}")
    if controls < 1:
        raise ValueError(f"controls must be at least 1, got {controls}")
    found = unit_effects(
        generator, layer=layer, units=[units[:n] for n in wanted], controls=controls, **options
    )
    # Concepts that do not occur have no ratio; they stay NaN.
    less = found.ratio <= 0.5
    # argmax of booleans is the first True, so the fewest units; 0 where there is none.
    half = np.where(less.any(0), np.array(wanted)[less.argmax(0)], 0)
    return Dose(
        sizes=np.array(wanted),
        ratio=found.ratio,
        ratio_low=found.ratio_low,
        ratio_high=found.ratio_high,
        control_low=found.control_ratio.min(1),
        control_high=found.control_ratio.max(1),
        half=half,
        effects=found,
    )
