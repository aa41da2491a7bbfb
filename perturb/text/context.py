"""How far back a language model looks, and what it still knows there.

Khandelwal et al., Sharp Nearby, Fuzzy Far Away, 2018: contexts are cut short, or what lies beyond
some distance is shuffled, reversed, thinned out or replaced, and the rise of the loss is plotted
against the distance. Any function from contexts to losses will do; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.statistics import Interval, mean_interval
from perturb.types import Array, ArrayLike, PyTree

__all__ = ["PERTURBATIONS", "Curve", "curve"]

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Curve(NamedTuple):
    """The rise of the loss by distance.

    Attributes:
      starts: `[S]` tokens before the target that are left as they are.
      rise: `[S, B]` loss with the perturbation less loss without it.
      intervals: the mean of each row with its interval over targets.
    """

    starts: tuple[int, ...]
    rise: np.ndarray
    intervals: tuple[Interval, ...]

    def __repr__(self) -> str:
        return display.summary(self)


def _truncate(far: np.ndarray, bank: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    return far[:, :0]


def _shuffle(far: np.ndarray, bank: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    return rng.permuted(far, axis=1)


def _shuffle_near(far: np.ndarray, bank: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    """The nearest 20 alone."""
    cut = max(far.shape[1] - 20, 0)
    return np.concatenate([far[:, :cut], rng.permuted(far[:, cut:], axis=1)], 1)


def _reverse(far: np.ndarray, bank: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    return far[:, ::-1]


def _drop(far: np.ndarray, bank: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    """Every other token, drawn at random; the rest moves up."""
    length = far.shape[1]
    order = np.argsort(rng.random(far.shape), axis=1)[:, : length // 2]
    # Sorted again: the tokens that stay keep their order.
    return np.take_along_axis(far, np.sort(order, axis=1), 1)


def _replace(far: np.ndarray, bank: Array, rng: np.random.Generator) -> np.ndarray:
    """By a stretch of other text."""
    if bank is None or len(bank) < far.shape[1]:
        raise ValueError(
            f"bank must hold at least {far.shape[1]} tokens of other text to replace by"
        )
    # A stretch as it stands, not tokens one by one: other text, not noise.
    starts = rng.integers(0, len(bank) - far.shape[1] + 1, len(far))
    found: np.ndarray = np.asarray(bank)[starts[:, None] + np.arange(far.shape[1])]
    return found


PERTURBATIONS: dict[str, Callable[[np.ndarray, PyTree, np.random.Generator], np.ndarray]] = {
    "truncate": _truncate,
    "shuffle": _shuffle,
    "shuffle_near": _shuffle_near,
    "reverse": _reverse,
    "drop": _drop,
    "replace": _replace,
}


def curve(
    loss: Loss,
    contexts: ArrayLike,
    targets: PyTree,
    perturbation: str,
    starts: Sequence[int],
    *,
    bank: PyTree = None,
    seed: int = 0,
) -> Curve:
    """Returns the rise of the loss when everything further back than each start is perturbed.

    Args:
      loss: `(contexts [B, n], targets [B]) -> [B]` in nats, for n from 0 (or the smallest start)
        on.
      contexts: `[B, N]` tokens before each target, the nearest last; all settings score the same
        targets.
      targets: `[B]`.
      perturbation: one of `PERTURBATIONS`.
      starts: distances, 0 to N: the nearest so many tokens stay.
      bank: `[M]` tokens of other text, for "replace".
      seed: of what is drawn.
    Raises:
      ValueError: if the perturbation is unknown or a start is not within the context.
    """
    contexts, targets = np.asarray(contexts), np.asarray(targets)
    if perturbation not in PERTURBATIONS:
        raise ValueError(
            f"perturbation must be one of {', '.join(PERTURBATIONS)}, got {perturbation!r}"
        )
    length = contexts.shape[1]
    if min(starts) < 0 or max(starts) > length:
        raise ValueError(f"starts must be from 0 to {length}, the context's length, got {starts}")
    # The same targets under every setting, so the rise is paired target by target.
    whole = np.asarray(loss(jnp.asarray(contexts), jnp.asarray(targets)), np.float64)
    rise = []
    for start in starts:
        far, near = np.split(contexts, [length - start], axis=1)
        # By the seed and the distance: other distances beside it change nothing at this one.
        rng = np.random.default_rng([seed, start])
        changed = np.concatenate([PERTURBATIONS[perturbation](far, bank, rng), near], 1)
        found = loss(jnp.asarray(changed), jnp.asarray(targets))
        rise.append(np.asarray(found, np.float64) - whole)
    return Curve(tuple(starts), np.stack(rise), tuple(mean_interval(r) for r in rise))
