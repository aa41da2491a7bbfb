"""The small generator of the embedded picture world: 20 numbers to a picture of 64 px, in DCGAN's layers.

Two dense layers (`mapping1`, `mapping2`), a third onto 4 x 4 places, then four transposed convolutions
that double the side. `layer1` (4 px) to `layer4` (32 px) are what the rectifiers let through: there
units are read and switched. Nothing couples the pictures of a batch.

Radford, Metz, Chintala, "Unsupervised representation learning with deep convolutional generative
adversarial networks", 2016. A transposed convolution with a 4 px kernel and stride 2 is computed as four
2 px convolutions, one a phase, side by side: the same numbers without multiplying by stuffed zeros.

>>> import jax
>>> G = demo(key=jax.random.key(0))
>>> G(jax.numpy.zeros((2, 20)))["image"].shape
(2, 64, 64, 3)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gan_dissect.generator import Generator, Normal
from gan_dissect.nets import _layers
from perturb import taps
from perturb.nets import _weights

__all__ = ["LATENT", "WIDTHS", "DemoGenerator", "Doubling", "apply", "demo"]

LATENT = 20
MAPPING = 192
# Units of `layer1` ... `layer4`, at 4, 8, 16 and 32 px.
WIDTHS = (128, 96, 64, 40)


class Doubling(nn.Module):
    """Transposed convolution, kernel 4, stride 2, crop 1: `[B, h, w, I]` to `[B, 2h, 2w, O]`.

    The kernel is `[2, 2, I, 2, 2, O]`: taps of the low resolution, then the phase of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (2, 2, x.shape[-1], 2, 2, self.features)
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", (0, 1, 2), (3, 4, 5))
        kernel = self.param("kernel", init, shape).reshape(2, 2, x.shape[-1], -1)
        # Every phase sees the two nearest rows and columns of the low resolution.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = lax.optimization_barrier(y)
        batch, height, width = y.shape[0], y.shape[1] - 1, y.shape[2] - 1
        y = y.reshape(*y.shape[:3], 2, 2, self.features)
        rows = [
            jnp.stack([y[:, a : a + height, b : b + width, a, b] for b in (0, 1)], 3)
            for a in (0, 1)
        ]
        y = jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, self.features)
        y = lax.optimization_barrier(y)
        return y + self.param("bias", nn.initializers.zeros, (self.features,))


class DemoGenerator(nn.Module):
    """Latents `[B, 20]` to images `[B, 64, 64, 3]` in [0, 1]."""

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Returns the images."""
        init = nn.initializers.he_normal()
        x = latents
        for i in (1, 2):
            x = taps.tag(
                nn.relu(nn.Dense(MAPPING, kernel_init=init, name=f"map{i}")(x)), f"mapping{i}"
            )
        x = nn.Dense(16 * WIDTHS[0], kernel_init=init, name="up1")(x)
        x = taps.tag(nn.relu(x.reshape(len(x), 4, 4, WIDTHS[0])), "layer1")
        for i, width in enumerate(WIDTHS[1:], 2):
            x = taps.tag(nn.relu(Doubling(width, name=f"up{i}")(x)), f"layer{i}")
        return nn.sigmoid(2 * Doubling(3, name="rgb")(x))


def apply(variables: Any, latents: jax.Array) -> dict[str, jax.Array]:
    """Returns `image` `[B, 64, 64, 3]` in [0, 1]."""
    image: jax.Array = DemoGenerator().apply(variables, latents)  # type: ignore[assignment]
    return {"image": image}


def demo(
    *,
    weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> Generator:
    """Returns the generator of the picture world.

    Args:
      weights: a safetensors file, or its tensors: `map1.weight`, `map1.bias`, ..., dense kernels
        `[out, in]`, those of the doublings as they are.
      key: instead of weights, for random ones; consumed.
    Raises:
      ValueError: if weights and key are both given or both absent, or the weights do not fit.
    """
    tensors = None if weights is None else _weights.read_tensors(weights)
    variables = _layers.variables_of(
        "demo", DemoGenerator(), jax.ShapeDtypeStruct((2, LATENT), jnp.float32), tensors, key
    )
    return Generator(apply, variables, Normal((LATENT,)), name="demo")
