"""t-SNE, exact: neighbours of codes kept neighbours on a plane (`van der Maaten and Hinton 2008
<https://jmlr.org/papers/v9/vandermaaten08a.html>`_).

It is scikit-learn's: the descent magnifies rounding (its own result moves by a percent at low
perplexity where the start moves by a millionth), so no second program could end where it does. Here
are a start without random numbers, one line for what is wrong, and a record. Any other layout,
UMAP's say, serves `map_quality` and `grid_places` as well.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perturb import display
from perturb.internals.codes import components, scatter
from perturb.types import ArrayLike, PyTree

__all__ = ["Plane", "tsne"]


class Plane(NamedTuple):
    """Points on a plane.

    Attributes:
      places: `[N, 2]`.
      divergence: Kullback-Leibler divergence from the affinities, what was made small.
      start: `[N, 2]`, where the points began.
    """

    places: np.ndarray
    divergence: float
    start: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def tsne(
    codes: ArrayLike, *, perplexity: float = 30.0, start: PyTree = None, steps: int = 1000
) -> Plane:
    """Lays codes out on a plane. Needs scikit-learn.

    Args:
      codes: `[N, D]`; N of some thousands at most, for every pair is counted.
      perplexity: about how many neighbours count, at least 1 and below N.
      start: `[N, 2]`; None is the first two principal components, small. No random numbers are
        drawn.
      steps: of the descent, 250 or more.
    Raises:
      ValueError: if there are too few points for the perplexity, or start does not fit.
      ImportError: without scikit-learn.
    """
    codes = np.asarray(codes, np.float64)
    if codes.ndim != 2 or not np.isfinite(codes).all():
        raise ValueError(f"codes must be finite, [N, D], got shape {list(codes.shape)}")
    number = len(codes)
    if not 1 <= perplexity < number or steps < 250:
        raise ValueError(
            f"perplexity must be 1 to below the {number} codes and steps at least 250, got "
            f"{perplexity} and {steps}"
        )
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("tsne needs scikit-learn: pip install scikit-learn") from error
    if start is None:
        start = components(scatter(codes), min(2, number - 1, codes.shape[1])).project(codes)
        start = np.pad(start, ((0, 0), (0, 2 - start.shape[1])))
        # As small as the original's random start: the first steps must not be led by the
        # starting distances.
        start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4
    start = np.asarray(start, np.float32)
    if start.shape != (number, 2):
        raise ValueError(f"start must be [{number}, 2], got shape {list(start.shape)}")
    # Their program moves the array that it is given.
    descent = TSNE(method="exact", init=start.copy(), perplexity=perplexity, max_iter=steps)
    places = np.asarray(descent.fit_transform(codes), np.float64)
    return Plane(places, float(descent.kl_divergence_), start)
