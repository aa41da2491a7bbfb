"""What is dissected: anything that draws inputs by index, runs them, and has named layers.

A GAN's generator is one (`gan_dissect.Generator`): inputs are latents, the outputs hold the
picture. Here stands what the passes over samples need, so that they work for anything that has it.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from perturb import taps
from perturb.types import PyTree

__all__ = ["Canvas", "Subject", "layers", "sample"]

# A batch size that no layer is likely to have as its first axis for another reason.
_BATCH = 13


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Where the image lies on what the network draws, when it is a crop of that.

    A layer of `[h, w]` cells covers the whole canvas; a cell that the crop cuts off is not seen.

    Attributes:
      height: of the canvas, in pixels of the image.
      width: of the canvas, in pixels of the image.
      top: row of the canvas at which the image starts.
      left: column of the canvas at which the image starts.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0


class Subject(Protocol):
    """What is dissected: a registered dataclass whose weights are leaves, so that programs trace
    them.
    """

    @property
    def name(self) -> str:
        """For records and pages."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """One name a value of the output `labels`, or empty."""

    @property
    def canvas(self) -> Canvas | None:
        """Where the image lies on what the layers cover; None if they cover the image."""

    def __call__(self, inputs: PyTree, /) -> dict[str, jax.Array]:
        """Returns the outputs, with an `image` `[B, H, W, C]`, for inputs of leading size B."""

    def draw(self, key: jax.Array) -> jax.Array:
        """Returns one input, without the batch axis.

        Args:
          key: random key of one input.
        """

    def check(self) -> dict[str, tuple[int, ...]]:
        """Refuses what the methods cannot trust; returns the shape of each output without the
        batch.
        """


def sample(generator: Subject, key: jax.Array, n: int, *, start: int | jax.Array = 0) -> jax.Array:
    """Returns the inputs `start` to `start + n - 1` of `key`, a pytree of leading size `n`.

    Each is drawn from the key folded with its own index, so a shard, a restart or another batch
    size gives the same inputs.

    Args:
      generator: whose `draw` is called; any `Subject`.
      key: not consumed by indices; the same key is the same population.
      n: how many.
      start: the first index; may be traced.
    """
    indices = jnp.arange(n, dtype=jnp.uint32) + jnp.asarray(start, jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    return jax.vmap(generator.draw)(keys)


def layers(generator: Subject) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every named layer without the batch, `(h, w, units)` or `(units,)`.

    In execution order; nothing is computed. Units are numbered along the last axis.

    Args:
      generator: any `Subject`.
    """
    one = jax.eval_shape(generator.draw, jax.random.key(0))
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct((_BATCH, *s.shape), s.dtype), one)
    return {
        name: found.shape[1:]
        for name, found in taps.names(generator, batch).items()
        # Maps and vectors of the batch; what is made of weights alone has another first axis.
        if len(found.shape) in (2, 4) and found.shape[0] == _BATCH
    }
