"""Sobol indices: how much of the answer's variance each cell of a grid is part of; a black box is
enough.

Fel et al., Look at the Variance! Efficient Black-box Explanations with Sobol-based Sensitivity
Analysis, 2021. Total indices after Jansen (1999):
`mean((f(A) - f(A with column i of B))^2) / (2 var f(A))`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from perturb import operators
from perturb.attribution import _designs
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["indices", "sobol_indices"]


def sobol_indices(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    cells: int = 8,
    designs: int = 32,
    operator: str | operators.Operator = "blur",
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`, at least 0: the total index of each pixel's cell, enlarged.

    Args:
      model, images, targets: as for `gradient`.
      cells: number of cells of the grid, along each side.
      designs: points of the sequence; `designs * (cells^2 + 2)` pictures are shown. A power of
        two is best.
      operator: what a cell becomes as its value falls from 1 to 0.
      key: decides the sequence, or `[B]` keys of the images.
    """
    if cells < 1 or designs < 2:
        raise ValueError(f"cells must be at least 1 and designs at least 2, got {cells}, {designs}")

    def find(ask: Callable[[np.ndarray], np.ndarray], dims: int, seed: int) -> np.ndarray:
        return indices(ask, dims, designs, seed)[1]

    return _designs.cell_maps(model, images, targets, find, cells=cells, operator=operator, key=key)


def indices(function: PyTree, dims: int, designs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns first-order and total Sobol indices `[dims]` of a function of uniform variables in
    [0, 1).

    Args:
      function: `[N, dims] -> [N]`.

    >>> first, total = indices(lambda x: x[:, 0] + 2 * x[:, 1], 2, 256, 0)
    >>> [round(float(t), 1) for t in total]
    [0.2, 0.8]
    """
    # Two designs from one sequence of twice the dimensions: even together, and independent.
    both = _designs.sobol_points(designs, 2 * dims, seed)
    one, two = both[:, :dims], both[:, dims:]
    swapped = np.repeat(one[None], dims, 0)
    # In the i-th copy column i is that of the other design, all else as it was.
    swapped[np.arange(dims), :, np.arange(dims)] = two.T
    values = np.asarray(function(np.concatenate([one, two, swapped.reshape(-1, dims)])))
    a, b = values[:designs], values[designs : 2 * designs]
    c = values[2 * designs :].reshape(dims, designs)
    # An answer that never changes has no variance to share out: indices of 0.
    variance = max(float(np.concatenate([a, b]).var()), 1e-12)
    first = (b * (c - a)).mean(1) / variance
    total = ((a - c) ** 2).mean(1) / (2 * variance)
    return first, total
