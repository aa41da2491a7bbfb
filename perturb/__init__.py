"""What does this image classifier need to see? Masks by perturbation, in JAX."""

from perturb.geometry import Geometry, central, short_side, squash
from perturb.model import Model, check_model, check_parity
from perturb.nets import load_model

__all__ = [
    "Geometry",
    "Model",
    "central",
    "check_model",
    "check_parity",
    "load_model",
    "short_side",
    "squash",
]
