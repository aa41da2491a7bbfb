"""From images, targets and areas to slots of the solver, and back to one record.

Every method ends here: it checks its arguments, builds a `Recipe`, and calls `solve`. Items are laid
out image by image, area by area, restart by restart, and pass through a fixed number of slots; where
fewer are left, idle slots take no steps, so that the last ones run the program of the others.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import rewards as rewards_lib
from perturb import solver
from perturb.model import Model, check_model

__all__ = ["Door", "Result", "check", "solve"]

# Steps between two returns to the host: long enough to hide the call, short enough for a progress line.
CHUNK = 10

_Job = tuple[int, int, int]  # image, area, restart
_Slots = tuple[solver.Items, solver.State]


class Result(NamedTuple):
    """Masks of `B` images at `A` areas, with the scores that say what they are worth.

    Attributes:
      masks: `[B, A, *size]` float32 in [0, 1]: 1 on the region whose area was asked (kept under
        "preserve" and "dual", removed under "delete").
      areas: `[A]` (or `[B, A]`) areas asked.
      achieved_area: `[B, A]` share of the pixels above 0.5.
      score_original: `[B]` reward of the whole image.      score_floor: `[B]` with everything removed.
      score_masked: `[B, A]` reward of the image under the soft mask (under its complement for "delete").
      score_binary: `[B, A]` the same for `masks > 0.5`.
      probability_original, probability_floor, probability_masked, probability_binary: the target's
        softmax probability (its sigmoid where labels are independent) in the same four cases; NaN where
        the model gives no logits.
      converged: `[B, A]` bool: the last third of the steps brought less than 5 % of what there is.
      steps: `[B, A]` int32, the step whose mask was kept.
      status: `[B, A]` str: "ok", "not_converged", or "nonfinite" (do not use that mask).
      scores: `[B, A, *size]` float32, what the masks are cut from: smaller and larger regions are its
        highest values. None where a method has no such map.
    """

    masks: np.ndarray
    areas: np.ndarray
    achieved_area: np.ndarray
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
    scores: np.ndarray | None = None


class Door(NamedTuple):
    """Arguments that have been checked.

    Attributes:
      images: `[B, *size, C]` float32.      targets: pytree of `[B, ...]`.      keys: `[B]`.
      outputs: of the first one or two images, to size what follows.
    """

    images: np.ndarray
    targets: Any
    keys: jax.Array
    outputs: Any


def check(
    model: Model,
    images: Any,
    targets: Any,
    reward: rewards_lib.Reward,
    *,
    game: str,
    key: jax.Array | None,
    keys: jax.Array | None,
) -> Door:
    """Checks what every method is given.

    Raises:
      ValueError: for images that are not `[B, *size, C]` in [0, 1], targets that do not fit them or the
        model's classes, an unknown game, or a reward that cannot read the model's outputs.
    """
    if game not in solver.GAMES:
        raise ValueError(f"game must be one of {', '.join(solver.GAMES)}, got {game!r}")
    images = np.asarray(images, np.float32)
    if images.ndim < 3 or not len(images):
        raise ValueError(f"images must be [B, H, W, C] with at least one image, got {images.shape}")
    if not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
        raise ValueError(f"images must be finite, got NaN or infinite pixels in image {bad[0]}")
    low, high = float(images.min()), float(images.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}")
    if images.shape[-1] != model.channels:
        raise ValueError(f"images must have {model.channels} channels, got shape {images.shape}")
    rewards_lib.check(reward, model)
    outputs = check_model(model, images[:2])
    if isinstance(targets, list):
        targets = np.asarray(targets)
    targets = jax.tree.map(np.asarray, targets)
    for leaf in jax.tree.leaves(targets):
        if leaf.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"targets must have one row an image, {len(images)}, got shape {leaf.shape}"
            )
    if reward.indexes_class:
        if (
            not isinstance(targets, np.ndarray)
            or targets.ndim != 1
            or targets.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"targets must be [B] integers for reward {reward.name}, got {targets!r}"
            )
        classes = outputs.shape[-1]
        if targets.min() < 0 or targets.max() >= classes:
            bad = targets[(targets < 0) | (targets >= classes)][0]
            raise ValueError(
                f"target {bad} is out of range: model {model.name} has {classes} classes"
            )
        targets = targets.astype(np.int32)
    if keys is None:
        key = jax.random.key(0) if key is None else key
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
    elif len(keys) != len(images):
        raise ValueError(f"keys must be one an image, {len(images)}, got {len(keys)}")
    return Door(images, targets, keys, outputs)


def solve(
    model: Model,
    recipe: solver.Recipe,
    door: Door,
    areas: np.ndarray,
    counts: np.ndarray,
    *,
    steps: int,
    first: Callable[[int, jax.Array, int], Any] | None = None,
    guide: np.ndarray | None = None,
    restarts: int = 1,
    batch_size: int | None = None,
    patience: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Optimises every image × area × restart and keeps the best restart.

    Args:
      areas: `[B, A]` the areas as the recipe takes them.
      counts: `[B, A]` pixels above 0.5 in the masks returned.
      first: `(image, key, restart) -> first parameters of one item`, `image` its number; None takes the parametrisation's own.
      guide: `[B, ...]` what the parametrisation is told of each image.
      batch_size: slots that run side by side, at least 2; None fits the work, 16 at most.
      patience: a mask ends after two thirds of its steps once its best look is this many steps old,
        and its slot takes the next one; None takes all steps.
      progress: called with (steps done, steps in all) between chunks.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if jnp.dtype(recipe.dtype) == np.float64 and jnp.zeros(()).dtype != np.float64:
        raise ValueError(
            "dtype=float64 needs 64-bit arithmetic: call within `jax.enable_x64(True)`"
        )
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}")
    if batch_size is not None and batch_size < 2:
        raise ValueError(
            f"batch_size must be at least 2, got {batch_size}: one slot rounds differently"
        )
    if patience is not None and (patience < 1 or not recipe.check_every):
        raise ValueError(
            f"patience must be at least 1 and needs a solver that looks at its masks, got {patience}"
        )
    images, number = len(door.images), areas.shape[1]
    jobs = [(b, a, r) for b in range(images) for a in range(number) for r in range(restarts)]
    slots = batch_size or max(2, min(16, len(jobs)))

    def begin(batch: Sequence[_Job]) -> _Slots:
        idle = slots - len(batch)
        b, a, r = (np.array([*column, *[0] * idle]) for column in zip(*batch, strict=True))
        budget = np.array([steps] * len(batch) + [0] * idle, np.int32)
        keys = jax.vmap(jax.random.fold_in)(door.keys[b], r)
        params = None
        if first is not None:
            made = [first(int(b[s]), keys[s], int(r[s])) for s in range(slots)]
            params = jax.tree.map(lambda *x: jnp.stack(x), *made)
        return solver.start(
            model,
            recipe,
            jnp.asarray(door.images[b]),
            jax.tree.map(lambda t: jnp.asarray(t[b]), door.targets),
            jnp.asarray(areas[b, a], jnp.float32),
            jnp.asarray(counts[b, a], jnp.int32),
            keys,
            jnp.asarray(budget),
            params,
            None if guide is None else jnp.asarray(guide[b]),
        )

    kept: dict[tuple[int, int], tuple[float, Any]] = {}
    for batch, ended in _filled(model, recipe, begin, jobs, slots, steps, patience, progress):
        outcome = jax.device_get(solver.finish(model, recipe, *ended))
        for s, (i, j, _) in enumerate(batch):
            one = jax.tree.map(lambda x, s=s: x[s], outcome)
            worth = float(one.score) if one.finite else -math.inf
            if (i, j) not in kept or worth > kept[i, j][0]:
                kept[i, j] = (worth, one)
    return _gather(kept, images, number, areas)


def _filled(
    model: Model,
    recipe: solver.Recipe,
    begin: Callable[[Sequence[_Job]], _Slots],
    jobs: Sequence[_Job],
    slots: int,
    steps: int,
    patience: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[list[_Job], _Slots]]:
    """Yields jobs that have ended and their slots, as many at once as there are slots.

    A slot that has ended takes the next job while its neighbours go on. Slots are begun and finished
    `slots` at a time, in one program each; rows are copied in between, which changes no bit.
    """
    queue, total, done = collections.deque(jobs), len(jobs) * steps, 0
    who: list[_Job | None] = [None] * slots
    taken = [0] * slots
    ready: collections.deque[tuple[int, _Job]] = collections.deque()
    fresh: _Slots | None = None
    running: _Slots | None = None
    bank: _Slots | None = None
    ended: list[_Job] = []
    while queue or ready or any(who):
        while (queue or ready) and not all(who):
            if not ready:
                batch = [queue.popleft() for _ in range(min(slots, len(queue)))]
                fresh = begin(batch)
                ready.extend(enumerate(batch))
            moves = {}
            for s in range(slots):
                if who[s] is None and ready:
                    moves[s], who[s] = ready.popleft()
                    taken[s] = 0
            running = _move(fresh, running, moves)
        live = [s for s in range(slots) if who[s] is not None]
        k = min(CHUNK, max(steps - taken[s] for s in live))
        items, state = running  # type: ignore[misc]
        state = solver.advance(model, recipe, items, state, k)
        running = (items, state)
        done += sum(min(k, steps - taken[s]) for s in live)
        for s in live:
            taken[s] += k
        over = [s for s in live if taken[s] >= steps]
        if patience is not None:
            # Every slot began a chunk, so what is seen of it here does not depend on the others.
            step, best, finite = jax.device_get((state.step, state.best_step, state.finite))
            late = (step > 2 * steps // 3) & (step - best >= patience)
            over = [s for s in live if taken[s] >= steps or late[s] or not finite[s]]
            done += sum(max(0, steps - taken[s]) for s in over)
        if progress is not None:
            jax.block_until_ready(state.step)
            progress(done, total)
        while over:
            some, over = over[: slots - len(ended)], over[slots - len(ended) :]
            bank = _move(running, bank, {len(ended) + n: s for n, s in enumerate(some)})
            for s in some:
                ended.append(who[s])  # type: ignore[arg-type]
                who[s] = None
            if len(ended) == slots:
                yield ended, bank
                ended = []
    if ended:
        yield ended, bank  # type: ignore[misc]


def _move(source: _Slots | None, into: _Slots | None, moves: dict[int, int]) -> _Slots:
    """Returns `into` with its slots `moves` taken from those of `source`: `{to: from}`."""
    assert source is not None  # there is something to move
    slots = len(source[1].step)
    straight = all(a == b for a, b in moves.items())
    if straight and (into is None or len(moves) == slots):
        return source
    which, place = np.zeros(slots, bool), np.zeros(slots, np.int32)
    for to, start in moves.items():
        which[to], place[to] = True, start
    return _copy(source, source if into is None else into, which, place)


@jax.jit
def _copy(source: _Slots, into: _Slots, which: jax.Array, place: jax.Array) -> _Slots:
    def rows(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x[place], y)

    return jax.tree.map(rows, source, into)


def _gather(
    kept: dict[tuple[int, int], tuple[float, Any]], images: int, number: int, areas: np.ndarray
) -> Result:
    rows = [[kept[i, j][1] for j in range(number)] for i in range(images)]

    def grid(name: str) -> np.ndarray:
        return np.stack([np.stack([np.asarray(getattr(one, name)) for one in row]) for row in rows])

    masks, finite, converged = grid("masks"), grid("finite"), grid("converged")
    status = np.where(finite, np.where(converged, "ok", "not_converged"), "nonfinite")
    within = tuple(range(2, masks.ndim))
    return Result(
        masks=masks,
        areas=np.asarray(areas[0]) if (areas == areas[:1]).all() else np.asarray(areas),
        achieved_area=(masks > 0.5).mean(within, dtype=np.float64).astype(np.float32),
        score_original=grid("score_original")[:, 0],
        score_floor=grid("score_floor")[:, 0],
        score_masked=grid("score_masked"),
        score_binary=grid("score_binary"),
        probability_original=grid("probability_original")[:, 0],
        probability_floor=grid("probability_floor")[:, 0],
        probability_masked=grid("probability_masked"),
        probability_binary=grid("probability_binary"),
        converged=converged,
        steps=grid("steps"),
        status=status,
        scores=grid("scores"),
    )


def check_areas(
    areas: Sequence[float] | float | np.ndarray, images: int, size: Sequence[int]
) -> np.ndarray:
    """Returns `[B, A]` float64 areas.

    Raises:
      ValueError: if one is outside (0, 1) or is less than 4 pixels of an image.
    """
    a = np.atleast_1d(np.asarray(areas, np.float64))
    if a.ndim == 1:
        a = np.broadcast_to(a, (images, a.size))
    if a.ndim != 2 or len(a) != images or not a.size:
        raise ValueError(f"areas must be a number, [A] or [B, A], got shape {np.shape(areas)}")
    if not ((a > 0) & (a < 1)).all():
        raise ValueError(f"areas must be in (0, 1), got {areas}")
    pixels = math.prod(size)
    count = np.floor(a * pixels + 0.5)
    if count.min() < 4 or count.max() > pixels - 4:
        bad = float(a.reshape(-1)[np.abs(a - 0.5).argmax()])
        raise ValueError(
            f"area {bad:g} is {bad * pixels:.1f} px of {'x'.join(map(str, size))}: "
            "fewer than 4 px cannot be told apart; choose a larger area or a larger image"
        )
    return a
