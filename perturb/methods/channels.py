"""Extremal channel attribution: the channels of a layer that keep (or, removed, kill) the answer.

Fong, Patrick, Vedaldi, ICCV 2019, section 4: a mask over the channels of an intermediate
activation, under an exact budget of channels. The published code has no such part; here the layer
is any activation that `perturb.taps` can name, of any model.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, layouts, masks, rewards, solver, taps
from perturb.methods import _run, _showing
from perturb.model import Model
from perturb.solver import entry
from perturb.types import ArrayLike, Function, PyTree, Record, Variables

__all__ = ["ChannelResult", "channels", "class_statistics"]


class ChannelResult(NamedTuple):
    """Channels of `B` images at `A` budgets.

    Attributes:
      channels: `[B, A, C]` float32, exactly `counts` ones an image: the channels kept under
        "preserve" and "dual", removed under "delete".
      weights: `[B, A, C]` float32 in [0, 1], the soft mask behind them.
      counts: `[A]` channels asked.
      layer: name of the activation.
      score_original: `[B]` reward of the whole image.
      score_floor: `[B]` reward with every channel of the layer at zero.
      score_masked: `[B, A]` reward under the soft weights.
      score_binary: `[B, A]` reward with exactly `counts` channels chosen.
      probability_original: `[B]` the target's probability on the whole image; NaN where it has
        none.
      probability_floor: `[B]` the same with every channel at zero.
      probability_masked: `[B, A]` the same under the soft weights.
      probability_binary: `[B, A]` the same with exactly `counts` channels chosen.
      converged: `[B, A]` bool: the last third of the steps brought less than 5 % of what there
        is.
      steps: `[B, A]` int32, the step whose weights were kept.
      status: `[B, A]` str: "ok", "not_converged", or "nonfinite" (do not use those channels).
    """

    channels: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    layer: str
    score_original: np.ndarray
    score_floor: np.ndarray
    score_masked: np.ndarray
    score_binary: np.ndarray
    probability_original: np.ndarray
    probability_floor: np.ndarray
    probability_masked: np.ndarray
    probability_binary: np.ndarray
    converged: np.ndarray
    steps: np.ndarray
    status: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def kind(self) -> str:
        """The name of what was sought: "channels"."""
        return "channels"

    @property
    def areas(self) -> np.ndarray:
        """`[A]` float64, the share of all channels that was asked."""
        found: np.ndarray = np.asarray(self.counts) / np.shape(self.channels)[-1]
        return found

    @property
    def achieved_area(self) -> np.ndarray:
        """`[B, A]` float64, the share of all channels that was chosen."""
        found: np.ndarray = np.asarray(self.channels).mean(-1, dtype=np.float64)
        return found

    def rows(self) -> list[Record]:
        """Returns a row a set of channels: image, count, area, scores, probabilities, steps,
        status and the numbers of the channels.
        """
        chosen = np.asarray(self.channels) > 0.5
        order = np.argsort(-np.asarray(self.weights), axis=-1, kind="stable")
        found = []
        for at, row in zip(np.ndindex(chosen.shape[:2]), _showing.rows(self), strict=True):
            # One field of a table: numbers with spaces between them, strongest weight first.
            numbers = " ".join(str(c) for c in order[at] if chosen[at][c])
            of = {"count": int(self.counts[at[1]]), "layer": self.layer, "channels": numbers}
            found.append(row | of)
        return found

    def to_csv(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes `rows()` to a CSV file and returns its path.

        Args:
          path: of the file, str or Path; its folder must exist.
        """
        return _showing.to_csv(self, path)

    def to_frame(self) -> PyTree:
        """Returns `rows()` as a pandas data frame.

        Raises:
          ImportError: pandas is not installed.
        """
        return _showing.to_frame(self)


