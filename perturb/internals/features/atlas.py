"""An activation atlas: what a layer sees in many pictures, laid out on a plane by likeness.

Carter et al. 2019: one place of each picture, a layout of their vectors, a grid over it, and in
each cell a picture for the mean of the vectors there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals.codes import components, scatter
from perturb.internals.features import objectives
from perturb.internals.features.attribution import grids_of, slopes_at
from perturb.internals.features.loop import Features, filling, visualise
from perturb.internals.features.presets import Preset
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["Atlas", "Sampled", "atlas", "sample"]


class Sampled(NamedTuple):
    """One vector of a layer from each picture.

    Attributes:
      vectors: `[N, C]` of the layer.
      places: `[N, 2]` `(y, x)` where they were taken.
      effect: `[N]` of each vector for its class, `vector · d score / d vector`; NaN without
        targets.
    """

    vectors: np.ndarray
    places: np.ndarray
    effect: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Atlas(NamedTuple):
    """Cells of a grid over a layout, those that hold enough vectors.

    Attributes:
      images: `[M, H, W, C]` the visualised mean direction of each cell.
      cells: `[M, 2]` row and column of each in the grid.
      counts: `[M]` number of vectors in each, for the size of its icon.
      effect: `[M]` mean effect of its vectors for their classes, NaN without.
      layout: `[N, 2]` in [0, 1], of all vectors.
      found: all that is known of the pictures.
    """

    images: np.ndarray
    cells: np.ndarray
    counts: np.ndarray
    effect: np.ndarray
    layout: np.ndarray
    found: Features

    def __repr__(self) -> str:
        return display.summary(self)


def sample(
    model: Model,
    layer: str,
    images: ArrayLike,
    *,
    targets: PyTree = None,
    batch_size: int = 32,
    key: jax.Array,
) -> Sampled:
    """Takes one vector of a layer from each picture, at a random place that is not at the border.

    Args:
      model: the network, a `perturb.Model`.
      layer: name of a layer of maps.
      images: `[N, H, W, C]` in [0, 1].
      targets: `[N]` classes for `effect`, or None.
      batch_size: pictures at once, at least 2.
      key: random key; the place of a picture follows from its index.
    Raises:
      ValueError: if the layer has no places.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or batch_size < 2:
        raise ValueError(
            f"images must be [N, H, W, C] and batch_size at least 2, got {images.shape} and "
            f"{batch_size}"
        )
    vectors, places, effects = [], [], []
    for at in range(0, len(images), batch_size):
        block = images[at : at + batch_size]
        full = jnp.asarray(block[filling(len(block), batch_size)])
        value = grids_of(model, layer, full)[: len(block)]
        # Of a layer of one or two rows every place is at the border.
        low = np.array([1 if n > 2 else 0 for n in value.shape[1:3]])
        high = np.array(value.shape[1:3]) - low
        drawn = [
            np.asarray(jax.random.randint(jax.random.fold_in(key, at + i), (2,), low, high))
            for i in range(len(block))
        ]
        where = np.stack(drawn)
        here = value[np.arange(len(block)), where[:, 0], where[:, 1]]
        vectors.append(here)
        places.append(where)
        if targets is not None:
            classes = np.resize(np.asarray(targets)[at : at + len(block)], batch_size)
            slope = np.asarray(slopes_at(model, layer, full, jnp.asarray(classes)))[: len(block)]
            slope = slope[np.arange(len(block)), where[:, 0], where[:, 1]]
            effects.append((here * slope).sum(-1))
    effect = np.concatenate(effects) if effects else np.full(len(images), np.nan)
    return Sampled(np.concatenate(vectors), np.concatenate(places), effect)


def atlas(
    model: Model,
    layer: str,
    sampled: Sampled,
    *,
    layout: PyTree = None,
    grid: int = 10,
    least: int = 5,
    ridge: float = 0.1,
    preset: str | Preset = "lucid",
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    batch_size: int = 16,
    key: jax.Array,
) -> Atlas:
    """Makes a picture for every cell of a grid over the layout of a layer's vectors.

    Args:
      model, layer, preset, size, steps, batch_size, key: as for `visualise`.
      sampled: of `sample`.
      layout: `[N, 2]` of any method, `tsne(vectors).places` say; None is the two first principal
        components.
      grid: cells a side, at least 1.
      least: vectors that a cell must have for a picture, at least 1.
      ridge: share of the mean second moment that is added before directions are whitened: a dead
        unit has none of its own.
    Raises:
      ValueError: if the layout does not fit, or no cell has enough vectors.
    """
    vectors = np.asarray(sampled.vectors, np.float64)
    if layout is None:
        layout = components(scatter(vectors), 2).project(vectors)
    layout = np.asarray(layout, np.float64)
    if layout.shape != (len(vectors), 2) or not np.isfinite(layout).all():
        raise ValueError(
            f"layout must be finite, [{len(vectors)}, 2] for these vectors, got shape "
            f"{list(layout.shape)}"
        )
    if grid < 1 or least < 1:
        raise ValueError(f"grid and least must be at least 1, got {grid} and {least}")
    # Between the outermost hundredths and a tenth more: a few strays would make all else small.
    low, high = np.percentile(layout, [1, 99], axis=0)
    span = np.where(high > low, high - low, 1)
    layout = ((layout - low) / span + 0.1) / 1.2
    layout = layout.clip(0, 1)
    # Every point is in one cell: below the upper edge, but for the last one.
    column, row = np.minimum((layout * grid).astype(int), grid - 1).T
    cells = row * grid + column
    counts = np.bincount(cells, minlength=grid * grid)
    used = np.flatnonzero(counts >= least)
    if not len(used):
        raise ValueError(
            f"no cell of {grid} x {grid} has {least} of the {len(vectors)} vectors: make least or "
            "grid smaller"
        )
    means = _means(vectors, cells, grid * grid)[used]
    effect = _means(sampled.effect, cells, grid * grid)[used]
    # Uncentred, as published: a direction is away from silence, not from the mean.
    moment = vectors.T @ vectors / len(vectors)
    moment += ridge * np.trace(moment) / len(moment) * np.eye(len(moment))
    wanted = np.linalg.solve(moment, means.T).T
    length = np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    found = visualise(
        model,
        objectives.direction(layer, wanted / length, power=2.0),
        preset=preset,
        size=size,
        steps=steps,
        batch_size=batch_size,
        key=key,
    )
    where = np.stack([used // grid, used % grid], 1)
    return Atlas(found.images, where, counts[used], effect, layout, found)


def _means(numbers: np.ndarray, cells: np.ndarray, count: int) -> np.ndarray:
    """The mean of the rows of each cell, `[count, ...]`; zeros where there is none."""
    numbers = np.asarray(numbers, np.float64)
    total = np.zeros((count, *numbers.shape[1:]))
    np.add.at(total, cells, numbers)
    many = np.bincount(cells, minlength=count).reshape(-1, *[1] * (numbers.ndim - 1))
    return total / np.maximum(many, 1)
