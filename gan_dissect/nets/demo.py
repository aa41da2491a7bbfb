"""The small generator of the embedded picture world: 20 numbers to a picture of 64 px.

Three dense layers (`mapping1` to `mapping3`); their result tilts and bends a surface over the
picture for every unit of `layer1` (8 px); three transposed convolutions double the side, to
`layer4` at 64 px, and a 1 px convolution gives the colours. `layer1` to `layer4` are what the
rectifiers let through: there units are read and switched, and nothing reaches the picture but
through each of them. Every unit of `layer1` to `layer4` has a bias at every place, not one in all:
patterns that stand still are learned at once, and a unit needs to say only where they show. Nothing
couples the pictures of a batch.

Radford, Metz, Chintala, "Unsupervised representation learning with deep convolutional generative
adversarial networks", 2016; the surfaces stand where their first dense layer draws 4 x 4 places one
by one: where a thing stands is then a number, of any fraction of a place. A transposed convolution
with a 4 px kernel and stride 2 is computed as four 2 px convolutions, one a phase, side by side:
the same numbers without multiplying by stuffed zeros.

>>> import jax
>>> G = demo(key=jax.random.key(0))
>>> G(jax.numpy.zeros((2, 20)))["image"].shape
(2, 64, 64, 3)
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gan_dissect.generator import Generator, Normal
from gan_dissect.nets import _layers
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import Variables, Weights

__all__ = ["LATENT", "WIDTHS", "DemoGenerator", "Doubling", "Surfaces", "apply", "demo"]

LATENT = 20
MAPPING = 256
# Units of `layer1` ... `layer4`, at 8, 16, 32 and 64 px.
WIDTHS = (128, 80, 48, 20)
SIDE = 8


class Surfaces(nn.Module):
    """Each unit a surface `a + b u + c v + d (u² + v²)` over the places: `[B, I]` to
    `[B, 8, 8, O]`.

    `u` and `v` run from -1 to 1; `a`, `b`, `c` and `d` are linear in the input. Rectified, a
    surface is a half plane or a round spot, at any place and of any size.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the surfaces, and the bias of every place."""
        line = (np.arange(SIDE, dtype=np.float32) + 0.5) * (2 / SIDE) - 1
        u, v = np.meshgrid(line, line)
        # 0.7 is about the mean of the squares over the places: to bend a surface hardly lifts it.
        terms = np.stack([np.ones_like(u), u, v, u * u + v * v - 0.7], -1)
        shape = (x.shape[-1], terms.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(0, 2, 1), shape)
        coefficients = jnp.einsum("bi,ikc->bkc", x, kernel)
        bias = self.param("bias", nn.initializers.zeros, (SIDE, SIDE, self.features))
        return jnp.einsum("bkc,hwk->bhwc", coefficients, terms) + bias


class Doubling(nn.Module):
    """Transposed convolution, kernel 4, stride 2, crop 1: `[B, h, w, I]` to `[B, 2h, 2w, O]`.

    The kernel is `[2, 2, I, 2, 2, O]`: taps of the low resolution, then the phase of the output.
    The bias is `[2h, 2w, O]`.
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
        found: jax.Array = y + self.param("bias", nn.initializers.zeros, y.shape[1:])
        return found


class DemoGenerator(nn.Module):
    """Latents `[B, 20]` to images `[B, 64, 64, 3]` in [0, 1]."""

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Returns the images."""
        init = nn.initializers.he_normal()
        x = latents
        for i in (1, 2, 3):
            x = taps.tag(
                nn.relu(nn.Dense(MAPPING, kernel_init=init, name=f"map{i}")(x)), f"mapping{i}"
            )
        x = taps.tag(nn.relu(Surfaces(WIDTHS[0], name="up1")(x)), "layer1")
        for i, width in enumerate(WIDTHS[1:], 2):
            x = taps.tag(nn.relu(Doubling(width, name=f"up{i}")(x)), f"layer{i}")
        return nn.sigmoid(2 * nn.Dense(3, name="rgb")(x))


def apply(variables: Variables, latents: jax.Array) -> dict[str, jax.Array]:
    """Returns `image` `[B, 64, 64, 3]` in [0, 1]."""
    image: jax.Array = DemoGenerator().apply(variables, latents)  # type: ignore[assignment]
    return {"image": image}


def demo(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
) -> Generator:
    """Returns the generator of the picture world.

    Args:
      weights: a safetensors file, or its tensors: `map1.weight`, `map1.bias`, ..., dense kernels
        `[out, in]`, those of surfaces and doublings as they are.
      key: instead of weights, for random ones; consumed.
    Raises:
      ValueError: if weights and key are both given or both absent, or the weights do not fit.
    """
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    variables = _layers.variables_of(
        "demo", DemoGenerator(), jax.ShapeDtypeStruct((2, LATENT), jnp.float32), tensors, key
    )
    return Generator(apply, variables, Normal((LATENT,)), name="demo")
