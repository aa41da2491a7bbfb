"""What all passes over samples share: latents by index, in blocks that do not move, and weights.

A block is always the same run of indices, `[b * size, (b + 1) * size)`, and what of it lies outside
the asked range has weight 0. So a latent runs in the same place of the same program however the
samples are shared out, and what is counted is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, messages, progress
from perturb.inputs import random_key
from perturb.types import PyTree
from perturb.units.subject import Canvas, Subject, layers, sample

__all__ = [
    "FIXED",
    "Population",
    "blocks",
    "cells",
    "check_layers",
    "draw",
    "feed",
    "frame",
    "image_size",
    "pick",
    "pool",
    "population",
    "replicate_weights",
    "safe_batch",
    "span",
]

# Rows of the weights before the bootstrap: all, even indices, odd indices.
FIXED = 3
# Cumulated probabilities of a Poisson variable of mean 1; beyond 9 lies 1e-7.
_POISSON = np.cumsum(np.exp(-1) / np.cumprod([1, *range(1, 10)]))
# "boot" in ASCII.
_SALT = 0x626F6F74


class Population(NamedTuple):
    """The latents that samples are drawn from: a key, or given ones. One of them is None.

    Given ones are a pytree of anything with `len()` whose slices are arrays, or pytrees of arrays:
    a memory map, or a class that reads files. They stay on the host; `feed` brings a block at a
    time.

    Attributes:
      key: random key that samples are drawn from, or None.
      latents: pytree of leading size N, or None.
    """

    key: jax.Array | None
    latents: PyTree

    def __repr__(self) -> str:
        return display.summary(self)


def population(
    samples: int | tuple[int, int] | None, key: jax.Array | None, latents: PyTree
) -> tuple[Population, int, int]:
    """Returns the population and the range of indices, from what the caller gave.

    Args:
      samples: how many, or `(start, stop)`; None is all the latents given.
      key: random key, or None where latents are given.
      latents: pytree of leading size N, or None where a key is given.
    """
    if (key is None) == (latents is None):
        raise ValueError(
            "give samples= and key=, or latents=, got "
            + ("neither key nor latents" if key is None else "both key and latents")
        )
    if key is not None:
        key = random_key(key)
    if latents is not None:
        sizes = {len(leaf) for leaf in jax.tree.leaves(latents)}
        if len(sizes) != 1:
            raise ValueError(f"latents must have one leading size, got {sorted(sizes)}")
        samples = sizes.pop() if samples is None else samples
    if samples is None:
        raise ValueError("samples must be a number of samples, or (start, stop), got None")
    start, stop = (0, samples) if isinstance(samples, int) else samples
    # Indices are folded into the key; numbers from 2**31 on are left for other draws from it, such
    # as random sets and training samples.
    limit = 2**31 if latents is None else len(jax.tree.leaves(latents)[0])
    if not 0 <= start < stop <= limit:
        raise ValueError(f"samples must lie within 0 to {limit} and be at least 1, got {samples}")
    return Population(key, latents), int(start), int(stop)


def feed(people: Population, first: int | np.integer, size: int) -> Population:
    """Returns the population of one block: of given inputs only `size` rows, beyond the last the
    last again.

    Called on the host, outside of jit: however many inputs there are, the device holds a block of
    them.

    Args:
      people: a `Population`.
      first: index of the block's first sample.
      size: number of samples in the block.
    """
    if people.key is not None:
        return people

    def rows(leaf: PyTree) -> PyTree:
        part = leaf[int(first) : min(int(first) + size, len(leaf))]
        return jax.tree.map(lambda x: _filled(np.asarray(x), size), part)

    return Population(None, jax.tree.map(rows, people.latents))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    return (
        rows
        if len(rows) == size
        else np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
    )


def draw(generator: Subject, people: Population, first: jax.Array, size: int) -> PyTree:
    """Returns the latents `first` to `first + size - 1`, of a population that `feed` gave.

    Args:
      generator: any `Subject`.
      people: a `Population`.
      first: index of the first sample; may be traced.
      size: number of samples.
    """
    if people.key is not None:
        return sample(generator, people.key, size, start=first)
    return people.latents


def pick(generator: Subject, people: Population, indices: jax.Array) -> PyTree:
    """Returns the latents of the given indices, those that `draw` gives them.

    Args:
      generator: any `Subject`.
      people: a `Population`.
      indices: `[N]` integers.
    """
    key = people.key
    if key is not None:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
        return jax.vmap(generator.draw)(keys)
    return jax.tree.map(lambda x: jnp.asarray(x)[indices], people.latents)


# The first index of a block, and which of its samples are asked for.
Block = tuple[np.uint32, np.ndarray]


def blocks(start: int, stop: int, size: int) -> Iterator[Block]:
    """Yields the first index of each block, and which of its samples are in the range, 0 or 1.

    Args:
      start: index of the first sample.
      stop: index after the last.
      size: number of samples in a block.
    """
    # From a multiple of the size, so that a sample is in the same block whatever range is asked.
    for first in progress.each(range(start // size * size, stop, size), "blocks of samples"):
        at = first + np.arange(size)
        yield np.uint32(first), ((at >= start) & (at < stop)).astype(np.float32)


def replicate_weights(inside: jax.Array, first: jax.Array, replicates: int) -> jax.Array:
    """Returns how often each sample counts `[3 + replicates, B]`: once, in its half, and resampled.

    The bootstrap over samples in one pass and in any number of shards: in each replicate a sample
    counts Poisson(1) times, drawn from its own index (`Chamandy et al. 2012
    <https://research.google/pubs/estimating-uncertainty-for-massive-data-streams/>`_).

    Args:
      inside: `[B]`, 1 for samples of the range, 0 for those beyond it.
      first: index of the block's first sample.
      replicates: number of bootstrap copies.
    """
    indices = first + jnp.arange(len(inside), dtype=jnp.uint32)
    # A key of its own: the weights must not follow the latents.
    key = jax.random.fold_in(jax.random.key(0), _SALT)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (replicates,)))(keys)
    # The inverse of the distribution: how many of its steps lie below a uniform number.
    counts = (uniform[..., None] > jnp.asarray(_POISSON, jnp.float32).reshape(1, 1, -1)).sum(-1)
    # Halves by parity of the index: in equal numbers, and however the samples are shared out.
    odd = indices % 2
    fixed = jnp.stack([jnp.ones_like(odd), 1 - odd, odd])
    return jnp.concatenate([fixed.astype(jnp.float32), counts.T.astype(jnp.float32)]) * inside[None]


def cells(
    size: Sequence[int], grid: Sequence[int], canvas: Canvas | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row and the column of the grid's cell over each row and column of the image.

    Args:
      size: `(H, W)` of the image, px.
      grid: `(h, w)` of the layer.
      canvas: `Canvas` that the grid covers; None is the image itself.
    """
    height, width, top, left = frame(size, canvas)
    rows = (top + np.arange(size[0])) * grid[0] // height
    columns = (left + np.arange(size[1])) * grid[1] // width
    return rows, columns


