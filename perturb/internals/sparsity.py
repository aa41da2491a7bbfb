"""How sparse a layer is: zeros, dead units, how few units carry it, and how many dimensions it has.

A network of random weights has half its rectified values at zero at every depth, so a share of
zeros says little without the same curve of the untrained network: pass `reinitialised` weights for
that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from perturb import display
from perturb.internals._blocks import blocks, span
from perturb.internals._layers import pooled, reader
from perturb.model import Model
from perturb.statistics import Interval, mean_interval
from perturb.types import ImageSource, PyTree

__all__ = ["Sparsity", "sparsity"]


class Sparsity(NamedTuple):
    """One layer.

    Attributes:
      layer: its name.
      zeros: share of values that are exactly 0, by picture, its mean with a 95 % interval.
      treves_rolls: `(mean a)^2 / mean a^2` over the units of a picture, by mean activation in size:
        1 where all units answer alike, 1/U where one does.
      hoyer: `(sqrt U - L1 / L2) / (sqrt U - 1)`: 0 where all answer alike, 1 where one does.
      unit_zeros: `[units]`, share of zeros of each unit.
      dead: `[units]`, those that were never above 0.
      dead_bound: the 95 % upper limit, 3 / pictures, on the share of pictures in which such a
        unit answers all the same (rule of three).
      participation: `(sum l)^2 / sum l^2` of the eigenvalues l of the covariance of mean
        activations: about how many dimensions the pictures fill.
      pictures: how many were seen.
    """

    layer: str
    zeros: Interval
    treves_rolls: Interval
    hoyer: Interval
    unit_zeros: np.ndarray
    dead: np.ndarray
    dead_bound: float
    participation: float
    pictures: int

    def __repr__(self) -> str:
        return display.summary(self)


def sparsity(
    model: Model,
    images: ImageSource,
    *,
    layers: Sequence[str],
    pictures: int | tuple[int, int] | None = None,
    batch_size: int = 32,
) -> dict[str, Sparsity]:
    """Measures layers, in one pass; in the order of depth they are the curve.

    Args:
      model: whose layers are read, after their rectification where they have one.
      images: `[N, H, W, C]`, or anything with `len()` whose slices are such arrays.
      layers: names of `perturb.taps.names(model, images)`.
      pictures: how many, or `(start, stop)`; None is all.
      batch_size: pictures run at once.
    """
    start, stop = span(images, pictures)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    moments: dict[str, tuple[PyTree, PyTree]] = dict.fromkeys(layers, (0.0, 0.0))
    counts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for block in blocks(images, batch_size, pictures):
        found = jax.device_get(_step(model, block.images, layers=tuple(layers)))
        at = np.flatnonzero(block.inside)
        for name, (zero, active, mean) in found.items():
            before = counts.get(name, (0, False))
            counts[name] = (
                before[0] + zero[at].astype(np.float64).sum(0),
                before[1] | active[at].any(0),
            )
            size = np.abs(mean[at].astype(np.float64))
            l1, l2 = size.sum(1), np.sqrt((size**2).sum(1))
            units = size.shape[1]
            # A picture on which a layer is silent has no shape of answers: NaN, which the
            # means leave out.
            silent = l2 == 0
            l2 = np.where(silent, 1, l2)
            treves = np.where(silent, np.nan, (l1 / l2) ** 2 / units)
            root = math.sqrt(units)
            hoyer = np.where(silent, np.nan, (root - l1 / l2) / max(root - 1, 1e-12))
            rows[name].append(np.stack([zero[at].mean(1), treves, hoyer]))
            # Sums in float64 over the pictures: parts add up, and memory does not grow with
            # their number.
            x = mean[at].astype(np.float64)
            moments[name] = moments[name][0] + x.sum(0), moments[name][1] + x.T @ x
    result = {}
    for name in layers:
        zeros, treves, hoyer = np.concatenate(rows[name], 1)
        mean = moments[name][0] / (stop - start)
        spectrum = np.linalg.eigvalsh(moments[name][1] / (stop - start) - np.outer(mean, mean))
        squares = float((spectrum**2).sum())
        result[name] = Sparsity(
            layer=name,
            zeros=mean_interval(zeros, draws=2000),
            treves_rolls=mean_interval(treves, draws=2000),
            hoyer=mean_interval(hoyer, draws=2000),
            unit_zeros=counts[name][0] / (stop - start),
            dead=~counts[name][1],
            # Not seen in n pictures: with 95 % confidence the rate is below 3 / n.
            dead_bound=min(1.0, 3 / (stop - start)),
            participation=float(spectrum.sum()) ** 2 / squares if squares else 0.0,
            pictures=stop - start,
        )
    return result


@functools.partial(jax.jit, static_argnames="layers")
def _step(
    model: Model, images: jax.Array, *, layers: tuple[str, ...]
) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    found = {}
    for name, value in reader(layers)(model, images)[1].items():
        flat = value.reshape(len(value), -1, value.shape[-1])
        # Exactly 0, as a rectifier leaves it: a threshold would have to be chosen for every layer.
        found[name] = (flat == 0).mean(1), (flat > 0).any(1), pooled(value)
    return found
