"""Where units are active and concepts are present, counted over any number of samples.

All that dissection says about units follows from these counts. They are whole numbers, so parts of
the samples, counted anywhere, merge into exactly what one run would have counted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb import display, taps
from perturb._numerics import devices
from perturb.types import PyTree
from perturb.units import sampling
from perturb.units.concepts import Concepts
from perturb.units.quantiles import round_down
from perturb.units.subject import Canvas, Subject

__all__ = ["Counts", "count", "joint_counts", "merge_counts"]

_HIGHEST = lax.Precision.HIGHEST


class Counts(NamedTuple):
    """Counts of pixels for one layer. R rows: all samples, even ones, odd ones, then bootstrap
    replicates.

    Attributes:
      both: `[R, units, concepts]`, the unit is active and the concept present.
      active: `[R, units]`, the unit is active.
      present: `[R, concepts]`.
      pixels: `[R]`, all pixels of the images.
      images: `[concepts]`, the number of samples in which the concept occurs at all.
      top_values: `[units, k]`, the highest activations anywhere in an image, highest first.
      top_indices: `[units, k]`, which samples those are, the lower index first on ties.
      top: number k of samples asked for; a part of fewer samples holds fewer.
    """

    both: np.ndarray
    active: np.ndarray
    present: np.ndarray
    pixels: np.ndarray
    images: np.ndarray
    top_values: np.ndarray
    top_indices: np.ndarray
    top: int

    def __repr__(self) -> str:
        return display.summary(self)


def count(
    generator: Subject,
    *,
    layer: str | Sequence[str],
    concepts: Concepts,
    thresholds: Mapping[str, np.ndarray],
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    enlarge: str = "nearest",
    replicates: int = 200,
    top: int = 10,
    batch_size: int = 64,
) -> dict[str, Counts]:
    """Counts how often units and concepts coincide, over all samples or a part of them.

    Args:
      generator: its layers are read.
      layer: one name, or several for one pass over all.
      concepts: of kind "masks".
      thresholds: `[units]` for each layer; a unit is active where it is above its own.
      samples: how many, or `(start, stop)`; see `dissect`.
      key: random key of the latents; not consumed.
      latents: pytree of leading size N, instead of samples and key.
      enlarge: how a layer's cells become pixels of the image: "nearest", or "bilinear" (half-pixel
        centres, edges held; the activation is enlarged and then compared).
      replicates: number of bootstrap copies over samples.
      top: how many samples to keep for each unit.
      batch_size: samples run at once; fewer for large images, so that counts stay exact in
        float32.
    """
    people, start, stop = sampling.population(samples, key, latents)
    shapes = _check(generator, layer, concepts, enlarge)
    limits = {}
    for name, shape in shapes.items():
        # A quantile lies between two float32 values; rounded down, `a > threshold` says in float32
        # what it says in float64.
        limits[name] = round_down(np.asarray(thresholds[name], np.float64))
        if limits[name].shape != shape[-1:]:
            raise ValueError(
                f"thresholds must be one for each of the {shape[-1]} units of {name!r}, got shape "
                f"{limits[name].shape}"
            )
    size = sampling.safe_batch(generator, batch_size)
    total: dict[str, Counts] = {}

    def step(there: PyTree, _: int, block: sampling.Block) -> PyTree:
        first, inside = block
        fed = sampling.feed(people, first, size)
        options = {"enlarge": enlarge, "replicates": replicates}
        return block, jax.device_get(_step(*there, fed, limits, first, inside, **options))

    blocks = sampling.blocks(start, stop, size)
    for (first, inside), counted in devices.each(step, (generator, concepts), blocks):
        found, peaks, present, images = counted
        # Samples of the block that were not asked for run along with weight 0; they must not be
        # among the highest.
        at = np.flatnonzero(inside)
        for name, both in found.items():
            # One block fits 32 bits, all of them may not.
            both = both.astype(np.int64)
            values, indices = _top(peaks[name][at].T, np.tile(first + at, (both.shape[1], 1)), top)
            part = Counts(
                both=both[..., :-1],
                active=both[..., -1],
                present=present[:, :-1].astype(np.int64),
                pixels=present[:, -1].astype(np.int64),
                images=images.astype(np.int64),
                top_values=values,
                top_indices=indices.astype(np.int64),
                top=top,
            )
            total[name] = (
                merge_counts({name: total[name]}, {name: part})[name] if name in total else part
            )
    return total


def merge_counts(*parts: Mapping[str, Counts]) -> dict[str, Counts]:
    """Returns the counts of all samples from those of parts of them, in any order.

    Args:
      parts: `{layer: Counts}` each, from `count` on a part of the samples.
    """
    merged = {}
    for name in parts[0]:
        counts = [p[name] for p in parts]
        if len({c.both.shape for c in counts}) > 1:
            raise ValueError(
                "counts must be of the same units, concepts and replicates, got shapes "
                f"{[c.both.shape for c in counts]} for {name!r}"
            )
        values, indices = _top(
            np.concatenate([c.top_values for c in counts], 1),
            np.concatenate([c.top_indices for c in counts], 1),
            counts[0].top,
        )
        merged[name] = Counts(
            both=np.sum([c.both for c in counts], 0),
            active=np.sum([c.active for c in counts], 0),
            present=np.sum([c.present for c in counts], 0),
            pixels=np.sum([c.pixels for c in counts], 0),
            images=np.sum([c.images for c in counts], 0),
            top_values=values,
            top_indices=indices,
            top=counts[0].top,
        )
    return merged


def joint_counts(
    generator: Subject,
    *,
    layer: str | Sequence[str],
    concepts: Concepts,
    candidates: Mapping[str, np.ndarray],
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    enlarge: str = "nearest",
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Counts, for each of T candidate thresholds, the pixels where a unit is above it and a concept
    present.

    Args:
      candidates: `[T, units]` for each layer.
      generator, layer, concepts, samples, key, latents, enlarge, batch_size: see `count`.
    Returns:
      for each layer `[T + 1, units, concepts + 1]`, to be summed over parts of the samples: the
      last concept is every pixel, the last threshold minus infinity.
    """
    people, start, stop = sampling.population(samples, key, latents)
    _check(generator, layer, concepts, enlarge)
    limits = {
        n: np.concatenate(
            [round_down(np.asarray(c)), np.full((1, c.shape[1]), -np.inf, np.float32)]
        )
        for n, c in candidates.items()
    }
    total: dict[str, np.ndarray] = {}

    def step(there: PyTree, _: int, block: sampling.Block) -> PyTree:
        first, inside = block
        fed = sampling.feed(people, first, len(inside))
        return jax.device_get(_joint(*there, fed, limits, first, inside, enlarge=enlarge))

    blocks = sampling.blocks(start, stop, sampling.safe_batch(generator, batch_size))
    for found in devices.each(step, (generator, concepts), blocks):
        for name, both in found.items():
            total[name] = total.get(name, 0) + np.asarray(both).astype(np.int64)
    return total


