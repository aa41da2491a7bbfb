"""The long form of the evidence: would another run, another game or another network say the same?

Reruns of the method cost as much as the masks themselves, several times over; this is for the few
masks that something hangs on, `--evidence=full` in launch.masks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from perturb import display, operators, rewards
from perturb.evidence import cards
from perturb.evidence.fills import iou
from perturb.inputs import keys_by_place
from perturb.model import Model
from perturb.types import ArrayLike, Function, PyTree, Record

__all__ = ["Full", "full", "iou"]

# Starts are flat, so that a seed enters as noise on the picture: two grey levels of 255.
NOISE = 2 / 255


class Full(NamedTuple):
    """The card with more controls, and what else was tried.

    Attributes:
      card: `perturb.evidence.Evidence`, with the overlap of a search under another key and other
        rounding.
      other_game: `[B, A]` gain of the same regions in the other game: what is lost without a region
        that was kept, what a region that was removed keeps alone.
      seeds: `[B, A]` intersection over union with the regions found on the picture with noise,
        mean over seeds.
      flip: `[B, A]` the same with the regions found in the mirror.
      shift: `[B, A]` the same with the picture moved by a sixteenth of its sides.
      second: `[B, A]` gain under a second network, or None.
    """

    card: cards.Evidence
    other_game: np.ndarray
    seeds: np.ndarray
    flip: np.ndarray
    shift: np.ndarray
    second: np.ndarray | None

    def __repr__(self) -> str:
        return display.summary(self)


def full(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    result: PyTree,
    *,
    method: Function,
    operator: str | operators.Operator = operators.DEFAULT,
    name: str | None = None,
    reward: str | rewards.Reward | Function | None = None,
    game: str = "preserve",
    second: Model | None = None,
    controls: int = 100,
    seeds: int = 3,
    keys: jax.Array | None = None,
) -> Full:
    """Runs the full checks of masks.

    Args:
      model, images, targets, result, operator, name, reward, game, controls, keys: as for
        `perturb.evidence.card`.
      method: `(model, images, targets, keys=) -> result`, how the masks were made.
      second: another network with the same classes.
      seeds: reruns on noisy pictures.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    images = np.asarray(images, np.float32)
    given: Record = {"operator": operator, "reward": reward, "keys": keys}
    card = cards.card(
        model,
        images,
        targets,
        result,
        name=name,
        game=game,
        controls=controls,
        again=method,
        **given,
    )
    other = "preserve" if game == "delete" else "delete"
    reverse = cards.card(model, images, targets, result, game=other, controls=1, **given)
    if keys is None:
        keys = keys_by_place(None, len(images))

    def again(pictures: np.ndarray) -> np.ndarray:
        return np.asarray(method(model, pictures, targets, keys=keys).masks)

    spread = []
    for seed in range(seeds):
        drawn = [
            # From 1000 on, apart from the low numbers that restarts fold in.
            np.asarray(jax.random.normal(jax.random.fold_in(k, 1000 + seed), images.shape[1:]))
            for k in keys
        ]
        noisy = np.clip(images + NOISE * np.stack(drawn), 0, 1)
        spread.append(iou(result.masks, again(noisy)))
    last = images.ndim - 2  # the axis of columns, also of a signal's time
    flipped = np.flip(again(np.flip(images, last)), -1)
    by = [max(1, n // 16) for n in images.shape[1:-1]]
    axes = tuple(range(1, images.ndim - 1))
    moved = again(np.roll(images, by, axes))
    # Masks have one axis more in front than pictures: that of the areas.
    back = np.roll(moved, [-b for b in by], tuple(a + 1 for a in axes))
    found = None
    if second is not None:
        # Only the gain is read, so one shifted copy will do.
        found = cards.card(second, images, targets, result, game=game, controls=1, **given).gain
    return Full(
        card=card,
        other_game=reverse.gain,
        seeds=np.mean(spread, 0),
        flip=iou(result.masks, flipped),
        shift=iou(result.masks, back),
        second=found,
    )
