"""One score field for all areas at once: every step shows masks of other areas, cut from the same
scores.

A sweep from area to area optimises each mask by itself and ties them together afterwards, so that
an early accident stays in all that follow. Here there is one field of scores. A step cuts it at two
areas and asks: is what is kept *enough* (the reward of the kept part), is what is removed *needed*
(minus that of the rest, `perturb.rewards.to_lose`), or *both* (the difference, at two areas each).
Masks of all areas are nested by construction, and exact.

Areas are drawn from the whole range in a fixed order, whatever the key, small ones more often: of
what is removed a little decides, of what is kept rather more. The field returned is the mean over
the last third of the steps: single steps depend on rounding, their mean less.
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
from perturb.solver import rules
from perturb.types import PyTree

__all__ = ["QUESTIONS", "Options", "optimise"]

QUESTIONS = ("enough", "needed", "both")


class Options(NamedTuple):
    """How a field is optimised.

    Attributes:
      cells: of the grid, along the shorter side.
      blob: width (sigma) of a cell's blob, as a share of the shorter side.
      least, most: areas between which masks are drawn.
      cuts: areas that one step cuts the field at, from each side that it is asked about.
      kept, removed: powers of the even draws: above 1 small areas are drawn more often.
      soft, sharp: temperature of a mask's edge at the beginning and at the end, in deviations of
        the scores.
      rate: of the step rule.
    """

    cells: int = 40
    blob: float = 0.035
    least: float = 0.01
    most: float = 0.95
    cuts: int = 2
    kept: float = 1.5
    removed: float = 3.0
    soft: float = 0.5
    sharp: float = 0.05
    rate: float = 0.2


def drawn(options: Options, step: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Returns `[cuts]` areas kept and `[cuts]` areas removed at step number `step`.

    >>> kept, removed = (np.stack(a) for a in zip(*(drawn(Options(), t) for t in range(50))))
    >>> bool(kept.min() < 0.02), bool(kept.max() > 0.9), bool(removed.min() < 0.02)
    (True, True, True)
    """
    # The cuts of one step lie evenly over the range; where little is kept, much is removed.
    part = areas_lib.even(step, jnp.arange(options.cuts) / options.cuts)
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
      steps: each shows `options.cuts` masks, for "both" as many from either side.
      mirror: show every other step in the mirror.
      progress: called after every step; what it raises ends the search.
    """
    options = Options() if options is None else options
    size = images.shape[1:-1]
    pixels = jnp.asarray(images)
    reference, original = _begun(model, operator, pixels, keys)
    targets = jax.tree.map(jnp.asarray, targets)
    rule = rules.Normalised(rate=options.rate)
    step_px = max(1, round(min(size) / options.cells))
    cells = upsampling.grid_shape(size, step_px)
    params = jnp.zeros((len(images), *cells), jnp.float32)
    memory = jax.vmap(rule.transform().init)(params)
    total = jnp.zeros_like(params)
    first = steps - max(1, steps // 3)
    # Hashable, and one static argument: what a program is compiled for. All else is traced.
    fixed = (question, reward, options, mirror, size, steps)
    for t in range(steps):
        params, memory = _step(
            model, fixed, operator, rule, reference, targets, original, params, memory, jnp.int32(t)
        )
        if t >= first:
            total = total + params
        if progress is not None:
            # Steps are queued without waiting for them; who counts them wants those that are done.
            params.block_until_ready()
            progress()
    return np.asarray(_spread(total / (steps - first), size, options))


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
    sigma = options.blob * short
    reach = max(1, math.ceil(3 * sigma / step))
    spread = upsampling.gaussian_upsample(params, size, step=step, sigma=sigma, reach=reach)
    return areas_lib.standard(spread)


@xla.one_thread_if_alone(lambda *given: given[7], static_argnums=1)
def _step(
    model: Model,
    fixed: tuple[PyTree, ...],
    operator: operators.Operator,
    rule: rules.Normalised,
    reference: jax.Array,
    targets: PyTree,
    original: PyTree,
    params: jax.Array,
    memory: PyTree,
    t: jax.Array,
) -> tuple[jax.Array, PyTree]:
    question, reward, options, mirror, size, steps = fixed
    late = t / max(steps - 1, 1)
    # Edges sharpen by the same factor at every step.
    temperature = options.soft * (options.sharp / options.soft) ** late
    kept, removed = drawn(options, t)
    cuts = {"enough": kept, "needed": removed, "both": jnp.concatenate([kept, removed])}[question]
    sides = {"enough": (1.0,), "needed": (-1.0,), "both": (1.0, -1.0)}[question]
    signs = jnp.repeat(jnp.array(sides), options.cuts)

    def render(p: jax.Array, of: PyTree) -> jax.Array:
        u = _scores(p, size, options)

        def cut(area: jax.Array, sign: jax.Array) -> jax.Array:
            mask = areas_lib.exact_area(u, area, temperature=temperature)
            return operators.at_step(operator, of, jnp.where(sign > 0, mask, 1 - mask), t)

        return jax.vmap(cut)(cuts, signs)

    def loss(params: jax.Array) -> jax.Array:
        views = jax.vmap(render)(params, reference)
        if mirror:
            # Even steps, as in the published method.
            views = jnp.where(t % 2 == 0, jnp.flip(views, -2), views)
        flat = views.reshape(-1, *views.shape[2:])
        outputs = model(flat)
        outputs = jax.tree.map(lambda y: y.reshape(*views.shape[:2], *y.shape[1:]), outputs)

        def gained(rows: PyTree, target: PyTree, whole: PyTree) -> jax.Array:
            total: jax.Array = jnp.zeros(())
            for n, sign in enumerate(sides):
                few = slice(n * options.cuts, (n + 1) * options.cuts)
                of = reward if sign > 0 else rewards.to_lose(reward)
                each = jax.vmap(lambda row, of=of: of(row, target, whole))(
                    jax.tree.map(lambda y, few=few: y[few], rows)
                )
                total = total + sign * each.sum()
            return total

        # A sum, not a mean: the gradient of a slot must not depend on how many there are.
        return -jax.vmap(gained)(outputs, targets, original).sum()

    grads = jax.grad(loss)(params)
    directions, memory = jax.vmap(rule.transform().update)(grads, memory)
    moved = params - rule.learning_rate(t, jnp.int32(steps)) * directions
    # A gradient that is not finite moves nothing.
    fine = jnp.isfinite(grads).all(tuple(range(1, grads.ndim)))
    fine = fine.reshape(-1, *[1] * (grads.ndim - 1))
    return jnp.where(fine, moved, params), memory