def _check(
    generator: Subject, layer: str | Sequence[str], concepts: Concepts, enlarge: str
) -> dict[str, tuple[int, ...]]:
    if concepts.kind != "masks":
        raise ValueError(
            "concepts must be masks to be compared with units, got scores of whole images "
            f"({', '.join(concepts.names[:3])}); measure them with unit_effects"
        )
    if enlarge not in ("nearest", "bilinear"):
        raise ValueError(f"enlarge must be 'nearest' or 'bilinear', got {enlarge!r}")
    return sampling.check_layers(generator, layer)


@functools.partial(jax.jit, static_argnames=("enlarge", "replicates"))
def _step(
    generator: Subject,
    concepts: Concepts,
    people: sampling.Population,
    limits: dict[str, jax.Array],
    first: jax.Array,
    inside: jax.Array,
    *,
    enlarge: str,
    replicates: int,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array, jax.Array]:
    latents = sampling.draw(generator, people, first, len(inside))
    outputs, values = taps.read(generator, list(limits))(latents)
    masks = _with_all(concepts(outputs))
    weights = sampling.replicate_weights(inside, first, replicates)
    found, peaks = {}, {}
    for name, limit in limits.items():
        value = sampling.span(values[name])
        value, under = _align(value, masks, generator.canvas, enlarge)
        # Over places once, and from there over samples for every bootstrap copy. HIGHEST: a GPU
        # would otherwise round the factors, and counts would not be whole.
        active = (value > limit.reshape(1, 1, -1)).astype(jnp.float32)
        each = jnp.einsum("bcu,bcl->bul", active, under, precision=_HIGHEST)
        # `safe_batch` keeps every sum below 2**24, up to where float32 counts exactly.
        found[name] = jnp.einsum("rb,bul->rul", weights, each, precision=_HIGHEST).astype(jnp.int32)
        peaks[name] = values[name].max((1, 2)) if values[name].ndim == 4 else values[name]
    area = masks.sum((1, 2), dtype=jnp.float32)
    present = jnp.einsum("rb,bl->rl", weights, area, precision=_HIGHEST).astype(jnp.int32)
    images = ((area[:, :-1] > 0) & (inside[:, None] > 0)).sum(0)
    return found, peaks, present, images


