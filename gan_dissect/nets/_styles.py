"""Latents of generators that have a mapping network and one style a layer: z, W, W+, and noise.

The spaces, by what a latent is:
  "z": `[D]`, normal. "w": `[D]`, what the mapping makes of it. "w+": `[layers, D]`, the style of
  every layer as it is used, behind the truncation. "layers": z, noise maps and a shift of every
  layer's style.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gan_dissect.generator import Mapped, Normal
from gan_dissect.nets._layers import of_class
from perturb import taps
from perturb.types import PyTree, Record

__all__ = ["RATE", "Labelled", "Layered", "Spaced", "latent_of", "mapped", "rectified"]

SPACES = ("z", "w", "w+", "layers")
# Of the mapping, against that of the other layers.
RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Draws `{"z": [D], "label": integer}`, any of the classes."""

    size: int
    classes: int

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        one, two = jax.random.split(key)
        label = jax.random.randint(two, (), 0, self.classes)
        return {"z": jax.random.normal(one, (self.size,)), "label": label}


@dataclasses.dataclass(frozen=True)
class Layered:
    """Draws `{"z": [D], "shift": [layers, W], "noise": {layer: [h, h]}}`: for edits by layers.

    The styles are those of `z`, through the mapping, plus `shift`, which starts at 0: move that
    leaf to edit in W, in some layers or all. So styles are never drawn as if W were Gaussian. With
    classes there is a `label` too.
    """

    size: int
    style: int
    layers: int
    noise: tuple[tuple[str, int], ...]
    classes: int = 0

    def __call__(self, key: jax.Array) -> Record:
        # A key for each noise map: each can be drawn anew without the others.
        keys = jax.random.split(key, len(self.noise) + 1)
        noise = {
            name: jax.random.normal(k, (side, side))
            for k, (name, side) in zip(keys[1:], self.noise, strict=True)
        }
        drawn: Record = (
            Labelled(self.size, self.classes)(keys[0])
            if self.classes
            else {"z": jax.random.normal(keys[0], (self.size,))}
        )
        return drawn | {"shift": jnp.zeros((self.layers, self.style)), "noise": noise}


@dataclasses.dataclass(frozen=True)
class Spaced:
    """How the latents of a space become the style of every layer.

    Attributes:
      space: see above.
      layers: how many there are.
      truncation: psi in [0, 1]; styles are pulled towards their mean by 1 - psi.
      truncated: number of layers that are, from the first; None is all.
      label: class that is drawn where latents carry none; None if there are no classes.
    """

    space: str
    layers: int
    truncation: float = 1.0
    truncated: int | None = None
    label: int | None = None

    def __post_init__(self) -> None:
        if self.space not in SPACES or not 0 <= self.truncation <= 1:
            raise ValueError(
                f"space must be one of {', '.join(map(repr, SPACES))} and truncation in [0, 1], "
                f"got {self.space!r}, {self.truncation}"
            )

    def styles(
        self, latents: PyTree, mapping: Callable[[jax.Array, PyTree], jax.Array], mean: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """Returns `[B, layers, W]`, and noise `{layer: [B, h, h]}` or None for the stored one.

        Args:
          latents: of the space, of leading size B.
          mapping: `(z [B, D], labels [B] or None) -> [B, W]`.
          mean: `[W]`.
        """
        # Given for every layer, so they are taken as they are: neither mapped nor truncated again.
        if self.space == "w+":
            return latents, None
        w = latents if self.space == "w" else self.mapped(latents, mapping)
        styles = self.pulled(w, mean)
        if self.space != "layers":
            return styles, None
        return styles + latents["shift"], latents["noise"]

    def mapped(
        self, latents: PyTree, mapping: Callable[[jax.Array, PyTree], jax.Array]
    ) -> jax.Array:
        """Returns what the mapping makes of z `[B, D]`, or of a dict with `z` and perhaps
        `label`.
        """
        given = latents if isinstance(latents, dict) else {"z": latents}
        label = given.get("label")
        if label is None and self.label is not None:
            label = jnp.full(len(given["z"]), self.label, jnp.int32)
        return taps.tag(mapping(given["z"], label), "mapping")

    def pulled(self, w: jax.Array, mean: jax.Array) -> jax.Array:
        """Returns `[B, layers, W]` of w `[B, W]`, the first layers nearer to the mean."""
        styles = jnp.broadcast_to(w[:, None], (len(w), self.layers, w.shape[-1]))
        count = self.layers if self.truncated is None else self.truncated
        # The papers truncate the coarse layers only, so that fine details keep their variety.
        near = (jnp.arange(self.layers) < count).reshape(1, -1, 1)
        middle = mean.reshape(1, 1, -1)
        return jnp.where(near, middle + self.truncation * (styles - middle), styles)


def latent_of(
    spaced: Spaced,
    size: int,
    style: int,
    noise: tuple[tuple[str, int], ...],
    *,
    through: Callable[[PyTree, PyTree], PyTree],
    classes: int = 0,
) -> PyTree:
    """Returns what a `Generator` of this space draws its latents from.

    Args:
      spaced: the space.
      size, style: of z and of a style.
      noise: layers and the sides of their noise maps.
      through: `(variables, z) -> latent` of "w" and "w+", unbatched; hashable.
      classes: number of classes, 0 for none.
    Raises:
      ValueError: if a label is given where there are no classes, or is out of range.
    """
    label = spaced.label
    if label is not None and not 0 <= label < classes:
        known = f"in 0 to {classes - 1}" if classes else "None: these weights have no classes"
        raise ValueError(f"label must be {known}, got {label}")
    # A fixed label is no part of the latent: of "z" the latent then is a vector, to walk along.
    free = classes if label is None else 0
    if spaced.space == "layers":
        return Layered(size, style, spaced.layers, noise, free)
    source = Labelled(size, free) if free else Normal((size,))
    return source if spaced.space == "z" else Mapped(source, through)


def mapped(v: jax.Array, depth: int, z: jax.Array, label: jax.Array | None) -> jax.Array:
    """Latents `[B, D]` of length sqrt(D) through dense layers that learn at a hundredth of the
    rate.

    With classes the label's embedding is appended, scaled to the same length. A class that does not
    exist gives NaN.
    """
    x = _unit(z)
    if label is not None:
        table, bias = v["mapping.embed.weight"], v["mapping.embed.bias"]
        row = of_class(table.T, label) / math.sqrt(table.shape[1])
        x = jnp.concatenate([x, _unit(row + bias[None])], -1)
    for k in range(depth):
        weight, bias = v[f"mapping.fc{k}.weight"], v[f"mapping.fc{k}.bias"]
        x = x @ weight.T * (RATE / math.sqrt(weight.shape[1])) + RATE * bias[None]
        x = rectified(x)
    return x


def _unit(x: jax.Array) -> jax.Array:
    # The papers' epsilon.
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-8)


def rectified(x: jax.Array) -> jax.Array:
    """Leaky rectifier, slope .2, times sqrt(2): the variance stays."""
    return jax.nn.leaky_relu(x, 0.2) * math.sqrt(2)
