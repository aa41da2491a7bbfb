"""Evidence for masks over tokens: other fills, the same mask elsewhere, and erasure by area.

A mask that keeps the answer under the fill that it was sought with may rely on that fill, or on
bytes without meaning. It should keep the answer under other fills too, and the same shape elsewhere
should not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.inputs import random_key
from perturb.text.tokens import Fill, Text
from perturb.types import Array, ArrayLike, PyTree

__all__ = ["Erasure", "TokenCard", "card", "erasure", "stretches"]


class Erasure(NamedTuple):
    """ERASER's two figures (DeYoung et al. 2020), by share of tokens, `[B, A]` each.

    Attributes:
      areas: `[A]`.
      sufficiency: probability of all less that of the best tokens alone; low is good.
      comprehensiveness: probability of all less that without them; high is good.
    """

    areas: np.ndarray
    sufficiency: np.ndarray
    comprehensiveness: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


@jax.jit
def _probability(
    text: Text, x: jax.Array, targets: jax.Array, operator: Fill, keys: jax.Array, kept: jax.Array
) -> jax.Array:
    def show(x: jax.Array, key: jax.Array, mask: jax.Array) -> jax.Array:
        return operator.apply(operator.prepare(x, key), mask)

    shown = jax.vmap(show)(x, keys, kept.astype(x.dtype))
    p = jax.nn.softmax(text.model(shown), -1)
    return jnp.take_along_axis(p, targets[:, None], 1)[:, 0]


def _measure(
    text: Text, tokens: Array, targets: PyTree, operator: Fill, kept: PyTree, key: jax.Array
) -> PyTree:
    """Probability of each target with the tokens of `kept` `[B, L]`; static numbers are lifted
    out.
    """
    keys = jax.random.split(key, len(kept))
    # Numbers of a record become traced leaves, and how many there are its structure: set alike, so
    # that neither compiles another program.
    model = text._replace(pad=0, special=())
    return np.asarray(
        _probability(model, text.embed(tokens), jnp.asarray(targets), operator, keys, kept)
    )


def erasure(
    text: Text,
    tokens: ArrayLike,
    targets: PyTree,
    scores: ArrayLike,
    *,
    operator: Fill,
    areas: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5),
    key: jax.Array | None = None,
) -> Erasure:
    """Returns sufficiency and comprehensiveness of scores `[B, L]`; their means are the AOPC
    figures.

    Args:
      text, tokens, targets: as for `perturb.text.attribute`.
      scores: `[B, L]`, higher matters more; of equal ones the first counts first.
      operator: what an erased token becomes.
      areas: shares of the tokens.
      key: of fills drawn at random.
    """
    key = random_key(key)
    tokens, scores = np.asarray(tokens), np.asarray(scores)
    number, length = scores.shape
    # The order of the order is the rank.
    rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    whole = _measure(text, tokens, targets, operator, np.ones((number, length)), key)
    kept, removed = [], []
    for area in areas:
        # At least one token, or a small area of a short text would measure nothing.
        best = rank < max(1, round(area * length))
        kept.append(whole - _measure(text, tokens, targets, operator, best, key))
        removed.append(whole - _measure(text, tokens, targets, operator, ~best, key))
    return Erasure(np.asarray(areas), np.stack(kept, 1), np.stack(removed, 1))


class TokenCard(NamedTuple):
    """What speaks for a mask over tokens.

    Attributes:
      whole: probability of the whole text.
      kept: probability with the mask's tokens alone, by fill.
      elsewhere: the same with the mask moved elsewhere, mean over draws, by fill.
      percentile: share of the draws that the mask beats under the first fill.
      runs: number of stretches that the mask consists of.
      verdict: "evidence", "one fill only", "anywhere" or "not sufficient".
    """

    whole: float
    kept: dict[str, float]
    elsewhere: dict[str, float]
    percentile: float
    runs: int
    verdict: str


def card(
    text: Text,
    tokens: ArrayLike,
    target: int,
    mask: ArrayLike,
    operators: Mapping[str, Fill],
    *,
    draws: int = 20,
    wanted: float = 0.9,
    key: jax.Array | None = None,
) -> TokenCard:
    """Returns the evidence for one mask.

    Args:
      text: the model.
      tokens: `[L]`.
      target: class.
      mask: `[L]`, 1 on the tokens that are kept.
      operators: fills by name; the first is the one that the mask was sought with.
      draws: places elsewhere, drawn at random.
      wanted: share of the whole's probability that a mask should keep.
      key: of places and fills.
    """
    key = random_key(key)
    mask, tokens = np.asarray(mask) > 0.5, np.asarray(tokens)
    # Rolled around the end: the same stretches, as far apart, at another place. Never by 0.
    shifts = jax.random.randint(jax.random.fold_in(key, 1), (draws,), 1, len(mask))
    # One batch for all: the mask, the whole text, and the mask at other places.
    moved = np.stack([mask, np.ones_like(mask), *(np.roll(mask, int(s)) for s in shifts)])
    rows, targets = np.repeat(tokens[None], len(moved), 0), np.full(len(moved), target)
    found = {
        name: _measure(text, rows, targets, operator, moved, key)
        for name, operator in operators.items()
    }
    first = next(iter(found.values()))
    whole = float(first[1])
    kept = {name: float(p[0]) for name, p in found.items()}
    elsewhere = {name: float(p[2:].mean()) for name, p in found.items()}
    percentile = float((first[2:] < first[0]).mean())
    held = [p >= wanted * whole for p in kept.values()]
    if not held[0]:
        verdict = "not sufficient"
    elif percentile < 0.95 or next(iter(elsewhere.values())) > 0.5 * whole:
        verdict = "anywhere"
    else:
        verdict = "evidence" if sum(held) > len(held) / 2 else "one fill only"
    runs = int((np.diff(np.pad(mask.astype(int), 1)) == 1).sum())
    return TokenCard(whole, kept, elsewhere, percentile, runs, verdict)


def stretches(mask: ArrayLike, *, shortest: int = 1) -> list[tuple[int, int]]:
    """Returns `(start, end)` of every run of 1 in `mask` `[L]`.

    >>> stretches([0, 1, 1, 0, 1], shortest=2)
    [(1, 3)]
    """
    edges = np.diff(np.pad((np.asarray(mask) > 0.5).astype(int), 1))
    pairs = zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True)
    return [(int(a), int(b)) for a, b in pairs if b - a >= shortest]
