"""Where a concept is in pictures, and where its typical features would draw it though it is not."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gan_dissect.generator import Generator
from perturb import display, taps
from perturb.types import PyTree
from perturb.units import sampling
from perturb.units.concepts import Concepts, labels
from perturb.units.interventions import Edit, edit_units

__all__ = ["Places", "at_cells", "check", "find_places", "one_cell", "shares_under"]

# Areas are sums of many pixels: the default product of GPUs and TPUs rounds its factors first.
_HIGHEST = lax.Precision.HIGHEST


class Places(NamedTuple):
    """Where a concept is and where it could be; N and M pairs of a sample and a cell of a layer's
    grid.

    Attributes:
      present: `[N]` indices of samples.
      present_cells: `[N]` the cell of each with most of the concept, numbered by rows.
      absent: `[M]` indices of samples.
      absent_cells: `[M]` the cell where the typical features draw the concept best, though it was
        not there.
      value: `[units]`, the typical features: mean activation weighted by the concept's area.
    """

    present: np.ndarray
    present_cells: np.ndarray
    absent: np.ndarray
    absent_cells: np.ndarray
    value: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def find_places(
    generator: Generator,
    *,
    layer: str,
    concept: str,
    concepts: Concepts | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    pairs: int = 200,
    batch_size: int = 64,
) -> Places:
    """Finds where a concept is, what its features are, and where they draw it though it was not.

    A candidate cell is drawn for each sample, more often where the concept often is, and the
    features are inserted there; kept are the cells where that draws most of it.

    Args:
      generator, layer, concept, concepts, samples, key, latents, pairs: see `ace`.
      batch_size: number of samples run at once; changes memory and time only.
    Raises:
      ValueError: if the concept is in fewer than 2 samples, or can be inserted in fewer than 2.
    """
    concepts = labels(generator) if concepts is None else concepts
    _, column = check(generator, layer, concept, concepts)
    people, start, stop = sampling.population(samples, key, latents)
    size = sampling.safe_batch(generator, batch_size)

    def over(step: PyTree, *args: PyTree) -> list[np.ndarray]:
        rows = [
            jax.device_get(
                step(
                    generator,
                    concepts,
                    sampling.feed(people, first, size),
                    first,
                    inside,
                    column,
                    *args,
                    layer=layer,
                )
            )
            for first, inside in sampling.blocks(start, stop, size)
        ]
        # The first two results have a row a sample: rows that only fill a block up are dropped. The
        # others are sums, in which those rows weigh nothing.
        keep = np.concatenate([b[1] for b in sampling.blocks(start, stop, size)]) > 0
        each = [np.concatenate(part)[keep] for part in zip(*(r[:2] for r in rows), strict=True)]
        return each + [np.sum(part, 0) for part in zip(*(r[2:] for r in rows), strict=True)]

    best, cell, features, mass, popular = over(_present)
    found = _highest(best, pairs)
    if len(found) < 2:
        raise ValueError(
            f"concept {concept!r} must occur in at least 2 samples, got {len(found)} of {len(best)}"
        )
    value = (features / mass).astype(np.float32)
    gain, candidate = over(_absent, value, (popular / len(best)).astype(np.float32))
    free = _highest(gain, pairs)
    if len(free) < 2:
        raise ValueError(
            f"concept {concept!r} can be inserted in {len(free)} of {len(gain)} samples only, "
            "2 are needed: it may fill the image, or need more cells than one"
        )
    return Places(found + start, cell[found], free + start, candidate[free], value)


def check(
    generator: Generator, layer: str, concept: str, concepts: Concepts
) -> tuple[tuple[int, ...], int]:
    shape = sampling.check_layers(generator, layer)[layer]
    if len(shape) != 3:
        raise ValueError(f"layer must be a map [h, w, units], got {layer!r} of shape {list(shape)}")
    if concepts.kind != "masks":
        raise ValueError(f"concepts must be of kind 'masks', got {concepts.kind!r}")
    if concept not in concepts.names:
        raise ValueError(f"concept must be one of {', '.join(concepts.names)}, got {concept!r}")
    return shape, concepts.names.index(concept)


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    order = np.argsort(-values, kind="stable")[:n]
    # A place with nothing of the concept is none, however few are left.
    return order[values[order] > 0]


@functools.partial(jax.jit, static_argnames="layer")
def _present(
    generator: Generator,
    concepts: Concepts,
    people: PyTree,
    first: PyTree,
    inside: PyTree,
    column: PyTree,
    *,
    layer: str,
) -> tuple[jax.Array, ...]:
    latents = sampling.draw(generator, people, first, len(inside))
    outputs, values = taps.read(generator, layer)(latents)
    x = values[layer]
    share = shares_under(concepts(outputs)[..., column][..., None], generator, x.shape[1:3])[..., 0]
    share = share * inside.reshape(-1, 1, 1)
    flat = share.reshape(len(share), -1)
    features = jnp.einsum("bhw,bhwu->u", share, x, precision=_HIGHEST)
    return flat.max(1), flat.argmax(1), features, share.sum(), share.sum(0)


@functools.partial(jax.jit, static_argnames="layer")
def _absent(
    generator: Generator,
    concepts: Concepts,
    people: PyTree,
    first: PyTree,
    inside: PyTree,
    column: PyTree,
    value: PyTree,
    popular: PyTree,
    *,
    layer: str,
) -> tuple[jax.Array, ...]:
    latents = sampling.draw(generator, people, first, len(inside))
    prefix, suffix = taps.split(generator, layer)
    x, live = prefix(latents)
    grid = x.shape[1:3]

    def share(outputs: dict[str, jax.Array]) -> jax.Array:
        return shares_under(concepts(outputs)[..., column][..., None], generator, grid)

    outputs = suffix(x, live)
    before = share(outputs)[..., 0]
    down, across = sampling.pool(outputs["image"].shape[1:3], grid, generator.canvas)
    seen = (down.sum(1)[:, None] * across.sum(1)[None]) > 0
    # A tenth of the mean everywhere: a cell in which the concept was never seen can be drawn too.
    weight = (popular + popular.mean() / 10)[None] * ((before == 0) & seen[None])
    indices = first + jnp.arange(len(inside), dtype=jnp.uint32)
    # By the sample's number, so that a cell does not depend on the batch it is drawn in.
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(11), i))(indices)
    flat = weight.reshape(len(weight), -1)
    # A weight of 0 is never drawn. Where all are 0 the cell means nothing; its gain is set
    # to 0 below.
    cells = jax.vmap(jax.random.categorical)(keys, jnp.log(flat))
    spot = one_cell(cells, (grid[0], grid[1]))
    after = at_cells(share(suffix(edit_units(x, Edit(spot, value)), live)), cells)[:, 0]
    return jnp.where((flat.sum(1) > 0) & (inside > 0), after, 0.0), cells


def shares_under(masks: jax.Array, generator: Generator, grid: tuple[int, ...]) -> jax.Array:
    """The share of each concept under each cell of a grid: `[B, H, W, L]` to `[B, h, w, L]`."""
    down, across = sampling.pool(masks.shape[1:3], grid, generator.canvas)
    found = jnp.einsum(
        "hH,bHWl,wW->bhwl", down, masks.astype(jnp.float32), across, precision=_HIGHEST
    )
    pixels = down.sum(1)[:, None] * across.sum(1)[None]
    # Cells that a crop cuts off lie over no pixel: a share of 0, not 0 / 0.
    result: jax.Array = found / np.maximum(pixels, 1)[None, :, :, None]
    return result


def at_cells(values: jax.Array, cells: jax.Array) -> jax.Array:
    """Rows `[B, L]` of `[B, h, w, L]` at cells `[B]`."""
    flat = values.reshape(len(values), -1, values.shape[-1])
    return flat[jnp.arange(len(values)), cells]


def one_cell(cells: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Masks `[B, h, w, 1]` of one cell each."""
    number = jnp.arange(grid[0] * grid[1]).reshape(1, *grid, 1)
    return (number == cells.reshape(-1, 1, 1, 1)).astype(jnp.float32)
