"""One map from many areas: the value of a pixel is the smallest area at which it is kept.

Either the areas are swept from large to small: each mask starts where the last one ended and may
only keep what the last one kept. Or one field of scores serves all areas (`perturb.field`), and
answers a question: what is *enough* for the answer, what is *needed* for it, or *both*. The masks
are nested by construction, and cutting the map at an area gives the very mask of that area. The
value has a unit: 0.05 means "among the best 5 % of the picture".
"""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, field, guided, operators, rewards, solver
from perturb import progress as progress_lib
from perturb._numerics import devices
from perturb.evidence import fills
from perturb.methods.extremal import exact_recipe
from perturb.model import Model
from perturb.solver import entry
from perturb.types import ArrayLike, Function, PyTree

__all__ = ["AREAS", "Importance", "importance_map"]

_Count = Callable[[], None] | None

AREAS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.025)


class Importance(NamedTuple):
    """Maps of `B` images and the nested masks that they hold.

    Attributes:
      area: `[B, *size]` the smallest area at which a pixel is kept, 1 where none keeps it.
      areas: `[A]` areas of the sweep, falling.
      masks: `[B, A, *size]` 0 or 1, each within the one before.
      score_binary: `[B, A]` reward of the masks.
      score_original, score_floor: `[B]` of the whole image, and with everything removed; NaN like
        all of an image that Ctrl-C came before.
      score_removed: `[B, A]` reward of what is left without the masks; None of a sweep.
    """

    area: np.ndarray
    areas: np.ndarray
    masks: np.ndarray
    score_binary: np.ndarray
    score_original: np.ndarray
    score_floor: np.ndarray
    score_removed: np.ndarray | None = None

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        if self.area.ndim != 3:
            return f"<pre>{html.escape(repr(self))}</pre>"
        # Pillow is loaded when something is drawn: `import perturb` does without.
        from perturb import drawing

        names = [f"image {b}" for b in range(len(self.area))]
        return drawing.tiles(list(drawing.heat(self.heat)), names)

    @property
    def heat(self) -> np.ndarray:
        """`[B, *size]` in [0, 1), higher for what matters more: one minus `area`."""
        return 1 - self.area


