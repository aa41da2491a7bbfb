"""The documented import path of `perturb.units.table`."""

from perturb.units.table import Dissection, dissect, ranked, table

__all__ = ["Dissection", "dissect", "ranked", "table"]
