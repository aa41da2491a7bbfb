"""DCGANs of other frameworks and habits: nearest-neighbour upsampling in PyTorch, and Keras.

Each is read from its own names and layouts; sizes come from the file. What is easily got wrong: in
PyTorch-GAN's code `BatchNorm2d(128, 0.8)` sets an epsilon of .8, not a momentum; and Keras crops
transposed convolutions more at the end than at the beginning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_dissect.generator import Generator, Normal
from gan_dissect.nets._layers import ACTIVATIONS, Deconvolutions, Norm, Stage, variables_of
from gan_dissect.nets.dcgan import ToImage
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import PyTree, Record, Weights

__all__ = ["keras_dcgan", "pytorch_gan"]

# (kh, kw, O, I) -> HWIO, turned by 180 degrees.
_KERAS_TRANSPOSE = weights_lib.Layout(
    lambda w: w.transpose(0, 1, 3, 2)[::-1, ::-1], lambda s: (s[0], s[1], s[3], s[2])
)


class _Upsampled(nn.Module):
    """PyTorch-GAN's generator: dense, then twice nearest-neighbour upsampling and a 3x3
    convolution.
    """

    width: int
    narrow: int
    channels: int
    side: int
    epsilon: float

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.Dense(self.width * self.side**2, name="l1.0")(z)
        # PyTorch lays the values of a dense layer out with the channels first.
        x = x.reshape(len(x), self.width, self.side, self.side).transpose(0, 2, 3, 1)
        # The first norm is given no epsilon; the others are given .8.
        x = taps.tag(Norm(1e-5, name="conv_blocks.0")(x), "conv_blocks.0")
        for conv, features in ((2, self.width), (6, self.narrow)):
            x = x.repeat(2, 1).repeat(2, 2)
            x = nn.Conv(features, (3, 3), padding=1, name=f"conv_blocks.{conv}")(x)
            x = Norm(self.epsilon, name=f"conv_blocks.{conv + 1}")(x)
            x = taps.tag(jax.nn.leaky_relu(x, 0.2), f"conv_blocks.{conv + 2}")
        x = nn.Conv(self.channels, (3, 3), padding=1, name="conv_blocks.9")(x)
        return taps.tag(jnp.tanh(x), "conv_blocks.10")


def pytorch_gan(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    epsilon: float = 0.8,
    name: str = "pytorch_gan",
) -> Generator:
    """Returns the DCGAN of PyTorch-GAN: `image` `[B, 4 s, 4 s, C]`, z standard normal.

    Layers are named as in the file, `conv_blocks.4` and `conv_blocks.8` behind the activations.

    Args:
      weights: safetensors file, or `{name: array}`: `l1.0`, `conv_blocks.{0,2,3,6,7,9}`.
      key: instead of weights, for random ones of 32x32 grey images; consumed.
      epsilon: of the second and third norm.
      name: for records.
    Raises:
      ValueError: if the weights do not fit.
    """
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    found = tensors or {}
    size = weights_lib.width(found, ("l1.0.weight", 1), default=100)
    width = weights_lib.width(
        found, ("conv_blocks.0.weight", 0), ("conv_blocks.2.weight", 1), default=128
    )
    narrow = weights_lib.width(
        found, ("conv_blocks.7.weight", 0), ("conv_blocks.6.weight", 0), default=64
    )
    channels = weights_lib.width(found, ("conv_blocks.9.weight", 0), default=1)
    # The side is not in the file; it follows from the values that the dense layer gives.
    flat = weights_lib.width(found, ("l1.0.weight", 0), ("l1.0.bias", 0), default=width * 64)
    side = math.isqrt(flat // width)
    if width * side**2 != flat:
        raise ValueError(
            f"weights do not fit {name}: l1.0 gives {flat} values, no square of {width} channels"
        )
    module = _Upsampled(width, narrow, channels, side, epsilon)
    batch = jax.ShapeDtypeStruct((2, size), jnp.float32)
    variables = _named(name, module, batch, tensors, key)
    return Generator(ToImage(module), variables, latent=Normal((size,)), name=name)


def _named(
    name: str,
    module: nn.Module,
    batch: jax.ShapeDtypeStruct,
    tensors: PyTree,
    key: jax.Array | None,
) -> PyTree:
    """The variables of plain convolutions, which `variables_of` would take for transposed ones."""
    template = jax.eval_shape(module.init, jax.random.key(0), batch)
    return variables_of(name, module, batch, tensors, key, slots=weights_lib.slots(template))


class _Keras(nn.Module):
    side: int
    width: int
    norm: str
    activation: str
    epsilon: float
    stages: tuple[Stage, ...]
    bias: bool

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.Dense(self.side**2 * self.width, use_bias=self.bias, name="dense")(z)
        # "dense NAME" is a norm before the reshape, NAME one behind it; see `keras_dcgan`.
        if self.norm and self.norm.startswith("dense "):
            x = Norm(self.epsilon, name=self.norm.removeprefix("dense "))(x)
        x = x.reshape(len(x), self.side, self.side, self.width)
        if self.norm and not self.norm.startswith("dense "):
            x = Norm(self.epsilon, name=self.norm)(x)
        x = taps.tag(ACTIVATIONS[self.activation](x), "dense:out")
        return Deconvolutions(self.stages, name="stack")(x)


def keras_dcgan(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    strides: Sequence[int] | None = None,
    activation: str = "relu",
    last: str = "tanh",
    epsilon: float = 1e-3,
    name: str = "keras_dcgan",
) -> Generator:
    """Returns a DCGAN of Keras layers: dense, reshape, transposed convolutions with "same" padding.

    Tensors are named by layer and weight: `dense/kernel`, `conv2d_transpose/kernel`,
    `conv2d_transpose_1/kernel`, `batch_normalization/gamma`, .... Norms follow the dense layer and
    every convolution but the last, or the latter only. Layers are named `dense:out`,
    `conv2d_transpose:out`, ....

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones of 28x28 digits; consumed.
      strides: one a transposed convolution; None is 2 for each.
      activation: of all but the last; one of relu, leaky_relu (.2), selu, tanh, sigmoid.
      last: of the last: tanh, mapped from [-1, 1] to [0, 1], or sigmoid.
      epsilon: of the norms; Keras's own is .001.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or an option is out of range.
    """
    if activation not in ACTIVATIONS or last not in ("tanh", "sigmoid"):
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)} and last tanh or sigmoid, got "
            f"{activation!r}, {last!r}"
        )
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    shapes = {k: v.shape for k, v in (tensors or {}).items()}
    if not shapes:
        shapes = {
            "dense/kernel": (100, 6272),
            "dense/bias": (6272,),
            "conv2d_transpose/kernel": (5, 5, 64, 128),
            "conv2d_transpose/bias": (64,),
            "conv2d_transpose_1/kernel": (5, 5, 1, 64),
            "conv2d_transpose_1/bias": (1,),
        }
    convs = _numbered(shapes, r"conv2d_transpose(_\d+)?/kernel")
    norms = _numbered(shapes, r"batch_normalization(_\d+)?/gamma")
    if "dense/kernel" not in shapes or not convs:
        raise ValueError(
            f"weights do not fit {name}: no tensors dense/kernel and conv2d_transpose/kernel; the "
            f"file has {', '.join(sorted(shapes)[:3]) or 'none'}"
        )
    # Numbers in Keras's names do not tell which layer a norm follows: only these counts are
    # unambiguous.
    if len(norms) not in (0, len(convs) - 1, len(convs)):
        raise ValueError(
            f"weights do not fit {name}: {len(norms)} norms for {len(convs)} convolutions; they "
            "must follow the dense layer and all convolutions but the last, or the latter only"
        )
    # A kernel does not tell its stride; 2 is what such networks have.
    given = [2] * len(convs) if strides is None else [int(s) for s in strides]
    if len(given) != len(convs):
        raise ValueError(
            f"strides must be one for each of the {len(convs)} convolutions, got {given}"
        )
    size, flat = shapes["dense/kernel"]
    width = shapes[f"{convs[0]}/kernel"][3]
    side = math.isqrt(flat // width)
    if width * side**2 != flat:
        raise ValueError(
            f"weights do not fit {name}: the dense layer gives {flat} values, no square of {width} "
            "channels"
        )
    # One norm more than inner convolutions: it belongs to the dense layer.
    first = norms[0] if len(norms) == len(convs) else ""
    # A norm behind the dense layer but before the reshape has a scale for each value.
    before = first and shapes[f"{first}/gamma"] == (flat,) != (width,)
    later = norms[1:] if first else norms
    stages = []
    for i, (conv, stride) in enumerate(zip(convs, given, strict=True)):
        kernel, _, features, _ = shapes[f"{conv}/kernel"]
        # What "same" padding cuts: an odd row goes at the end.
        over, end = max(kernel - stride, 0), i == len(convs) - 1
        crop = (over // 2, over - over // 2)
        stages.append(
            Stage(
                conv=conv,
                norm="" if end or not later else later[i],
                out=f"{conv}:out",
                activation=last if end else activation,
                features=features,
                kernel=kernel,
                stride=stride,
                crop=(*crop, *crop),
                bias=f"{conv}/bias" in shapes,
                epsilon=epsilon,
            )
        )
    module = _Keras(
        side,
        width,
        f"dense {first}" if before else first,
        activation,
        epsilon,
        tuple(stages),
        "dense/bias" in shapes,
    )
    batch = jax.ShapeDtypeStruct((2, size), jnp.float32)
    variables = variables_of(
        name, module, batch, tensors, key, slots=_keras_slots(convs, norms, first, shapes)
    )
    return Generator(ToImage(module, last == "tanh"), variables, latent=Normal((size,)), name=name)


def _keras_slots(
    convs: list[str], norms: list[str], first: str, shapes: Record
) -> dict[str, weights_lib.Slot]:
    slot = weights_lib.Slot
    # Written out, for Keras's names are not those that modules here derive.
    slots = {"dense/kernel": slot(("params", "dense", "kernel"))}
    if "dense/bias" in shapes:
        slots["dense/bias"] = slot(("params", "dense", "bias"))
    for conv in convs:
        path = ("params", "stack", conv)
        slots[f"{conv}/kernel"] = slot((*path, "kernel"), _KERAS_TRANSPOSE)
        if f"{conv}/bias" in shapes:
            slots[f"{conv}/bias"] = slot((*path, "bias"))
    for norm in norms:
        at = (norm,) if norm == first else ("stack", norm)
        for theirs, kind, ours in (
            ("gamma", "params", "scale"),
            ("beta", "params", "bias"),
            ("moving_mean", "batch_stats", "mean"),
            ("moving_variance", "batch_stats", "var"),
        ):
            slots[f"{norm}/{theirs}"] = slot((kind, *at, ours))
    return slots


def _numbered(shapes: Record, pattern: str) -> list[str]:
    """The layers whose weight matches, in the order of the numbers in their names; none is 0."""
    names = [k.split("/")[0] for k in shapes if re.fullmatch(pattern, k)]
    return sorted(names, key=lambda n: int((re.findall(r"_(\d+)$", n) or ["0"])[0]))
