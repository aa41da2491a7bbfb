"""Principal components of samples that are too many, or too wide, for a decomposition of the whole.

N samples of M numbers have at most N components: an N x N system gives all of them, and is added up
from a few columns at a time. Where the samples do not fit in memory they are drawn twice:
incremental principal components (`Ross et al. 2008 <https://doi.org/10.1007/s11263-007-0075-7>`_)
find a subspace, and the second pass solves exactly within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from perturb import display

__all__ = [
    "Components",
    "chunks",
    "covariance",
    "decompose",
    "incremental",
    "inner_products",
    "means",
]

# Bytes of the float64 copy of some columns: large enough for a fast product, small beside the
# samples.
_CHUNK = 64 << 20
# Eigenvalues are those of squares: what lies below the root of float64's precision is rounding.
_RANK = 1e-7


class Components(NamedTuple):
    """What a decomposition of centred samples gives.

    Attributes:
      scores: `[N, k]`, left singular vectors, columns of length 1.
      values: `[k]`, singular values, falling.
      axes: `[k, M]`, or None where they were not asked for.
      mean: `[M]`.
      total: sum of all squared singular values.
    """

    scores: np.ndarray
    values: np.ndarray
    axes: np.ndarray | None
    mean: np.ndarray
    total: float

    def __repr__(self) -> str:
        return display.summary(self)


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Yields slices of the columns, of each of which a float64 copy is small."""
    step = max(1, _CHUNK // (8 * max(rows, 1)))
    for start in range(0, columns, step):
        yield slice(start, min(start + step, columns))


def inner_products(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns `(x - mean) @ (x - mean).T` of `[N, M]` in float64, from a few columns at a time."""
    gram = np.zeros((len(x), len(x)))
    for part in chunks(*x.shape):
        centred = x[:, part].astype(np.float64) - mean[part]
        # Centred before the product: the difference of two large moments would cancel the
        # weak components.
        gram += centred @ centred.T
    return gram


def means(x: np.ndarray) -> np.ndarray:
    """Returns the mean of each column of `[N, M]` in float64."""
    return np.concatenate([x[:, part].mean(0, dtype=np.float64) for part in chunks(*x.shape)])


def covariance(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns `(x - mean).T @ (x - mean)` of `[N, M]` in float64, from a few rows at a time."""
    found = np.zeros((x.shape[1], x.shape[1]))
    for part in chunks(x.shape[1], len(x)):
        centred = x[part].astype(np.float64) - mean
        found += centred.T @ centred
    return found


def decompose(x: np.ndarray, *, k: int, axes: bool) -> Components:
    """Returns the first k components of samples `[N, M]`, by the smaller of the two systems.

    Args:
      x: finite samples of any float type; no copy of the whole is made.
      k: number of components.
      axes: whether they are wanted in the space of the samples.
    Raises:
      ValueError: if the samples have fewer components than k.
    """
    mean = means(x)
    wide = x.shape[1] >= len(x)
    if wide:
        squares, vectors = np.linalg.eigh(inner_products(x, mean))
    else:
        squares, vectors = np.linalg.eigh(covariance(x, mean))
    # `eigh` sorts upwards, and rounding puts eigenvalues of a singular system just below 0.
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1][:, :k]
    values = np.sqrt(squares)
    _check_rank(k, values)
    total, values = float(squares.sum()), values[:k]
    if not wide:
        scores = np.concatenate([(x[p] - mean) @ vectors for p in chunks(x.shape[1], len(x))])
        return Components(scores / values, values, vectors.T if axes else None, mean, total)
    found = None
    if axes:
        # The products have the singular values as their lengths; divided by these they are axes.
        found = np.empty((k, x.shape[1]))
        for part in chunks(*x.shape):
            found[:, part] = vectors.T @ (x[:, part] - mean[part])
        found /= values[:, None]
    return Components(vectors, values, found, mean, total)


def incremental(
    draw: Callable[[], Iterable[np.ndarray]], columns: int, *, k: int, rank: int
) -> Components:
    """Returns the first k components of samples that are drawn twice and never held at once.

    Exact where the samples have no more than `rank` components; else what each update leaves out,
    the weakest of twice `rank`, is lost to the subspace, and within the subspace all is exact.

    Args:
      draw: gives the batches `[n, columns]` of all samples, the same each time.
      columns: M.
      k: number of components, at most `rank`.
      rank: components kept between the updates; `8 rank M` bytes are held.
    Raises:
      ValueError: if the samples have fewer components than k.
    """
    # The components kept, as many new samples, and a row for the shift of the mean. In float32, for
    # this buffer is the memory of the pass; what is summed over it is summed in float64.
    held = np.zeros((2 * rank + 1, columns), np.float32)
    mean, seen, waiting, total = np.zeros(columns), 0, 0, 0.0
    for batch in draw():
        for start in range(0, len(batch), rank):
            piece = batch[start : start + rank]
            # An update solves for all rows held, so it waits until they are full.
            if waiting + len(piece) > rank:
                seen, total = _update(held, rank, waiting, mean, seen, total)
                waiting = 0
            held[rank + waiting : rank + waiting + len(piece)] = piece
            waiting += len(piece)
    seen, total = _update(held, rank, waiting, mean, seen, total)
    basis = held[:rank]
    lengths = np.sqrt(np.square(basis).sum(1, dtype=np.float64))
    basis[lengths > 0] /= lengths[lengths > 0, None].astype(np.float32)
    inside = np.concatenate([_coordinates(batch, mean, basis) for batch in draw()])
    left, values, turns = np.linalg.svd(inside - inside.mean(0), full_matrices=False)
    _check_rank(k, values)
    axes = np.empty((k, columns), np.float32)
    for part in chunks(rank, columns):
        axes[:, part] = turns[:k] @ basis[:, part]
    return Components(left[:, :k], values[:k], axes, mean, total)


def _update(
    held: np.ndarray, rank: int, new: int, mean: np.ndarray, seen: int, total: float
) -> tuple[int, float]:
    """Takes `new` rows behind the first `rank` into these and the mean, in place."""
    if not new:
        return seen, total
    rows = held[: rank + new + 1]
    after = seen + new
    # Samples before and now differ in their means: that is one more row.
    weight = np.sqrt(seen * new / after)
    gram = np.zeros((len(rows), len(rows)))
    for part in chunks(len(rows), held.shape[1]):
        fresh = rows[rank : rank + new, part].astype(np.float64)
        middle = fresh.mean(0)
        rows[rank : rank + new, part] = fresh - middle
        rows[rank + new, part] = weight * (middle - mean[part])
        mean[part] += (middle - mean[part]) * (new / after)
        piece = rows[:, part].astype(np.float64)
        gram += piece @ piece.T
    # What the new rows add, before the weakest components are dropped: shares stay those of
    # the whole.
    total += float(np.trace(gram[rank:, rank:]))
    _, vectors = np.linalg.eigh(gram)
    # Kept at the length of their singular values: the next update weighs them against raw samples.
    turn = vectors[:, ::-1][:, :rank].T
    for part in chunks(len(rows), held.shape[1]):
        rows[:rank, part] = turn @ rows[:, part]
    return after, total


def _coordinates(batch: np.ndarray, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    found = np.zeros((len(batch), len(basis)))
    for part in chunks(len(basis), basis.shape[1]):
        found += (batch[:, part] - mean[part]) @ basis[:, part].T.astype(np.float64)
    return found


def _check_rank(k: int, values: np.ndarray) -> None:
    rank = int((values > _RANK * values[0]).sum())
    if k > rank:
        raise ValueError(
            f"k must be in 1 to {rank}, for the samples have {rank} components, got {k}"
        )
