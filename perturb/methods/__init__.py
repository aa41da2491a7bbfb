"""The published methods, thin: each is a choice of the parts."""

from perturb.methods._run import Result
from perturb.methods.extremal import extremal

__all__ = ["Result", "extremal"]
