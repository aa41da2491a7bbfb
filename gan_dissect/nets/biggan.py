"""BigGAN, `Brock et al. 2018 <https://arxiv.org/abs/1809.11096>`_: classes, hierarchical latents,
attention.

In the tensor names of BigGAN-PyTorch (`blocks.0.0.conv1.weight`, `shared.weight`, ...), with which
it is compared with random weights. SAGAN's and SNGAN's generators of that code are this one without
a shared embedding; `gan_dissect.nets.layouts` writes them so, and divides the spectral norms out.
"""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gan_dissect.generator import Generator, Normal
from gan_dissect.nets._layers import of_class, variables_of
from gan_dissect.nets._styles import Labelled
from gan_dissect.nets.biggan_deep import ApplyOfClass, Attention, Classes, CutOff
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import PyTree, Weights

__all__ = ["biggan"]

_ATTENTION = ("theta", "phi", "g", "o")
# Training's own, of which no picture is made.
_IGNORED = ("*.accumulation_counter",)


class Norm(nn.Module):
    """Batch normalisation with stored statistics; scale and shift are weights, or linear in a
    condition.
    """

    epsilon: float
    conditional: bool

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        size = (x.shape[-1],)
        mean = self.variable("batch_stats", "stored_mean", jnp.zeros, size).value
        var = self.variable("batch_stats", "stored_var", jnp.ones, size).value
        if self.conditional:
            # The file holds what the class adds to a gain of 1.
            gain = 1 + nn.Dense(*size, use_bias=False, name="gain")(condition)[:, None, None]
            bias = nn.Dense(*size, use_bias=False, name="bias")(condition)[:, None, None]
        else:
            gain = self.param("gain", nn.initializers.ones, size).reshape(1, 1, 1, -1)
            bias = self.param("bias", nn.initializers.zeros, size).reshape(1, 1, 1, -1)
        lift = (1, 1, 1, *size)
        x = (x - mean.reshape(lift)) * lax.rsqrt(var + self.epsilon).reshape(lift)
        return x * gain + bias


class Block(nn.Module):
    """A residual block that doubles the side: `[B, h, w, C]` to `[B, 2h, 2w, features]`."""

    features: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        y = jax.nn.relu(Norm(self.epsilon, True, name="bn1")(x, condition))
        y = nn.Conv(self.features, (3, 3), name="conv1")(_doubled(y))
        y = jax.nn.relu(Norm(self.epsilon, True, name="bn2")(y, condition))
        y = nn.Conv(self.features, (3, 3), name="conv2")(y)
        # A 1x1 convolution before repeating the pixels is the same as behind it.
        return y + _doubled(nn.Conv(self.features, (1, 1), name="conv_sc")(x))


def _doubled(x: jax.Array) -> jax.Array:
    return x.repeat(2, 1).repeat(2, 2)


class Embedding(nn.Module):
    """One row of weights for each class; NaN for a class that does not exist."""

    classes: int
    size: int

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(), (self.classes, self.size))
        return of_class(table, label)


class Network(nn.Module):
    """`{"z": [B, D], "label": [B]}` to images `[B, H, W, C]` in [-1, 1].

    Attributes:
      width: channels at 4 px.
      features: of each block.
      attended: blocks that attention follows.
      chunk: of z, that each block is given beside the class; 0 where z enters at the bottom alone.
      classes, embedding: sizes of the table of labels.
      channels: of the image.
      epsilon: of the norms.
    """

    width: int
    features: tuple[int, ...]
    attended: tuple[int, ...]
    chunk: int
    classes: int
    embedding: int
    channels: int
    epsilon: float

    @nn.compact
    def __call__(self, latents: PyTree) -> jax.Array:
        z, label = latents["z"], latents["label"]
        row = taps.tag(Embedding(self.classes, self.embedding, name="shared")(label), "shared")
        parts = [row] * len(self.features)
        if self.chunk:
            chunks = jnp.split(z, len(self.features) + 1, -1)
            z, parts = chunks[0], [jnp.concatenate([row, c], -1) for c in chunks[1:]]
        x = nn.Dense(16 * self.width, name="linear")(z)
        # PyTorch lays the values of a dense layer out with the channels first.
        x = x.reshape(len(x), self.width, 4, 4).transpose(0, 2, 3, 1)
        for i, (features, part) in enumerate(zip(self.features, parts, strict=True)):
            x = taps.tag(
                Block(features, self.epsilon, name=f"blocks.{i}.0")(x, part), f"blocks.{i}.0"
            )
            if i in self.attended:
                x = taps.tag(Attention(_ATTENTION, name=f"blocks.{i}.1")(x), f"blocks.{i}.1")
        # This norm's epsilon is fixed in the original.
        x = jax.nn.relu(Norm(1e-5, False, name="output_layer.0")(x))
        x = nn.Conv(self.channels, (3, 3), name="output_layer.2")(taps.tag(x, "output_layer.1"))
        return jnp.tanh(x)


