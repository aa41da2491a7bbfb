"""What of a layer speaks for a class: by place and by unit, at a point or along the way from
nothing.

`a · d score / d a` summed over units says which places speak for a class, summed over places which
units do (Olah et al. 2018). Both sum to the same linear approximation; along a path from 0 they sum
to the score.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, taps
from perturb.internals.features.loop import Features, activations, visualise
from perturb.internals.features.objectives import direction
from perturb.internals.features.presets import Preset
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["Attribution", "Grid", "activation_grid", "attribute"]


class Attribution(NamedTuple):
    """Attributions of B pictures.

    Attributes:
      places: `[B, h, w]` (`[B, T]` of tokens), summed over units.
      units: `[B, C]`, summed over places.
      total: `[B]` the sum over both.
      score: `[B]` the score itself.
      base: `[B]` the score with the layer set to 0.
    """

    places: np.ndarray
    units: np.ndarray
    total: np.ndarray
    score: np.ndarray
    base: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def attribute(
    model: Model, layer: str, images: ArrayLike, targets: PyTree, *, points: int = 1
) -> Attribution:
    """Attributes the score of a class to the places and units of a layer.

    Args:
      model: the network, of logits `[B, classes]`.
      layer: name of the layer.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` classes.
      points: 1 takes the slope where the layer is; more take its mean at the middles of as many
        steps from 0 to there, and then `total` is `score - base` but for the steps' size.
    Raises:
      ValueError: if images or targets do not fit.
    """
    images = jnp.asarray(images)
    targets = jnp.asarray(targets)
    if images.ndim != 4 or targets.shape != images.shape[:1]:
        raise ValueError(
            f"targets must be one class a picture, got {targets.shape} for images {images.shape}"
        )
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    # Never a batch of one: XLA compiles it to different arithmetic than every larger batch.
    count = len(images)
    full = np.resize(np.arange(count), max(2, count))
    found = _attribute(model, images[full], targets[full], layer, points)
    places, units, score, base = (np.asarray(x)[:count] for x in found)
    return Attribution(places, units, units.sum(1), score, base)


def _attribute_impl(
    model: Model, images: jax.Array, targets: jax.Array, layer: str, points: int
) -> tuple[jax.Array, ...]:
    prefix, suffix = taps.split(model, layer)
    value, live = prefix(images)

    def score(a: jax.Array) -> jax.Array:
        found: jax.Array = suffix(a, live)[jnp.arange(len(targets)), targets]
        return found

    def slope(share: jax.Array) -> jax.Array:
        found: jax.Array = jax.grad(lambda a: score(a).sum())(share * value)
        return found

    # Midpoints, whose error falls with the square of their number.
    shares = jnp.ones(1) if points == 1 else (jnp.arange(points) + 0.5) / points
    # One point at a time: the memory is that of one gradient.
    total = jax.lax.map(slope, shares).mean(0)
    each = jnp.moveaxis(value * total, model.channel_axis(value), -1)
    units = each.sum(tuple(range(1, each.ndim - 1)))
    return each.sum(-1), units, score(value), score(jnp.zeros_like(value))


_attribute = jax.jit(_attribute_impl, static_argnums=(3, 4))


class Grid(NamedTuple):
    """What a layer sees at each place of one picture.

    Attributes:
      images: `[h, w, H, W, C]`, a picture for the direction of each place.
      strength: `[h, w]` length of the layer's vector there over the largest, for the size of icons.
      found: all that is known of the pictures, row by row.
    """

    images: np.ndarray
    strength: np.ndarray
    found: Features

    def __repr__(self) -> str:
        return display.summary(self)


def activation_grid(
    model: Model,
    layer: str,
    image: jax.Array,
    *,
    preset: str | Preset = "lucid",
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    batch_size: int = 16,
    key: jax.Array,
) -> Grid:
    """Makes a picture for what a layer sees at each place of a picture (Olah et al. 2018).

    Args:
      model, layer, preset, size, steps, batch_size, key: as for `visualise`.
      image: `[H, W, C]` in [0, 1].
    Raises:
      ValueError: if the layer has no places.
    """
    image = jnp.asarray(image, jnp.float32)
    if image.ndim != 3:
        raise ValueError(f"image must be [H, W, C], got shape {image.shape}")
    value = np.asarray(activations(model, jnp.stack([image, image]), (layer,))[1][layer][0])
    if value.ndim != 3:
        raise ValueError(
            f"layer {layer} has no grid of places, its value for a picture is {list(value.shape)}: "
            "take one of maps"
        )
    height, width, units = value.shape
    length = np.linalg.norm(value, axis=-1)
    # By its direction alone: how strong it is there is told by the size of its icon.
    unit = value / np.maximum(length, 1e-12)[..., None]
    found = visualise(
        model,
        direction(layer, unit.reshape(-1, units)),
        preset=preset,
        size=size,
        steps=steps,
        batch_size=batch_size,
        key=key,
    )
    images = found.images.reshape(height, width, *found.images.shape[1:])
    return Grid(images, length / max(float(length.max()), 1e-12), found)