@functools.partial(jax.jit, static_argnames="enlarge")
def _joint(
    generator: Subject,
    concepts: Concepts,
    people: sampling.Population,
    limits: dict[str, jax.Array],
    first: jax.Array,
    inside: jax.Array,
    *,
    enlarge: str,
) -> dict[str, jax.Array]:
    latents = sampling.draw(generator, people, first, len(inside))
    outputs, values = taps.read(generator, list(limits))(latents)
    masks = _with_all(concepts(outputs)) * inside.reshape(-1, 1, 1, 1)
    found = {}
    for name, limit in limits.items():
        value, under = _align(sampling.span(values[name]), masks, generator.canvas, enlarge)

        def at(t: jax.Array, value: jax.Array = value, under: jax.Array = under) -> jax.Array:
            active = (value > t.reshape(1, 1, -1)).astype(jnp.float32)
            return jnp.einsum("bcu,bcl->ul", active, under, precision=_HIGHEST).astype(jnp.int32)

        # One threshold at a time: a hundred of them at once would be a hundred activations.
        found[name] = lax.map(at, limit)
    return found


def _with_all(masks: jax.Array) -> jax.Array:
    """Masks as floats, and one more that holds every pixel."""
    masks = masks.astype(jnp.float32)
    return jnp.concatenate([masks, jnp.ones_like(masks[..., :1])], -1)


def _align(
    value: jax.Array, masks: jax.Array, canvas: Canvas | None, enlarge: str
) -> tuple[jax.Array, jax.Array]:
    """Brings `[B, h, w, U]` and `[B, H, W, L]` to the same places: `[B, P, U]`, `[B, P, L]`.

    With nearest enlargement all pixels over a cell see the same value, so the cells are the places
    and the masks are counted under each: exactly as much, with a fraction of the work.
    """
    size, grid = masks.shape[1:3], value.shape[1:3]
    if enlarge == "nearest":
        # Rows, then columns: two small products in place of one over all pixels.
        down, across = sampling.pool(size, grid, canvas)
        masks = jnp.einsum("hH,bHWl->bhWl", down, masks, precision=_HIGHEST)
        masks = jnp.einsum("wW,bhWl->bhwl", across, masks, precision=_HIGHEST)
    else:
        height, width, top, left = sampling.frame(size, canvas)
        down = _bilinear(grid[0], height, top, size[0])
        across = _bilinear(grid[1], width, left, size[1])
        value = jnp.einsum("Hh,bhwu->bHwu", down, value, precision=_HIGHEST)
        value = jnp.einsum("Ww,bHwu->bHWu", across, value, precision=_HIGHEST)
    b = len(value)
    return value.reshape(b, -1, value.shape[-1]), masks.reshape(b, -1, masks.shape[-1])


def _bilinear(cells: int, canvas: int, start: int, size: int) -> np.ndarray:
    """The share `[size, cells]` of each cell in each pixel."""
    at = np.clip((start + np.arange(size) + 0.5) * cells / canvas - 0.5, 0, cells - 1)
    # Each cell's tent; clipped at the outermost centres, so that edges are held.
    found: np.ndarray = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)[None])).astype(
        np.float32
    )
    return found


def _top(values: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    # The last key counts first: by value, and among equals by index.
    order = np.lexsort((indices, -values), axis=-1)[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(indices, order, 1)