def importance_map(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    areas: Sequence[float] = AREAS,
    operator: str | operators.Operator | None = None,
    reward: str | rewards.Reward | Function | None = None,
    question: str | None = None,
    first_steps: int = 60,
    steps: int | None = None,
    mirror: bool = True,
    batch_size: int = 8,
    reproducible: bool | None = None,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Returns one map an image, whose highest values are the mask of any area.

    A host loop around one compiled step, not itself for `jit`; `perturb.solver.init` and `update`
    are for loops of your own.

    Args:
      model, images, targets, reward, key, keys: as for `perturb.extremal`.
      areas: shares of the picture in (0, 1), in any order; for the sweep alone.
      operator: name or operator; None is "blur" of a sweep, for which blur and noise in turn made
        no clearly better map, and "blur+mean" of a question.
      question: "enough": what is kept should keep the answer. "needed": what is left without it
        should not. "both". None sweeps the areas, for what is kept alone.
      first_steps: number of steps of a sweep for the largest area.
      steps: of a sweep for each further area, which starts warm, 30 by default; of a question all
        steps, 60, for "both" 40, each of which shows twice as many views. From 24 on four are taken
        together: few steps of many views depend less on rounding.
      mirror: show every other step, of a question every other view, in the mirror.
      batch_size: images side by side.
      reproducible: as for `perturb.extremal`.
      progress: called with how much is done and of how much, the first time after the first step;
        what it raises ends the search.
    Raises:
      ValueError: naming the argument that cannot be served.
    """
    bound = rewards.chosen(reward, model)
    given = entry.check(model, images, targets, bound, game="preserve", key=key, keys=keys)
    size = given.images.shape[1:-1]
    wanted = sorted(entry.check_areas(areas, 1, size)[0], reverse=True)
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"areas must differ, got {areas}")
    if question is not None and question not in field.QUESTIONS:
        raise ValueError(
            f"question must be one of {', '.join(field.QUESTIONS)}, or None, got {question!r}"
        )
    if steps is None:
        steps = {None: 30, "both": 40}.get(question, 60)
    numbers = {"first_steps": first_steps, "steps": steps, "batch_size": batch_size}
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if operator is None:
        operator = "blur" if question is None else "blur+mean"
    # Half a pixel rounds up, as in `extremal`; Python's round would take halves to even.
    counts = [math.floor(a * math.prod(size) + 0.5) for a in wanted]
    run = functools.partial(
        _in_groups, model, len(given.images), batch_size=batch_size, reproducible=reproducible
    )
    if question is not None:
        chosen = operators.get(operator)

        def field_of(rows: np.ndarray, count: _Count) -> list[np.ndarray]:
            found = field.optimise(
                model,
                given.images[rows],
                jax.tree.map(lambda t: t[rows], given.targets),
                given.keys[rows],
                question=question,
                operator=chosen,
                reward=bound,
                steps=steps,
                # Only of a picture is the mirror image as natural as itself.
                mirror=mirror and len(size) == 2,
                progress=count,
            )
            return [found]

        each = field.moves(steps)
        (scores,) = run(field_of, what="steps", each=each, progress=progress)
        found = _asked(
            model, given, bound, operator=chosen, areas=wanted, counts=counts, scores=scores
        )
        return _completed(found, len(given.images))
    recipe = exact_recipe(
        size, channels=given.images.shape[-1], operator=operator, reward=bound, mask=guided.Inside()
    )
    if not mirror:
        recipe = dataclasses.replace(recipe, augment=solver.no_change)

    def swept(rows: np.ndarray, count: _Count) -> list[np.ndarray]:
        masks = _sweep(model, recipe, given, rows, wanted, counts, (first_steps, steps))
        if count is not None:
            count()
        return masks

    kept, binary, original, floor = run(swept, what="pictures", each=1, progress=progress)
    shape = (1, -1, *[1] * len(size))
    # Masks are nested, so the smallest area at which a pixel is kept says everything.
    area = np.where(kept > 0.5, np.reshape(wanted, shape), 1.0).min(1)
    found = Importance(
        area=area.astype(np.float32),
        areas=np.array(wanted, np.float32),
        masks=kept,
        score_binary=binary,
        score_original=original,
        score_floor=floor,
    )
    return _completed(found, len(given.images))


def _completed(found: Importance, number: int) -> Importance:
    """Returns the maps of `number` images, of which Ctrl-C may have come before the last."""
    parts = {n: x for n, x in found._asdict().items() if n != "areas" and x is not None}
    whole = progress_lib.completed(list(parts.values()), number, "maps")
    return found._replace(**dict(zip(parts, whole, strict=True)))


def _in_groups(
    model: Model,
    number: int,
    work: Callable[[np.ndarray, _Count], list[np.ndarray]],
    *,
    what: str,
    each: int,
    batch_size: int,
    reproducible: bool | None,
    progress: Callable[[int, int], None] | None,
) -> list[np.ndarray]:
    """Returns what `work(rows, count)` makes of `number` images, as many side by side as promised.

    Ctrl-C leaves the last ones out. `count` is called `each` times for every group of rows, or is
    None where nobody watches.
    """
    mesh = devices.local(1, like=model)
    beside, slots = devices.side_by_side(mesh, min(batch_size, number), reproducible)
    done, counting = [0], threading.Lock()
    parts: list[list[np.ndarray]] = []

    def group(at: int, tell: Callable[[int, int], None]) -> list[np.ndarray]:
        rows = np.arange(at, min(at + slots, number))
        # The last group is padded with copies of its last image: one compiled program for all, and
        # what the copies give is dropped.
        full = np.concatenate([rows, np.repeat(rows[-1:], slots - len(rows))])

        def count() -> None:
            # One thread at a time: no count may be lost, and `tell` need not be safe for threads.
            with counting:
                done[0] += len(rows)
                tell(done[0], number * each)

        # A thread does not know of the caller's device.
        with jax.default_device(mesh.devices.flat[0]):
            found = work(full, None if tell is progress_lib.nobody else count)
        return [part[: len(rows)] for part in found]

    pool = ThreadPoolExecutor(beside)
    with progress_lib.shown(what, progress) as tell, progress_lib.until_interrupted(parts):
        try:
            # The first one compiles what all need.
            parts.append(group(0, tell))
            for part in pool.map(lambda at: group(at, tell), range(slots, number, slots)):
                parts.append(part)
        finally:
            pool.shutdown(cancel_futures=True)
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _asked(
    model: Model,
    given: entry.Given,
    reward: rewards.Reward,
    *,
    operator: operators.Operator,
    areas: Sequence[float],
    counts: Sequence[int],
    scores: np.ndarray,
) -> Importance:
    """The map of one field an image, and what its masks are worth."""
    number = len(scores)
    pixels = math.prod(scores.shape[1:])
    # Stable, so that ties go to the lower pixel index, as in `masks.binarise`.
    order = np.argsort(-scores.reshape(number, -1), axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(1, pixels + 1)[None], 1)
    place = place.reshape(scores.shape)
    masks = np.stack([place <= count for count in counts], 1).astype(np.float32)
    measured = [_measured(model, given, reward, operator, masks[i], i) for i in range(number)]
    found = np.stack(measured)
    kept, removed = np.split(found[:, 2:], 2, 1)
    area = (place / pixels).astype(np.float32)
    return Importance(
        area=area,
        areas=np.array(areas, np.float32),
        masks=masks,
        score_binary=kept,
        score_original=found[:, 0],
        score_floor=found[:, 1],
        score_removed=removed,
    )


def _measured(
    model: Model,
    given: entry.Given,
    reward: rewards.Reward,
    operator: operators.Operator,
    masks: np.ndarray,
    i: int,
) -> np.ndarray:
    """Rewards of the whole picture, of nothing, of `masks` `[A, *size]`, and of what is left
    without each.
    """
    whole = np.ones_like(masks[:1])
    # All views of one image in one call: `outputs_of` pads its batches, so fewer calls pad less.
    shown = np.concatenate([whole, 0 * whole, masks, 1 - masks])
    outputs = fills.outputs_of(model, fills.show(operator, given.images[i], given.keys[i], shown))
    target = jax.tree.map(lambda t: jnp.asarray(t[i]), given.targets)
    original = jax.tree.map(lambda y: jnp.asarray(y[0]), outputs)

    def of_row(row: PyTree) -> jax.Array:
        return reward(row, target, original)

    return np.asarray(jax.vmap(of_row)(jax.tree.map(jnp.asarray, outputs)))


def _sweep(
    model: Model,
    recipe: solver.Recipe,
    given: entry.Given,
    rows: np.ndarray,
    areas: Sequence[float],
    counts: Sequence[int],
    budget: tuple[int, int],
) -> list[np.ndarray]:
    """Masks `[S, A, *size]`, their scores `[S, A]`, and `[S]` original and floor."""
    model, recipe = solver.ready(model, recipe)
    slots, size = len(rows), given.images.shape[1:-1]
    # Kept here rather than left to `start`: each area begins where the last one ended.
    first = recipe.parametrisation.init(size)
    params = jax.tree.map(lambda p: jnp.broadcast_to(p, (slots, *p.shape)), first)
    allowed = jnp.ones((slots, *size))
    images = jnp.asarray(given.images[rows])
    targets = jax.tree.map(lambda t: jnp.asarray(t[rows]), given.targets)
    kept, binary = [], []
    for n, (area, count) in enumerate(zip(areas, counts, strict=True)):
        taken = budget[0] if n == 0 else budget[1]
        items, state = solver.start(
            model,
            recipe,
            images,
            targets,
            jnp.full(slots, area, jnp.float32),
            jnp.full(slots, count, jnp.int32),
            given.keys[rows],
            jnp.full(slots, taken, jnp.int32),
            params,
            allowed,
        )
        state = solver.advance(model, recipe, items, state, taken)
        outcome = solver.finish(model, recipe, items, state)
        # The next area starts from the best scores so far and may only keep what this mask keeps.
        allowed, params = (outcome.masks > 0.5).astype(jnp.float32), state.best
        kept.append(np.asarray(allowed))
        binary.append(np.asarray(outcome.score_binary))
    original, floor = np.asarray(outcome.score_original), np.asarray(outcome.score_floor)
    return [np.stack(kept, 1), np.stack(binary, 1), original, floor]
