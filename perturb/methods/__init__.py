"""The published methods, thin: each is a choice of the parts."""

from perturb.methods._run import Result
from perturb.methods.extremal import extremal
from perturb.methods.meaningful import meaningful, minimal_region

__all__ = ["Result", "extremal", "meaningful", "minimal_region"]
