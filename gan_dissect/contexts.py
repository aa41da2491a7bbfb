"""A brush of units: set at one place of each sample, and what it does there by what was there.

`Bau et al. 2018 <https://arxiv.org/abs/1811.10597>`_, section 4.3: a door can be painted on a wall
and not in the sky; where an insertion takes tells what a generator knows of its scenes. Their
figure places one unit set by hand; here a square brush lies at a random place of every sample, and
the change of the concept under the brush is averaged by the concept that had most of the place
before. Random sets of as many units, at the same places, say what any units would do.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_dissect._places import check, shares_under
from gan_dissect.generator import Generator, check_generator
from perturb import display, statistics, taps
from perturb.inputs import random_key
from perturb.types import ArrayLike, PyTree
from perturb.units import sampling
from perturb.units.concepts import Concepts, labels
from perturb.units.interventions import Edit, as_sets, edit_units, random_sets

__all__ = ["ContextEffects", "context_effects"]

# Of the places, drawn from the index of a sample: "brus" in ASCII.
_SALT = 0x62727573


class ContextEffects(NamedTuple):
    """What a brush does to a concept under it. Shares of the place are in [0, 1].

    Attributes:
      layer: name of the layer.
      concept: name of the concept that is meant.
      concepts: names of all concepts.
      units: `[units]`, True for those that the brush sets.
      before: share of the concept under the brush, mean over the samples.
      after: the same with the units set.
      change: `after - before`.
      change_low: lower end of its 95 % bootstrap interval over the samples.
      change_high: upper end.
      others: `[concepts]`, mean change under the brush of each concept.
      outside: `[concepts]`, mean change of each concept's share of what is not under the brush.
      control_change: `[R]`, the change by each random set of as many units.
      p_value: of the change among those of random sets, two-sided; NaN without controls.
      contexts: what had most of the place before: names of concepts, and "none of them".
      context_samples: `[C]`, in how many samples.
      context_change: `[C]`, mean change there; NaN where there is no sample.
      context_low: `[C]`, lower end of its interval.
      context_high: `[C]`, upper end.
    """

    layer: str
    concept: str
    concepts: tuple[str, ...]
    units: np.ndarray
    before: float
    after: float
    change: float
    change_low: float
    change_high: float
    others: np.ndarray
    outside: np.ndarray
    control_change: np.ndarray
    p_value: float
    contexts: tuple[str, ...]
    context_samples: np.ndarray
    context_change: np.ndarray
    context_low: np.ndarray
    context_high: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        rows = [
            (name, int(n), display.interval(change, low, high) if n else "")
            for name, n, change, low, high in zip(
                self.contexts,
                self.context_samples,
                self.context_change,
                self.context_low,
                self.context_high,
                strict=True,
            )
        ]
        title = f"{self.layer}: {int(self.units.sum())} units set under a brush"
        return display.table(title, ("on", "samples", f"change of {self.concept}"), rows)


def context_effects(
    generator: Generator,
    *,
    layer: str,
    concept: str,
    units: ArrayLike,
    value: ArrayLike,
    concepts: Concepts | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    side: int = 4,
    controls: int = 0,
    batch_size: int = 64,
) -> ContextEffects:
    """Sets units under a square brush at a random place of each sample, and measures the concept
    there.

    Args:
      generator: checked first by `check_generator`.
      layer: a map `[h, w, units]`.
      concept: one of the concepts' names.
      units: numbers, or booleans `[units]`; set together.
      value: what they are set to: 0 to switch them off; a number, or `[units]` (a quantile of
        each), to insert. Random sets take the same value, each unit its own.
      concepts: of kind "masks"; None takes the generator's own labels.
      samples: how many latents, or `(start, stop)`; take others than the units were chosen on.
      key: of latents, places and random sets.
      latents: instead of samples and key, a pytree of leading size N.
      side: of the brush, in cells of the layer.
      controls: number of random sets, drawn from all units of the layer.
      batch_size: number of samples run at once; changes memory and time only.
    Raises:
      ValueError: if a name or option does not fit, or a unit does not exist.
    """
    check_generator(generator)
    concepts = labels(generator) if concepts is None else concepts
    shape, column = check(generator, layer, concept, concepts)
    if not 1 <= side <= min(shape[:2]):
        raise ValueError(f"side must be in 1 to {min(shape[:2])} cells of {layer}, got {side}")
    given = np.asarray(units)
    chosen = as_sets(layer, shape[-1], given[None] if given.ndim == 1 else given)
    if len(chosen) != 1:
        raise ValueError(f"units must be one set of units, got {len(chosen)} sets")
    values = np.asarray(value, np.float32)
    if values.shape not in ((), shape[-1:]):
        raise ValueError(f"value must be a number or [{shape[-1]}], got shape {list(values.shape)}")
    seed = jax.random.fold_in(random_key(key), 2**31 + 3)
    random = random_sets(shape[-1], int(chosen.sum()), controls, seed)
    # The empty set first: what is there before, by the same program.
    sets = np.concatenate([np.zeros((1, shape[-1]), bool), chosen, random]).astype(np.float32)
    people, start, stop = sampling.population(samples, key, latents)
    size = sampling.safe_batch(generator, batch_size)
    under, beyond = [], []
    for first, inside in sampling.blocks(start, stop, size):
        fed = sampling.feed(people, first, size)
        parts = _brushed(
            generator, concepts, fed, sets, values, first, len(inside), layer=layer, side=side
        )
        keep = inside > 0
        under.append(np.asarray(parts[0], np.float64)[:, keep])
        beyond.append(np.asarray(parts[1], np.float64)[:, keep])
    here, there = np.concatenate(under, 1), np.concatenate(beyond, 1)  # [sets, N, concepts]
    change = here[1:] - here[:1]
    mine = statistics.mean_interval(change[0, :, column])
    control = change[1:, :, column].mean(1)
    names = (*concepts.names, "none of them")
    rest = 1 - here[0].sum(-1, keepdims=True)
    context = np.concatenate([here[0], np.maximum(rest, 0)], -1).argmax(-1)
    each = [statistics.mean_interval(change[0, context == c, column]) for c in range(len(names))]
    return ContextEffects(
        layer,
        concept,
        concepts.names,
        chosen[0],
        float(here[0, :, column].mean()),
        float(here[1, :, column].mean()),
        mine.value,
        mine.low,
        mine.high,
        change[0].mean(0),
        (there[1] - there[0]).mean(0),
        control,
        float(statistics.p_value(mine.value, control)),
        names,
        np.array([e.number for e in each]),
        np.array([e.value for e in each]),
        np.array([e.low for e in each]),
        np.array([e.high for e in each]),
    )


@functools.partial(jax.jit, static_argnames=("count", "layer", "side"))
def _brushed(
    generator: Generator,
    concepts: Concepts,
    people: PyTree,
    sets: jax.Array,
    value: jax.Array,
    first: jax.Array,
    count: int,
    *,
    layer: str,
    side: int,
) -> tuple[jax.Array, jax.Array]:
    """Shares under the brush and beside it for every set: twice `[S, B, concepts]`."""
    prefix, suffix = taps.split(generator, layer)
    x, live = prefix(sampling.draw(generator, people, first, count))
    height, width = x.shape[1:3]
    indices = first + jnp.arange(count, dtype=jnp.uint32)
    # By the sample's number, so that a place does not depend on the batch it is drawn in.
    root = jax.random.key(_SALT)

    def corner(index: jax.Array) -> jax.Array:
        top = jnp.array([height, width]) - side + 1
        return jax.random.randint(jax.random.fold_in(root, index), (2,), 0, top)

    at = jax.vmap(corner)(indices)
    rows, columns = (
        (jnp.arange(n) >= at[:, axis, None]) & (jnp.arange(n) < at[:, axis, None] + side)
        for axis, n in enumerate((height, width))
    )
    place = (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
    cells = height * width

    def shares(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        edited = edit_units(x, Edit(place[..., None] * chosen, value * chosen))
        found = shares_under(concepts(suffix(edited, live)), generator, (height, width))
        under = jnp.einsum("bhw,bhwl->bl", place, found)
        total = found.sum((1, 2))
        return under / side**2, (total - under) / max(cells - side**2, 1)

    under, beyond = jax.lax.map(shares, sets)
    return under, beyond
