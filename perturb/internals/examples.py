"""The pictures that every unit answers to most, and pictures along its whole range.

Ties are exact: of equal values the lower picture, and in it the first place in reading order, comes
first, however the pictures are shared out. Beside the top, pictures at random are kept (those of
the lowest hash of their index), for the top alone makes every unit look like a detector.

>>> import jax.numpy as jnp, numpy as np
>>> from perturb import Model, taps
>>> model = Model(lambda w, x: taps.tag(x * w, "double").mean((1, 2)), jnp.float32(2), channels=1)
>>> images = np.arange(24.0).reshape(6, 2, 2, 1) / 24
>>> found = top_examples(model, images, layer="double", k=2, batch_size=4)
>>> found.indices.tolist(), found.places.tolist()
([[5, 4]], [[[1, 1], [1, 1]]])
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from perturb import display
from perturb.internals._blocks import blocks
from perturb.internals._layers import check_layer, reader
from perturb.internals.receptive import box, receptive_field
from perturb.model import Model
from perturb.types import Array, ArrayLike, ImageSource, PyTree

__all__ = ["Examples", "activations", "along_range", "merge_examples", "patches", "top_examples"]


class Examples(NamedTuple):
    """The top pictures of the units of a layer, and a random sample. Equal for any shards and
    batches.

    Attributes:
      layer: its name.
      grid: the layer's places, `(h, w)`, `(tokens,)` or `()`.
      values: `[units, k]`, the highest activation anywhere in a picture, highest first.
      indices: `[units, k]`, which pictures; -1 beyond the last.
      places: `[units, k, len(grid)]`, where in the layer.
      sample: `[S]`, indices of the pictures at random, rising.
      sample_values: `[S, units]`, their highest activations.
      sample_places: `[S, units, len(grid)]`, where in the layer.
      k: how many were asked for at the top.
      kept: how many were asked for at random.
    """

    layer: str
    grid: tuple[int, ...]
    values: np.ndarray
    indices: np.ndarray
    places: np.ndarray
    sample: np.ndarray
    sample_values: np.ndarray
    sample_places: np.ndarray
    k: int
    kept: int

    def __repr__(self) -> str:
        return display.summary(self)


def top_examples(
    model: Model,
    images: ImageSource,
    *,
    layer: str,
    k: int = 10,
    sample: int = 256,
    pictures: int | tuple[int, int] | None = None,
    batch_size: int = 32,
) -> Examples:
    """Finds the top pictures of every unit: of all or, for a part of them, to be merged.

    Args:
      model: whose layer is read.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      layer: a name of `perturb.taps.names(model, images)`; a map, tokens, or one number a unit.
      k: pictures kept for each unit.
      sample: pictures kept at random, the same ones for all units.
      pictures: how many, or `(start, stop)`; None is all.
      batch_size: pictures run at once.
    Raises:
      ValueError: if there is no such layer, or a number is out of its range.
    """
    if k < 1 or sample < 1:
        raise ValueError(f"k and sample must be at least 1, got {k} and {sample}")
    parts = _parts(model, images, layer, k, sample, pictures, batch_size)
    return functools.reduce(merge_examples, parts)


def _parts(
    model: Model,
    images: ImageSource,
    layer: str,
    k: int,
    sample: int,
    pictures: int | tuple[int, int] | None,
    batch_size: int,
) -> Iterator[Examples]:
    """Yields the examples of each block of pictures."""
    grid: tuple[int, ...] | None = None
    for block in blocks(images, batch_size, pictures):
        # Once, on the first block: to trace a network takes longer than to run it.
        grid = check_layer(model, layer, block.images)[:-1] if grid is None else grid
        values, places = (np.asarray(x) for x in _peaks(model, block.images, layer=layer))
        at = np.flatnonzero(block.inside)
        values, places = values[at], np.stack(np.unravel_index(places[at], grid or (1,)), -1)
        # A layer without places unravels into one axis of length 1; it is dropped.
        places = places[..., : len(grid)].astype(np.int32)
        units, indices = values.shape[1], block.indices
        # The lowest hashes of a part hold those of the whole that lie in it: parts can be merged.
        low = np.sort(np.argsort(_hash(indices), kind="stable")[:sample])
        yield Examples(
            layer,
            grid,
            *_top(values.T, np.tile(indices, (units, 1)), places.swapaxes(0, 1), k),
            indices[low],
            values[low],
            places[low],
            k,
            sample,
        )


def activations(model: Model, images: ArrayLike, layer: str) -> np.ndarray:
    """Returns a layer for a batch of pictures, units on the last axis: `[B, ..., units]`.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      layer: a name of `perturb.taps.names(model, images)`.
    """
    return np.asarray(reader([layer])(model, images)[1][layer])


def merge_examples(*parts: Examples) -> Examples:
    """Returns the examples of all pictures from those of parts of them, in any order.

    Args:
      parts: records of the parts, each from `examples`.
    """
    if len({(p.layer, p.grid, p.k, p.kept, p.values.shape[0]) for p in parts}) > 1:
        raise ValueError(
            "examples must be of one layer with the same k and sample, got "
            f"{[(p.layer, p.k, p.kept) for p in parts]}"
        )
    first = parts[0]
    values, indices, places = (
        np.concatenate([getattr(p, field) for p in parts], 1)
        for field in ("values", "indices", "places")
    )
    sample, sample_values, sample_places = (
        np.concatenate([getattr(p, field) for p in parts])
        for field in ("sample", "sample_values", "sample_places")
    )
    # Ties of the hash by index, so that the order of the parts does not matter.
    low = np.lexsort((sample, _hash(sample)))[: first.kept]
    low = low[np.argsort(sample[low])]
    values, indices, places = _top(values, indices, places, first.k)
    return first._replace(
        values=values,
        indices=indices,
        places=places,
        sample=sample[low],
        sample_values=sample_values[low],
        sample_places=sample_places[low],
    )


def along_range(
    examples: Examples, unit: int, levels: tuple[float, ...] = (0.99, 0.9, 0.5, 0.1)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns pictures at levels of a unit's range among those kept at random.

    Args:
      examples: with `kept` of some hundreds.
      unit: its number.
      levels: shares of the pictures that lie below, in [0, 1].
    Returns:
      their indices `[L]`, values `[L]` and places `[L, len(grid)]`.
    """
    order = np.lexsort((examples.sample, examples.sample_values[:, unit]))
    # Order statistics: every level is a real picture.
    at = order[np.rint(np.asarray(levels) * (len(order) - 1)).astype(int)]
    return (
        examples.sample[at],
        examples.sample_values[at, unit],
        examples.sample_places[at, unit],
    )


