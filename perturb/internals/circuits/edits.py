"""Edits of a circuit, and what they cost: the same images before and after, against random edits.

An edit exchanges units of a layer, for zeros (a family is taken out) or for what another function
of the image gives (a hand-built detector, a unit of another network). Answers are compared image by
image: the interval of the difference in accuracy is over images, and McNemar's exact test looks at
those alone whose answer changed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import taps
from perturb.model import Model
from perturb.statistics import Interval, paired, percentiles
from perturb.types import ArrayLike, Function, PyTree, Variables

__all__ = ["Change", "compare", "exchange_units", "random_families", "restored"]


class Change(NamedTuple):
    """What an edit does to the answers.

    Attributes:
      lost: number of images that were right before only.
      gained: number of images that were right after only.
      difference: accuracy after less before, with its interval over images.
      p_value: in [0, 1], McNemar's exact two-sided test of as many lost as gained.
    """

    lost: int
    gained: int
    difference: Interval
    p_value: float


def compare(before: ArrayLike, after: ArrayLike, labels: ArrayLike) -> Change:
    """Returns what changed between two sets of outputs `[B, classes]` of the same images.

    Args:
      before: `[B, classes]` outputs.
      after: `[B, classes]` outputs for the same images.
      labels: `[B]` true class indices.

    >>> right, wrong = np.eye(2)[[0, 1, 1]], np.eye(2)[[1, 1, 1]]
    >>> compare(right, wrong, [0, 1, 1])[:2]
    (1, 0)
    """
    labels = np.asarray(labels)
    a, b = (np.asarray(v).argmax(-1) == labels for v in (before, after))
    lost, gained = int((a & ~b).sum()), int((~a & b).sum())
    return Change(lost, gained, paired(b * 1.0, a * 1.0), _mcnemar(lost, gained))


def _mcnemar(lost: int, gained: int) -> float:
    n = lost + gained
    # Under the null each image whose answer changed is lost or gained by a fair coin.
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    found: float = min(1.0, 2 * tail)
    return found


def restored(
    whole: ArrayLike,
    ablated: ArrayLike,
    repaired: ArrayLike,
    labels: ArrayLike,
    *,
    draws: int = 10_000,
) -> Interval:
    """Returns the share of an ablation's loss that a repair brings back, with its interval.

    Args:
      whole, ablated, repaired: outputs `[B, classes]` of the same images.
      labels: `[B]`.
      draws: bootstrap draws over images, the three together.
    """
    labels = np.asarray(labels)
    right = np.stack([np.asarray(v).argmax(-1) == labels for v in (whole, ablated, repaired)])
    # The three are drawn together: a copy holds the same images of each.
    pick = np.random.default_rng(0).integers(0, len(labels), (draws, len(labels)))

    def share(mean: np.ndarray) -> PyTree:
        # In a bootstrap copy the ablation may lose nothing: then the loss counts as one image.
        return (mean[2] - mean[1]) / np.maximum(mean[0] - mean[1], 1 / len(labels))

    drawn = share(right[:, pick].mean(-1))
    low, high = percentiles(drawn)
    return Interval(float(share(right.mean(-1))), float(low), float(high), len(labels))


@dataclasses.dataclass(frozen=True)
class _Exchanged:
    apply: Function
    layer: str
    units: tuple[int, ...]
    values: PyTree
    axis: int

    def __call__(self, variables: Variables, images: jax.Array) -> PyTree:
        new = self.values(images) if callable(self.values) else self.values

        def edit(a: jax.Array) -> jax.Array:
            moved = jnp.moveaxis(a, self.axis, -1)
            return jnp.moveaxis(moved.at[..., list(self.units)].set(new), -1, self.axis)

        return taps.edit(self.apply, {self.layer: edit})(variables, images)


def exchange_units(
    model: Model,
    layer: str,
    units: Sequence[int],
    values: float | Callable[[jax.Array], jax.Array] = 0.0,
) -> Model:
    """Returns the model with units of a layer exchanged.

    Args:
      model: see `perturb.Model`.
      layer: name of an activation.
      units: channels.
      values: a number (0 takes them out), or a function of the images that gives `[B, *places,
        units]`.
    """
    axis = 1 if model.channels_first else -1
    return dataclasses.replace(
        model, apply=_Exchanged(model.apply, layer, tuple(units), values, axis)
    )


def random_families(
    units: int, size: int, *, without: Sequence[int] = (), number: int = 20, seed: int = 0
) -> np.ndarray:
    """Returns `[number, size]`: random sets of other units, the control for an edit of that size.

    Args:
      units: number of units of the layer.
      size: number of units in a set.
      without: indices of units that no set holds.
      number: how many sets.
      seed: a whole number; the same seed gives the same draws.
    """
    # Without the family itself: a control that holds part of it would share its effect.
    others = np.setdiff1d(np.arange(units), without)
    if size > len(others):
        raise ValueError(f"size must be at most the {len(others)} other units, got {size}")
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(others)[:size] for _ in range(number)])
