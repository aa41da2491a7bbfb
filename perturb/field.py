"""One score field for all areas at once: every step shows masks of other areas, cut from the same
scores.

A sweep from area to area optimises each mask by itself and ties them together afterwards, so that
an early accident stays in all that follow. Here there is one field of scores. A step cuts it at two
areas, drawn evenly over the whole range in a fixed order, and asks: is what is kept *enough*
(log-probability of the kept part), is what is removed *needed* (minus that of the rest), or *both*
(the difference). Masks of all areas are nested by construction, and exact.

The field returned is the mean over the last third of the steps: single steps depend on rounding,
their mean less.
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
from perturb.masks import areas as areas_lib
from perturb.masks import upsampling
from perturb.model import Model
from perturb.solver import rules
from perturb.types import PyTree

__all__ = ["QUESTIONS", "Options", "optimise"]

QUESTIONS = ("enough", "needed", "both")
# Areas that one step cuts the field at.
CUTS = 2
# The fraction of the golden ratio: its multiples fill [0, 1) evenly however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2


class Options(NamedTuple):
    """How a field is optimised.

    Attributes:
      cells: of the grid, along the shorter side.
      blob: width (sigma) of a cell's blob, as a share of the shorter side.
      least, most: areas between which masks are drawn.
      bend: power of the even draws: above 1 small areas are drawn more often.
      soft, sharp: temperature of a mask's edge at the beginning and at the end, in deviations of
        the scores.
      rate: of the step rule.
    """

    cells: int = 32
    blob: float = 0.045
    least: float = 0.01
    most: float = 0.95
    bend: float = 1.5
    soft: float = 0.5
    sharp: float = 0.05
    rate: float = 0.2


def drawn(options: Options, step: jax.Array | float) -> jax.Array:
    """Returns `[CUTS]` areas of step number `step`.

    >>> areas = np.stack([drawn(Options(), t) for t in range(50)])
    >>> bool(areas.min() < 0.02), bool(areas.max() > 0.9)
    (True, True)
    """
    # The cuts of one step lie evenly over the range, so every step sees a small and a large area.
    even = (0.5 + step * _GOLDEN + jnp.arange(CUTS) / CUTS) % 1.0
    return options.least + (options.most - options.least) * even**options.bend


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
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Returns the fields `[S, *size]` of `S` images, at least 2; a pixel of a higher score is kept
    longer.

    Args:
      model, images, targets, keys: checked, see `perturb.importance_map`.
      question: one of `QUESTIONS`.
      operator, reward: as of `perturb.solver`.
      steps: each shows `CUTS` masks, for "both" from either side.
      mirror: show every other step in the mirror.
      progress: called with the steps done and all; what it raises ends the search.
    """
    options = Options() if options is None else options
    size = images.shape[1:-1]
    pixels = jnp.asarray(images)
    # One image at a time, as in the solver: a blur is a matrix product, and a product over more
    # rows rounds differently.
    reference = jax.jit(lambda op, x, k: jax.lax.map(lambda a: op.prepare(*a), (x, k)))(
        operator, pixels, keys
    )
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
    original = jax.jit(lambda m, x: m(x))(model, pixels)
    for t in range(steps):
        params, memory = _step(
            model, fixed, operator, rule, reference, targets, original, params, memory, jnp.int32(t)
        )
        if t >= first:
            total = total + params
        if progress is not None:
            # Steps are queued without waiting for them; who counts them wants those that are done.
            params.block_until_ready()
            progress(t + 1, steps)
    return np.asarray(_spread(total / (steps - first), size, options))


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


@functools.partial(jax.jit, static_argnums=1)
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
    cuts = drawn(options, t)
    signs = {"enough": (1,), "needed": (-1,), "both": (1, -1)}[question]

    def render(p: jax.Array, of: PyTree) -> jax.Array:
        u = _scores(p, size, options)

        def cut(area: jax.Array) -> jax.Array:
            mask = areas_lib.exact_area(u, area, temperature=temperature)
            shown = [mask if sign > 0 else 1 - mask for sign in signs]
            return jnp.stack([operators.at_step(operator, of, m, t) for m in shown])

        return jax.vmap(cut)(cuts)

    def loss(params: jax.Array) -> jax.Array:
        views = jax.vmap(render)(params, reference)
        if mirror:
            # Even steps, as in the published method.
            views = jnp.where(t % 2 == 0, jnp.flip(views, -2), views)
        flat = views.reshape(-1, *views.shape[3:])
        outputs = model(flat)
        outputs = jax.tree.map(lambda y: y.reshape(*views.shape[:3], *y.shape[1:]), outputs)

        def gained(rows: PyTree, target: PyTree, whole: PyTree) -> jax.Array:
            each = jax.vmap(jax.vmap(lambda row: reward(row, target, whole)))(rows)
            found: jax.Array = (each * jnp.array(signs, each.dtype)).sum()
            return found

        # A sum, not a mean: the gradient of a slot must not depend on how many there are.
        return -jax.vmap(gained)(outputs, targets, original).sum()

    grads = jax.grad(loss)(params)
    directions, memory = jax.vmap(rule.transform().update)(grads, memory)
    moved = params - rule.learning_rate(t, jnp.int32(steps)) * directions
    # A gradient that is not finite moves nothing.
    fine = jnp.isfinite(grads).all(tuple(range(1, grads.ndim)))
    fine = fine.reshape(-1, *[1] * (grads.ndim - 1))
    return jnp.where(fine, moved, params), memory
