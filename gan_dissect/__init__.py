"""What do this generator's units and latent directions do? GAN dissection in JAX."""

from gan_dissect import (
    artifacts,
    causal,
    concepts,
    contexts,
    counts,
    directions,
    doses,
    factors,
    interventions,
    inversion,
    quantiles,
    rescoring,
    walks,
)
from gan_dissect.causal import Causal, CausalEffects, ace, causal_effects
from gan_dissect.contexts import ContextEffects, context_effects
from gan_dissect.directions import Direction, attribute_direction, project
from gan_dissect.factors import ganspace, sefa
from gan_dissect.generator import (
    Canvas,
    Generator,
    Mapped,
    Normal,
    Uniform,
    check_generator,
    layers,
    sample,
)
from gan_dissect.inversion import Edited, Inversion, edit_image, invert
from gan_dissect.nets import load_generator
from gan_dissect.rescoring import mix, move, rescore, rescore_layers
from gan_dissect.walks import calibrate, walk
from perturb.units.concepts import Concepts
from perturb.units.doses import discoveries, dose_response
from perturb.units.interventions import Effects, set_units, unit_effects
from perturb.units.table import Dissection, dissect, ranked, table

__all__ = [
    "Canvas",
    "Causal",
    "CausalEffects",
    "Concepts",
    "ContextEffects",
    "Direction",
    "Dissection",
    "Edited",
    "Effects",
    "Generator",
    "Inversion",
    "Mapped",
    "Normal",
    "Uniform",
    "ace",
    "artifacts",
    "attribute_direction",
    "calibrate",
    "causal",
    "causal_effects",
    "check_generator",
    "concepts",
    "context_effects",
    "contexts",
    "counts",
    "directions",
    "discoveries",
    "dissect",
    "dose_response",
    "doses",
    "edit_image",
    "factors",
    "ganspace",
    "interventions",
    "inversion",
    "invert",
    "layers",
    "load_generator",
    "mix",
    "move",
    "project",
    "quantiles",
    "ranked",
    "rescore",
    "rescore_layers",
    "rescoring",
    "sample",
    "sefa",
    "set_units",
    "table",
    "unit_effects",
    "walk",
    "walks",
]
