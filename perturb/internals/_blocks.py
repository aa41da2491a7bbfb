"""Pictures in fixed blocks from the host: memory does not grow with their number.

Block b always holds the pictures `[b size, (b + 1) size)`, so a picture runs in the same place of
the same program however the work is shared out, and what is found is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import progress
from perturb.types import Array, ImageSource, PyTree

__all__ = ["Block", "blocks", "in_batches", "span"]


class Block(NamedTuple):
    """Some pictures.

    Attributes:
      first: index of the first.
      images: `[size, H, W, C]` float32; beyond the last picture, the last again.
      inside: `[size]`, which of them are asked for.
    """

    first: int
    images: np.ndarray
    inside: np.ndarray

    @property
    def indices(self) -> np.ndarray:
        """Indices of the pictures asked for."""
        return self.first + np.flatnonzero(self.inside)


def span(images: PyTree, pictures: int | tuple[int, int] | None) -> tuple[int, int]:
    """Returns `(start, stop)` of the pictures asked for: all, the first n, or a range."""
    count = len(images)
    start, stop = (
        (0, count)
        if pictures is None
        else ((0, pictures) if isinstance(pictures, int) else pictures)
    )
    if not 0 <= start < stop <= count:
        raise ValueError(f"pictures must lie within 0 to {count} and be at least 1, got {pictures}")
    return int(start), int(stop)


def blocks(
    images: ImageSource, size: int, pictures: int | tuple[int, int] | None = None
) -> Iterator[Block]:
    """Yields the blocks that hold the pictures asked for.

    Args:
      images: `[N, H, W, C]`, or anything with `len()` whose slices are such arrays (a memory map, a
        class that reads files), in [0, 1].
      size: pictures of a block, at least 2.
      pictures: how many, or `(start, stop)`; None is all.
    """
    if size < 2:
        raise ValueError(f"batch_size must be at least 2, got {size}")
    start, stop = span(images, pictures)
    # From a whole multiple on: a range that begins within a block runs that block, and
    # counts a part of it.
    for first in progress.each(range(start // size * size, stop, size), "blocks of pictures"):
        at = first + np.arange(size)
        part = np.asarray(images[first : min(first + size, len(images))], np.float32)
        if len(part) < size:
            # One shape, one program; `inside` says which rows count.
            part = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
        yield Block(first, part, (at >= start) & (at < stop))


def in_batches(read: Callable[[jax.Array], PyTree], rows: Array, batch: int) -> PyTree:
    """Returns what `read` gives for all rows, a few at a time: a pytree of arrays on the host.

    Args:
      read: of `[b, ...]` float32, a pytree of `[b, ...]`.
      rows: `[N, ...]`, N at least 1.
      batch: rows at a time.
    """
    parts = [
        jax.device_get(read(jnp.asarray(rows[first : first + batch], jnp.float32)))
        for first in range(0, len(rows), batch)
    ]
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)
