"""One score field for all areas at once: every step shows masks of many areas, cut from the same
scores.

A sweep from area to area optimises each mask by itself and ties them together afterwards, so that
an early accident stays in all that follow. Here there is one field of scores. A step cuts it at
several areas and asks: is what is kept *enough* (the reward of the kept part), is what is removed
*needed* (minus that of the rest, `perturb.rewards.to_lose`), or *both* (the difference). Masks of
all areas are nested by construction, and exact.

Areas are drawn from the whole range in a fixed order, whatever the key, small ones more often: of
what is removed a little decides, of what is kept rather more. Steps are few, each of many views
(all fills, as they are and in the mirror), and the field returned is the mean over the last third
of them: many steps of one view each would amplify rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import operators, rewards
from perturb._numerics import xla
from perturb.masks import areas as areas_lib
from perturb.masks import upsampling
from perturb.model import Model
from perturb.solver import rules, scoring
from perturb.solver.views import mirrored
from perturb.types import PyTree

__all__ = ["QUESTIONS", "Options", "move", "moves", "optimise"]

QUESTIONS = ("enough", "needed", "both")


class Options(NamedTuple):
    """How a field is optimised.

    Attributes:
      cells: of the grid, along the shorter side.
      blob: width (sigma) of a cell's blob, as a share of the shorter side; at least two pixels, for
        masks of single pixels deceive a network.
      least, most: areas between which masks are drawn.
      cuts: areas that a step cuts the field at, from each side that it is asked about; an even
        number.
      together: how many steps are taken as one, of as many times the cuts.
      kept, removed: powers of the even draws: above 1 small areas are drawn more often.
      soft, sharp: temperature of a mask's edge at the beginning and at the end, in deviations of
        the scores.
      rate, momentum: of the step rule.
    """

    cells: int = 56
    blob: float = 0.025
    least: float = 0.01
    most: float = 0.95
    cuts: int = 2
    together: int = 4
    kept: float = 1.5
    removed: float = 3.0
    soft: float = 0.5
    sharp: float = 0.05
    rate: float = 0.5
    momentum: float = 0.7


def moves(steps: int, options: Options | None = None) -> int:
    """Returns in how many moves of the field `steps` steps are taken.

    Fewer are taken together where there are few: a field that hardly moves says nothing.

    >>> moves(40), moves(60), moves(6), moves(1)
    (10, 15, 6, 1)
    """
    options = Options() if options is None else options
    return -(-steps // _together(steps, options))


def _together(steps: int, options: Options) -> int:
    return max(1, min(options.together, steps // 6))


def drawn(
    options: Options, cuts: int, step: jax.Array | float, number: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Returns the area kept and the area removed of cut `number` of `cuts`, at step `step`.

    >>> kept, removed = np.array([drawn(Options(), 2, t, n) for t in range(50) for n in (0, 1)]).T
    >>> bool(kept.min() < 0.02), bool(kept.max() > 0.9), bool(removed.min() < 0.02)
    (True, True, True)
    """
    # The cuts of one step lie evenly over the range; where little is kept, much is removed.
    part = areas_lib.even(step, number / cuts)
    between = functools.partial(areas_lib.drawn, least=options.least, most=options.most)
    return between(part, options.kept), between(1 - part, options.removed)


