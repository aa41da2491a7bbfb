"""Which units does an answer rest on together? One after another, each the costliest beside those
before.

The costliest units each alone are often the same thing twice: with one of them off, the other says
nothing new. Here every unit is tried beside those that are off already, so that sets cost at least
about as much as those of any ranking of single units (`Bau et al. 2020
<https://arxiv.org/abs/2009.05041>`_ rank single units by accuracy).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb import taps
from perturb.internals._layers import check_layer, units_back, units_last
from perturb.model import Model
from perturb.types import PyTree

__all__ = ["joint_orders"]


def joint_orders(
    model: Model,
    images: PyTree,
    targets: PyTree,
    *,
    layer: str,
    count: int,
    pictures: int = 200,
    off: str = "zero",
    means: np.ndarray | None = None,
    chunk: int = 8,
) -> np.ndarray:
    """Returns units of a layer for each class, `[classes, count]`: the costliest set in order.

    What a set costs is the mean drop of sigmoid(margin) over the pictures of the class: accuracy
    with soft edges, so that ties are rare and pictures that are lost already count no more. The
    lower number goes first on ties. Everything before the layer runs once a class.

    Args:
      model: its output is logits `[B, classes]`.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      targets: `[N]`, the true classes; those that occur are the rows, in rising order.
      layer: a name of `perturb.taps.names(model, images)`; after its rectification.
      count: number of units, at least 1.
      pictures: of a class that are looked at, at most, the first ones; all are in memory at once.
      off: what a unit that is off becomes: "zero", or "mean", of `means`.
      means: `[units]`, for "mean".
      chunk: number of sets run at once; changes memory and time only.
    Raises:
      ValueError: if there is no such layer, or an option does not fit.
    """
    targets = np.asarray(targets)
    shape = check_layer(model, layer, jnp.zeros((2, *np.shape(images[0:1])[1:])))
    if not 1 <= count <= shape[-1]:
        raise ValueError(f"count must be 1 to {shape[-1]}, the units of {layer!r}, got {count}")
    if off not in ("zero", "mean") or (off == "mean") != (means is not None):
        raise ValueError(f"off must be 'zero', or 'mean' with means=, got {off!r}")
    values = np.zeros(shape[-1], np.float32) if means is None else np.asarray(means, np.float32)
    classes = np.unique(targets)
    chosen = [np.flatnonzero(targets == c)[:pictures] for c in classes]
    # One size, so one program for all classes; at least two, see the blocks of pictures.
    size = max(2, *(len(c) for c in chosen))
    found = []
    for target, at in zip(classes, chosen, strict=True):
        batch = np.stack([np.asarray(images[int(i) : int(i) + 1], np.float32)[0] for i in at])
        filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
        weights = (np.arange(size) < len(batch)).astype(np.float32) / len(batch)
        found.append(
            _order(
                model, filled, int(target), weights, values, layer=layer, count=count, chunk=chunk
            )
        )
    return np.asarray(np.stack(found))


@functools.partial(jax.jit, static_argnames=("layer", "count", "chunk"))
def _order(
    model: Model,
    images: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    values: jax.Array,
    *,
    layer: str,
    count: int,
    chunk: int,
) -> jax.Array:
    prefix, suffix = taps.split(model, layer)
    activation, live = prefix(images)
    plain = units_last(model, activation)
    each = jnp.eye(plain.shape[-1], dtype=bool)

    def left(off: jax.Array) -> jax.Array:
        logits = suffix(units_back(model, jnp.where(off, values, plain)), live)
        rest = logits.at[:, target].set(-jnp.inf).max(-1)
        return jax.nn.sigmoid(logits[:, target] - rest) @ weights

    def step(off: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        kept = lax.map(lambda one: left(off | one), each, batch_size=chunk)
        unit = jnp.where(off, jnp.inf, kept).argmin()
        return off | each[unit], unit

    return lax.scan(step, jnp.zeros(len(each), bool), None, length=count)[1]
