"""What do this generator's units and latent directions do? GAN dissection in JAX."""

from gan_dissect import concepts, counts, quantiles
from gan_dissect.concepts import Concepts
from gan_dissect.generator import (
    Canvas,
    Generator,
    Normal,
    Uniform,
    check_generator,
    layers,
    sample,
)
from gan_dissect.interventions import Effects, set_units, unit_effects
from gan_dissect.nets import load_generator
from gan_dissect.units import Dissection, dissect, ranked, table

__all__ = [
    "Canvas",
    "Concepts",
    "Dissection",
    "Effects",
    "Generator",
    "Normal",
    "Uniform",
    "check_generator",
    "concepts",
    "counts",
    "dissect",
    "layers",
    "load_generator",
    "quantiles",
    "ranked",
    "sample",
    "set_units",
    "table",
    "unit_effects",
]
