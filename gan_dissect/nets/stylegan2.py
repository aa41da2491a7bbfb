"""StyleGAN2, `Karras et al. 2020 <https://arxiv.org/abs/1912.04958>`_: modulated convolutions, and
images added up.

The paper's residual and plain generators are read too, and recognised by the names in the file.

Written from the paper's equations, in the tensor names of its PyTorch release
(`mapping.fc0.weight`, `synthesis.b8.conv0.affine.weight`, ...). No published weights were at hand:
it is checked block by block against sums written out, not against the original's pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gan_dissect.generator import Generator
from gan_dissect.nets._styles import RATE, Spaced, latent_of, mapped, rectified
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import PyTree, Variables, Weights

__all__ = ["stylegan2"]

# Binomial filter [1, 3, 3, 1] in both directions, of sum 1.
_BLUR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
# Buffers of the release that are constants here.
_IGNORED = ("*.resample_filter", *weights_lib.IGNORED)


def stylegan2(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    space: str = "z",
    truncation: float = 1.0,
    truncated: int | None = None,
    label: int | None = None,
    name: str = "stylegan2",
) -> Generator:
    """Returns a StyleGAN2 generator: `image` `[B, R, R, C]` and `styles` `[B, layers, D]`.

    Layers are named `b8.conv0`, `b8.conv1`, ... behind the activations, and `b8.conv0.style` and so
    on for what the styles multiply the channels by: units of the latter are StyleSpace.

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones of 16 px; consumed.
      space: "z", "w": latents `[D]`; "w+": `[layers, W]`, the style of every layer; "layers": z
        with a shift of each layer's style and noise. All but the last draw with the stored noise.
      truncation: psi in [0, 1]; the styles are pulled towards their mean by 1 - psi.
      truncated: number of layers that are, from the first; None is all.
      label: of weights with classes, draw this class only; else z is `{"z", "label"}`.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or an option is out of range.
    """
    weights_lib.one_source(name, weights, key)
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    size, style, depth, widths, channels, classes = _sizes(tensors or {})
    kind = _architecture(tensors or {}, len(widths))
    # One convolution at 4 px, two at every other size, and the last image: twice the sizes in all.
    spaced = Spaced(space, 2 * len(widths), truncation, truncated, label)
    template = {
        k: jax.ShapeDtypeStruct(s, jnp.float32)
        for k, s in _shapes(size, style, depth, widths, channels, classes, kind).items()
    }
    variables: Variables
    if key is not None:
        variables = _random(template, key)
    else:
        slots = {k: weights_lib.Slot((k,)) for k in template}
        variables = weights_lib.fill(template, tensors or {}, slots, net=name, ignore=_IGNORED)
    noise = tuple(
        (f"b{4 * 2**i}.conv{k}", 4 * 2**i) for i in range(len(widths)) for k in (0, 1) if i or k
    )
    apply = _Apply(depth, len(widths), spaced, kind)
    latent = latent_of(spaced, size, style, noise, through=apply.through, classes=classes)
    return Generator(apply, variables, latent=latent, name=name)


@dataclasses.dataclass(frozen=True)
class _Apply:
    depth: int
    blocks: int
    spaced: Spaced
    kind: str = "skip"

    def __call__(self, variables: Variables, latents: PyTree) -> dict[str, jax.Array]:
        v = variables
        styles, noise = self.spaced.styles(latents, self._mapping(v), v["mapping.w_avg"])
        x = jnp.broadcast_to(
            v["synthesis.b4.const"].transpose(1, 2, 0)[None],
            (len(styles), 4, 4, len(v["synthesis.b4.const"])),
        )
        image: PyTree = 0.0
        at = 0
        for i in range(self.blocks):
            block = f"b{4 * 2**i}"
            before = x
            # 4 px begins with a constant, and so has one convolution only.
            for k in (0, 1) if i else (1,):
                layer = f"{block}.conv{k}"
                given = None if noise is None else noise[layer]
                x = _layer(v, layer, x, styles[:, at], given, double=k == 0)
                at += 1
            if self.kind == "resnet" and i:
                # The variance of the sum stays.
                x = (x + _shortcut(v, block, before)) * math.sqrt(0.5)
            if self.kind != "skip" and i < self.blocks - 1:
                continue
            # The image is made with the style that the next block begins with.
            seen = _to_image(v, f"{block}.torgb", x, styles[:, at])
            image = _enlarged(image) + seen if i and self.kind == "skip" else seen
        return {"image": jnp.clip((image + 1) / 2, 0, 1), "styles": styles}

    def through(self, variables: Variables, latent: PyTree) -> jax.Array:
        """One latent of "w" or "w+" from its z, or its z and label."""
        one = jax.tree.map(lambda x: x[None], latent)
        w = self.spaced.mapped(one, self._mapping(variables))
        if self.spaced.space == "w":
            return w[0]
        return self.spaced.pulled(w, variables["mapping.w_avg"])[0]

    def _mapping(self, variables: Variables) -> PyTree:
        return functools.partial(mapped, variables, self.depth)


def _style(v: jax.Array, layer: str, w: jax.Array) -> jax.Array:
    weight, bias = (v[f"synthesis.{layer}.affine.{k}"] for k in ("weight", "bias"))
    return taps.tag(w @ weight.T / math.sqrt(weight.shape[1]) + bias[None], f"{layer}.style")


def _layer(
    v: jax.Array, layer: str, x: jax.Array, w: jax.Array, noise: jax.Array | None, *, double: bool
) -> jax.Array:
    """The paper's equations 1 and 3: channels times the style, convolved, divided by the expected
    length.

    To scale the input and divide the output is the same as to scale each sample's weights.
    """
    weight = v[f"synthesis.{layer}.weight"]
    style = _style(v, layer, w)
    length = jnp.einsum(
        "bi,oi->bo",
        jnp.square(style),
        jnp.square(weight).sum((2, 3)),
        precision=lax.Precision.HIGHEST,
    )
    # The weights' scale at run time is left out: the division below would cancel it.
    x = x * style[:, None, None, :]
    x = _doubled(x, weight) if double else _convolved(x, weight)
    x = x * lax.rsqrt(length + 1e-8)[:, None, None, :]
    if noise is None:
        noise = v[f"synthesis.{layer}.noise_const"][None]
    x = x + noise[..., None] * v[f"synthesis.{layer}.noise_strength"]
    return taps.tag(rectified(x + v[f"synthesis.{layer}.bias"].reshape(1, 1, 1, -1)), layer)


def _to_image(v: jax.Array, layer: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """A modulated 1x1 convolution that is not divided by its length."""
    weight = v[f"synthesis.{layer}.weight"]
    # The scale of the weights, put on the style: nothing is divided here that would cancel it.
    style = _style(v, layer, w) / math.sqrt(weight.shape[1])
    x = _convolved(x * style[:, None, None, :], weight)
    return x + v[f"synthesis.{layer}.bias"].reshape(1, 1, 1, -1)


def _shortcut(v: jax.Array, block: str, x: jax.Array) -> jax.Array:
    """What a residual block passes by: a 1x1 convolution, enlarged."""
    weight = v[f"synthesis.{block}.skip.weight"]
    return _enlarged(_convolved(x, weight / math.sqrt(weight.shape[1])))


def _convolved(x: jax.Array, weight: jax.Array) -> jax.Array:
    pad = (weight.shape[-1] - 1) // 2
    return lax.conv_general_dilated(
        x, weight, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "OIHW", "NHWC")
    )


def _doubled(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Scattered two apart, `[B, 2h + 1, ...]`, then blurred to `[B, 2h, ...]`."""
    y = lax.conv_general_dilated(
        x,
        # XLA correlates; a scattered kernel is a correlation with it turned around.
        weight[:, :, ::-1, ::-1],
        (1, 1),
        [(2, 2)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    return _blurred(y, (1, 1))


def _enlarged(image: jax.Array) -> jax.Array:
    """Each pixel two apart with zeros between, blurred."""
    rows = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)])
    return _blurred(rows, (2, 1))


