"""StyleGAN, `Karras et al. 2018 <https://arxiv.org/abs/1812.04948>`_: a mapping, and a style for
every normalised layer.

Written from the paper, in the tensor names of genforce's PyTorch files
(`mapping.dense0.linear.weight`, `synthesis.layer1.epilogue.style_mod.dense.wscale.bias`, ...). No
published weights were at hand: it is checked block by block against sums written out, and against
gan-lab by `make oracles`.
"""

from __future__ import annotations

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gan_dissect.generator import Generator
from gan_dissect.nets._styles import Spaced, latent_of
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import PyTree, Record, Variables, Weights

__all__ = ["stylegan"]

# Sizes of random weights: latents, styles, depth of the mapping, channels of each layer, fused, of
# the image.
_DEFAULT = (16, 16, 2, (12, 12, 8, 8, 8, 8), (), 3)
# Kernel of a layer whose file has enlarging and convolution in one: TensorFlow's transposed
# convolution scatters it, which is the plain one with the kernel turned around after each pixel is
# repeated.
_FUSED = weights_lib.Layout(lambda w: w[::-1, ::-1], lambda s: s)


class Dense(nn.Module):
    """A product scaled at run time, so that all weights learn at one rate, and a bias.

    Attributes:
      features: outputs.
      gain: over the root of the number of inputs.
      rate: weights and bias are this much as stored.
    """

    features: int
    gain: float
    rate: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.gain * self.rate / math.sqrt(x.shape[-1])
        x = nn.Dense(self.features, use_bias=False, name="linear")(x) * scale
        return Bias(self.rate, name="wscale")(x)


class Bias(nn.Module):
    """Adds one number a channel, `rate` times what is stored."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x + self.rate * bias[None]


class Mapping(nn.Module):
    """Latents `[B, D]`, taken at length sqrt(D), to styles `[B, W]`; learns at a hundredth of the
    rate.
    """

    style: int
    depth: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = z * lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + 1e-8)
        for k in range(self.depth):
            x = jax.nn.leaky_relu(Dense(self.style, math.sqrt(2), 0.01, name=f"dense{k}")(x), 0.2)
        return x


class Noise(nn.Module):
    """Adds one map to all channels, each as strongly as it has learnt to."""

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        side = x.shape[1:3]
        stored = self.variable("batch_stats", "noise", jnp.zeros, (1, 1, *side)).value
        strength = self.param("weight", nn.initializers.zeros, (x.shape[-1],)).reshape(1, 1, 1, -1)
        # [1, 1, h, h] or [B, h, h], to [., h, h, 1].
        return x + strength * (stored[0] if noise is None else noise)[..., None]


class Epilogue(nn.Module):
    """Noise, bias, leaky rectifier; each map at mean 0 and variance 1; then the style's scale and
    shift.

    `label` names what it gives, and its style.
    """

    label: str

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, noise: jax.Array | None) -> jax.Array:
        x = Noise(name="apply_noise")(x, noise)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = jax.nn.leaky_relu(x + bias.reshape(1, 1, 1, -1), 0.2)
        # Twice over the map, not as a difference of moments, which cancels where the mean is large.
        x = x - x.mean((1, 2), keepdims=True)
        x = x * lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + 1e-8)
        style = Modulation(2 * x.shape[-1], name="style_mod")(w)
        scale, shift = jnp.split(taps.tag(style, f"{self.label}.style")[:, None, None], 2, -1)
        # The file holds what the style adds to a scale of 1.
        return taps.tag(x * (scale + 1) + shift, self.label)


class Modulation(nn.Module):
    """The affine function of the styles, by the names of its file."""

    features: int

    @nn.compact
    def __call__(self, w: jax.Array) -> jax.Array:
        return Dense(self.features, 1.0, name="dense")(w)


class First(nn.Module):
    """The constant that all images start from."""

    features: int

    @nn.compact
    def __call__(self, w: jax.Array, noise: jax.Array | None) -> jax.Array:
        x = self.param("first_layer", nn.initializers.ones, (1, self.features, 4, 4))
        x = jnp.broadcast_to(x.transpose(0, 2, 3, 1), (len(w), 4, 4, self.features))
        return Epilogue("layer0", name="epilogue")(x, w, noise)


class Layer(nn.Module):
    """A convolution and its epilogue; where `double`, each pixel is repeated first and the result
    blurred.
    """

    features: int
    double: bool

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, noise: jax.Array | None) -> jax.Array:
        x = x.repeat(2, 1).repeat(2, 2) if self.double else x
        size, pad = (3, 3), ((1, 1), (1, 1))
        scale = math.sqrt(2 / x.shape[-1]) / 3
        x = nn.Conv(self.features, size, padding=pad, use_bias=False, name="conv")(x) * scale
        x = _blurred(x) if self.double else x
        return Epilogue(str(self.name), name="epilogue")(x, w, noise)


def _blurred(x: jax.Array) -> jax.Array:
    """[1, 2, 1] / 4 in both directions, zeros outside."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


