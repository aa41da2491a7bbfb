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

from perturb import masks, operators
from perturb import scores as scores_lib
from perturb._numerics import xla
from perturb.model import Model
from perturb.solver.records import GAMES, Items, Outcome, Recipe, State
from perturb.solver.rules import Adam, Momentum, Normalised
from perturb.solver.views import flip_on_even_steps, no_change
from perturb.types import Array, ArrayLike, PyTree

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


def _size(items: Items) -> tuple[int, ...]:
    return items.size.shape[1:-1]


def _first_of(model: Model, recipe: Recipe, items: Items, *_: object) -> jax.Array:
    """An array whose first axis are the slots."""
    return items.area


def _call(model: Model, recipe: Recipe, views: PyTree) -> jax.Array:
    """The model on a batch of views, in the recipe's dtype; outputs come back in float32 or
    wider.
    """

    if recipe.dtype != jnp.float32:
        model, views = _cast((model, views), recipe.dtype)
    outputs = model(views)
    found: jax.Array = jax.tree.map(
        lambda y: y.astype(jnp.promote_types(y.dtype, jnp.float32)), outputs
    )
    return found


@functools.partial(jax.jit, static_argnums=1)
def _cast(tree: PyTree, dtype: jax.typing.DTypeLike) -> jax.Array:
    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    found: jax.Array = jax.tree.map(cast, tree)
    return found


def _views(
    recipe: Recipe, reference: jax.Array, mask: jax.Array, step: jax.Array | None = None
) -> jax.Array:
    """What the model is shown for one item: leaves `[V, ...]`, for an image `[V, *size, C]`."""
    apply = recipe.operator.apply
    if step is not None:
        apply = functools.partial(operators.at_step, recipe.operator, step=step)
    # Kept before cut, the order that `_game_score` takes them in.
    kept = [apply(reference, mask)] if recipe.game != "delete" else []
    cut = [apply(reference, 1 - mask)] if recipe.game != "preserve" else []
    found: jax.Array = jax.tree.map(lambda *x: jnp.stack(x), *kept, *cut)
    return found


def _game_score(recipe: Recipe, outputs: PyTree, item: Items) -> jax.Array:
    """The score of one item from its outputs `[V, ...]`; higher is better in every game."""

    def gained(v: int) -> jax.Array:
        row = jax.tree.map(lambda y: y[v], outputs)
        found: jax.Array = recipe.reward(row, item.target, item.original)
        return found

    if recipe.game == "preserve":
        return gained(0)
    return -gained(0) if recipe.game == "delete" else gained(0) - gained(1)


def _scores(model: Model, recipe: Recipe, items: Items, views: PyTree) -> jax.Array:
    """Game scores `[S]` of views, leaves `[S, V, ...]`."""
    slots, variants = jax.tree.leaves(views)[0].shape[:2]
    # One batch for the model, in which the views of one slot lie side by side.
    flat = jax.tree.map(lambda v: v.reshape(slots * variants, *v.shape[2:]), views)
    outputs = _call(model, recipe, flat)
    outputs = jax.tree.map(lambda y: y.reshape(slots, variants, *y.shape[1:]), outputs)
    return jax.vmap(functools.partial(_game_score, recipe))(outputs, items)


def _worth(model: Model, recipe: Recipe, items: Items, binary: jax.Array) -> jax.Array:
    """What binary masks are worth, `[S]`: the mean under all fills that they are sought with.

    One program for all fills, called once each: in one program a network stands three times.
    """
    # Under every fill of the search, or the mask kept would be the best under one of them.
    steps = operators.one_step_each(recipe.operator)
    under = [_worth_under(model, recipe, items, binary, np.int32(step)) for step in steps]
    found: jax.Array = sum(under[1:], under[0]) / len(steps)
    return found


@xla.one_thread_if_alone(_first_of)
def _worth_under(
    model: Model, recipe: Recipe, items: Items, binary: jax.Array, step: jax.Array
) -> jax.Array:
    views = jax.vmap(lambda r, m: _views(recipe, r, m, step))(items.reference, binary)
    reward = recipe.reward
    # Log-probabilities are compared as probabilities: else one fill that no region holds under
    # would decide alone.
    compared = dataclasses.replace(recipe, reward=lambda *row: reward.compare(reward(*row)))
    return _scores(model, compared, items, views)


def _guide_of(item: Items) -> tuple[PyTree, ...]:
    """The guide as the last argument of a parametrisation, where there is one."""
    return () if item.guide is None else (item.guide,)


def _binary(recipe: Recipe, items: Items, params: PyTree) -> jax.Array:
    size = _size(items)

    def one(p: PyTree, item: Items) -> jax.Array:
        scores = recipe.parametrisation.scores(p, size, item.area, *_guide_of(item))
        return masks.binarise(scores, item.pixels)

    return jax.vmap(one)(params, items)


