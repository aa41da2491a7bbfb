"""Step rules: how the gradient of a mask becomes its next step, and how long that step is.

A rule gives a direction (`transform`, an `optax.GradientTransformation`) and a rate
(`learning_rate`) that knows how many steps there are; both act on one mask.

>>> import jax.numpy as jnp
>>> rule = Adam(rate=0.1, last=0.1)
>>> [round(float(rule.learning_rate(jnp.int32(k), jnp.int32(10))), 3) for k in (0, 10)]
[0.1, 0.01]
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from perturb._numerics import sums
from perturb.types import PyTree

__all__ = ["Adam", "Momentum", "Normalised", "Rule"]


class Rule(Protocol):
    """How a gradient becomes a step: a record, registered as a pytree, of one mask."""

    def transform(self) -> optax.GradientTransformation:
        """Returns the direction of a step, before the learning rate."""

    def learning_rate(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        """Returns the learning rate, a scalar.

        Args:
          step: number of the step, from 0.
          steps: number of steps in all.
        """


def _cosine(
    rate: jax.Array | float, last: jax.Array | float, step: jax.Array, steps: jax.Array
) -> jax.Array:
    # An empty slot has no steps.
    t = step / jnp.maximum(steps, 1)
    return rate * (last + (1 - last) * 0.5 * (1 + jnp.cos(jnp.pi * t)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with a cosine decay of the learning rate from `rate` to `rate * last`.

    Attributes:
      rate: learning rate at the first step, positive.
      last: factor of the rate at the last step, in [0, 1].
      b1: decay of the mean of the gradients, in [0, 1).
      b2: decay of the mean of their squares, in [0, 1).
    """

    rate: jax.Array | float = 0.1
    last: jax.Array | float = 0.1
    b1: jax.Array | float = 0.9
    b2: jax.Array | float = 0.999

    def transform(self) -> optax.GradientTransformation:
        """Returns the direction of a step, before the learning rate."""
        return optax.scale_by_adam(self.b1, self.b2, eps=1e-8)

    def learning_rate(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        """Returns the learning rate of step `step` of `steps`."""
        return _cosine(self.rate, self.last, step, steps)


class _Moments(NamedTuple):
    first: PyTree
    second: jax.Array
    steps: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalised:
    """Momentum divided by the size of the whole gradient, with a cosine decay.

    Adam with one second moment for all parameters of a mask. Most of a mask lies far from its edge
    and has next to no gradient there; Adam would move those parameters as far as those that matter.

    Attributes:
      rate: length of the first step, positive.
      last: factor of the rate at the last step, in [0, 1].
      b1: decay of the mean of the gradients, in [0, 1).
      b2: decay of the mean of their squares, in [0, 1).
    """

    rate: jax.Array | float = 0.2
    last: jax.Array | float = 0.1
    b1: jax.Array | float = 0.9
    b2: jax.Array | float = 0.99

    def transform(self) -> optax.GradientTransformation:
        """Returns the direction of a step, before the learning rate."""

        def init(params: PyTree) -> _Moments:
            return _Moments(jax.tree.map(jnp.zeros_like, params), jnp.float32(0), jnp.int32(0))

        def update(
            grads: PyTree, state: _Moments, params: PyTree = None
        ) -> tuple[PyTree, _Moments]:
            steps = state.steps + 1
            leaves = jax.tree.leaves(grads)
            # A sum that does not depend on neighbours, as the length of the step depends on it.
            square = sum(sums.total(g**2) for g in leaves) / sum(g.size for g in leaves)
            second = self.b2 * state.second + (1 - self.b2) * square
            first = jax.tree.map(lambda m, g: self.b1 * m + (1 - self.b1) * g, state.first, grads)
            # A log-probability near 0 has small gradients that still point the way.
            size = jnp.sqrt(second / (1 - self.b2**steps) + 1e-30) * (1 - self.b1**steps)
            return jax.tree.map(lambda m: m / size, first), _Moments(first, second, steps)

        return optax.GradientTransformation(init, update)

    def learning_rate(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        """Returns the learning rate of step `step` of `steps`."""
        return _cosine(self.rate, self.last, step, steps)


class _Velocity(NamedTuple):
    velocity: jax.Array
    started: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum:
    """PyTorch's SGD: `v = momentum v + (1 - dampening) g`, whose first step is `v = g`.

    The last step is not taken, so that the mask returned is the last one the model has seen.

    Attributes:
      rate: learning rate, positive, the same at all steps.
      momentum: share of the last step that is kept, in [0, 1).
      dampening: share of the gradient that is left out, in [0, 1].
    """

    rate: jax.Array | float = 0.01
    momentum: jax.Array | float = 0.9
    dampening: jax.Array | float = 0.9

    def transform(self) -> optax.GradientTransformation:
        """Returns the direction of a step, before the learning rate."""

        def init(params: PyTree) -> _Velocity:
            return _Velocity(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), bool))

        def update(
            grads: PyTree, state: _Velocity, params: PyTree = None
        ) -> tuple[PyTree, _Velocity]:
            # PyTorch takes the first gradient whole, without dampening.
            share = jnp.where(state.started, 1 - self.dampening, 1.0)
            v = jax.tree.map(lambda v, g: self.momentum * v + share * g, state.velocity, grads)
            return v, _Velocity(v, jnp.ones((), bool))

        return optax.GradientTransformation(init, update)

    def learning_rate(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        """Returns the learning rate of step `step` of `steps`."""
        return jnp.where(step < steps - 1, self.rate, 0.0)