@dataclasses.dataclass(frozen=True)
class _Masked:
    """The model with one activation multiplied by a mask over its channels; equal parts compare
    equal.
    """

    apply: Function
    layer: str
    layout: layouts.Layout

    def __call__(self, variables: Variables, views: tuple[jax.Array, jax.Array]) -> PyTree:
        images, mask = views

        def multiply(activation: jax.Array) -> jax.Array:
            return activation * self.layout.to_channels(mask)

        return taps.edit(self.apply, {self.layer: multiply})(variables, images)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Channels:
    """The operator of channel masks: image and mask go to the model side by side."""

    def prepare(self, image: jax.Array, key: jax.Array | None) -> jax.Array:
        return image

    def apply(self, reference: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return reference, mask


@_run.planned
def channels(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    layer: str,
    counts: Sequence[int] | int = (25,),
    game: str = "preserve",
    reward: str | rewards.Reward | Function = "logit",
    steps: int = 100,
    restarts: int = 1,
    batch_size: int | None = None,
    reproducible: bool | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> _run.Plan[ChannelResult]:
    """Finds the channels of one layer that the answer rests on.

    Args:
      model, images, targets, reward: as for `perturb.extremal`.
      restarts, batch_size, reproducible, dtype, key, keys, progress: as there.
      layer: an activation by its name; `perturb.taps.names(model, images)` lists them. Where its
        channels lie is found by tracing, see `perturb.layouts`.
      counts: how many channels, one number or `[A]`; between 1 and `C - 1`.
      game: "preserve" zeroes all other channels, "delete" zeroes these, "dual" asks for both.
      steps: optimisation steps.
    Raises:
      ValueError: if the layer has no such name (the nearest ones are given), if it is not known
        where its channels lie, or if a count does not fit it.

    >>> import jax.numpy as jnp, perturb
    >>> def net(w, x):
    ...     return perturb.taps.tag(x.mean((1, 2)) @ w, "features") @ jnp.ones((8, 1))
    >>> w = jnp.zeros((3, 8)).at[0, 2].set(1.0).at[1, 5].set(1.0)
    >>> model = perturb.Model(net, w)
    >>> found = channels(model, jnp.ones((1, 8, 8, 3)), [0], layer="features", counts=2)
    >>> found.channels[0, 0].nonzero()[0].tolist()
    [2, 5]
    """
    bound = rewards.bind(rewards.get(reward), model)
    given = entry.check(model, images, targets, bound, game=game, key=key, keys=keys)
    # Dense layers will do: channels are asked for, places are not.
    layout = layouts.layer_layout(model, given.images, layer, places=False)
    width = layout.channels
    asked = np.atleast_1d(np.asarray(counts))
    # All channels would be no choice, and none no answer.
    if asked.ndim != 1 or asked.dtype.kind not in "iu" or asked.min() < 1 or asked.max() >= width:
        raise ValueError(
            f"counts must be whole numbers from 1 to {width - 1} for layer {layer!r} "
            f"of {width} channels, got {counts}"
        )
    budget = np.broadcast_to(asked.astype(np.int32), (len(given.images), asked.size))
    # Cut into the model itself, so that the solver sees an ordinary model of (image, mask).
    masked = dataclasses.replace(model, apply=_Masked(model.apply, layer, layout))
    recipe = solver.Recipe(
        # Channels have no neighbours: each has a score of its own, and nothing is smoothed.
        parametrisation=masks.Pixels(),
        operator=_Channels(),
        reward=bound,
        rule=solver.Normalised(),
        game=game,
        dtype=dtype,
        size=(width,),
    )
    first = None
    if restarts > 1:

        def first(image: int, key: jax.Array, restart: int) -> jax.Array:
            # The first start is flat, as without restarts: more of them never change its result.
            flat = jnp.zeros(width)
            return flat if not restart else jax.random.normal(key, (width,))

    def answer(result: _run.Result) -> ChannelResult:
        # Fields of one name mean the same in both records.
        scores = {n: v for n, v in result._asdict().items() if n in ChannelResult._fields}
        return ChannelResult(
            channels=np.where(np.isnan(result.masks), result.masks, result.masks > 0.5).astype(
                np.float32
            ),
            weights=result.masks,
            counts=asked.astype(np.int32),
            layer=layer,
            **scores,
        )

    return _run.Plan(
        model=masked,
        recipe=recipe,
        given=given,
        areas=budget / width,
        counts=budget,
        answer=answer,
        steps=steps,
        first=first,
        restarts=restarts,
        batch_size=batch_size,
        reproducible=reproducible,
        progress=progress,
    )


def class_statistics(result: ChannelResult, targets: PyTree, *, classes: int) -> np.ndarray:
    """Returns how often each channel was chosen for the images of each class.

    Args:
      result: what `perturb.channels` returned for the images.
      targets: `[B]` class indices.
      classes: number of classes.
    Returns:
      `[classes, A, C]` shares in [0, 1]; NaN for classes without an image.
    Raises:
      ValueError: if a target is not a class.
    """
    labels = np.asarray(targets)
    if labels.shape != result.channels.shape[:1] or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"targets must be [B] in 0 to {classes - 1}, got {labels}")
    total = np.zeros((classes, *result.channels.shape[1:]))
    # add.at and not +=, which would count a class once however often it occurs.
    np.add.at(total, labels, result.channels)
    number = np.bincount(labels, minlength=classes).astype(np.float64)
    return total / np.where(number == 0, np.nan, number)[:, None, None]