def pool(
    size: Sequence[int], grid: Sequence[int], canvas: Canvas | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows `[h, H]` and columns `[w, W]` of the image lie under each of the grid, 0
    or 1.

    Args:
      size: `(H, W)` of the image, px.
      grid: `(h, w)` of the layer.
      canvas: `Canvas` that the grid covers; None is the image itself.
    """
    rows, columns = cells(size, grid, canvas)
    down, across = (
        # Matrices of 0 and 1: pooling is two products, exact for whole numbers.
        (at[None] == np.arange(n)[:, None]).astype(np.float32)
        for at, n in zip((rows, columns), grid, strict=True)
    )
    return down, across


def frame(size: Sequence[int], canvas: Canvas | None) -> tuple[int, int, int, int]:
    """Returns height and width of the canvas, and where on it the image of `size` starts.

    Args:
      size: `(H, W)` of the image, px.
      canvas: `Canvas`; None is the image itself.
    """
    if canvas is None:
        return size[0], size[1], 0, 0
    return canvas.height, canvas.width, canvas.top, canvas.left


def check_layers(generator: Subject, layer: str | Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each layer asked for; refuses unknown ones, with the nearest names.

    Args:
      generator: any `Subject`.
      layer: one name, or several.
    """
    wanted = (layer,) if isinstance(layer, str) else tuple(layer)
    known = layers(generator)
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"layer: {generator.name} has no layer {messages.short(name)}; nearest: "
                f"{messages.most_alike(name, known)} (perturb.units.layers lists all {len(known)})"
            )
    if not wanted:
        raise ValueError("layer must name at least one layer, got none")
    return {name: known[name] for name in wanted}


def span(activation: jax.Array) -> jax.Array:
    """Returns an activation `[B, units]` as `[B, 1, 1, units]`: one cell over the whole image.

    Args:
      activation: `[B, units]`.
    """
    return activation if activation.ndim == 4 else activation[:, None, None, :]


def image_size(generator: Subject) -> tuple[int, int]:
    """Returns height and width of the image.

    Args:
      generator: any `Subject`.
    """
    one = jax.eval_shape(generator.draw, jax.random.key(0))
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2, *s.shape), s.dtype), one)
    image = jax.eval_shape(generator, batch)["image"]
    return image.shape[1], image.shape[2]


def safe_batch(generator: Subject, batch_size: int) -> int:
    """Caps the batch so that what is summed over it in float32, 9 times each pixel, is below 2**24.

    Args:
      generator: any `Subject`.
      batch_size: number of samples asked for.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    height, width = image_size(generator)
    # Never one: XLA compiles that to other arithmetic than every larger batch.
    return max(2, min(batch_size, 2**24 // (9 * height * width)))
