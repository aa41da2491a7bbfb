"""Text as a signal: a sequence of tokens is its matrix of embeddings, and a masked token another
one.

A model of text enters as two pieces, its table of embeddings and what it makes of embeddings. Then
`perturb.extremal` and every attribution work as they do on pictures: `[B, L, D]` takes the place of
`[B, H, W, C]`. Embeddings are rescaled to [0, 1] for the solver and back inside the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import attribution, display, masks, methods
from perturb.inputs import random_key
from perturb.model import Model
from perturb.types import Array, ArrayLike, Function, PyTree, Variables

__all__ = ["METHODS", "Fill", "Text", "attribute", "blobs", "fill", "find", "text_model", "words"]

METHODS = ("gradient", "input_gradient", "integrated_gradients", "smoothgrad", "occlusion")


class Text(NamedTuple):
    """A model of text, taken apart.

    Attributes:
      model: of embeddings `[B, L, D]` in [0, 1].
      table: `[V, D]` embeddings, rescaled to [0, 1].
      pad: the token that stands for nothing.
      special: tokens that are never masked, such as the first and the last of a sequence.
    """

    model: Model
    table: jax.Array
    pad: int
    special: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return display.summary(self)

    def embed(self, tokens: ArrayLike) -> jax.Array:
        """Returns `[B, L, D]` for tokens `[B, L]`."""
        return self.table[jnp.asarray(tokens)]


@dataclasses.dataclass(frozen=True)
class _Rescaled:
    apply: Function

    def __call__(self, variables: Variables, x: jax.Array) -> PyTree:
        inner, low, span = variables
        return self.apply(inner, x * span + low)


def text_model(
    apply: Function,
    variables: Variables,
    table: PyTree,
    *,
    pad: int,
    special: Sequence[int] = (),
    class_names: Sequence[str] = (),
    name: str = "text",
) -> Text:
    """Returns a model of text in the form that masks and attributions take.

    Args:
      apply: `(variables, embeddings [B, L, D]) -> logits [B, classes]`.
      variables: pytree of arrays.
      table: `[V, D]` embeddings of the tokens.
      pad: the token that stands for nothing.
      special: tokens that are never masked.
      class_names, name: as for `perturb.Model`.
    Raises:
      ValueError: if the table is not a matrix, or pad is not a row of it.
    """
    table = jnp.asarray(table, jnp.float32)
    if table.ndim != 2 or not 0 <= pad < len(table):
        raise ValueError(f"table must be [V, D] with pad {pad} among its rows, got {table.shape}")
    # One scale for all dimensions, undone inside the model: fills and masks work on values
    # in [0, 1].
    low, span = table.min(), jnp.maximum(table.max() - table.min(), 1e-12)
    model = Model(
        _Rescaled(apply),
        (variables, low, span),
        class_names=tuple(class_names),
        channels=table.shape[1],
        name=name,
    )
    return Text(model, (table - low) / span, int(pad), tuple(special))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fill:
    """What a masked token becomes: an operator for `perturb.extremal`.

    Attributes:
      bank: `[N, L, D]` embedded texts, of which one is drawn by key, or `[L, D]`, or `[D]`.
      special: `[S, D]` embeddings of tokens that stay as they are.
    """

    bank: jax.Array
    special: jax.Array | None = None

    def __repr__(self) -> str:
        return display.summary(self)

    def prepare(self, image: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the text `[L, D]` and what takes its place."""
        other = self.bank
        if other.ndim == image.ndim + 1:
            i = 0 if key is None else jax.random.randint(key, (), 0, len(other))
            other = other[i]
        other = jnp.broadcast_to(other, image.shape).astype(image.dtype)
        if self.special is not None and len(self.special):
            # A token is known by its embedding: both are rows of one table, so they are
            # equal to the last bit.
            stays = (image[:, None] == self.special.astype(image.dtype)).all(-1).any(-1)
            other = jnp.where(stays[:, None], image, other)
        return image, other

    def apply(self, reference: tuple[jax.Array, jax.Array], mask: jax.Array) -> jax.Array:
        """Returns `[L, D]`: the text where `mask` `[L]` is 1, the other where it is 0."""
        image, other = reference
        return mask[:, None] * image + (1 - mask[:, None]) * other


def fill(
    text: Text, kind: str, *, texts: PyTree = None, length: int = 0, key: jax.Array | None = None
) -> Fill:
    """Returns the fill of that name.

    Args:
      text: the model.
      kind: "pad"; "random": tokens drawn evenly from the table; "texts": those of other texts.
      texts: `[N, L]` tokens of other texts, for "texts".
      length: L, for "random".
      key: for "random".
    Raises:
      ValueError: if the kind is unknown or lacks what it needs.
    """
    special = text.table[jnp.array(text.special, int)] if text.special else None
    if kind == "pad":
        return Fill(bank=text.table[text.pad], special=special)
    if kind == "random" and length > 0:
        key = random_key(key)
        # A small bank of texts, of which `prepare` draws one by its key.
        drawn = jax.random.randint(key, (16, length), 0, len(text.table))
        return Fill(bank=text.table[drawn], special=special)
    if kind == "texts" and texts is not None:
        return Fill(bank=text.embed(texts), special=special)
    raise ValueError(
        f'fill must be "pad", "random" (with length) or "texts" (with texts), got {kind!r}'
    )


