"""BigGAN-deep, `Brock et al. 2018 <https://arxiv.org/abs/1809.11096>`_: classes, conditional norms
and attention.

Written from the paper's appendix B and compared with pytorch-pretrained-biggan by `make oracles`,
whose tensor names it reads (`generator.layers.0.bn_0.scale.weight_orig`, ...). No published weights
were at hand.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gan_dissect.generator import Generator
from gan_dissect.nets._layers import of_class, variables_of
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import PyTree, Variables, Weights

__all__ = ["Classes", "biggan_deep"]


class Stage(NamedTuple):
    """One entry of `generator.layers`: a block, or attention where `hidden` is 0."""

    hidden: int
    features: int
    double: bool


# Random weights: 10 classes, 16 px.
_DEFAULT = (
    Stage(16, 64, False),
    Stage(16, 32, True),
    Stage(8, 32, False),
    Stage(0, 32, False),
    Stage(8, 16, True),
)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Draws `{"z": [D], "label": integer}`, or with `layers` also `"shift": [layers, D + E]`, which
    starts at 0.

    z is normal, cut off at 2 and scaled by the truncation; the label is any class. The shift is
    added to what each layer is conditioned on, z and the embedding of the label: move it to edit in
    some layers.
    """

    size: int
    classes: int
    truncation: float = 1.0
    layers: int = 0
    embedding: int = 0

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        one, two = jax.random.split(key)
        latent = {
            "z": _cut_off(one, self.size, self.truncation),
            "label": jax.random.randint(two, (), 0, self.classes),
        }
        if self.layers:
            latent["shift"] = jnp.zeros((self.layers, self.size + self.embedding))
        return latent


@dataclasses.dataclass(frozen=True)
class CutOff:
    """Draws z `[D]` alone, as `Classes` does."""

    size: int
    truncation: float

    def __call__(self, key: jax.Array) -> jax.Array:
        return _cut_off(key, self.size, self.truncation)


def _cut_off(key: jax.Array, size: int, truncation: float) -> jax.Array:
    return truncation * jax.random.truncated_normal(key, -2.0, 2.0, (size,))


class Norm(nn.Module):
    """Batch normalisation with stored statistics for evenly spaced truncations from 0 to 1.

    With a condition `[B, K]` scale and shift are linear functions of it, else they are weights.

    Attributes:
      truncation: between two stored ones the statistics are interpolated. (The published PyTorch
        code exchanges the two shares and so takes 0.315's statistics for 0.305, with 51 stored.)
      epsilon: added to the variance.
      count: statistics stored.
    """

    truncation: float
    epsilon: float
    count: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        size = x.shape[-1]
        stored = (self.count, size)
        means = self.variable("batch_stats", "mean", jnp.zeros, stored).value
        variances = self.variable("batch_stats", "var", jnp.ones, stored).value
        # 0.3 / 0.02 is 15 but for a rounding, which must not ask for the next one.
        at = round(self.truncation * (self.count - 1), 6)
        low = min(int(at), self.count - 2) if self.count > 1 else 0
        share, high = at - low, min(low + 1, self.count - 1)
        mean, var = ((1 - share) * s[low] + share * s[high] for s in (means, variances))
        if condition is None:
            scale = self.param("scale", nn.initializers.ones, (size,)).reshape(1, 1, 1, -1)
            shift = self.param("bias", nn.initializers.zeros, (size,)).reshape(1, 1, 1, -1)
        else:
            scale = 1 + nn.Dense(size, use_bias=False, name="scale")(condition)[:, None, None]
            shift = nn.Dense(size, use_bias=False, name="offset")(condition)[:, None, None]
        lift = (1, 1, 1, size)
        x = (x - mean.reshape(lift)) * lax.rsqrt(var + self.epsilon).reshape(lift)
        return x * scale + shift


class Block(nn.Module):
    """A bottleneck of four convolutions, `[B, h, w, C]` to `[B, h, w, features]` or twice the size.

    What is added to it is the input's first channels, its pixels repeated. Attributes: see `Norm`,
    `Stage`.
    """

    stage: Stage
    norm: tuple[float, float, int]

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        hidden, features, double = self.stage
        y = x
        for k, (width, kernel) in enumerate(((hidden, 1), (hidden, 3), (hidden, 3), (features, 1))):
            y = jax.nn.relu(Norm(*self.norm, name=f"bn_{k}")(y, condition))
            # Enlarged while the block is narrow, before its first 3x3 convolution.
            y = _doubled(y) if double and k == 1 else y
            y = nn.Conv(width, (kernel, kernel), name=f"conv_{k}")(y)
        # Where a block narrows, channels are dropped and not mixed (the paper's appendix B).
        x = x[..., :features]
        return (_doubled(x) if double else x) + y


def _doubled(x: jax.Array) -> jax.Array:
    return x.repeat(2, 1).repeat(2, 2)


