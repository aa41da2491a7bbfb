"""Tests of visualisations: do they predict which natural picture excites the unit more, do other
networks recognise the class in them, do other seeds give a similar picture?
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals._given import one_each
from perturb.internals.features.loop import evaluate, filling
from perturb.internals.features.objectives import Objective
from perturb.internals.features.paths import likeness, pooled
from perturb.model import Model
from perturb.scores import probability
from perturb.types import ArrayLike

__all__ = ["Choices", "Transfer", "seed_agreement", "transfer", "two_choices"]


class Choices(NamedTuple):
    """Which of two natural pictures excites the unit more, predicted by likeness to a reference.

    Attributes:
      right: `[N]` share of the pairs predicted right from the optimised picture; chance is .5.
      natural: `[N]` the same from the natural picture that the unit answers most to.
    """

    right: np.ndarray
    natural: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Transfer(NamedTuple):
    """Outputs of M other networks for N pictures of classes.

    Attributes:
      rank: `[M, N]` number of classes with a higher score, 0 for the top class.
      probability: `[M, N]` of the class.
    """

    rank: np.ndarray
    probability: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def two_choices(
    model: Model,
    objective: Objective,
    images: ArrayLike,
    natural: ArrayLike,
    *,
    judge: Model,
    layer: str,
    count: int = 8,
    batch_size: int = 16,
) -> Choices:
    """Asks a judge which of two natural pictures the unit answers more to (Borowski et al. 2021).

    Each of the natural pictures that the unit answers most to is paired with each of those that it
    answers least to. The judge takes the one whose activations are more like the reference's.

    Args:
      model, objective: as given to `visualise`.
      images: `[N, H, W, C]` in [0, 1], one an item.
      natural: `[B, H, W, C]` in [0, 1].
      judge: another network, that the pictures were not made with, of the same input size.
      layer: name of the layer of the judge that likeness is taken in.
      count: of natural pictures at either end; the very best is the natural reference. Above 0 and
        at most (B - 1) / 2.
      batch_size: pictures at once.
    Raises:
      ValueError: if there are too few natural pictures, or not one picture an item.
    """
    images, natural = np.asarray(images, np.float32), np.asarray(natural, np.float32)
    values = evaluate(model, objective, natural, batch_size=batch_size)
    if len(values) != len(images):
        raise ValueError(f"images must be one an item, got {len(images)} for {len(values)} items")
    if not 0 < count <= (len(natural) - 1) // 2:
        raise ValueError(
            f"count must be 1 to {(len(natural) - 1) // 2} for {len(natural)} natural pictures, "
            f"got {count}"
        )
    rows = pooled(judge, np.concatenate([images, natural]), (layer,))[0]
    alike = likeness(rows)
    found = []
    for i, order in enumerate(np.argsort(-values, axis=1, kind="stable")):
        best, most, least = order[0], order[1 : count + 1], order[-count:]
        row = []
        for reference in (i, len(images) + best):
            up, down = (alike[reference, len(images) + x] for x in (most, least))
            # A tie counts one half.
            wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
            row.append(wins.mean())
        found.append(row)
    right, by_natural = np.array(found).T
    return Choices(right, by_natural)


def transfer(models: list[Model], images: ArrayLike, targets: ArrayLike) -> Transfer:
    """Returns how other networks rank the classes that pictures were made for.

    Args:
      models: networks of the same classes and input size.
      images: `[N, H, W, C]` in [0, 1].
      targets: `[N]` classes.
    """
    images = jnp.asarray(images, jnp.float32)
    targets = one_each("targets", targets, images)
    count = len(targets)
    full = images[filling(count)]
    ranks, shares = [], []
    for model in models:
        scores = jnp.asarray(model(full))[:count]
        own = scores[np.arange(count), targets]
        ranks.append(np.asarray((scores > own[:, None]).sum(1)))
        shares.append(
            [
                float(probability(model.output, row, t))
                for row, t in zip(scores, targets, strict=True)
            ]
        )
    return Transfer(np.array(ranks), np.array(shares))


def seed_agreement(model: Model, layer: str, images: ArrayLike) -> np.ndarray:
    """Returns how alike the pictures of several seeds are, `[N]`: 1 the same, 0 as other items'.

    Rank correlations of a layer's activations, averaged over places.

    Args:
      model: the network, a `perturb.Model`.
      layer: name of the layer.
      images: `[N, S, H, W, C]` in [0, 1], S seeds of N items, both at least 2.
    Raises:
      ValueError: if there are fewer items or seeds than two.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 5 or min(images.shape[:2]) < 2:
        raise ValueError(
            f"images must be [N, S, H, W, C] with N and S at least 2, got shape {images.shape}"
        )
    items, seeds = images.shape[:2]
    rows = pooled(model, images.reshape(-1, *images.shape[2:]), (layer,))[0]
    alike = likeness(rows).reshape(items, seeds, items, seeds)
    same = np.eye(items, dtype=bool)
    others = float(np.nanmean(alike.transpose(0, 2, 1, 3)[~same]))
    own = np.stack([alike[i, :, i][~np.eye(seeds, dtype=bool)].mean() for i in range(items)])
    found: np.ndarray = (own - others) / (1 - others)
    return found
