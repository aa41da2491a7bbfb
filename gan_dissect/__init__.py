"""What do this generator's units and latent directions do? GAN dissection in JAX."""

from gan_dissect.generator import (
    Canvas,
    Generator,
    Normal,
    Uniform,
    check_generator,
    layers,
    sample,
)
from gan_dissect.nets import load_generator

__all__ = [
    "Canvas",
    "Generator",
    "Normal",
    "Uniform",
    "check_generator",
    "layers",
    "load_generator",
    "sample",
]
