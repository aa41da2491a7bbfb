"""What every search for a region is given, checked before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from perturb import display, inputs, messages
from perturb import rewards as rewards_lib
from perturb.model import Model, check_inputs, check_model
from perturb.solver.loop import GAMES
from perturb.types import PyTree

__all__ = ["Given", "check", "check_areas"]


class Given(NamedTuple):
    """Arguments that have been checked.

    Attributes:
      images: `[B, *size, C]` float32.      targets: pytree of `[B, ...]`.      keys: `[B]`.
      outputs: of the first one or two images, to size what follows.
    """

    images: np.ndarray
    targets: PyTree
    keys: jax.Array
    outputs: PyTree

    def __repr__(self) -> str:
        return display.summary(self)


def check(
    model: Model,
    images: PyTree,
    targets: PyTree,
    reward: rewards_lib.Reward,
    *,
    game: str,
    key: jax.Array | None,
    keys: jax.Array | None,
) -> Given:
    """Checks what every method is given.

    Raises:
      ValueError: for images that are not `[B, *size, C]` in [0, 1], targets that do not fit them or
        the model's classes, an unknown game, or a reward that cannot read the model's outputs.
    """
    if game not in GAMES:
        raise messages.one_of("game", game, GAMES)
    rewards_lib.check(reward, model)
    # What a target means to any other reward is up to that reward; there must be one an image.
    if reward.indexes_class:
        images, targets, outputs = check_inputs(model, images, targets)
    else:
        images = inputs.pictures(model, images)
        outputs = check_model(model, images[:2])
        if isinstance(targets, list):
            targets = np.asarray(targets)
        targets = jax.tree.map(np.asarray, targets)
        for leaf in jax.tree.leaves(targets):
            if leaf.shape[:1] != images.shape[:1]:
                raise ValueError(
                    f"targets must have one row an image, {len(images)}, got shape {leaf.shape}"
                )
    if keys is None:
        # By place in this call. Jobs give keys of their own, made of an item's content.
        keys = inputs.keys_by_place(key, len(images))
    elif len(keys) != len(images):
        raise ValueError(f"keys must be one an image, {len(images)}, got {len(keys)}")
    return Given(images, targets, keys, outputs)


def check_areas(
    areas: Sequence[float] | float | np.ndarray, images: int, size: Sequence[int]
) -> np.ndarray:
    """Returns `[B, A]` float64 areas.

    Raises:
      ValueError: if one is outside (0, 1) or is less than 4 pixels of an image.
    """
    try:
        a = np.atleast_1d(np.asarray(areas, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "areas must be shares of the picture, as in 0.1 or (0.05, 0.1), got "
            f"{messages.short(areas, 60)}"
        ) from error
    if a.ndim == 1:
        a = np.broadcast_to(a, (images, a.size))
    if a.ndim != 2 or len(a) != images or not a.size:
        raise ValueError(f"areas must be a number, [A] or [B, A], got shape {np.shape(areas)}")
    if not ((a > 0) & (a < 1)).all():
        raise ValueError(f"areas must be in (0, 1), got {areas}")
    pixels = math.prod(size)
    count = np.floor(a * pixels + 0.5)
    # Of three pixels, rounding to whole ones may be a sixth of the area.
    if count.min() < 4 or count.max() > pixels - 4:
        # The one farthest from half is the smallest or the largest.
        bad = float(a.reshape(-1)[np.abs(a - 0.5).argmax()])
        raise ValueError(
            f"area {bad:g} is {bad * pixels:.1f} px of {'x'.join(map(str, size))}: "
            "fewer than 4 px cannot be told apart; choose a larger area or a larger image"
        )
    return a
