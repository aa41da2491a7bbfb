"""The one optimisation loop: many masks side by side, one compiled program.

A `Recipe` says what is optimised (parametrisation, operator, reward, penalty, step rule); `Items`
hold what differs between slots (image, target, area, key, number of steps); `State` is what
changes. `advance(model, recipe, items, state, k)` takes `k` steps in every slot that is not
finished. The areas, the targets, the weights and the numbers of steps are traced: other values
never recompile. A slot's result does not depend on how the steps are divided into calls, nor, but
for the last bits of the network's sums, on its neighbours and their number. A single slot has none:
`advance` called slot by slot is reproducible to the bit (docs/reproducibility.md).

>>> import jax, jax.numpy as jnp
>>> from perturb import masks, operators, rewards, model
>>> net = model.Model(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(3))
>>> recipe = Recipe(masks.Blobs(), operators.Fade(), rewards.logit())
>>> images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
>>> keys, steps = jax.random.split(jax.random.key(1), 2), jnp.array([8, 8])
>>> items, state = start(net, recipe, images, jnp.array([0, 1]), jnp.array([0.1, 0.2]),
...                      jnp.array([26, 51]), keys, steps)
>>> advance(net, recipe, items, state, 5).step
Array([5, 5], dtype=int32)
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import scores as scores_lib
from perturb._numerics import xla
from perturb.masks import areas, exact_area
from perturb.model import Model
from perturb.solver.records import GAMES, Items, Outcome, Recipe, State
from perturb.solver.rules import Adam, Momentum, Normalised
from perturb.solver.scoring import (
    binary_of,
    cast,
    first_of,
    guide_of,
    outputs_of,
    scores_of,
    select,
    size_of,
    views_of,
    worth_of,
)
from perturb.solver.views import flip_on_even_steps, no_change
from perturb.types import Array, PyTree

__all__ = [
    "GAMES",
    "Adam",
    "Items",
    "Momentum",
    "Normalised",
    "Outcome",
    "Recipe",
    "State",
    "advance",
    "advance_in_place",
    "finish",
    "flip_on_even_steps",
    "no_change",
    "own",
    "ready",
    "start",
]


def _begun(step: jax.Array, part: jax.Array) -> jax.Array:
    """The area that a mask begins with, `part` of the way through a step: drawn from the whole
    range, small more often, in a fixed order whatever the key. It narrows to the area asked.
    """
    return areas.drawn(areas.even(step, part), 1.5)


@xla.one_thread_if_alone(lambda model, recipe, images, *_, **__: images)
def start(
    model: Model,
    recipe: Recipe,
    images: jax.Array,
    targets: PyTree,
    areas: jax.Array,
    counts: jax.Array,
    keys: jax.Array,
    steps: jax.Array,
    params: PyTree = None,
    guide: PyTree = None,
) -> tuple[Items, State]:
    """Prepares `S` slots: references, the original outputs, and the first parameters.

    Args:
      model: the network, a `perturb.Model`.
      recipe: the `Recipe` of the steps.
      images: `[S, *size, C]` in [0, 1].
      targets: pytree of `[S, ...]`.
      areas: `[S]` in (0, 1).
      counts: `[S]` integers, pixels above 0.5 in the mask returned.
      keys: `[S]` random keys.
      steps: `[S]` int32; a slot of 0 steps is empty.
      params: first parameters `[S, ...]`; None takes the parametrisation's own.
      guide: `[S, ...]`, see `Items`.
    """
    slots, size = images.shape[0], recipe.size or images.shape[1:-1]
    wide = jnp.promote_types(recipe.dtype, jnp.float32)
    images = images.astype(wide)
    # One item at a time: a blur is a matrix product, and a product over more rows rounds
    # differently.
    reference = jax.lax.map(lambda x: recipe.operator.prepare(*x), (images, keys))
    if recipe.dtype != jnp.float32:
        # What the model sees is rounded to it anyway; of eight levels half the bytes are read.
        reference = cast(reference, recipe.dtype)
    # Through the operator like every other view: where the mask is 1 it shows the image itself.
    whole = jnp.ones((slots, *size), wide)
    original = outputs_of(model, recipe, jax.vmap(recipe.operator.apply)(reference, whole))
    # Without elements it takes no memory, and carries a static shape through jit and vmap.
    shape = jnp.zeros((slots, *size, 0))
    items = Items(
        size=shape,
        reference=reference,
        target=targets,
        area=areas,
        pixels=counts,
        steps=steps,
        key=keys,
        original=original,
        guide=guide,
    )
    if params is None:
        first = recipe.parametrisation.init(size)
        params = jax.tree.map(lambda p: jnp.broadcast_to(p, (slots, *p.shape)), first)
    params = jax.tree.map(lambda p: p.astype(wide), params)
    state = State(
        step=jnp.zeros(slots, jnp.int32),
        params=params,
        rule=jax.vmap(recipe.rule.transform().init)(params),
        best=params,
        best_score=jnp.full(slots, -jnp.inf),
        best_step=jnp.zeros(slots, jnp.int32),
        reward=jnp.zeros(slots),
        # Nothing has been checked yet; without checks it follows the soft score.
        settled=jnp.full(slots, -jnp.inf if recipe.check_every else 0.0),
        finite=jnp.ones(slots, bool),
    )
    return items, state


@xla.one_thread_if_alone(first_of, donate_argnames="state")
def _step(model: Model, recipe: Recipe, items: Items, state: State) -> State:
    return _moved(recipe, items, state, *_slopes(model, recipe, items, state))


# A step of many views is a program of two, called as often as it takes: on a CPU a network of
# eight views leaves the cache, and takes half as long again for each.
@xla.one_thread_if_alone(first_of, donate_argnames="sums")
def _further(
    model: Model, recipe: Recipe, items: Items, state: State, sums: PyTree, pair: jax.Array
) -> PyTree:
    return jax.tree.map(jnp.add, sums, _slopes(model, recipe, items, state, pair))


@xla.one_thread_if_alone(lambda recipe, items, *_: items.area, donate_argnames="state")
def _move(recipe: Recipe, items: Items, state: State, sums: PyTree) -> State:
    grads, scores = sums
    return _moved(recipe, items, state, grads, scores / recipe.together)


def _together(model: Model, recipe: Recipe, items: Items, state: State) -> State:
    """One step of `recipe.together` views, the sum of whose gradients it takes."""
    sums = jax.tree.map(jnp.zeros_like, (state.params, state.reward))
    for pair in range(recipe.together // 2):
        sums = _further(model, recipe, items, state, sums, np.int32(pair))
    found: State = _move(recipe, items, state, sums)
    return found


def _slopes(
    model: Model, recipe: Recipe, items: Items, state: State, pair: jax.Array | None = None
) -> tuple[PyTree, jax.Array]:
    """Gradients of the parameters and the scores `[S]`, of one view or of a pair of them."""
    size = size_of(items)
    # From 0 at the first step to 1 at the last; slots may be at different steps.
    progress = state.step / jnp.maximum(items.steps - 1, 1)

    def loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
        def render(
            p: PyTree, item: Items, step: jax.Array, t: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            way, numbers = recipe.parametrisation, [step]
            if pair is not None:
                # One mask, shown as it is and in the mirror.
                way = way.begun_with(_begun(step, 2 * pair / recipe.together))
                numbers = [recipe.together * step + 2 * pair + turn for turn in range(2)]
            mask = way.mask(p, size, item.area, t, *guide_of(item))
            shown = []
            for number in numbers:
                views = views_of(recipe, item.reference, mask.visible, number)
                # By the step's own number, so that no division of the steps into calls changes the
                # draws.
                key = jax.random.fold_in(item.key, number)
                augment = functools.partial(recipe.augment, mask=mask.visible, key=key, step=number)
                shown.append(jax.vmap(augment)(views))
            views = jax.tree.map(lambda *v: jnp.concatenate(v), *shown)
            return views, recipe.penalty(mask, item.area, step, item.steps)

        # Masks and fills slot by slot, then the model once on the whole batch.
        views, penalties = jax.vmap(render)(params, items, state.step, progress)
        scores = scores_of(model, recipe, items, views)
        return (penalties - scores).sum(), scores

    found: tuple[PyTree, jax.Array] = jax.grad(loss, has_aux=True)(state.params)
    return found


def _moved(recipe: Recipe, items: Items, state: State, grads: PyTree, scores: jax.Array) -> State:
    # Per slot: a picture that breaks the network must not stop the others.
    whole = [jnp.isfinite(g).all(tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)]
    finite = state.finite & jnp.isfinite(scores) & functools.reduce(jnp.logical_and, whole)
    active = finite & (state.step < items.steps)

    directions, rule = jax.vmap(recipe.rule.transform().update)(grads, state.rule)
    rate = recipe.rule.learning_rate(state.step, items.steps)

    def step(p: jax.Array, d: jax.Array) -> jax.Array:
        found: jax.Array = (p - rate.reshape(-1, *[1] * (p.ndim - 1)) * d).astype(p.dtype)
        return found

    moved = jax.tree.map(step, state.params, directions)
    moved = jax.vmap(recipe.parametrisation.project)(moved)
    state = state._replace(
        # Finished slots are computed along, in the same program, and keep what they have.
        params=select(active, moved, state.params),
        rule=select(active, rule, state.rule),
        reward=jnp.where(active, scores, state.reward),
        finite=finite,
        # A slot that is not finite counts on, so that it ends when the host expects it to.
        step=jnp.where(state.step < items.steps, state.step + 1, state.step),
    )
    if recipe.average:
        # The mean of the last parameters: single steps depend on rounding, their mean less.
        taken = state.step - jnp.floor(items.steps * (1 - recipe.average)).astype(jnp.int32)
        share = 1 / jnp.maximum(taken, 1)

        def meant(p: jax.Array, old: jax.Array) -> jax.Array:
            return (old + share.reshape(-1, *[1] * (p.ndim - 1)) * (p - old)).astype(p.dtype)

        mean = jax.tree.map(meant, state.params, state.best)
        state = state._replace(best=select(active, mean, state.best))
    if recipe.check_every:
        return state
    # The last value up to two thirds of the steps: what `converged` compares the end with.
    early = active & (state.step <= 2 * items.steps // 3)
    return state._replace(settled=jnp.where(early, state.reward, state.settled))


def _settling(recipe: Recipe, steps: PyTree) -> PyTree:
    """The step after which little should come; areas that narrow have hardly arrived before."""
    return 5 * steps // 6 if recipe.average else 2 * steps // 3


def _due(recipe: Recipe, step: Array, steps: PyTree) -> jax.Array:
    """Whether slots that have just taken step number `step` look at their masks."""
    # Up to half of the steps the area still shrinks: scores are not yet those of the area asked.
    late = 2 * step >= steps
    regular = step % recipe.check_every == 0
    if recipe.average:
        # Nothing is chosen by a check: one says how far it has come, one what the mean is worth.
        regular = step == _settling(recipe, steps)
    found: jax.Array = late & (regular | (step == steps))
    return found


def _look(model: Model, recipe: Recipe, items: Items, state: State, moved: Array) -> State:
    """Scores the binarised masks and remembers the best: soft masks can live on half-blurred
    pixels.

    Only of slots that have just `moved`, are due, and finite.
    """
    params = state.best if recipe.average else state.params
    score = worth_of(model, recipe, items, _cut(recipe, items, params))
    found: State = _remember(recipe, items, state, moved, score)
    return found


@xla.one_thread_if_alone(lambda recipe, items, params: items.area)
def _cut(recipe: Recipe, items: Items, params: PyTree) -> jax.Array:
    return binary_of(recipe, items, params)


@functools.partial(jax.jit, donate_argnames="state")
def _remember(
    recipe: Recipe, items: Items, state: State, moved: jax.Array, score: jax.Array
) -> State:
    due = moved & state.finite & _due(recipe, state.step, items.steps)
    # Of equals the later one, whose edge is sharper. A mean is not chosen: `_moved` has made it.
    better = due if recipe.average else due & (score >= state.best_score)
    best_score = jnp.where(better, score, state.best_score)
    early = due & (state.step <= _settling(recipe, items.steps))
    return state._replace(
        best=state.best if recipe.average else select(better, state.params, state.best),
        best_score=best_score,
        best_step=jnp.where(better, state.step, state.best_step),
        settled=jnp.where(early, best_score, state.settled),
    )


def ready(model: Model, recipe: Recipe) -> tuple[Model, Recipe]:
    """Returns both as a step takes them: weights in the recipe's dtype, its numbers on the device.

    `advance` does so by itself; who calls it often does it once before. ResNet-50 has 161 arrays of
    weights to cast, each a kernel of its own on a GPU, and a number on the host travels there at
    every step.

    Args:
      model: the network, a `perturb.Model`.
      recipe: the `Recipe` of the steps.
    """
    if recipe.dtype != jnp.float32 and any(
        jnp.issubdtype(w.dtype, jnp.floating) and w.dtype != recipe.dtype
        for w in jax.tree.leaves(model)
        if hasattr(w, "dtype")
    ):
        model = cast(model, recipe.dtype)
    if not all(isinstance(number, jax.Array) for number in jax.tree.leaves(recipe)):
        recipe = jax.device_put(recipe)
    return model, recipe


@jax.jit
def own(state: State) -> State:
    """Returns a copy, whose memory a step may take over."""
    found: State = jax.tree.map(jnp.copy, state)
    return found


def advance(model: Model, recipe: Recipe, items: Items, state: State, k: int) -> State:
    """Takes `k` steps in every slot that has steps left; finished and non-finite slots stand still.

    One compiled step, called `k` times without waiting for it: any division of the steps into calls
    runs the same program. A check is a program of its own, called where one is due: a branch inside
    the step would make a GPU wait for the host every time. Inside a loop of its own XLA lays
    weights out once for all steps and then, on a CPU, no longer turns 1 x 1 convolutions into
    matrix products: SqueezeNet's step took twice as long.

    Args:
      model: the network, best as `ready` returns it.
      recipe: a `Recipe`, likewise.
      items: what `start` returned first.
      state: what `start` or the last call returned.
      k: number of steps.
    """
    model, recipe = ready(model, recipe)
    # The one wait for the device: which steps need a check is then known on the host.
    taken, steps = jax.device_get((state.step, items.steps))
    return advance_in_place(model, recipe, items, own(state), k, taken=taken, steps=steps)


def advance_in_place(
    model: Model,
    recipe: Recipe,
    items: Items,
    state: State,
    k: int,
    *,
    taken: np.ndarray,
    steps: np.ndarray,
) -> State:
    """Takes the steps of `advance` in the memory of `state`, and asks the device nothing.

    So calls may follow one another without a device ever waiting for the host.

    Args:
      model, recipe: as `ready` returns them.
      items: what `start` returned first.
      state: what `start` or the last call returned; its memory is reused (donated).
      k: steps.
      taken: `[S]` the number of steps taken so far.
      steps: `[S]` the number of steps to take; where it equals `taken` none is left.
    """
    for n in range(1, int(k) + 1):
        step = _step if recipe.together == 1 else _together
        state = step(model, recipe, items, state)
        if recipe.check_every:
            moved = taken + n <= steps
            # For all slots as soon as one is due; `_remember` passes over the others.
            if (moved & _due(recipe, taken + n, steps)).any():
                state = _look(model, recipe, items, state, moved)
    return state


def _settle(soft: jax.Array, binary: jax.Array, area: jax.Array) -> jax.Array:
    """The soft mask, saying pixel by pixel what the binary one says, near binary, of mean `area`.

    Scores that hardly differ (a flat start, a model without a gradient) give a mask that is grey
    all over. Only then is a gap opened at the cut, twice as wide each time, until the mask is as
    promised.
    """

    def agree(m: jax.Array) -> jax.Array:
        return jnp.where(binary > 0, jnp.maximum(m, 0.5 + 1e-3), jnp.minimum(m, 0.5 - 1e-3))

    def widen(i: jax.Array, m: jax.Array) -> jax.Array:
        # As promised: less than a tenth of the pixels in between, the mean area to one per cent.
        grey = ((m > 0.1) & (m < 0.9)).mean()
        good = (grey <= 0.09) & (jnp.abs(m.mean() - area) <= 0.01 * area)
        # Doubled in each of six rounds: from half a unit of log-odds to sixteen, where any mask is
        # sharp.
        gap = (2 * binary - 1) * 0.5 * 2.0**i
        return jnp.where(good, m, agree(exact_area(logits + gap, area, temperature=1.0)))

    # Scores by way of log-odds; a mask of exactly 0 or 1 has none in float32.
    inside = jnp.clip(soft, 1e-6, 1 - 1e-6)
    logits = jnp.log(inside) - jnp.log1p(-inside)
    found: jax.Array = jax.lax.fori_loop(0, 6, widen, agree(soft))
    return found


def finish(model: Model, recipe: Recipe, items: Items, state: State) -> Outcome:
    """Returns the masks and their scores; with checks, those of the best one.

    Args:
      model: the network, a `perturb.Model`.
      recipe: the `Recipe` of the steps.
      items: what `start` returned first.
      state: what the last `advance` returned.
    """
    outcome, binary = _finish(model, recipe, items, state)
    found: Outcome = outcome._replace(score=worth_of(model, recipe, items, binary))
    return found


@xla.one_thread_if_alone(first_of)
def _finish(model: Model, recipe: Recipe, items: Items, state: State) -> tuple[Outcome, jax.Array]:
    """The outcome but for `score`, and the binary masks."""
    size = size_of(items)
    params = state.best if recipe.check_every else state.params

    def soft(p: PyTree, item: Items) -> jax.Array:
        # The mask as it is at the end of its course, whichever step was the best.
        end = jnp.float32(1)
        found: jax.Array = recipe.parametrisation.mask(
            p, size, item.area, end, *guide_of(item)
        ).visible
        return found

    def final(p: PyTree, item: Items) -> jax.Array:
        found: jax.Array = recipe.parametrisation.scores(p, size, item.area, *guide_of(item))
        return found

    soft_masks = jax.vmap(soft)(params, items)
    if not recipe.check_every:
        # As published: a threshold, whatever area it gives.
        binary = (soft_masks > 0.5).astype(jnp.float32)
    else:
        binary = binary_of(recipe, items, params)
        soft_masks = jax.vmap(_settle)(soft_masks, binary, items.area)
    # Reported scores are those of one view, in every game.
    plain = dataclasses.replace(recipe, game="preserve")

    def outputs(shown: jax.Array) -> jax.Array:
        views = jax.vmap(recipe.operator.apply)(items.reference, shown)
        return outputs_of(model, recipe, views)

    flip = recipe.game == "delete"
    cases = {
        "original": items.original,
        "masked": outputs(1 - soft_masks if flip else soft_masks),
        "binary": outputs(1 - binary if flip else binary),
        "floor": outputs(jnp.zeros_like(soft_masks)),
    }
    gained = jax.vmap(functools.partial(_reward_of, plain))
    scores = {f"score_{name}": gained(y, items) for name, y in cases.items()}
    chances = {f"probability_{n}": _chance(model, recipe, y, items) for n, y in cases.items()}
    compare = recipe.reward.compare if recipe.check_every else lambda score: score
    # Progress is measured in what there is to win: from the empty picture to the whole one.
    span = jnp.abs(compare(scores["score_original"]) - compare(scores["score_floor"]))
    last = state.best_score if recipe.check_every else state.reward
    outcome = Outcome(
        masks=soft_masks,
        scores=jax.vmap(final)(params, items),
        score=state.reward,
        **scores,
        **chances,
        converged=(last - state.settled <= 0.05 * span) & (items.steps > 2),
        steps=state.best_step if recipe.check_every else state.step,
        finite=state.finite,
    )
    return outcome, binary


def _reward_of(recipe: Recipe, row: PyTree, item: Items) -> jax.Array:
    found: jax.Array = recipe.reward(row, item.target, item.original)
    return found


def _chance(model: Model, recipe: Recipe, outputs: PyTree, items: Items) -> jax.Array:
    if not recipe.reward.indexes_class or not scores_lib.has_probability(model.output):
        return jnp.full(items.area.shape, jnp.nan)
    read = functools.partial(scores_lib.probability, model.output)
    return jax.vmap(read)(outputs, items.target)