def words(tokens: ArrayLike, breaks: Sequence[int]) -> np.ndarray:
    """Returns `[B, L]` groups from 0: a word and the break after it are one, for `groups=`.

    Args:
      tokens: `[B, L]`.
      breaks: tokens that end a word (space, end of line).

    >>> words([[5, 6, 0, 7, 0, 0, 8]], breaks=[0]).tolist()
    [[0, 0, 0, 1, 1, 2, 3]]
    """
    ends = np.isin(np.asarray(tokens), breaks)
    # Shifted by one: the break itself still belongs to the word before it.
    return np.cumsum(np.pad(ends[:, :-1], ((0, 0), (1, 0))), axis=1).astype(np.int32)


def attribute(
    text: Text, tokens: Array, targets: PyTree, method: str = "integrated_gradients", **options: Any
) -> np.ndarray:
    """Returns `[B, L]`, signed scores of tokens: an attribution summed over the embedding.

    Args:
      text: the model.
      tokens: `[B, L]`.
      targets: `[B]` classes.
      method: one of `METHODS`. Integrated gradients start at the pad token and use the midpoint
        rule, so that they sum to the score's rise; occlusion puts the pad token in each token's
        place.
      **options: of the attribution.
    Raises:
      ValueError: if the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    x = np.asarray(text.embed(tokens))
    pad = np.asarray(text.table[text.pad])
    if method == "integrated_gradients":
        # Nothing at all is the pad token: a black "picture" would be some embedding, or none.
        options = {"baseline": pad, **options}
    if method == "occlusion":
        return _occlusion(text, np.asarray(tokens), np.asarray(targets), **options)
    if method == "gradient":
        # The gradient of the embedding itself has a sign; its largest channel has none.
        return _gradient(text.model, x, np.asarray(targets))
    found: np.ndarray = attribution.get(method)(text.model, x, targets, **options)
    return found


@jax.jit
def _scores(model: Model, x: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.take_along_axis(model(x), targets[:, None], 1)[:, 0]


def _gradient(model: Model, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    found = jax.grad(lambda x: _scores(model, x, jnp.asarray(targets)).sum())(jnp.asarray(x))
    return np.asarray(found.sum(-1))


def _occlusion(
    text: Text, tokens: np.ndarray, targets: np.ndarray, *, window: int = 1
) -> np.ndarray:
    """The score less that with each window of tokens padded, shared among its tokens."""
    found = np.zeros(tokens.shape, np.float32)
    length = tokens.shape[1]
    for row, (line, target) in enumerate(zip(tokens, targets, strict=True)):
        starts = np.arange(0, length, window)
        trials = np.repeat(line[None], len(starts) + 1, 0)
        for i, start in enumerate(starts):
            # The last row stays as it is: the whole text, in the same batches.
            trials[i, start : start + window] = text.pad
        scores = np.concatenate(
            [
                np.asarray(_scores(text.model, text.embed(part), np.full(len(part), target)))
                # Of nearly equal size: two shapes at most are compiled.
                for part in np.array_split(trials, -(-len(trials) // 64))
            ]
        )
        # The last window may be cut short by the end of the text.
        drop = (scores[-1] - scores[:-1]) / np.minimum(window, length - starts)
        found[row] = np.repeat(drop, window)[:length]
    return found


def find(
    text: Text,
    tokens: Array,
    targets: PyTree,
    *,
    areas: Sequence[float] | float = (0.05, 0.1),
    groups: PyTree = None,
    stretch: int | None = None,
    operator: PyTree = "pad",
    texts: PyTree = None,
    steps: int = 40,
    key: jax.Array | None = None,
    **options: Any,
) -> PyTree:
    """Returns the tokens that keep the answer: `perturb.extremal` with masks `[B, A, L]` of tokens.

    Args:
      text: the model.
      tokens: `[B, L]`.
      targets: `[B]` classes.
      areas: shares of the tokens.
      groups: `[B, L]` whole numbers from 0, tokens masked together (see `words`).
      stretch: about how many tokens lie side by side in a mask; None lets every token stand alone,
        which finds what a network reacts to, readable or not.
      operator: "pad", "random", "texts", or an operator.
      texts: `[N, L]` tokens of other texts, for "texts".
      steps, key, **options: as for `perturb.extremal`.
    """
    tokens = np.asarray(tokens)
    length = tokens.shape[1]
    way: PyTree = None
    if groups is None:
        way = masks.Pixels() if stretch is None else blobs(length, stretch)
    if isinstance(operator, str):
        operator = fill(text, operator, texts=texts, length=length, key=key)
    return methods.extremal(
        text.model,
        np.asarray(text.embed(tokens)),
        targets,
        areas=areas,
        operator=operator,
        mask=way,
        groups=groups,
        # A text read backwards is another text.
        mirror=False,
        steps=steps,
        key=key,
        **options,
    )


def blobs(length: int, stretch: int) -> masks.Blobs:
    """Returns masks of stretches of about that many tokens, of `length` in all."""
    # About four cells a stretch; more could not be resolved by blobs of that width.
    cells = max(4, min(length, 4 * length // max(stretch, 1)))
    return masks.Blobs(
        cells=cells, blob=0.2, narrowest=stretch / length / 8, widest=stretch / length * 2
    )
