"""The documented import path of `perturb.units.interventions`."""

from perturb.units.interventions import (
    Edit,
    Effects,
    as_sets,
    edit_units,
    random_sets,
    set_units,
    unit_effects,
)

__all__ = ["Edit", "Effects", "as_sets", "edit_units", "random_sets", "set_units", "unit_effects"]
