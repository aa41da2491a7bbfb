"""Attribution of a class score, or of a unit of a later layer, to the places and units of a layer.

`a · d score / d a` summed over units attributes the score to places, summed over places to units
(Olah et al. 2018). Both sum to the same linear approximation; integrated along a path from 0 they
sum to the score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, taps
from perturb.internals._given import one_each
from perturb.internals._layers import units_last, unknown_layer
from perturb.internals.features.loop import Features, filling, layer_value, visualise
from perturb.internals.features.objectives import direction
from perturb.internals.features.presets import Preset
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = [
    "Attribution",
    "Grid",
    "activation_grid",
    "attribute",
    "attribute_between",
    "grids_of",
    "maps_of",
    "slopes_at",
]


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
    targets = jnp.asarray(one_each("targets", targets, images))
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    count = len(images)
    full = filling(count)
    found = _attribute(model, images[full], targets[full], layer, points)
    places, units, score, base = (np.asarray(x)[:count] for x in found)
    return Attribution(places, units, units.sum(1), score, base)


def attribute_between(
    model: Model,
    layer: str,
    later: str,
    images: ArrayLike,
    units: PyTree,
    *,
    place: tuple[int, ...] | None = None,
    points: int = 1,
) -> Attribution:
    """Attributes a unit of a later layer to the places and units of an earlier one.

    Args:
      model: the network, a `perturb.Model`.
      layer: name of the earlier layer.
      later: name of the later layer.
      images: `[B, H, W, C]` in [0, 1].
      units: `[B]` a unit of the later layer for each picture.
      place: `(y, x)` in cells of the later layer, `(t,)` for tokens; None sums over its places.
      points: as for `attribute`.
    Raises:
      ValueError: if images, units or place do not fit, or the unit does not depend on the layer.
    """
    images = jnp.asarray(images)
    units = one_each("units", units, images)
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    known = taps.names(model, jax.ShapeDtypeStruct((2, *images.shape[1:]), jnp.float32))
    for name in (layer, later):
        if name not in known:
            raise unknown_layer(model, name, known)
    shape = known[later].shape
    wrong = [int(u) for u in units if not 0 <= u < shape[model.channel_axis(known[later])]]
    if wrong:
        raise ValueError(f"unit {wrong[0]} does not exist: layer {later} has shape {list(shape)}")
    if place is not None and len(place) != len(shape) - 2:
        raise ValueError(f"place must have {len(shape) - 2} numbers for layer {later}, got {place}")
    count = len(images)
    full = filling(count)
    found = _between(model, images[full], jnp.asarray(units[full]), (layer, later), place, points)
    each, by_unit, score, base = (np.asarray(x)[:count] for x in found)
    return Attribution(each, by_unit, by_unit.sum(1), score, base)


def _between_impl(
    model: Model,
    images: jax.Array,
    units: jax.Array,
    names: tuple[str, str],
    place: tuple[int, ...] | None,
    points: int,
) -> tuple[jax.Array, ...]:
    layer, later = names
    value = taps.read(model, (layer,))(images)[1][layer]

    def score(a: jax.Array) -> jax.Array:
        changed = taps.edit(taps.read(model, (later,)), {layer: lambda old: a})
        found = changed(images)[1][later]
        found = units_last(model, found)
        if place is None:
            found = found.sum(tuple(range(1, found.ndim - 1)))
        else:
            found = found[(slice(None), *place)]
        return found[jnp.arange(len(units)), units]

    return _summed(model, value, score, points)


_between = jax.jit(_between_impl, static_argnums=(3, 4, 5))


def _attribute_impl(
    model: Model, images: jax.Array, targets: jax.Array, layer: str, points: int
) -> tuple[jax.Array, ...]:
    prefix, suffix = taps.split(model, layer)
    value, live = prefix(images)

    def score(a: jax.Array) -> jax.Array:
        found: jax.Array = suffix(a, live)[jnp.arange(len(targets)), targets]
        return found

    return _summed(model, value, score, points)


def _summed(
    model: Model, value: jax.Array, score: Callable[[jax.Array], jax.Array], points: int
) -> tuple[jax.Array, ...]:
    """Attributions by place and by unit, the score, and that of a layer of zeros."""

    def slope(share: jax.Array) -> jax.Array:
        found: jax.Array = jax.grad(lambda a: score(a).sum())(share * value)
        return found

    # Midpoints, whose error falls with the square of their number.
    shares = jnp.ones(1) if points == 1 else (jnp.arange(points) + 0.5) / points
    # One point at a time: the memory is that of one gradient.
    total = jax.lax.map(slope, shares).mean(0)
    each = units_last(model, value * total)
    units = each.sum(tuple(range(1, each.ndim - 1)))
    return each.sum(-1), units, score(value), score(jnp.zeros_like(value))


_attribute = jax.jit(_attribute_impl, static_argnums=(3, 4))


@functools.partial(jax.jit, static_argnums=1)
def slopes_at(model: Model, layer: str, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the slope of each picture's class score at a layer, `[B, ..., C]`, channels last.

    Args:
      model: the network, of logits `[B, classes]`.
      layer: name of the layer.
      images: `[B, H, W, C]` in [0, 1], B at least 2.
      targets: `[B]` classes.
    """
    prefix, suffix = taps.split(model, layer)
    value, live = prefix(images)
    slope = jax.grad(lambda a: suffix(a, live)[jnp.arange(len(targets)), targets].sum())(value)
    return units_last(model, slope)


def maps_of(model: Model, layer: str, image: ArrayLike) -> np.ndarray:
    """Returns a layer's value on one picture, `[h, w, C]`.

    Args:
      model: the network, a `perturb.Model`.
      layer: name of the layer.
      image: `[H, W, C]` in [0, 1].
    Raises:
      ValueError: if the layer has no places.
    """
    image = jnp.asarray(image, jnp.float32)
    if image.ndim != 3:
        raise ValueError(f"image must be [H, W, C], got shape {image.shape}")
    value: np.ndarray = grids_of(model, layer, jnp.stack([image, image]))[0]
    return value


def grids_of(model: Model, layer: str, images: jax.Array) -> np.ndarray:
    """Returns a layer's value on pictures, `[B, h, w, C]`.

    Args:
      model: the network, a `perturb.Model`.
      layer: name of the layer.
      images: `[B, H, W, C]` in [0, 1], B at least 2.
    Raises:
      ValueError: if the layer has no places.
    """
    value = np.asarray(layer_value(model, images, layer))
    if value.ndim != 4:
        raise ValueError(
            f"layer {layer} has no grid of places, its value for a picture is "
            f"{list(value.shape[1:])}: take one of maps"
        )
    return value


class Grid(NamedTuple):
    """What a layer sees at each place of one picture.

    Attributes:
      images: `[h, w, H, W, C]`, a picture for the direction of each place.
      strength: `[h, w]` length of the layer's vector there over the largest, or over the one given,
        for the size of icons.
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
    image: ArrayLike,
    *,
    largest: float | None = None,
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
      largest: the length that counts as strength 1, so that grids of several layers or pictures
        have one scale; None takes the largest here.
    Raises:
      ValueError: if the layer has no places, or `largest` is not positive.
    """
    if largest is not None and not largest > 0:
        raise ValueError(f"largest must be positive, got {largest}")
    value = maps_of(model, layer, image)
    height, width, units = value.shape
    length = np.linalg.norm(value, axis=-1)
    # Only directions are visualised; the length of a vector becomes the size of its icon.
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
    whole = max(float(length.max()), 1e-12) if largest is None else largest
    return Grid(images, length / whole, found)
