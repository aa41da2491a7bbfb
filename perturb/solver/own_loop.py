"""The search as a pair `init`, `update` in the style of optax, for loops of one's own.

`update` is a function of arrays: it may stand in `jax.jit`, `jax.lax.scan` or `jax.lax.while_loop`,
beside other work. `perturb.extremal` and `meaningful` are host loops around the same step
(`advance`), which is compiled once; two programs round differently, so their masks are close and
not equal to the bit.

>>> import jax, jax.numpy as jnp
>>> from perturb import masks, model, operators, rewards, solver
>>> net = model.Model(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(3))
>>> recipe = solver.Recipe(masks.Blobs(), operators.Fade(), rewards.logit())
>>> images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
>>> items, state = init(net, recipe, images, jnp.array([0, 1]), jnp.array([0.1, 0.2]), steps=8)
>>> step = lambda state, _: (update(net, recipe, items, state), state.reward)
>>> state, rewards_of_steps = jax.lax.scan(step, state, length=8)
>>> solver.finish(net, recipe, items, state).masks.shape, rewards_of_steps.shape
((2, 16, 16), (8, 2))
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from perturb.inputs import keys_by_place
from perturb.model import Model
from perturb.solver import loop
from perturb.solver.loop import Items, Recipe, State
from perturb.types import PyTree

__all__ = ["init", "update"]


def init(
    model: Model,
    recipe: Recipe,
    images: jax.Array,
    targets: PyTree,
    areas: jax.Array,
    *,
    steps: int = 100,
    key: jax.Array | None = None,
) -> tuple[Items, State]:
    """Prepares one mask for each image.

    Args:
      model: the network, a `perturb.Model`.
      recipe: what is optimised, a `Recipe`.
      images: `[S, *size, C]` in [0, 1], S at least 2: of one slot XLA makes another program.
      targets: pytree of `[S, ...]`, class indices or what the reward takes.
      areas: `[S]` shares of the visible image, in (0, 1).
      steps: number of steps that will be taken.
      key: random key; image `i` uses `fold_in(key, i)`. None is `jax.random.key(0)`.

    Returns:
      what stays the same, and what `update` changes.
    """
    slots, size = images.shape[0], recipe.size or images.shape[1:-1]
    keys = keys_by_place(key, slots)
    # As `extremal` rounds: half a pixel up.
    counts = jnp.maximum(jnp.floor(areas * math.prod(size) + 0.5).astype(jnp.int32), 1)
    taken = jnp.full(slots, steps, jnp.int32)
    found: tuple[Items, State] = loop.start(
        model, recipe, images, targets, areas, counts, keys, taken
    )
    return found


def update(model: Model, recipe: Recipe, items: Items, state: State) -> State:
    """Takes one step in every slot that has steps left, and remembers the best binary mask so far.

    Args:
      model: the network, a `perturb.Model`.
      recipe: the `Recipe` that `init` was given.
      items: what `init` returned first.
      state: what `init` or the last call returned; it may be used again.
    """
    moved = state.step < items.steps
    state = loop._step(model, recipe, items, loop.own(state))
    if not recipe.check_every:
        return state
    due = moved & loop._due(recipe, state.step, items.steps)
    found: State = jax.lax.cond(
        due.any(), lambda s: loop._look(model, recipe, items, s, moved), lambda s: s, state
    )
    return found