class Output(nn.Module):
    """The image of the last layer."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = 1 / math.sqrt(x.shape[-1])
        x = nn.Conv(self.channels, (1, 1), use_bias=False, name="conv")(x) * scale
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        return x + bias.reshape(1, 1, 1, -1)


class Synthesis(nn.Module):
    """Styles `[B, layers, W]` to images `[B, H, H, channels]` in about [-1, 1]."""

    widths: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, styles: jax.Array, noise: PyTree) -> jax.Array:
        x: PyTree = None
        for i, width in enumerate(self.widths):
            label = f"layer{i}"
            at = None if noise is None else noise[label]
            if i:
                x = Layer(width, i % 2 == 0, name=label)(x, styles[:, i], at)
            else:
                x = First(width, name=label)(styles[:, i], at)
        last = f"output{len(self.widths) // 2 - 1}"
        return Output(self.channels, name=last)(x)


@dataclasses.dataclass(frozen=True)
class _Apply:
    mapping: Mapping
    synthesis: Synthesis
    spaced: Spaced

    def __call__(self, variables: Variables, latents: PyTree) -> dict[str, jax.Array]:
        styles, noise = self.spaced.styles(latents, self._mapping(variables), _mean(variables))
        parts = {kind: leaves["synthesis"] for kind, leaves in variables.items()}
        image: PyTree = self.synthesis.apply(parts, styles, noise)
        return {"image": jnp.clip((image + 1) / 2, 0, 1), "styles": styles}

    def through(self, variables: Variables, z: jax.Array) -> jax.Array:
        """One latent of "w" or "w+" from its z."""
        w = self.spaced.mapped(z[None], self._mapping(variables))
        return w[0] if self.spaced.space == "w" else self.spaced.pulled(w, _mean(variables))[0]

    def template(self, size: int) -> Record:
        """Returns the shapes of the variables, under the names of the file."""

        def init(key: jax.Array) -> PyTree:
            synthesis = self.synthesis
            styles = jnp.zeros((2, len(synthesis.widths), self.mapping.style))
            inner = self.mapping.init(key, jnp.zeros((2, size)))["params"]
            outer = synthesis.init(key, styles, None)
            mean = {"w_avg": jnp.zeros(self.mapping.style)}
            return {
                "params": {"mapping": inner, "synthesis": outer["params"]},
                "batch_stats": {"truncation": mean, "synthesis": outer["batch_stats"]},
            }

        found: Record = jax.eval_shape(init, jax.random.key(0))
        return found

    def _mapping(self, variables: Variables) -> PyTree:
        parts = {"params": variables["params"]["mapping"]}
        return lambda z, label: self.mapping.apply(parts, z)


def _mean(variables: Variables) -> jax.Array:
    found: jax.Array = variables["batch_stats"]["truncation"]["w_avg"]
    return found


def stylegan(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    space: str = "z",
    truncation: float = 1.0,
    truncated: int | None = None,
    name: str = "stylegan",
) -> Generator:
    """Returns a StyleGAN generator at its final size: `image` `[B, R, R, C]` and `styles`
    `[B, layers, W]`.

    Layers are named `layer0`, `layer1` (4 px), `layer2`, `layer3` (8 px), ... behind the styles,
    and `layer0.style` and so on for the styles' scales and shifts. Sizes are read from the file.

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones of 16 px; consumed.
      space: "z", "w": latents `[D]`; "w+": `[layers, W]`, the style of every layer; "layers": z
        with a shift of each layer's style and noise. All but the last draw with the stored noise.
      truncation: psi in [0, 1]; the styles are pulled towards their mean by 1 - psi. The paper's
        pictures have 0.7 in the first 8 layers.
      truncated: number of layers that are, from the first; None is all.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or an option is out of range.

    >>> G = stylegan(key=jax.random.key(0), space="w+")
    >>> jax.eval_shape(G, jnp.zeros((2, 6, 16)))["image"].shape
    (2, 16, 16, 3)
    """
    weights_lib.one_source(name, weights, key)
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    size, style, depth, widths, fused, channels = _sizes(tensors or {})
    spaced = Spaced(space, len(widths), truncation, truncated)
    apply = _Apply(Mapping(style, depth), Synthesis(widths, channels), spaced)
    template = apply.template(size)
    slots = weights_lib.slots(template)
    for i in fused:
        path = slots.pop(f"synthesis.layer{i}.conv.weight").path
        slots[f"synthesis.layer{i}.weight"] = weights_lib.Slot(path, _FUSED)
    variables: Variables
    if key is not None:
        variables = _random(template, key)
    else:
        # Images of smaller sizes, the share of each in the last stage of training, constants.
        smaller = (f"synthesis.output{k}.*" for k in range(len(widths) // 2 - 1))
        constants = ("synthesis.lod", "truncation.truncation", "*.blur.kernel")
        ignore = (*smaller, *constants, *weights_lib.IGNORED)
        variables = weights_lib.fill(template, tensors or {}, slots, net=name, ignore=ignore)
    noise = tuple((f"layer{i}", 4 * 2 ** (i // 2)) for i in range(len(widths)))
    latent = latent_of(spaced, size, style, noise, through=apply.through)
    return Generator(apply, variables, latent=latent, name=name)


def _sizes(
    tensors: weights_lib.Tensors,
) -> tuple[int, int, int, tuple[int, ...], tuple[int, ...], int]:
    """Sizes of latents and styles, depth of the mapping, channels of each layer, fused layers, of
    the image.
    """
    if not tensors:
        return _DEFAULT
    depth = sum(re.fullmatch(r"mapping\.dense\d+\.linear\.weight", n) is not None for n in tensors)
    pattern = r"synthesis\.layer(\d+)\.(conv\.)?weight"
    found = {
        int(m[1]): (m[2], t.shape) for n, t in tensors.items() if (m := re.fullmatch(pattern, n))
    }
    if not found or not depth:
        raise ValueError(
            "weights do not fit stylegan: no tensors mapping.dense0.linear.weight and "
            "synthesis.layer1.conv.weight, ...; the file has "
            f"{', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    # Layers come in pairs. Where the file ends within one, `fill` names what is missing.
    last = max(found) + 1 - max(found) % 2
    start = weights_lib.width(tensors, ("synthesis.layer0.first_layer", 1), default=512)
    widths, fused = [start], []
    for i in range(1, last + 1):
        plain, shape = found.get(i, ("conv.", (widths[-1],)))
        # A layer in one step is stored as TensorFlow has it, output channels last.
        widths.append(shape[0 if plain else -1])
        fused += [] if plain else [i]
    first = tensors.get("mapping.dense0.linear.weight")
    size = first.shape[1] if first is not None and first.ndim == 2 else 512
    style = weights_lib.width(tensors, ("truncation.w_avg", 0), default=size)
    output = f"synthesis.output{last // 2}.conv.weight"
    channels = weights_lib.width(tensors, (output, 0), default=3)
    return size, style, depth, tuple(widths), tuple(fused), channels


def _random(template: PyTree, key: jax.Array) -> jax.Array:
    """Weights as the paper starts from: normal, the constant 1, biases and the strength of the
    noise 0.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(template)
    filled = []
    for k, (path, leaf) in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        name = jax.tree_util.keystr(path)
        if "first_layer" in name:
            filled.append(jnp.ones(leaf.shape))
        elif "kernel" in name or "noise" in name.rsplit("[", 1)[-1]:
            # A hundredth of the mapping's is used.
            scale = 100.0 if "mapping" in name else 1.0
            filled.append(scale * jax.random.normal(k, leaf.shape))
        else:
            filled.append(jnp.zeros(leaf.shape))
    found: jax.Array = jax.tree_util.tree_unflatten(tree, filled)
    return found
