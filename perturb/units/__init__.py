"""What units answer to and what they do: dissection of anything that has layers and draws its
inputs.

`dissect` finds for each unit the concept it agrees with best, from exact streaming quantiles and
counts; `unit_effects` switches units off and on and compares with random controls. They run on a
`Subject`.
"""

from perturb.units import concepts, counts, doses, interventions, pictures, quantiles, sampling
from perturb.units.concepts import Concepts
from perturb.units.doses import discoveries, dose_response
from perturb.units.interventions import Effects, set_units, unit_effects
from perturb.units.pictures import Pictures, random_rotations, rotated_name, units_of
from perturb.units.subject import Canvas, Subject, layers, sample
from perturb.units.table import Dissection, dissect, ranked, table

__all__ = [
    "Canvas",
    "Concepts",
    "Dissection",
    "Effects",
    "Pictures",
    "Subject",
    "concepts",
    "counts",
    "discoveries",
    "dissect",
    "dose_response",
    "doses",
    "interventions",
    "layers",
    "pictures",
    "quantiles",
    "random_rotations",
    "ranked",
    "rotated_name",
    "sample",
    "sampling",
    "set_units",
    "table",
    "unit_effects",
    "units_of",
]
