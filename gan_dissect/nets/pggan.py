"""The progressively grown generator, `Karras et al. 2017 <https://arxiv.org/abs/1710.10196>`_, at
its final size.

Written from the paper, in the names of the PyTorch port that GAN dissection used
(`layer1.conv.weight`, `layer1.wscale.b`, `output_256x256.conv.weight`). No published weights were
at hand: it is checked block by block against sums written out, not against the original's pictures.
"""

from __future__ import annotations

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gan_dissect.generator import Generator, Normal
from gan_dissect.nets._layers import variables_of
from gan_dissect.nets.dcgan import ToImage
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import Variables, Weights

__all__ = ["pggan"]

# Sizes of random weights: latent, widths at 4, 8, 16 px.
_DEFAULT = (32, (32, 32, 16))


class Block(nn.Module):
    """Normalise each pixel over its channels, enlarge, convolve, scale, add, and rectify.

    Attributes:
      features: output channels.
      kernel: size; padding: rows added around.
      double: repeat each pixel in both directions first.
      gain: the convolution is scaled by `gain / (kernel sqrt(input channels))` at run time, so that
        all weights learn at one rate (the paper's section 4.1).
      rectify: leaky, slope .2.
    """

    features: int
    kernel: int
    padding: int
    double: bool = False
    gain: float = math.sqrt(2)
    rectify: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The paper's section 4.2, with its epsilon; the first block so normalises the latent too.
        x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-8)
        if self.double:
            x = x.repeat(2, 1).repeat(2, 2)
        scale = self.gain / (self.kernel * math.sqrt(x.shape[-1]))
        size, pad = (self.kernel, self.kernel), self.padding
        x = nn.Conv(self.features, size, padding=pad, use_bias=False, name="conv")(x) * scale
        x = x + _Shift(name="wscale")(x)
        return jax.nn.leaky_relu(x, 0.2) if self.rectify else x


class _Shift(nn.Module):
    """The bias `[1, 1, 1, C]` of activations `[B, h, w, C]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.param("b", nn.initializers.zeros, (x.shape[-1],)).reshape(1, 1, 1, -1)


class Progressive(nn.Module):
    """Latents `[B, D]` to images `[B, H, H, channels]` in [-1, 1]."""

    widths: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = z.reshape(len(z), 1, 1, -1)
        for i, width in enumerate(self.widths):
            a, b = f"layer{2 * i + 1}", f"layer{2 * i + 2}"
            # From one pixel to 4 x 4: with three rows around it, a convolution of 4 px is a
            # dense layer.
            kernel, padding = (3, 1) if i else (4, 3)
            x = taps.tag(Block(width, kernel, padding, double=i > 0, name=a)(x), a)
            x = taps.tag(Block(width, 3, 1, name=b)(x), b)
        side = 4 * 2 ** (len(self.widths) - 1)
        last = Block(self.channels, 1, 0, gain=1.0, rectify=False, name=f"output_{side}x{side}")
        return jnp.clip(last(x), -1, 1)


class _Apply(ToImage):
    """The image, and what the first convolution makes of the latent, for SeFa."""

    def first_weight(self, variables: Variables) -> jax.Array:
        """Returns `[D, 16 widths]`: the first layer behind the normalisation of the latent."""
        kernel = variables["params"]["layer1"]["conv"]["kernel"]  # 4, 4, D, width
        found: jax.Array = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
        return found


def pggan(
    *, weights: Weights = None, key: jax.Array | None = None, name: str = "pggan"
) -> Generator:
    """Returns a progressively grown generator: `image` `[B, H, H, C]`, z standard normal.

    Sizes and number of layers are read from the file. Layers are `layer1`, `layer2` (4 px),
    `layer3`, `layer4` (8 px), ...; the published dissection is of `layer4`.

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones of 16 px; consumed.
      name: for records.
    Raises:
      ValueError: if the weights do not fit.
    """
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    size, widths = _DEFAULT
    channels = 3
    if tensors is not None:
        numbers = {
            int(m[1]): t.shape
            for n, t in tensors.items()
            if t.ndim == 4 and (m := re.fullmatch(r"layer(\d+)\.conv\.weight", n))
        }
        outs = [
            t.shape for n, t in tensors.items() if re.fullmatch(r"output_\d+x\d+\.conv\.weight", n)
        ]
        if not numbers or not outs:
            raise ValueError(
                "weights do not fit pggan: no tensors layer1.conv.weight and "
                f"output_RxR.conv.weight; the file has {', '.join(sorted(tensors)[:3]) or 'none'}"
            )
        count = -(-max(numbers) // 2)
        # The first layer of each resolution tells its width; what is missing, `fill` says.
        widths = tuple(numbers.get(2 * i + 1, numbers[min(numbers)])[0] for i in range(count))
        size, channels = numbers.get(1, (0, widths[0]))[1], outs[0][0]
    module = Progressive(widths, channels)
    batch = jax.ShapeDtypeStruct((2, size), jnp.float32)
    template = jax.eval_shape(module.init, jax.random.key(0), batch)
    variables = variables_of(name, module, batch, tensors, key, slots=weights_lib.slots(template))
    return Generator(_Apply(module), variables, latent=Normal((size,)), name=name)
