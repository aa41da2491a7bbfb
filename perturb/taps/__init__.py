"""Any value inside a model, by name: read it, edit it, split there, or swap a function on the way.

Works on any JAX function, without hooks: it is traced and cut (`perturb.taps.cut`).
"""

from perturb.taps.cut import Live, edit, names, read, split, tag
from perturb.taps.swapping import swap

__all__ = ["Live", "edit", "names", "read", "split", "swap", "tag"]