class Attention(nn.Module):
    """Self-attention, `Zhang et al. 2018 <https://arxiv.org/abs/1805.08318>`_: keys and values from
    halved maps.

    Attributes:
      names: of the convolutions that make queries, keys, values, and the sum.
    """

    names: tuple[str, ...] = tuple(f"snconv1x1_{n}" for n in ("theta", "phi", "g", "o_conv"))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        of = dict(zip(("theta", "phi", "g", "o_conv"), self.names, strict=True))

        def conv(features: int, name: str) -> nn.Conv:
            return nn.Conv(features, (1, 1), use_bias=False, name=of[name])

        def halved(y: jax.Array) -> jax.Array:
            y = y.reshape(b, h // 2, 2, w // 2, 2, -1).max((2, 4))
            return y.reshape(b, h * w // 4, -1)

        query = conv(c // 8, "theta")(x).reshape(b, h * w, -1)
        key, value = halved(conv(c // 8, "phi")(x)), halved(conv(c // 2, "g")(x))
        # Not divided by the root of the channels: SAGAN's attention is not.
        weight = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key), axis=-1)
        mixed = jnp.einsum("bqk,bkc->bqc", weight, value).reshape(b, h, w, -1)
        gamma = self.param("gamma", nn.initializers.zeros, (1,)).reshape(1, 1, 1, 1)
        return x + gamma * conv(c, "o_conv")(mixed)


class Embedding(nn.Module):
    """One row of weights for each class; NaN for a class that does not exist."""

    classes: int
    size: int

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        shape = (self.classes, self.size)
        table = self.param("kernel", nn.initializers.normal(), shape)
        return of_class(table, label)


class Deep(nn.Module):
    """`{"z": [B, D], "label": [B]}` to images `[B, H, W, C]` in [-1, 1].

    Attributes:
      stages: of `generator.layers`.
      width: channels at 4 px.
      drawn: channels of the last convolution, of which the first `channels` are the image.
      classes, embedding: sizes of the table of labels.
      norm: see `Norm`.
    """

    stages: tuple[Stage, ...]
    width: int
    drawn: int
    classes: int
    embedding: int
    norm: tuple[float, float, int]
    channels: int = 3

    @nn.compact
    def __call__(self, latents: PyTree) -> jax.Array:
        z, label = latents["z"], latents["label"]
        row = Embedding(self.classes, self.embedding, name="embeddings")(label)
        condition = taps.tag(jnp.concatenate([z, row], -1), "condition")
        shift = latents.get("shift")
        blocks = sum(s.hidden > 0 for s in self.stages)
        # One part for the first product and one a block; attention is not conditioned.
        parts = [condition if shift is None else condition + shift[:, i] for i in range(blocks + 1)]
        x = nn.Dense(16 * self.width, name="generator.gen_z")(parts[0])
        # The file's rows are laid out with the channels last already.
        x = x.reshape(len(z), 4, 4, self.width)
        at = 0
        for i, stage in enumerate(self.stages):
            name = f"generator.layers.{i}"
            if stage.hidden:
                at += 1
                x = Block(stage, self.norm, name=name)(x, parts[at])
            else:
                x = Attention(name=name)(x)
        x = taps.tag(jax.nn.relu(Norm(*self.norm, name="generator.bn")(x)), "generator.relu")
        # The published net convolves to as many channels as the last block has, and shows three.
        return jnp.tanh(nn.Conv(self.drawn, (3, 3), name="generator.conv_to_rgb")(x))[
            ..., : self.channels
        ]


@dataclasses.dataclass(frozen=True)
class ApplyOfClass:
    """Pictures in [0, 1] of a network of classes, of one of them where `label` says which."""

    module: nn.Module
    label: int | None

    def __call__(self, variables: Variables, latents: PyTree) -> dict[str, jax.Array]:
        if self.label is not None:
            label = jnp.full(len(latents), self.label, jnp.int32)
            latents = {"z": latents, "label": label}
        image: PyTree = self.module.apply(variables, latents)
        return {"image": (image + 1) / 2}


def biggan_deep(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    label: int | None = None,
    space: str = "z",
    truncation: float = 1.0,
    epsilon: float = 1e-4,
    name: str = "biggan_deep",
) -> Generator:
    """Returns a BigGAN-deep generator: `image` `[B, R, R, 3]`.

    Sizes, blocks and the place of the attention are read from the file; every second block doubles
    the size, as in all published ones. Layers are named `generator.layers.0`, ... behind the
    blocks.

    Args:
      weights: safetensors file, or `{name: array}`. Spectral norms are divided out.
      key: instead of weights, for random ones of 16 px; consumed.
      label: draw this class only: latents are z `[D]` then, else `{"z", "label"}` as `Classes`
        draws them.
      space: "z", or "layers": latents also have a shift `[blocks + 1, D + E]` of what the first
        product and each block are conditioned on.
      truncation: in (0, 1], scales z and picks the statistics of the norms.
      epsilon: of the norms.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or an option is out of range.

    >>> G = biggan_deep(key=jax.random.key(0), label=3)
    >>> jax.eval_shape(G, jnp.zeros((2, 16)))["image"].shape
    (2, 16, 16, 3)
    """
    if space not in ("z", "layers") or (space == "layers" and label is not None):
        raise ValueError(
            f"space must be 'z', or 'layers' with label=None, got {space!r} and label={label}"
        )
    if not 0 < truncation <= 1:
        raise ValueError(f"truncation must be in (0, 1], got {truncation}")
    tensors = None if weights is None else unspectral(weights_lib.read_tensors(weights))
    stages, width, drawn, classes, embedding, size, count = _sizes(tensors or {})
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"label must be in 0 to {classes - 1}, got {label}")
    norm = (float(truncation), float(epsilon), count)
    module = Deep(stages, width, drawn, classes, embedding, norm)
    batch: PyTree = {
        "z": jax.ShapeDtypeStruct((2, size), jnp.float32),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    template = jax.eval_shape(module.init, jax.random.key(0), batch)
    # The file keeps statistics for a row of truncations, under a plural.
    plural = {r"\.running_(mean|var)$": r".running_\1s"}
    slots = weights_lib.rename(weights_lib.slots(template), plural)
    variables = variables_of(name, module, batch, tensors, key, slots=slots)
    blocks = sum(s.hidden > 0 for s in stages)
    latent = (
        CutOff(size, truncation)
        if label is not None
        else Classes(size, classes, truncation, blocks + 1 if space == "layers" else 0, embedding)
    )
    return Generator(ApplyOfClass(module, label), variables, latent=latent, name=name)


def unspectral(tensors: weights_lib.Tensors) -> dict[str, np.ndarray]:
    """Returns `X.weight = X.weight_orig / s` for every spectral norm, s = u W v with the stored u
    and v.

    W is the weight with its first axis kept and the others flattened. Without a stored v it is W's
    answer to u, at length 1, as in training.
    """
    found = dict(tensors)
    for name in [n for n in tensors if n.endswith(".weight_orig")]:
        stem = name.removesuffix("_orig")
        # One quotient of long sums for a whole tensor: in float64 it costs nothing to have
        # it exact.
        weight = np.asarray(found[name], np.float64)
        if weight.ndim < 2 or f"{stem}_u" not in found:
            continue  # the import says what is missing
        rows = weight.reshape(len(weight), -1)
        u = np.asarray(found[f"{stem}_u"], np.float64)
        if u.shape != rows.shape[:1]:
            raise ValueError(
                f"weights: {stem}_u must have shape {list(rows.shape[:1])}, found {list(u.shape)}"
            )
        v = np.asarray(found.get(f"{stem}_v", u @ rows), np.float64)
        if v.shape != rows.shape[1:]:
            raise ValueError(
                f"weights: {stem}_v must have shape {list(rows.shape[1:])}, found {list(v.shape)}"
            )
        v = v if f"{stem}_v" in found else v / np.linalg.norm(v)
        for part in ("_orig", "_u", "_v"):
            found.pop(f"{stem}{part}", None)
        found[stem] = (weight / (u @ rows @ v)).astype(np.float32)
    return found


def _sizes(
    tensors: weights_lib.Tensors,
) -> tuple[tuple[Stage, ...], int, int, int, int, int, int]:
    """Stages, channels at 4 px, channels drawn, classes, sizes of embedding and z, statistics
    stored.
    """
    if not tensors:
        return _DEFAULT, 64, 16, 10, 16, 16, 3
    pattern = r"generator\.layers\.(\d+)\.(?:conv_0|snconv1x1_theta)\.weight"
    numbers = sorted(int(m[1]) for n in tensors if (m := re.fullmatch(pattern, n)))
    table, first = (tensors.get(n) for n in ("embeddings.weight", "generator.gen_z.weight"))
    if not numbers or table is None or first is None or table.ndim != 2 or first.ndim != 2:
        raise ValueError(
            "weights do not fit biggan_deep: no tensors embeddings.weight, generator.gen_z.weight "
            "(or weight_orig and weight_u) and generator.layers.0.conv_0.weight, ...; the file has "
            f"{', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    stages: list[Stage] = []
    width = first.shape[0] // 16
    features, blocks = width, 0
    for i in range(max(numbers) + 1):
        at = f"generator.layers.{i}"
        if f"{at}.snconv1x1_theta.weight" in tensors:
            # Attention changes neither size nor channels, and does not count among the
            # blocks that double.
            stages.append(Stage(0, features, False))
            continue
        hidden = _shape(tensors, f"{at}.conv_0.weight", 0, features // 4)
        features = _shape(tensors, f"{at}.conv_3.weight", 0, features)
        stages.append(Stage(hidden, features, blocks % 2 == 1))
        blocks += 1
    drawn = _shape(tensors, "generator.conv_to_rgb.weight", 0, features)
    count = _shape(tensors, "generator.bn.running_means", 0, 51)
    return (
        tuple(stages),
        width,
        drawn,
        table.shape[1],
        table.shape[0],
        first.shape[1] - table.shape[0],
        count,
    )


def _shape(tensors: weights_lib.Tensors, name: str, axis: int, default: int) -> int:
    return weights_lib.width(tensors, (name, axis), default=default)
