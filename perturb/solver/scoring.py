"""What masks are worth: what the model is shown of an item, its answers, and how they score."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import masks, operators
from perturb._numerics import xla
from perturb.model import Model
from perturb.solver.records import Items, Recipe
from perturb.types import ArrayLike, PyTree

__all__ = [
    "binary_of",
    "cast",
    "first_of",
    "guide_of",
    "outputs_of",
    "scores_of",
    "select",
    "size_of",
    "views_of",
    "worth_of",
]


def size_of(items: Items) -> tuple[int, ...]:
    return items.size.shape[1:-1]


def first_of(model: Model, recipe: Recipe, items: Items, *_: object) -> jax.Array:
    """An array whose first axis are the slots."""
    return items.area


def select(which: jax.Array, a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Leaves of `a` where `which` `[S]`, of `b` elsewhere."""
    found: jax.Array = jax.tree.map(
        lambda x, y: jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b
    )
    return found


def outputs_of(model: Model, recipe: Recipe, views: PyTree) -> jax.Array:
    """The model on a batch of views, in the recipe's dtype; outputs come back in float32 or
    wider.
    """

    if recipe.dtype != jnp.float32:
        model, views = cast((model, views), recipe.dtype)
    outputs = model(views)
    found: jax.Array = jax.tree.map(
        lambda y: y.astype(jnp.promote_types(y.dtype, jnp.float32)), outputs
    )
    return found


@functools.partial(jax.jit, static_argnums=1)
def cast(tree: PyTree, dtype: jax.typing.DTypeLike) -> jax.Array:
    def narrow(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    found: jax.Array = jax.tree.map(narrow, tree)
    return found


def views_of(
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

    total, each = jnp.zeros(()), 2 if recipe.game == "dual" else 1
    # Turn by turn, as `_step` has laid them out.
    for v in range(0, len(jax.tree.leaves(outputs)[0]), each):
        if recipe.game == "preserve":
            turn = gained(v)
        else:
            turn = -gained(v) if recipe.game == "delete" else gained(v) - gained(v + 1)
        total = turn if not v else total + turn
    return total


def scores_of(model: Model, recipe: Recipe, items: Items, views: PyTree) -> jax.Array:
    """Game scores `[S]` of views, leaves `[S, V, ...]`."""
    slots, variants = jax.tree.leaves(views)[0].shape[:2]
    # One batch for the model, in which the views of one slot lie side by side.
    flat = jax.tree.map(lambda v: v.reshape(slots * variants, *v.shape[2:]), views)
    outputs = outputs_of(model, recipe, flat)
    outputs = jax.tree.map(lambda y: y.reshape(slots, variants, *y.shape[1:]), outputs)
    return jax.vmap(functools.partial(_game_score, recipe))(outputs, items)


def worth_of(model: Model, recipe: Recipe, items: Items, binary: jax.Array) -> jax.Array:
    """What binary masks are worth, `[S]`: the mean under all fills that they are sought with.

    One program for all fills, called once each: in one program a network stands three times.
    """
    # Under every fill of the search, or the mask kept would be the best under one of them.
    steps = operators.one_step_each(recipe.operator)
    under = [_worth_under(model, recipe, items, binary, np.int32(step)) for step in steps]
    found: jax.Array = sum(under[1:], under[0]) / len(steps)
    return found


@xla.one_thread_if_alone(first_of)
def _worth_under(
    model: Model, recipe: Recipe, items: Items, binary: jax.Array, step: jax.Array
) -> jax.Array:
    views = jax.vmap(lambda r, m: views_of(recipe, r, m, step))(items.reference, binary)
    reward = recipe.reward
    # Log-probabilities are compared as probabilities: else one fill that no region holds under
    # would decide alone.
    compared = dataclasses.replace(recipe, reward=lambda *row: reward.compare(reward(*row)))
    return scores_of(model, compared, items, views)


def guide_of(item: Items) -> tuple[PyTree, ...]:
    """The guide as the last argument of a parametrisation, where there is one."""
    return () if item.guide is None else (item.guide,)


def binary_of(recipe: Recipe, items: Items, params: PyTree) -> jax.Array:
    size = size_of(items)

    def one(p: PyTree, item: Items) -> jax.Array:
        scores = recipe.parametrisation.scores(p, size, item.area, *guide_of(item))
        return masks.binarise(scores, item.pixels)

    return jax.vmap(one)(params, items)