def _select(which: jax.Array, a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Leaves of `a` where `which` `[S]`, of `b` elsewhere."""
    found: jax.Array = jax.tree.map(
        lambda x, y: jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b
    )
    return found


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
        reference = _cast(reference, recipe.dtype)
    # Through the operator like every other view: where the mask is 1 it shows the image itself.
    whole = jnp.ones((slots, *size), wide)
    original = _call(model, recipe, jax.vmap(recipe.operator.apply)(reference, whole))
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


@xla.one_thread_if_alone(_first_of, donate_argnames="state")
def _step(model: Model, recipe: Recipe, items: Items, state: State) -> State:
    size = _size(items)
    # From 0 at the first step to 1 at the last; slots may be at different steps.
    progress = state.step / jnp.maximum(items.steps - 1, 1)

    def loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
        def render(
            p: PyTree, item: Items, step: jax.Array, t: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            mask = recipe.parametrisation.mask(p, size, item.area, t, *_guide_of(item))
            views = _views(recipe, item.reference, mask.visible, step)
            # By the step's own number, so that no division of the steps into calls changes the
            # draws.
            key = jax.random.fold_in(item.key, step)
            views = jax.vmap(lambda v: recipe.augment(v, mask.visible, key, step))(views)
            return views, recipe.penalty(mask, item.area, step, item.steps)

        # Masks and fills slot by slot, then the model once on the whole batch.
        views, penalties = jax.vmap(render)(params, items, state.step, progress)
        scores = _scores(model, recipe, items, views)
        return (penalties - scores).sum(), scores

    grads, scores = jax.grad(loss, has_aux=True)(state.params)
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
        params=_select(active, moved, state.params),
        rule=_select(active, rule, state.rule),
        reward=jnp.where(active, scores, state.reward),
        finite=finite,
        # A slot that is not finite counts on, so that it ends when the host expects it to.
        step=jnp.where(state.step < items.steps, state.step + 1, state.step),
    )
    if recipe.check_every:
        return state
    # The last value up to two thirds of the steps: what `converged` compares the end with.
    early = active & (state.step <= 2 * items.steps // 3)
    return state._replace(settled=jnp.where(early, state.reward, state.settled))


def _due(recipe: Recipe, step: Array, steps: PyTree) -> jax.Array:
    """Whether slots that have just taken step number `step` look at their masks."""
    # Up to half of the steps the area still shrinks: scores are not yet those of the area asked.
    late = 2 * step >= steps
    found: jax.Array = late & ((step % recipe.check_every == 0) | (step == steps))
    return found


def _look(model: Model, recipe: Recipe, items: Items, state: State, moved: Array) -> State:
    """Scores the binarised masks and remembers the best: soft masks can live on half-blurred
    pixels.

    Only of slots that have just `moved`, are due, and finite.
    """
    score = _worth(model, recipe, items, _cut(recipe, items, state.params))
    found: State = _remember(recipe, items, state, moved, score)
    return found


@xla.one_thread_if_alone(lambda recipe, items, params: items.area)
def _cut(recipe: Recipe, items: Items, params: PyTree) -> jax.Array:
    return _binary(recipe, items, params)


@functools.partial(jax.jit, donate_argnames="state")
def _remember(
    recipe: Recipe, items: Items, state: State, moved: jax.Array, score: jax.Array
) -> State:
    due = moved & state.finite & _due(recipe, state.step, items.steps)
    # Of equals the later one, whose edge is sharper.
    better = due & (score >= state.best_score)
    best_score = jnp.where(better, score, state.best_score)
    early = due & (state.step <= 2 * items.steps // 3)
    return state._replace(
        best=_select(better, state.params, state.best),
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
        model = _cast(model, recipe.dtype)
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
        state = _step(model, recipe, items, state)
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
        return jnp.where(good, m, agree(masks.exact_area(logits + gap, area, temperature=1.0)))

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
    found: Outcome = outcome._replace(score=_worth(model, recipe, items, binary))
    return found


@xla.one_thread_if_alone(_first_of)
def _finish(model: Model, recipe: Recipe, items: Items, state: State) -> tuple[Outcome, jax.Array]:
    """The outcome but for `score`, and the binary masks."""
    size = _size(items)
    params = state.best if recipe.check_every else state.params

    def soft(p: PyTree, item: Items) -> jax.Array:
        # The mask as it is at the end of its course, whichever step was the best.
        end = jnp.float32(1)
        found: jax.Array = recipe.parametrisation.mask(
            p, size, item.area, end, *_guide_of(item)
        ).visible
        return found

    def final(p: PyTree, item: Items) -> jax.Array:
        found: jax.Array = recipe.parametrisation.scores(p, size, item.area, *_guide_of(item))
        return found

    soft_masks = jax.vmap(soft)(params, items)
    if not recipe.check_every:
        # As published: a threshold, whatever area it gives.
        binary = (soft_masks > 0.5).astype(jnp.float32)
    else:
        binary = _binary(recipe, items, params)
        soft_masks = jax.vmap(_settle)(soft_masks, binary, items.area)
    # Reported scores are those of one view, in every game.
    plain = dataclasses.replace(recipe, game="preserve")

    def outputs(shown: jax.Array) -> jax.Array:
        views = jax.vmap(recipe.operator.apply)(items.reference, shown)
        return _call(model, recipe, views)

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