def patches(
    model: Model,
    images: Array,
    *,
    layer: str,
    indices: PyTree,
    places: ArrayLike,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Cuts out of pictures what units see at given places: the box around the receptive field.

    The box is exact for any architecture (`receptive_field`): no pixel outside it can change the
    unit.

    Args:
      model, images, layer: as for `top_examples`.
      indices: `[P]`, pictures.
      places: `[P, len(grid)]`, in the layer.
    Returns:
      P patches `[h, w, C]` and their boxes `[P, 4]`: top, left, bottom, right, px.
    """
    indices, places = np.asarray(indices).reshape(-1), np.asarray(places)
    one = np.asarray(images[int(indices[0]) : int(indices[0]) + 1])
    # Many units peak at the same place, and a receptive field is a walk through the whole program.
    asked, back = np.unique(places.reshape(len(indices), -1), axis=0, return_inverse=True)
    seen = receptive_field(model, layer, size=one.shape[1:3], places=asked)
    boxes = np.array([box(s) for s in seen])[back.reshape(-1)]
    cut = []
    for index, (top, left, bottom, right) in zip(indices, boxes, strict=True):
        cut.append(np.asarray(images[int(index) : int(index) + 1])[0, top:bottom, left:right])
    return cut, boxes


@functools.partial(jax.jit, static_argnames="layer")
def _peaks(model: Model, images: jax.Array, *, layer: str) -> tuple[jax.Array, jax.Array]:
    values = reader([layer])(model, images)[1][layer]
    flat = values.reshape(len(values), math.prod(values.shape[1:-1]), values.shape[-1])
    return flat.max(1), flat.argmax(1)


def _hash(indices: np.ndarray) -> np.ndarray:
    """A fixed random order of the pictures: the finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        x = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _top(
    values: np.ndarray, indices: np.ndarray, places: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # The last key is the first to sort by: values falling, then indices.
    order = np.lexsort((indices, -values), axis=-1)[:, :k]
    return (
        np.take_along_axis(values, order, 1),
        np.take_along_axis(indices, order, 1),
        np.take_along_axis(places, order[..., None], 1),
    )