def optimise(
    model: Model,
    images: np.ndarray,
    targets: PyTree,
    keys: jax.Array,
    *,
    question: str,
    operator: operators.Operator,
    reward: rewards.Reward,
    steps: int,
    mirror: bool = True,
    options: Options | None = None,
    progress: Callable[[], None] | None = None,
) -> np.ndarray:
    """Returns the fields `[S, *size]` of `S` images; a pixel of a higher score is kept
    longer.

    Args:
      model, images, targets, keys: checked, see `perturb.importance_map`.
      question: one of `QUESTIONS`.
      operator, reward: as of `perturb.solver`.
      steps: each shows `options.cuts` masks, for "both" as many from either side; several are
        taken together, see `moves`.
      mirror: show every other view in the mirror.
      progress: called after every move; what it raises ends the search.
    """
    options = Options() if options is None else options
    size = images.shape[1:-1]
    pixels = jnp.asarray(images)
    reference, original = _begun(model, operator, pixels, keys)
    targets = jax.tree.map(jnp.asarray, targets)
    rule = rules.Normalised(rate=options.rate, b1=options.momentum)
    step_px = max(1, round(min(size) / options.cells))
    cells = upsampling.grid_shape(size, step_px)
    params = jnp.zeros((len(images), *cells), jnp.float32)
    memory = jax.vmap(rule.transform().init)(params)
    cuts = options.cuts * _together(steps, options)
    taken = moves(steps, options)
    first = taken - max(1, taken // 3)
    total = jnp.zeros_like(params)
    # Hashable, and one static argument: what a program is compiled for. All else is traced.
    fixed = _Fixed(question, reward, options, cuts, mirror, size)
    views = len(_SIDES[question]) * cuts
    for t in range(taken):
        late = np.float32(t / max(taken - 1, 1))
        grads = jnp.zeros_like(params)
        # Two views a program, called as often as it takes: on a CPU a network of many views leaves
        # the cache.
        for pair in range(views // 2):
            place = np.int32(t), np.int32(pair), late
            given = params, targets, original, reference
            grads = _further(model, fixed, operator, given, grads, place)
        params, memory = move(rule, params, memory, grads, np.int32(t), np.int32(taken))
        if t >= first:
            total = total + params
        if progress is not None:
            # Steps are queued without waiting for them; who counts them wants those that are done.
            params.block_until_ready()
            progress()
    return np.asarray(_spread(total / (taken - first), size, options))


@xla.one_thread_if_alone(lambda model, operator, images, keys: images)
def _begun(
    model: Model, operator: operators.Operator, images: jax.Array, keys: jax.Array
) -> tuple[PyTree, PyTree]:
    """What the operator needs of each image, and the outputs for the images as they are."""
    # One image at a time, as in the solver: a blur is a matrix product, and a product over more
    # rows rounds differently.
    return jax.lax.map(lambda a: operator.prepare(*a), (images, keys)), model(images)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _spread(params: jax.Array, size: tuple[int, ...], options: Options) -> jax.Array:
    return jax.vmap(lambda p: _scores(p, size, options))(params)


def _scores(params: jax.Array, size: tuple[int, ...], options: Options) -> jax.Array:
    short = min(size)
    step = max(1, round(short / options.cells))
    sigma = max(options.blob * short, 2.0)
    reach = max(1, math.ceil(3 * sigma / step))
    spread = upsampling.gaussian_upsample(params, size, step=step, sigma=sigma, reach=reach)
    return areas_lib.standard(spread)


# Whether what a question shows is kept or removed: the sign of its reward.
_SIDES = {"enough": (1,), "needed": (-1,), "both": (1, -1)}


class _Fixed(NamedTuple):
    question: str
    reward: rewards.Reward
    options: Options
    cuts: int
    mirror: bool
    size: tuple[int, ...]


@xla.one_thread_if_alone(lambda *given: given[4], static_argnums=1)
def _further(
    model: Model,
    fixed: _Fixed,
    operator: operators.Operator,
    given: tuple[jax.Array, PyTree, PyTree, PyTree],
    grads: jax.Array,
    place: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """Adds the gradients `[S, *cells]` of two views of every image."""
    params, targets, original, reference = given
    step, pair, late = place
    options, sides = fixed.options, _SIDES[fixed.question]
    # Edges sharpen by the same factor at every step.
    temperature = options.soft * (options.sharp / options.soft) ** late
    # Of two sides one view each, of the same cut; of one side two cuts.
    shown = [(sides[n % len(sides)], (2 * pair + n) // len(sides)) for n in range(2)]

    def view(scores: jax.Array, of: PyTree, sign: int, number: jax.Array) -> jax.Array:
        kept, removed = drawn(options, fixed.cuts, step, number)
        mask = areas_lib.exact_area(scores, kept if sign > 0 else removed, temperature=temperature)
        # Fills take turns, and each is shown in the mirror and as it is.
        count = step * fixed.cuts + number
        found = operators.at_step(operator, of, mask if sign > 0 else 1 - mask, count)
        return mirrored(found, count % 2 == 0) if fixed.mirror else found

    def loss(params: jax.Array) -> jax.Array:
        def render(p: jax.Array, of: PyTree) -> jax.Array:
            scores = _scores(p, fixed.size, options)
            return jnp.stack([view(scores, of, *which) for which in shown])

        views = jax.vmap(render)(params, reference)
        outputs = model(views.reshape(-1, *views.shape[2:]))
        outputs = jax.tree.map(lambda y: y.reshape(*views.shape[:2], *y.shape[1:]), outputs)

        def gained(rows: PyTree, target: PyTree, whole: PyTree) -> jax.Array:
            total: jax.Array = jnp.zeros(())
            for n, (sign, _) in enumerate(shown):
                of = fixed.reward if sign > 0 else rewards.to_lose(fixed.reward)
                total = total + sign * of(jax.tree.map(lambda y, n=n: y[n], rows), target, whole)
            return total

        # A sum, not a mean: the gradient of a slot must not depend on how many there are.
        return -jax.vmap(gained)(outputs, targets, original).sum()

    found: jax.Array = grads + jax.grad(loss)(params)
    return found


@xla.one_thread_if_alone(lambda *given: given[1])
def move(
    rule: rules.Normalised,
    params: jax.Array,
    memory: PyTree,
    grads: jax.Array,
    step: jax.Array,
    steps: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """Returns the parameters `[S, *cells]` and what the rule remembers after one move."""
    # A gradient that is not finite moves nothing, and is not remembered.
    fine = jnp.isfinite(grads).all(tuple(range(1, grads.ndim)))

    directions, after = jax.vmap(rule.transform().update)(grads, memory)
    moved = params - rule.learning_rate(step, steps) * directions
    return scoring.select(fine, moved, params), scoring.select(fine, after, memory)
