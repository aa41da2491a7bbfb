"""The small generator of the embedded picture world: 20 numbers to a picture of 64 px.

Three dense layers (`mapping1` to `mapping3`) decide what is drawn. `layer1` (16 px) is made of
surfaces over the picture, one a unit, and of stamps: learned patterns of a thing, laid where the
latent says, as large as it says. Two transposed convolutions double the side, to `layer3` at 64 px,
and a 1 px convolution gives the colours. `layer1` to `layer3` are what the rectifiers let through:
there units are read and switched, and nothing reaches the picture but through each of them. Every
unit has a bias at every place, not one in all: patterns that stand still are learned at once, and a
unit needs to say only where they show. Nothing couples the pictures of a batch.

Radford, Metz, Chintala, "Unsupervised representation learning with deep convolutional generative
adversarial networks", 2016; the stamps stand where their first dense layer draws 4 x 4 places one
by one: a constant input that the latent moves and scales, as in Karras et al., "Alias-free
generative adversarial networks", 2021. A transposed convolution with a 4 px kernel and stride 2 is
computed as four 2 px convolutions, one a phase, side by side: the same numbers without multiplying
by stuffed zeros.

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

__all__ = [
    "LATENT",
    "STAMPED",
    "WIDTHS",
    "DemoGenerator",
    "Doubling",
    "Stamps",
    "Surfaces",
    "apply",
    "demo",
]

LATENT = 20
MAPPING = 256
# Units of `layer1` ... `layer3`, at 16, 32 and 64 px; the first of `layer1` are stamped.
WIDTHS = (96, 72, 32)
STAMPED = 8
SIDE = 16
# Of a stamp: how many things it knows, points a side, and its reach in radii of the thing.
THINGS, POINTS, REACH = 4, 24, 1.4


class Surfaces(nn.Module):
    """Each unit a surface `a + b u + c v + d (u² + v²)` over the places: `[B, I]` to
    `[B, 16, 16, O]`.

    `u` and `v` run from -1 to 1; `a`, `b`, `c` and `d` are linear in the input.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the surfaces, and the bias of every place."""
        u, v = np.meshgrid(_line(), _line())
        # 0.7 is about the mean of the squares over the places: to bend a surface hardly lifts it.
        terms = np.stack([np.ones_like(u), u, v, u * u + v * v - 0.7], -1)
        shape = (x.shape[-1], terms.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(0, 2, 1), shape)
        coefficients = jnp.einsum("bi,ikc->bkc", x, kernel)
        bias = self.param("bias", nn.initializers.zeros, (SIDE, SIDE, self.features))
        return jnp.einsum("bkc,hwk->bhwc", coefficients, terms) + bias


class Stamps(nn.Module):
    """Each unit a pattern, moved and scaled: place and size `[B, 3]`, kinds `[B, 4]` to
    `[B, 16, 16, O]`.

    Place is `(u, v)` of the middle, from -1 to 1, size the logarithm of the radius in the same
    unit; kinds are the shares of the patterns, which are read between their points linearly. There
    is nothing beyond their reach.
    """

    features: int

    @nn.compact
    def __call__(self, place: jax.Array, kinds: jax.Array) -> jax.Array:
        """Returns the patterns as they lie."""
        shape = (THINGS, POINTS * POINTS, self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.1), shape)
        pattern = jnp.einsum("bt,tpc->bpc", kinds, kernel)
        pattern = pattern.reshape(-1, POINTS, POINTS, self.features)
        points = np.linspace(-REACH, REACH, POINTS, dtype=np.float32)
        apart = 2 * REACH / (POINTS - 1)

        def weights(axis: int) -> jax.Array:
            at = (_line() - place[:, axis, None]) * jnp.exp(-place[:, 2, None])
            return nn.relu(1 - jnp.abs(at[..., None] - points) / apart)

        return jnp.einsum("bhi,bwj,bijc->bhwc", weights(1), weights(0), pattern, optimize=True)


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
        place = taps.tag(nn.Dense(3, name="place")(x), "place")
        logits = taps.tag(nn.Dense(THINGS, name="kinds")(x), "logits")
        stamps = Stamps(STAMPED, name="stamps")(place, nn.softmax(logits))
        x = Surfaces(WIDTHS[0], name="up1")(x)
        x = jnp.concatenate([x[..., :STAMPED] + stamps, x[..., STAMPED:]], -1)
        x = taps.tag(nn.relu(x), "layer1")
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
        `[out, in]`, those of surfaces, stamps and doublings as they are.
      key: instead of weights, for random ones; consumed.
    Raises:
      ValueError: if weights and key are both given or both absent, or the weights do not fit.
    """
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    variables = _layers.variables_of(
        "demo", DemoGenerator(), jax.ShapeDtypeStruct((2, LATENT), jnp.float32), tensors, key
    )
    return Generator(apply, variables, Normal((LATENT,)), name="demo")


def _line() -> np.ndarray:
    """The middles of the places, from -1 to 1."""
    return (np.arange(SIDE, dtype=np.float32) + 0.5) * (2 / SIDE) - 1