def _blurred(x: jax.Array, padding: tuple[int, int]) -> jax.Array:
    channels = x.shape[-1]
    # Times 4, for three of four pixels that are blurred are 0.
    kernel = np.tile(4 * _BLUR[:, :, None, None], (1, 1, 1, channels))
    return lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        (1, 1),
        [padding] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def _sizes(tensors: weights_lib.Tensors) -> tuple[int, int, int, tuple[int, ...], int, int]:
    """Sizes of latents and styles, depth of the mapping, widths from 4 px on, channels, classes."""
    if not tensors:
        return 16, 16, 2, (8, 8, 8), 3, 0
    blocks = sorted(
        int(m[1]) for n in tensors if (m := re.fullmatch(r"synthesis\.b(\d+)\.conv1\.weight", n))
    )
    depth = sum(re.fullmatch(r"mapping\.fc\d+\.weight", n) is not None for n in tensors)
    if not blocks or not depth or blocks != [4 * 2**i for i in range(len(blocks))]:
        raise ValueError(
            "weights do not fit stylegan2: no tensors mapping.fc0.weight and "
            "synthesis.b4.conv1.weight, b8, ...; the file has "
            f"{', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    widths = tuple(tensors[f"synthesis.b{r}.conv1.weight"].shape[0] for r in blocks)
    first = tensors.get("mapping.fc0.weight", np.zeros((16, 16)))
    style = weights_lib.width(tensors, ("mapping.w_avg", 0), default=first.shape[0])
    last = f"synthesis.b{blocks[-1]}.torgb.weight"
    channels = weights_lib.width(tensors, (last, 0), default=3)
    table = tensors.get("mapping.embed.weight")
    # With classes the mapping is given the label's embedding behind z.
    row, classes = (0, 0) if table is None or table.ndim != 2 else table.shape
    return first.shape[-1] - row, style, depth, widths, channels, classes


def _architecture(tensors: PyTree, blocks: int) -> str:
    """Images of all blocks added up ("skip"), residual blocks ("resnet"), or a plain chain
    ("orig").
    """
    if any(name.endswith(".skip.weight") for name in tensors):
        return "resnet"
    images = sum(name.endswith(".torgb.weight") for name in tensors)
    return "orig" if images == 1 < blocks else "skip"


def _shapes(
    size: int,
    style: int,
    depth: int,
    widths: tuple[int, ...],
    channels: int,
    classes: int = 0,
    kind: str = "skip",
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"mapping.w_avg": (style,)}
    row = style if classes else 0
    if classes:
        found |= {"mapping.embed.weight": (row, classes), "mapping.embed.bias": (row,)}
    for k in range(depth):
        found[f"mapping.fc{k}.weight"] = (style, style if k else size + row)
        found[f"mapping.fc{k}.bias"] = (style,)
    found["synthesis.b4.const"] = (widths[0], 4, 4)
    for i, width in enumerate(widths):
        side = 4 * 2**i
        for k in (0, 1) if i else (1,):
            into, at = (width if k else widths[i - 1]), f"synthesis.b{side}.conv{k}"
            found[f"{at}.weight"] = (width, into, 3, 3)
            found |= {f"{at}.affine.weight": (into, style), f"{at}.affine.bias": (into,)}
            found |= {f"{at}.bias": (width,), f"{at}.noise_strength": ()}
            found[f"{at}.noise_const"] = (side, side)
        if kind == "resnet" and i:
            found[f"synthesis.b{side}.skip.weight"] = (width, widths[i - 1], 1, 1)
        if kind != "skip" and i < len(widths) - 1:
            continue
        at = f"synthesis.b{side}.torgb"
        found |= {f"{at}.weight": (channels, width, 1, 1), f"{at}.bias": (channels,)}
        found |= {f"{at}.affine.weight": (width, style), f"{at}.affine.bias": (width,)}
    return found


def _random(template: dict[str, jax.ShapeDtypeStruct], key: jax.Array) -> dict[str, jax.Array]:
    """Weights as the paper starts from: normal, biases 0, those of the styles 1."""
    variables = {}
    for k, (name, leaf) in zip(jax.random.split(key, len(template)), template.items(), strict=True):
        if name.endswith("affine.bias"):
            variables[name] = jnp.ones(leaf.shape)
        elif name.endswith(("bias", "noise_strength", "w_avg")):
            variables[name] = jnp.zeros(leaf.shape)
        else:
            # The mapping uses a hundredth of what it stores.
            scale = 1 / RATE if name.startswith("mapping") else 1.0
            variables[name] = scale * jax.random.normal(k, leaf.shape)
    return variables
