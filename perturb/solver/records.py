"""What the loop works on: a recipe, the items of the slots, their state, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perturb import display
from perturb.solver.rules import Normalised
from perturb.solver.views import no_change
from perturb.types import PyTree

__all__ = ["GAMES", "Free", "Items", "Outcome", "Recipe", "State"]

GAMES = ("preserve", "delete", "dual")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Free:
    """No penalty: the parametrisation itself keeps the mask in bounds."""

    def __call__(
        self, mask: PyTree, area: jax.Array, step: jax.Array, steps: jax.Array
    ) -> jax.Array:
        """Returns 0."""
        found: jax.Array = jnp.float32(0)
        return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about an optimisation that is the same for all its items.

    Attributes:
      parametrisation: see `perturb.masks`.
      operator: see `perturb.operators`.
      reward: see `perturb.rewards`.
      rule: the step rule, `Normalised`, `Adam` or `Momentum`.
      penalty: `(Mask, area, step, steps) -> scalar`, added to the loss; a pytree callable or
        function.
      game: "preserve" rewards the image under the mask, "delete" punishes the image under its
        complement, "dual" does both.
      augment: `(view, mask, key, step) -> view`, applied to the perturbed image in the loop only.
      check_every: steps between two checks of the binarised mask, from half the steps on: before, a
        mask still shrinks. The best one is kept. 0 never checks: the result is the last mask, as
        published.
      dtype: of the model's input and weights; masks, rewards and steps stay float32, but under
        `jax.enable_x64` float64 is float64 throughout (areas and thresholds keep to float32).
      size: the mask's shape, where it is not that of the image without its channels.
      together: how many turns of the operator one step shows at once: their gradients are added,
        each two in a row (as the operator turns) at an area of their own, so that few steps of much
        evidence take the place of many of little (docs/results/verdicts.md). 1 shows one and
        begins with the parametrisation's own area.
      average: share of the last steps whose mean is the result, in place of the best check; 0 keeps
        the best check.
    """

    parametrisation: PyTree
    operator: PyTree
    reward: PyTree = dataclasses.field(metadata={"static": True})
    rule: PyTree = dataclasses.field(default_factory=Normalised)
    penalty: PyTree = Free()
    game: str = dataclasses.field(default="preserve", metadata={"static": True})
    augment: Callable[..., jax.Array] = dataclasses.field(
        default=no_change, metadata={"static": True}
    )
    check_every: int = dataclasses.field(default=10, metadata={"static": True})
    dtype: Any = dataclasses.field(default=jnp.float32, metadata={"static": True})
    size: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    together: int = dataclasses.field(default=1, metadata={"static": True})
    average: float = dataclasses.field(default=0.0, metadata={"static": True})


class Items(NamedTuple):
    """What differs between slots, `S` of them.

    Attributes:
      size: an empty array of shape `[S, *size, 0]` that carries the mask's shape.
      reference: what the operator needs of each image, leaves `[S, ...]`.
      target: pytree of `[S, ...]`.
      area: `[S]` share of the visible image, in (0, 1).
      pixels: `[S]` int32, how many the binary mask keeps.
      steps: `[S]` int32, steps to take.
      key: `[S]` random keys.
      original: the model's outputs on the whole images, leaves `[S, ...]`.
      guide: what the parametrisation knows of each image, `[S, ...]`; None for most.
    """

    size: jax.Array
    reference: jax.Array
    target: PyTree
    area: jax.Array
    pixels: jax.Array
    steps: jax.Array
    key: jax.Array
    original: PyTree
    guide: PyTree = None

    def __repr__(self) -> str:
        return display.summary(self)


class State(NamedTuple):
    """What changes, for `S` slots.

    Attributes:
      step: `[S]` int32, steps taken.
      params: the parametrisation's parameters, `[S, ...]`.
      rule: the step rule's state.
      best: parameters of the best check so far, or their mean where the recipe averages,
        `[S, ...]`.
      best_score: `[S]` game score of that check, binarised, the mean under all fills; -inf before
        the first.
      best_step: `[S]` int32, when it was.
      reward: `[S]` game score of the soft mask at the last step.
      settled: `[S]` the score after two thirds of the steps, to tell whether the rest still helped.
      finite: `[S]` bool, False once a reward or gradient was not finite; such a slot stops moving.
    """

    step: jax.Array
    params: PyTree
    rule: PyTree
    best: PyTree
    best_score: jax.Array
    best_step: jax.Array
    reward: jax.Array
    settled: jax.Array
    finite: jax.Array

    def __repr__(self) -> str:
        return display.summary(self)


class Outcome(NamedTuple):
    """Masks and scores of `S` slots.

    Attributes:
      masks: `[S, *size]` float32 in [0, 1], 1 on the region whose area was asked.
      scores: `[S, *size]` what the binary mask is cut from: other areas are cut from the same
        scores.
      score: `[S]` game score of the binary mask, the mean under all fills that it was sought with;
        by it restarts are compared.
      score_original: `[S]` rewards of the whole image.
      score_masked: `[S]` rewards of the image under the soft mask.
      score_binary: `[S]` rewards under the binary mask.
      score_floor: `[S]` rewards with everything removed.
      probability_original: `[S]` the target's probability (`perturb.scores`) on the whole image;
        NaN where it has none.
      probability_masked: `[S]` the same under the soft mask.
      probability_binary: `[S]` the same under the binary mask.
      probability_floor: `[S]` the same with everything removed.
      converged: `[S]` bool, the last third of the steps brought less than 5 % of what there is.
      steps: `[S]` int32, the step whose mask this is.
      finite: `[S]` bool.
    """

    masks: jax.Array
    scores: jax.Array
    score: jax.Array
    score_original: jax.Array
    score_masked: jax.Array
    score_binary: jax.Array
    score_floor: jax.Array
    probability_original: jax.Array
    probability_masked: jax.Array
    probability_binary: jax.Array
    probability_floor: jax.Array
    converged: jax.Array
    steps: jax.Array
    finite: jax.Array

    def __repr__(self) -> str:
        return display.summary(self)
