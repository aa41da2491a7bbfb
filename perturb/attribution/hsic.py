"""HSIC: how strongly the answer depends on whether a cell of a grid is shown; a black box is
enough.

Novello, Fel, Vigouroux, Making Sense of Dependence: Efficient Black-box Explanations Using
Dependence Measure, 2022. Cells are shown or not, independently, with probability one half. Their
kernel is `1[a = b] - 1/2`, the answers' a Gaussian as wide as their median distance.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from perturb import operators
from perturb.attribution import _designs
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["dependence", "hsic"]


def hsic(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    cells: int = 7,
    samples: int = 750,
    operator: str | operators.Operator = "blur",
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`, at least 0 but for noise: the dependence on each pixel's cell, enlarged.

    Args:
      model, images, targets: as for `gradient`.
      cells: number of cells of the grid, along each side.
      samples: number of pictures shown.
      operator: name or operator: what a cell that is not shown becomes.
      key: decides the cells, or `[B]` keys of the images.
    """
    if cells < 1 or samples < 4:
        raise ValueError(f"cells must be at least 1 and samples at least 4, got {cells}, {samples}")

    def find(ask: Callable[[np.ndarray], np.ndarray], dims: int, seed: int) -> np.ndarray:
        shown = (_designs.sobol_points(samples, dims, seed) < 0.5).astype(np.float32)
        return dependence(shown, ask(shown))

    return _designs.cell_maps(model, images, targets, find, cells=cells, operator=operator, key=key)


def dependence(shown: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns `[dims]` Hilbert-Schmidt criteria between `shown` `[N, dims]` of 0 and 1 and `values`
    `[N]`.

    >>> rng = np.random.default_rng(0)
    >>> shown = (rng.random((400, 2)) < 0.5).astype(float)
    >>> found = dependence(shown, shown[:, 0])
    >>> bool(found[0] > 20 * abs(found[1]))
    True
    """
    distance = np.abs(values[:, None] - values[None])
    width = float(np.median(distance[distance > 0])) if (distance > 0).any() else 1.0
    kernel = np.exp(-0.5 * (distance / width) ** 2)
    # The kernel between its centring matrices, by means: no product of N x N matrices.
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    # Of values 0 and 1 the kernel 1[a = b] - 1/2 is half the product of their signs.
    signs = 2 * shown - 1
    found: np.ndarray = (
        0.5
        * np.einsum("nd,nm,md->d", signs, centred, signs, optimize=True)
        / (len(values) - 1) ** 2
    )
    return found
