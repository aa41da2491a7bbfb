"""What does this image classifier need to see? Masks by perturbation, in JAX."""

from perturb import masks, operators, rewards, solver, taps
from perturb.geometry import Geometry, central, short_side, squash
from perturb.methods import Result, extremal
from perturb.model import Model, check_model, check_parity
from perturb.nets import load_model

__all__ = [
    "Geometry",
    "Model",
    "Result",
    "central",
    "check_model",
    "check_parity",
    "extremal",
    "load_model",
    "masks",
    "operators",
    "rewards",
    "short_side",
    "solver",
    "squash",
    "taps",
]
