"""What does this image classifier need to see? Masks by perturbation, in JAX."""

from perturb import taps
from perturb.geometry import Geometry, central, short_side, squash
from perturb.model import Model, check_model, check_parity

__all__ = [
    "Geometry",
    "Model",
    "central",
    "check_model",
    "check_parity",
    "short_side",
    "squash",
    "taps",
]
