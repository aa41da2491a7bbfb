"""Step rules of feature visualisation, one picture at a time: what a gradient does to the
parameters.

A rule has `transform()`, an `optax.GradientTransformation` that gives what is *added* to minus the
gradient's way (learning rate included), and may change the picture after the step.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from perturb.types import PyTree

__all__ = ["Adam", "Ascent", "Rule"]


class Rule(Protocol):
    """What a gradient does to the parameters of a picture."""

    def transform(self) -> optax.GradientTransformation:
        """Returns what turns a gradient into a step, learning rate included."""

    def after(self, params: PyTree, slope: jax.Array, step: jax.Array) -> jax.Array:
        """Returns the parameters as they are kept after a step.

        Args:
          params: pytree of arrays, after the step.
          slope: array, the gradient of the objective for the parameters.
          step: number of steps taken before this one.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam, with Nesterov's momentum if asked (Nadam), and a rate that falls to 0 by a cosine if
    asked.

    Attributes:
      rate: learning rate, positive.
      b1: decay of the mean of the gradients, in [0, 1).
      b2: decay of the mean of their squares, in [0, 1).
      nesterov: whether to use Nesterov's momentum (Nadam).
      decay_steps: steps after which the rate is 0; 0 keeps it.
    """

    rate: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    nesterov: bool = False
    decay_steps: int = 0

    def transform(self) -> optax.GradientTransformation:
        """Returns the whole step."""
        rate: jax.Array | float = self.rate
        if self.decay_steps:
            rate = optax.cosine_decay_schedule(self.rate, self.decay_steps)
        return optax.adam(rate, self.b1, self.b2, eps=1e-8, nesterov=self.nesterov)

    def after(self, params: PyTree, slope: jax.Array, step: jax.Array) -> PyTree:
        """Returns the parameters as they are."""
        return params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ascent:
    """Plain gradient steps, as before 2017.

    Attributes:
      rate: of a step; with `progress` the largest.
      per: "size" divides the gradient by its mean absolute value (DeepDream), "progress" takes the
        rate at which a linear objective would rise by `progress` (Yosinski 2015), "" neither.
      progress: for `per="progress"`: the rise of the objective that a step aims at.
      decay: share of the parameters that each step takes away.
      blur: standard deviation in pixels of a Gaussian blur; 0 is none.
      blur_every: number of steps from one blur to the next.
      small_norm: share of pixels, smallest first, set to 0 after each step.
      small_effect: the same by `|gradient * pixel|` summed over channels.
    """

    rate: float = 1.0
    per: str = ""
    progress: float = 2.0
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    small_norm: float = 0.0
    small_effect: float = 0.0

    def transform(self) -> optax.GradientTransformation:
        """Returns the whole step."""

        def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
            leaves = jax.tree.leaves(grads)
            rate = jnp.float32(self.rate)
            if self.per == "size":
                mean = sum(jnp.abs(g).sum() for g in leaves) / sum(g.size for g in leaves)
                # A gradient of 0 gives a step of 0, not 0 / 0.
                rate = rate / (mean + 1e-12)
            elif self.per == "progress":
                square = sum((g**2).sum() for g in leaves)
                # A step along the gradient raises a linear objective by rate times its square.
                rate = jnp.minimum(rate, self.progress / (square + 1e-20))
            return jax.tree.map(lambda g: -rate * g, grads), state

        return optax.GradientTransformation(lambda params: (), update)

    def after(self, params: PyTree, slope: jax.Array, step: jax.Array) -> PyTree:
        """Returns the parameters, a picture `[H, W, C]` around 0, after decay, blur and clipping.

        Args:
          slope: gradient of the objective for the parameters.
          step: steps taken before this one.
        """
        if self.decay:
            params = params * (1 - self.decay)
        if self.blur:
            # By a choice between arrays: the number of the step is traced.
            due = (step % self.blur_every) == 0
            params = jnp.where(due, gaussian(params, self.blur), params)
        if self.small_norm:
            norm = jnp.sqrt((params**2).sum(-1, keepdims=True))
            # Per pixel over its channels: a pixel goes as a whole.
            params = jnp.where(norm >= jnp.quantile(norm, self.small_norm), params, 0)
        if self.small_effect:
            effect = jnp.abs((slope * params).sum(-1, keepdims=True))
            params = jnp.where(effect >= jnp.quantile(effect, self.small_effect), params, 0)
        return params


def gaussian(picture: jax.Array, sigma: float) -> jax.Array:
    """Returns a picture `[H, W, C]` under a Gaussian of `sigma` px, cut at 4 sigma, edges
    flipped.
    """
    reach = max(1, round(4 * sigma))
    at = jnp.arange(-reach, reach + 1)
    kernel = jnp.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in (0, 1):
        size = picture.shape[axis]
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        wide = jnp.pad(picture, pad, mode="symmetric")
        parts = [
            kernel[i] * jax.lax.slice_in_dim(wide, i, i + size, axis=axis)
            for i in range(2 * reach + 1)
        ]
        # Shifted sums, for a convolution channel by channel is a grouped one, which is slow
        # on a CPU.
        picture = sum(parts[1:], start=parts[0])
    return picture