def biggan(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    label: int | None = None,
    truncation: float | None = None,
    epsilon: float = 1e-5,
    name: str = "biggan",
) -> Generator:
    """Returns a BigGAN generator: `image` `[B, R, R, C]`.

    Blocks, attention, hierarchical latents and sizes are read from the file. Layers are named as in
    the file: `blocks.2.0` behind a block, `blocks.2.1` behind its attention.

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones of 16 px and 10 classes; consumed.
      label: draw this class only: latents are z `[D]` then, else `{"z", "label"}`.
      truncation: z is cut off at 2 and scaled by it; None draws from the whole normal.
      epsilon: of the blocks' norms.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or an option is out of range.
    """
    if truncation is not None and not 0 < truncation <= 1:
        raise ValueError(f"truncation must be in (0, 1], or None for none, got {truncation}")
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    module, size = _module(tensors or {}, epsilon)
    if label is not None and not 0 <= label < module.classes:
        raise ValueError(f"label must be in 0 to {module.classes - 1}, got {label}")
    batch: PyTree = {
        "z": jax.ShapeDtypeStruct((2, size), jnp.float32),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    template = jax.eval_shape(module.init, jax.random.key(0), batch)
    # Plain convolutions, which the default of `variables_of` would turn around.
    slots = weights_lib.slots(template)
    variables = variables_of(name, module, batch, tensors, key, slots=slots, ignore=_IGNORED)
    if key is not None:
        # `draw` sets scales and variances to 1 by name; these have other names, and are 0 so far.
        variables = jax.tree_util.tree_map_with_path(_started, variables)
    latent: PyTree
    if truncation is not None:
        latent = (
            Classes(size, module.classes, truncation) if label is None else CutOff(size, truncation)
        )
    else:
        latent = Labelled(size, module.classes) if label is None else Normal((size,))
    return Generator(ApplyOfClass(module, label), variables, latent=latent, name=name)


def _started(path: Any, leaf: jax.Array) -> jax.Array:
    last = path[-1].key
    return jnp.ones_like(leaf) if last in ("stored_var", "gain") else leaf


def _module(tensors: weights_lib.Tensors, epsilon: float) -> tuple[Network, int]:
    """The network of a file, and the size of z."""
    if not tensors:
        return Network(16, (16, 8), (0,), 4, 10, 6, 3, epsilon), 12
    pattern = r"blocks\.(\d+)\.0\.conv1\.weight"
    numbers = sorted(int(m[1]) for n in tensors if (m := re.fullmatch(pattern, n)))
    first, table = tensors.get("linear.weight"), tensors.get("shared.weight")
    plain = first is not None and table is not None and first.ndim == table.ndim == 2
    if not numbers or numbers != list(range(len(numbers))) or not plain:
        raise ValueError(
            "weights do not fit biggan: no tensors linear.weight, shared.weight and "
            "blocks.0.0.conv1.weight, blocks.1.0...; the file has "
            f"{', '.join(sorted(tensors)[:3]) or 'none'}"
        )

    def side(name: str, axis: int, default: int) -> int:
        return weights_lib.width(tensors, (name, axis), default=default)

    features = tuple(side(f"blocks.{i}.0.conv1.weight", 0, 0) for i in numbers)
    attended = tuple(i for i in numbers if f"blocks.{i}.1.theta.weight" in tensors)
    classes, embedding = table.shape  # type: ignore[union-attr]
    given = side("blocks.0.0.bn1.gain.weight", 1, embedding)
    # Whatever a norm is given beyond the class is a piece of z.
    chunk = max(given - embedding, 0)
    width, into = first.shape[0] // 16, first.shape[1]  # type: ignore[union-attr]
    channels = side("output_layer.2.weight", 0, 3)
    module = Network(width, features, attended, chunk, classes, embedding, channels, epsilon)
    # z is shared out evenly, among the first product and the blocks.
    return module, into * (len(numbers) + 1 if chunk else 1)
