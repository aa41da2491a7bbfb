"""Activations with the units on the last axis, whatever the layer's own order is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from perturb import taps
from perturb.messages import most_alike, short
from perturb.model import Model
from perturb.types import PyTree

__all__ = [
    "check_layer",
    "input_struct",
    "pooled",
    "reader",
    "units_back",
    "units_last",
    "unknown_layer",
]


def units_last(model: Model, activation: jax.Array) -> jax.Array:
    """Returns an activation as `[B, ..., units]`: `[B, C, H, W]` of a channels-first net becomes
    `[B, H, W, C]`.
    """
    return jnp.moveaxis(activation, model.channel_axis(activation), -1)


def units_back(model: Model, activation: jax.Array) -> jax.Array:
    """Undoes `units_last`."""
    return jnp.moveaxis(activation, -1, model.channel_axis(activation))


def pooled(activation: jax.Array, how: str = "mean") -> jax.Array:
    """Returns one number a unit, `[B, units]`: the mean or the maximum over places of
    `[B, ..., units]`.
    """
    places = tuple(range(1, activation.ndim - 1))
    return activation.max(places) if how == "max" else activation.mean(places)


def input_struct(model: Model, size: Sequence[int], batch: int = 2) -> jax.ShapeDtypeStruct:
    """Returns what a batch of pictures of `size` `(H, W)` looks like to the model."""
    return jax.ShapeDtypeStruct((batch, *size, model.channels), jnp.float32)


def unknown_layer(model: Model, layer: str, known: Iterable[str]) -> ValueError:
    """Returns the error for a layer that a model does not have, with the nearest that it has."""
    names = list(known)
    return ValueError(
        f"layer must be one of those of model {model.name}, got {short(layer, 60)}; nearest: "
        f"{most_alike(layer, names)} (perturb.taps.names lists all {len(names)})"
    )


def check_layer(model: Model, layer: str, images: PyTree) -> tuple[int, ...]:
    """Returns the shape of a layer for one image, units last; refuses an unknown name.

    Raises:
      ValueError: naming the nearest layers.
    """
    known = taps.names(model, images)
    if layer not in known:
        raise unknown_layer(model, layer, known)
    # On shapes alone: nothing is run to check a name.
    shape = jax.eval_shape(lambda a: units_last(model, a), known[layer]).shape
    if len(shape) < 2 or shape[0] != images.shape[0]:
        raise ValueError(
            f"layer {layer!r} of {model.name} must hold units of each image, [B, ..., units], got "
            f"{list(known[layer].shape)} for a batch of {images.shape[0]}"
        )
    found: tuple[int, ...] = shape[1:]
    return found


def reader(layers: Sequence[str]) -> Callable[[Model, PyTree], tuple[PyTree, dict[str, jax.Array]]]:
    """Returns the compiled `(model, images) -> (outputs, {layer: activation, units last})`."""
    # A function of this module under jit: its programs are kept from call to call.
    return functools.partial(_read, layers=tuple(layers))


@functools.partial(jax.jit, static_argnames="layers")
def _read(
    model: Model, images: jax.Array, *, layers: tuple[str, ...]
) -> tuple[PyTree, dict[str, jax.Array]]:
    outputs, values = taps.read(model, layers)(images)
    return outputs, {name: units_last(model, value) for name, value in values.items()}
