"""Models of other frameworks as a `Model`: one small function each.

A framework ends here: what leaves is `apply(variables, images)`, pure, hashable, with the
normalisation inside. Nothing but JAX is imported until an adapter is called; one whose framework is
absent says what to install.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> module, images = nn.Dense(10), jnp.ones((2, 8, 8, 3))
>>> model = from_linen(module, module.init(jax.random.key(0), images), mean=0.5, std=0.25)
>>> model(images).shape
(2, 8, 8, 10)
"""

from perturb.adapters.equinox import from_equinox
from perturb.adapters.keras import from_keras
from perturb.adapters.linen import from_linen
from perturb.adapters.nnx import from_nnx
from perturb.adapters.torch import from_torch

__all__ = ["from_equinox", "from_keras", "from_linen", "from_nnx", "from_torch"]
