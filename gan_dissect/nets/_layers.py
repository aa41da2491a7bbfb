"""What the generators here are made of: transposed convolutions under the names of their files.

PyTorch's `ConvTranspose2d` scatters a kernel:
`out[y s + i, x s + j] += weight[c, o, i, j] in[c, y, x]`. That is the correlation of the stretched
input with the kernel turned around, and so it is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from perturb import taps
from perturb import weights as weights_lib
from perturb.types import PyTree

__all__ = [
    "CONV_TRANSPOSE",
    "ConvTranspose",
    "Deconvolutions",
    "Norm",
    "Stage",
    "of_class",
    "variables_of",
]

# (I, O, kh, kw) -> HWIO, turned by 180 degrees.
CONV_TRANSPOSE = weights_lib.Layout(
    lambda w: w.transpose(2, 3, 0, 1)[::-1, ::-1], lambda s: (s[2], s[3], s[0], s[1])
)
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "selu": jax.nn.selu,
}


class ConvTranspose(nn.Module):
    """PyTorch's transposed convolution: `[B, h, w, I]` to `[B, (h - 1) stride + k - crop, ..., O]`.

    Attributes:
      features: output channels O.
      kernel: size k of the square kernel.
      stride: of the output.
      crop: rows cut off at the top, bottom, left and right; PyTorch's padding p is `(p, p, p, p)`.
      bias: whether there is one.
    """

    features: int
    kernel: int
    stride: int
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = _scatter(x, kernel) if self.stride == 1 else _phases(x, kernel, self.stride)
        top, bottom, left, right = self.crop
        y = y[:, top : y.shape[1] - bottom, left : y.shape[2] - right]
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).reshape(1, 1, 1, -1)
        return y


def _scatter(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stride 1 as one product and shifted sums: on the CPU thirty times faster than as a
    convolution.
    """
    size, (b, h, w, _) = len(kernel), x.shape
    parts = jnp.einsum("bhwc,ijco->ijbhwo", x, kernel[::-1, ::-1], precision=lax.Precision.HIGHEST)
    y = jnp.zeros((b, h + size - 1, w + size - 1, kernel.shape[-1]), x.dtype)
    for i in range(size):
        for j in range(size):
            ends = [(0, 0, 0), (i, size - 1 - i, 0), (j, size - 1 - j, 0), (0, 0, 0)]
            y += lax.pad(parts[i, j], jnp.zeros((), x.dtype), ends)
    return y


def _phases(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Every `stride`-th row and column of the output as channels of one plain convolution, then
    laid out.

    With few channels in or out it is up to ten times faster on the CPU than a stretched input.
    """
    size, (b, h, w, into), features = len(kernel), x.shape, kernel.shape[-1]
    taps_each = -(-size // stride)
    # The kernel as PyTorch scatters it again, filled up with zeros to whole phases.
    spare = taps_each * stride - size
    full = jnp.pad(kernel[::-1, ::-1], ((0, spare), (0, spare), (0, 0), (0, 0)))
    # out[stride q + r] = sum over a of x[q - a] full[stride a + r]
    split = full.reshape(taps_each, stride, taps_each, stride, into, features)[::-1, :, ::-1]
    phases = split.transpose(0, 2, 4, 1, 3, 5).reshape(taps_each, taps_each, into, -1)
    y = lax.conv_general_dilated(
        x, phases, (1, 1), [(taps_each - 1,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # The phases lie in the channels: they become the rows and columns between.
    y = y.reshape(b, *y.shape[1:3], stride, stride, features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(b, stride * (h + taps_each - 1), -1, features)
    # What the zeros of the filled-up kernel drew beyond the end is cut off.
    return y[:, : stride * (h - 1) + size, : stride * (w - 1) + size]


class Norm(nn.Module):
    """Batch normalisation over all but the last axis, with stored statistics or the batch's own.

    Attributes:
      epsilon: added to the variance. PyTorch-GAN's `BatchNorm2d(128, 0.8)` means an epsilon of .8.
      batch: use mean and biased variance of the batch at hand; then there is nothing stored.
    """

    epsilon: float = 1e-5
    batch: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        if self.batch:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
        else:
            mean = self.variable("batch_stats", "mean", jnp.zeros, size).value
            var = self.variable("batch_stats", "var", jnp.ones, size).value
        lift = (1,) * (x.ndim - 1) + size
        factor = scale * lax.rsqrt(var + self.epsilon)
        return (x - mean.reshape(lift)) * factor.reshape(lift) + bias.reshape(lift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A transposed convolution, its norm and its activation, by the names that layers get.

    Attributes:
      conv, norm, out: names; no norm if empty.
      activation: of `ACTIVATIONS`.
      features, kernel, stride, crop, bias: see `ConvTranspose`.
      epsilon, batch: see `Norm`.
    """

    conv: str
    out: str
    norm: str = ""
    activation: str = "relu"
    features: int
    kernel: int
    stride: int
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    bias: bool = False
    epsilon: float = 1e-5
    batch: bool = False


class Deconvolutions(nn.Module):
    """A chain of stages: `[B, h, w, C]`, or latents `[B, D]` as 1x1 maps, to `[B, H, W,
    features]`.
    """

    stages: tuple[Stage, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), 1, 1, -1) if x.ndim == 2 else x
        for s in self.stages:
            x = ConvTranspose(s.features, s.kernel, s.stride, s.crop, s.bias, name=s.conv)(x)
            if s.norm:
                x = Norm(s.epsilon, s.batch, name=s.norm)(x)
            x = taps.tag(ACTIVATIONS[s.activation](x), s.out)
        return x


def of_class(table: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the rows of a table `[classes, D]`; NaN for a class that does not exist."""
    # Plain indexing would draw another class: the last for one that is too large, and one counted
    # from the end for one below 0.
    return table.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def variables_of(
    net: str,
    module: nn.Module,
    latents: jax.ShapeDtypeStruct,
    tensors: weights_lib.Tensors | None,
    key: jax.Array | None,
    *,
    slots: Mapping[str, weights_lib.Slot] | None = None,
    ignore: tuple[str, ...] = (),
) -> PyTree:
    """Returns the variables of `module` from `tensors`, each used once, or drawn from `key`.

    Args:
      net: its name, for errors.
      module: takes `latents`.
      latents: shape of a batch.
      tensors: `{name in the file: array}`, or None.
      key: for random weights where there are no tensors; consumed.
      slots: where tensors go; if None, by the names of the modules.
      ignore: patterns of names that the file may have in excess.
    """
    weights_lib.one_source(net, tensors, key)
    # Names and shapes without computing initial weights, of which none is kept.
    template = jax.eval_shape(module.init, jax.random.key(0), latents)
    if key is not None:
        return weights_lib.draw(template, key)
    if slots is None:
        slots = {
            # Every convolution of these nets is a transposed one; others give their slots.
            name: slot._replace(layout=CONV_TRANSPOSE) if slot.layout is weights_lib.CONV else slot
            for name, slot in weights_lib.slots(template).items()
        }
    return weights_lib.fill(
        template, tensors or {}, slots, net=net, ignore=(*weights_lib.IGNORED, *ignore)
    )
