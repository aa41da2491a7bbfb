"""A layer's pictures as points: codes block by block, and their principal components.

A code is a layer's answer to one picture, one number a unit. Components come from sums about the
mean, so parts of the pictures merge and memory does not grow with their number; the classes of a
network are points too, the columns of its last weights.

>>> rows = np.random.default_rng(0).normal(size=(500, 3)) * [5.0, 1.0, 0.1]
>>> halves = merge_scatters(scatter(rows[:200]), scatter(rows[200:]))
>>> found = components(halves, 2)
>>> np.abs(found.directions).round().tolist(), (found.share > 0.03).tolist()
([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [True, True])
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals._blocks import blocks
from perturb.internals._layers import check_layer, pooled, reader
from perturb.model import Model
from perturb.types import ImageSource, PyTree

__all__ = [
    "Components",
    "Scatter",
    "class_components",
    "components",
    "layer_codes",
    "merge_scatters",
    "pca",
    "scatter",
]

POOLS = ("mean", "max", "places")


class Scatter(NamedTuple):
    """Sums over points: all that principal components need.

    Attributes:
      number: how many points.
      mean: `[D]`.
      products: `[D, D]`, sum of the products of deviations from the mean.
    """

    number: int
    mean: np.ndarray
    products: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Components(NamedTuple):
    """Principal components, the largest variance first.

    Attributes:
      mean: `[D]`.
      directions: `[K, D]`, of length 1; the entry largest in size is positive.
      variances: `[K]`, with N - 1 in the denominator, as `numpy.cov`.
      share: `[K]`, of the whole variance.
      number: how many points.
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    share: np.ndarray
    number: int

    def __repr__(self) -> str:
        return display.summary(self)

    def project(self, rows: PyTree) -> np.ndarray:
        """Returns the coordinates `[N, K]` of points.

        Args:
          rows: `[N, D]`.
        """
        found: np.ndarray = (np.asarray(rows, np.float64) - self.mean) @ self.directions.T
        return found


def scatter(rows: PyTree) -> Scatter:
    """Returns the sums of some points.

    Args:
      rows: `[N, D]`.
    """
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(
            f"rows must be [N, D] with at least one point, got shape {list(rows.shape)}"
        )
    mean = rows.mean(0)
    # About the mean of these rows: raw second moments would cancel where means are large.
    return Scatter(len(rows), mean, (rows - mean).T @ (rows - mean))


def merge_scatters(*parts: Scatter) -> Scatter:
    """Returns the sums of all points from those of parts of them (`Chan et al. 1983
    <https://doi.org/10.1080/00031305.1983.10483115>`_).

    Args:
      *parts: sums of parts of the points, as of `scatter`.
    """
    number, mean, products = parts[0]
    for part in parts[1:]:
        # The two means differ: that is one further deviation, weighted by both numbers.
        step, both = part.mean - mean, number + part.number
        products = products + part.products + np.outer(step, step) * (number * part.number / both)
        mean, number = mean + step * (part.number / both), both
    return Scatter(number, mean, products)


def components(sums: Scatter, number: int | None = None) -> Components:
    """Returns the principal components of points from their sums.

    Args:
      sums: of all points, at least two.
      number: K; None is as many as there can be.
    """
    # The mean takes one dimension of the points away.
    most = min(len(sums.mean), sums.number - 1)
    number = most if number is None else number
    if not 1 <= number <= most:
        raise ValueError(
            f"number must be 1 to {most} for {sums.number} points of {len(sums.mean)} numbers, "
            f"got {number}"
        )
    values, vectors = np.linalg.eigh(sums.products / (sums.number - 1))
    # `eigh` sorts upwards, and rounding may leave small negative values.
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1].T
    # A decomposition leaves signs open; fixed, two runs and two machines agree.
    at = np.abs(vectors).argmax(1)
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), at])[:, None]
    total = values.sum()
    share = values / total if total > 0 else np.zeros_like(values)
    return Components(sums.mean, vectors[:number], values[:number], share[:number], sums.number)


def pca(
    model: Model,
    images: ImageSource,
    *,
    layer: str,
    number: int | None = 10,
    pool: str = "mean",
    pictures: int | tuple[int, int] | None = None,
    batch_size: int = 32,
) -> Components:
    """Returns the principal components of a layer over any number of pictures, in one pass.

    Args:
      model: whose layer is read.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      layer: a name of `perturb.taps.names(model, images)`.
      number: of components; None is all.
      pool: "mean" or "max" over places: a point a picture; "places": a point a place.
      pictures: how many, or `(start, stop)`; None is all.
      batch_size: pictures run at once.
    """
    read = _rows(model, images, layer, pool, pictures, batch_size)
    parts = (scatter(rows.reshape(-1, rows.shape[-1])) for rows in read)
    # Block by block: never more than one block's deviations are held.
    return components(functools.reduce(merge_scatters, parts), number)


def layer_codes(
    model: Model,
    images: ImageSource,
    *,
    layer: str,
    pool: str = "mean",
    pictures: int | tuple[int, int] | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns the codes of pictures, `[N, units]` float32; with `pool="places"` `[N, ..., units]`.

    Args:
      model: whose layer is read.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      layer: a name of `perturb.taps.names(model, images)`.
      pool: "mean", "max" or "places", see `pca`.
      pictures: how many, or `(start, stop)`; None is all.
      batch_size: pictures run at once.
    """
    return np.concatenate(list(_rows(model, images, layer, pool, pictures, batch_size)))


def class_components(weights: PyTree, number: int | None = None) -> tuple[Components, np.ndarray]:
    """Returns the principal components of a network's classes, and the classes on them.

    Args:
      weights: `[units, classes]`, of the last layer: a class is a column.
      number: of components; None is all.
    Returns:
      the components, and coordinates `[classes, K]`.
    """
    rows = np.asarray(weights, np.float64).T
    found = components(scatter(rows), number)
    return found, found.project(rows)


def _rows(
    model: Model,
    images: ImageSource,
    layer: str,
    pool: str,
    pictures: int | tuple[int, int] | None,
    batch_size: int,
) -> Iterator[np.ndarray]:
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    shape: Sequence[int] = ()
    for block in blocks(images, batch_size, pictures):
        # Once, on the first block: tracing a network for every block would cost more than
        # running it.
        shape = shape or check_layer(model, layer, jnp.asarray(block.images))
        values = reader([layer])(model, block.images)[1][layer]
        values = values if pool == "places" else pooled(values, pool)
        yield np.asarray(values)[block.inside]
