"""The small network of `perturb.defence`, which tells attacked pictures by their heat maps."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["HeatNet"]


class HeatNet(nn.Module):
    """Three convolutions: `[B, 32, 32, K]` and answers `[B]` to one logit "attacked" and class
    logits.

    Attributes:
      classes: number of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        for width in (16, 32, 32):
            x = nn.relu(nn.Conv(width, (3, 3), (2, 2))(x))
        # Shape matters where heat maps are all there is to see, so places are kept.
        x = jnp.concatenate([x.reshape(len(x), -1), jax.nn.one_hot(answer, self.classes)], 1)
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(x)[:, 0], nn.Dense(self.classes)(x)
