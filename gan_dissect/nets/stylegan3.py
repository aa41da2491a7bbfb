"""StyleGAN3, `Karras et al. 2021 <https://arxiv.org/abs/2106.12423>`_: alias-free layers on Fourier
features.

Written from the paper's equations and appendices, in the tensor names of its release
(`synthesis.input.freqs`, `synthesis.L3_52_512.weight`, ...); the filters tell which of the
configurations T and R a file has. Rates, sizes and paddings follow from the sizes in the names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gan_dissect.generator import Generator
from gan_dissect.nets._alias_free import downsampled, lowpass, upsampled
from gan_dissect.nets._styles import RATE, Spaced, latent_of, mapped, rectified
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import Array, PyTree, Variables, Weights

__all__ = ["stylegan3"]

# What every published network has: pixels around the picture, cutoff of the first layer, taps of a
# filter for each step of the lower rate, the last layers whose cutoff is half their rate, and the
# scale of the picture.
_MARGIN, _CUTOFF, _TAPS, _CRITICAL, _SCALE, _CLAMP = 10, 2.0, 6, 2, 0.25, 256.0


class Layer(NamedTuple):
    """One layer: names, sizes and rates.

    Attributes:
      name: in the file.
      into, features: channels.
      size, rate: of the input and the output.
      kernel: side of the convolution's.
      radial: whether its lower filter is radially symmetric.
      draws: whether it makes the picture.
    """

    name: str
    into: int
    features: int
    size: tuple[int, int]
    rate: tuple[int, int]
    kernel: int
    radial: bool
    draws: bool

    @property
    def factors(self) -> tuple[int, int]:
        """How many times the rate rises before the rectifier, and falls after it."""
        # The rectifier makes frequencies above the layer's: it runs at twice the rate,
        # between two filters.
        between = max(self.rate) * (1 if self.draws else 2)
        return between // self.rate[0], between // self.rate[1]

    @property
    def filters(self) -> tuple[int, int]:
        """Taps of both filters, 1 where there is none."""
        up, down = (_TAPS * f if f > 1 and not self.draws else 1 for f in self.factors)
        return up, down

    @property
    def ends(self) -> tuple[int, int]:
        """Zeros before and after at the higher rate, so that samples stay where they lie (appendix
        C.3).
        """
        up, down = self.factors
        total = (self.size[1] - 1) * down + 1 - (self.size[0] + self.kernel - 1) * up
        total += sum(self.filters) - 2
        before = (total + up) // 2
        return before, total - before


def stylegan3(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    space: str = "z",
    truncation: float = 1.0,
    truncated: int | None = None,
    label: int | None = None,
    translate: Sequence[float] = (0.0, 0.0),
    rotate: float = 0.0,
    name: str = "stylegan3",
) -> Generator:
    """Returns a StyleGAN3 generator: `image` `[B, R, R, C]` and `styles` `[B, layers, D]`.

    Layers are named as in the file, `L0_36_512`, ... behind the filtered rectifiers, `input` the
    Fourier features, and `L0_36_512.style` what the styles multiply the channels by. Maps reach 10
    px beyond the picture on each side, but for the last two.

    Args:
      weights: safetensors file, or `{name: array}`, filters included.
      key: instead of weights, for random ones of 16 px; consumed.
      space: "z", "w": latents `[D]`; "w+": `[layers, W]`, the style of every layer; "layers": z
        with a shift of each layer's style.
      truncation: psi in [0, 1]; the styles are pulled towards their mean by 1 - psi.
      truncated: number of layers that are, from the first; None is all.
      label: of weights with classes, draw this class only; else z is `{"z", "label"}`.
      translate: right and down, in shares of the picture, by which all is moved.
      rotate: degrees by which all is turned, counter-clockwise.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or an option is out of range.
    """
    weights_lib.one_source(name, weights, key)
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    layers = _layers(tensors, name) if tensors is not None else _random_layers()
    found = tensors or {}
    style = weights_lib.width(found, ("mapping.w_avg", 0), default=16)
    depth = sum(re.fullmatch(r"mapping\.fc\d+\.weight", n) is not None for n in found) or 2
    table = found.get("mapping.embed.weight")
    row, classes = (0, 0) if table is None or table.ndim != 2 else table.shape
    size = weights_lib.width(found, ("mapping.fc0.weight", 1), default=16 + row) - row
    spaced = Spaced(space, len(layers) + 1, truncation, truncated, label)
    template = {
        k: jax.ShapeDtypeStruct(s, jnp.float32)
        for k, s in _shapes(size, style, depth, classes, layers).items()
    }
    variables: Variables
    if key is not None:
        variables = _random(template, layers, key)
    else:
        slots = {k: weights_lib.Slot((k,)) for k in template}
        variables = weights_lib.fill(template, found, slots, net=name)
    # Else the file's transform stays, which need not be the identity.
    if tuple(translate) != (0.0, 0.0) or rotate:
        move = jnp.asarray(_transform(translate, rotate), jnp.float32)
        variables = variables | {"synthesis.input.transform": move}
    apply = _Apply(depth, layers, spaced)
    latent = latent_of(spaced, size, style, (), through=apply.through, classes=classes)
    return Generator(apply, variables, latent=latent, name=name)


@dataclasses.dataclass(frozen=True)
class _Apply:
    depth: int
    layers: tuple[Layer, ...]
    spaced: Spaced

    def __call__(self, variables: Variables, latents: PyTree) -> dict[str, jax.Array]:
        v = variables
        styles, _ = self.spaced.styles(latents, self._mapping(v), v["mapping.w_avg"])
        first = self.layers[0]
        x = taps.tag(_features(v, styles[:, 0], first.size[0], first.rate[0]), "input")
        for i, layer in enumerate(self.layers):
            x = _layer(v, layer, x, styles[:, i + 1])
        return {"image": jnp.clip((_SCALE * x + 1) / 2, 0, 1), "styles": styles}

    def through(self, variables: Variables, latent: PyTree) -> jax.Array:
        """One latent of "w" or "w+" from its z, or its z and label."""
        one = jax.tree.map(lambda x: x[None], latent)
        w = self.spaced.mapped(one, self._mapping(variables))
        if self.spaced.space == "w":
            return w[0]
        return self.spaced.pulled(w, variables["mapping.w_avg"])[0]

    def _mapping(self, variables: Variables) -> PyTree:
        return functools.partial(mapped, variables, self.depth)


def _features(v: Array, w: jax.Array, size: int, rate: int) -> jax.Array:
    """Waves over the canvas, turned and moved as the style says and then as the user does, mixed.

    Where that takes a wave beyond what the first layer's rate holds, it is damped.
    """
    at = "synthesis.input"
    turn = _affine(v, at, w)
    # The first two are a cosine and a sine once they have length 1; shifts are on their scale.
    turn = turn / jnp.linalg.norm(turn[:, :2], axis=1, keepdims=True)
    c, s, right, down = turn.T
    one, none = jnp.ones_like(c), jnp.zeros_like(c)

    def matrix(rows: Sequence[Sequence[jax.Array]]) -> jax.Array:
        return jnp.stack([jnp.stack(list(r), -1) for r in rows], 1)

    turned = matrix([(c, -s, none), (s, c, none), (none, none, one)])
    moved = matrix([(one, none, -right), (none, one, -down), (none, none, one)])
    # Phases are products of frequencies and places: rounded factors would visibly move the picture.
    with jax.default_matmul_precision("highest"):
        whole = turned @ moved @ v[f"{at}.transform"][None]
        waves = v[f"{at}.freqs"]
        phases = v[f"{at}.phases"][None] + jnp.einsum("ck,bk->bc", waves, whole[:, :2, 2])
        waves = jnp.einsum("ck,bkl->bcl", waves, whole[:, :2, :2])
        strength = jnp.clip(
            1 - (jnp.linalg.norm(waves, axis=2) - _CUTOFF) / (rate / 2 - _CUTOFF), 0, 1
        )
        # Middles of the samples, 1 is the side of the picture.
        grid = jnp.asarray((np.arange(size) - (size - 1) / 2) / rate, w.dtype)
        across = waves[:, None, None, :, 0] * grid[None, None, :, None]
        along = waves[:, None, None, :, 1] * grid[None, :, None, None]
        x = jnp.sin(2 * jnp.pi * (across + along + phases[:, None, None]))
        weight = v[f"{at}.weight"]
        return (x * strength[:, None, None]) @ weight.T / math.sqrt(weight.shape[0])


def _affine(v: Array, at: str, w: jax.Array) -> jax.Array:
    weight, bias = v[f"{at}.affine.weight"], v[f"{at}.affine.bias"]
    return w @ weight.T / math.sqrt(weight.shape[1]) + bias[None]


def _layer(v: PyTree, layer: Layer, x: jax.Array, w: jax.Array) -> jax.Array:
    """A modulated convolution, then the rectifier between two filters, at twice the rate."""
    at = f"synthesis.{layer.name}"
    weight = v[f"{at}.weight"]
    style = taps.tag(_affine(v, at, w), f"{layer.name}.style")
    if layer.draws:
        style = style / math.sqrt(layer.into * layer.kernel**2)
        x = _convolved(x * style[:, None, None], weight)
    else:
        # Both at size 1 before the product. The release takes the styles' size over the
        # whole batch; here each sample's is its own, which the division below cancels, and
        # pictures stay independent.
        weight = weight * lax.rsqrt(jnp.square(weight).mean((1, 2, 3), keepdims=True))
        style = style * lax.rsqrt(jnp.square(style).mean(1, keepdims=True))
        length = jnp.einsum(
            "bi,oi->bo",
            jnp.square(style),
            jnp.square(weight).sum((2, 3)),
            precision=lax.Precision.HIGHEST,
        )
        x = _convolved(x * style[:, None, None], weight)
        x = x * lax.rsqrt(length + 1e-8)[:, None, None]
    # The input's size over training, so that it comes in at size 1.
    x = x * lax.rsqrt(v[f"{at}.magnitude_ema"]) + v[f"{at}.bias"].reshape(1, 1, 1, -1)
    x = upsampled(x, v.get(f"{at}.up_filter"), layer.factors[0], layer.ends)
    # The release's guard for half precision; kept, for trained weights were clamped by it.
    x = jnp.clip(x if layer.draws else rectified(x), -_CLAMP, _CLAMP)
    return taps.tag(downsampled(x, v.get(f"{at}.down_filter"), layer.factors[1]), layer.name)


def _convolved(x: jax.Array, weight: jax.Array) -> jax.Array:
    """With every place that the kernel touches: `[B, h + k - 1, ...]`."""
    pad = weight.shape[-1] - 1
    return lax.conv_general_dilated(
        x, weight, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "OIHW", "NHWC")
    )


def _transform(translate: Sequence[float], rotate: float) -> np.ndarray:
    """Where a place of the moved picture was before."""
    c, s = math.cos(math.radians(rotate)), math.sin(math.radians(rotate))
    right, down = translate
    # A place of the new picture is looked up in the old one: hence the inverse.
    return np.linalg.inv(np.array([c, s, right, -s, c, down, 0, 0, 1], np.float64).reshape(3, 3))


def _layers(tensors: weights_lib.Tensors, net: str) -> tuple[Layer, ...]:
    """The layers of a file, by the sizes in their names."""
    pattern = r"synthesis\.(L(\d+)_(\d+)_(\d+))\.weight"
    seen = sorted((m for n in tensors if (m := re.fullmatch(pattern, n))), key=lambda m: int(m[2]))
    inner = tensors.get("synthesis.input.weight")
    if len(seen) < _CRITICAL + 1 or [int(m[2]) for m in seen] != list(range(len(seen))):
        raise ValueError(
            f"weights do not fit {net}: no tensors synthesis.L0_36_512.weight, L1_..., in a row; "
            f"the file has {', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    sizes, side = [int(m[3]) for m in seen], int(seen[-1][3])
    # The margin keeps the edge of the canvas out of the picture; the last two layers cut it off.
    rates = [n - 2 * _MARGIN for n in sizes[:-2]] + [side, side]
    if sizes[-2] != side or any(r < 2 or r & (r - 1) for r in rates):
        raise ValueError(
            f"weights do not fit {net}: maps of {sizes} px in the names, expected powers of two "
            f"and {2 * _MARGIN} px of margin, and no margin in the last two"
        )
    channels = [int(m[4]) for m in seen]
    into = [channels[0] if inner is None or not inner.ndim else len(inner), *channels]
    return tuple(
        Layer(
            m[1],
            into[i],
            channels[i],
            (sizes[max(i - 1, 0)], sizes[i]),
            (rates[max(i - 1, 0)], rates[i]),
            np.shape(tensors[m[0]])[-1],
            np.ndim(tensors.get(f"synthesis.{m[1]}.down_filter", 0)) == 2,
            i == len(seen) - 1,
        )
        for i, m in enumerate(seen)
    )


def _random_layers() -> tuple[Layer, ...]:
    """A network of 16 px: the least that has margins, critical layers and both filters."""
    sizes, channels = (36, 36, 36, 16, 16), (8, 8, 8, 8, 3)
    names = {
        f"synthesis.L{i}_{n}_{c}.weight": np.zeros((c, 8, *((1, 1) if i == 4 else (3, 3))))
        for i, (n, c) in enumerate(zip(sizes, channels, strict=True))
    }
    return _layers(names, "stylegan3")


def _shapes(
    size: int, style: int, depth: int, classes: int, layers: tuple[Layer, ...]
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"mapping.w_avg": (style,)}
    row = style if classes else 0
    if classes:
        found |= {"mapping.embed.weight": (row, classes), "mapping.embed.bias": (row,)}
    for k in range(depth):
        found[f"mapping.fc{k}.weight"] = (style, style if k else size + row)
        found[f"mapping.fc{k}.bias"] = (style,)
    first, at = layers[0].into, "synthesis.input"
    found |= {f"{at}.weight": (first, first), f"{at}.freqs": (first, 2), f"{at}.phases": (first,)}
    found |= {
        f"{at}.affine.weight": (4, style),
        f"{at}.affine.bias": (4,),
        f"{at}.transform": (3, 3),
    }
    for layer in layers:
        at = f"synthesis.{layer.name}"
        found[f"{at}.weight"] = (layer.features, layer.into, layer.kernel, layer.kernel)
        found |= {f"{at}.affine.weight": (layer.into, style), f"{at}.affine.bias": (layer.into,)}
        found |= {f"{at}.bias": (layer.features,), f"{at}.magnitude_ema": ()}
        up, down = layer.filters
        if up > 1:
            found[f"{at}.up_filter"] = (up,)
        if down > 1:
            found[f"{at}.down_filter"] = (down, down) if layer.radial else (down,)
    return found


def _random(
    template: dict[str, jax.ShapeDtypeStruct], layers: tuple[Layer, ...], key: jax.Array
) -> dict[str, jax.Array]:
    """Weights as the paper starts from, with the filters of the layers' cutoffs."""
    variables = {}
    for k, (name, leaf) in zip(jax.random.split(key, len(template)), template.items(), strict=True):
        end = name.rpartition(".")[2]
        if name == "synthesis.input.affine.bias":
            # Turned by nothing and moved by nothing, for every style.
            variables[name] = jnp.asarray([1.0, 0, 0, 0])
        elif name.endswith("affine.bias") or end == "magnitude_ema":
            variables[name] = jnp.ones(leaf.shape)
        elif end == "transform":
            variables[name] = jnp.eye(3)
        elif end in ("bias", "w_avg") or name == "synthesis.input.affine.weight":
            variables[name] = jnp.zeros(leaf.shape)
        elif end == "phases":
            variables[name] = jax.random.uniform(k, leaf.shape) - 0.5
        elif end == "freqs":
            drawn = jax.random.normal(k, leaf.shape)
            radii = jnp.linalg.norm(drawn, axis=1, keepdims=True)
            # The release's way to spread frequencies evenly over the disc below the cutoff.
            variables[name] = _CUTOFF * drawn / (radii * jnp.exp(jnp.square(radii)) ** 0.25)
        elif not end.endswith("filter"):
            scale = 1 / RATE if name.startswith("mapping") else 1.0
            variables[name] = scale * jax.random.normal(k, leaf.shape)
    bands = _bands(layers)
    for i, layer in enumerate(layers):
        at, rate = f"synthesis.{layer.name}", 2 * max(layer.rate)
        for end, count, (cutoff, half) in (
            ("up_filter", layer.filters[0], bands[max(i - 1, 0)]),
            ("down_filter", layer.filters[1], bands[i]),
        ):
            if count > 1:
                radial = layer.radial and end == "down_filter"
                made = lowpass(count, cutoff, 2 * half, rate, radial=radial)
                variables[f"{at}.{end}"] = jnp.asarray(made)
    return {name: variables[name] for name in template}


def _bands(layers: Sequence[Layer]) -> list[tuple[float, float]]:
    """Cutoff of each layer, and half the width of its transition: both grow by constant factors."""
    last, steps = layers[-1].size[1] / 2, max(len(layers) - 1 - _CRITICAL, 1)
    # The release's: where the first layer's transition ends, and by how much the last one's
    # exceeds its cutoff.
    first_stop, last_stop = 2**2.1, last * 2**0.3
    found = []
    for i, layer in enumerate(layers):
        share = min(i / steps, 1)
        cutoff = _CUTOFF * (last / _CUTOFF) ** share
        stop = first_stop * (last_stop / first_stop) ** share
        # The transition ends at half the layer's rate or beyond: a narrower one would leave part of
        # the band unused.
        found.append((cutoff, max(stop, layer.rate[1] / 2) - cutoff))
    return found
