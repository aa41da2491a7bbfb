"""What does this image classifier need to see? Masks by perturbation, in JAX."""

from perturb import (
    adapters,
    attribution,
    defence,
    embedded,
    evidence,
    guided,
    internals,
    masks,
    metrics,
    operators,
    plots,
    progress,
    rewards,
    scores,
    solver,
    stability,
    statistics,
    taps,
    units,
)
from perturb._numerics import xla as _xla
from perturb._version import __version__
from perturb.embedded import Demo, demo
from perturb.geometry import Geometry, central, short_side, squash
from perturb.importance import importance_map
from perturb.loading import load_images
from perturb.methods import (
    ChannelResult,
    MinimalRegion,
    Result,
    Smoothness,
    SufficientRegion,
    channels,
    class_statistics,
    extremal,
    meaningful,
    minimal_region,
    stream,
    sufficient_region,
)
from perturb.model import Model, check_inputs, check_model, check_parity
from perturb.nets import load_model

_xla.switch_off_wrong_fusions()

__all__ = [
    "ChannelResult",
    "Demo",
    "Geometry",
    "MinimalRegion",
    "Model",
    "Result",
    "Smoothness",
    "SufficientRegion",
    "__version__",
    "adapters",
    "attribution",
    "central",
    "channels",
    "check_inputs",
    "check_model",
    "check_parity",
    "class_statistics",
    "defence",
    "demo",
    "embedded",
    "evidence",
    "extremal",
    "guided",
    "importance_map",
    "internals",
    "load_images",
    "load_model",
    "masks",
    "meaningful",
    "metrics",
    "minimal_region",
    "operators",
    "plots",
    "progress",
    "rewards",
    "scores",
    "short_side",
    "solver",
    "squash",
    "stability",
    "statistics",
    "stream",
    "sufficient_region",
    "taps",
    "units",
]
