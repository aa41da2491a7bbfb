"""Sets of units that cause a concept: found by optimisation, and measured where they were not.

`Bau et al. 2018 <https://arxiv.org/abs/1811.10597>`_, section 3.2: units `U` are switched off where
a concept is, and set to its typical features where it could be but is not. The effect is
`E[concept | inserted] - E[concept | ablated]`, signed, counted at the places of the edits. Units
are chosen by a strength `alpha` in [0, 1] for each, optimised through the generator and the soft
form of the concept. The published code inserts at the cells where the concept *is*; here it is done
where it is not, as the paper says.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gan_dissect._places import Places, at_cells, check, find_places, one_cell, shares_under
from gan_dissect.generator import Generator, check_generator
from perturb import display, statistics, taps
from perturb.inputs import random_key
from perturb.types import Array, ArrayLike, PyTree, Record
from perturb.units import sampling
from perturb.units.concepts import Concepts, labels
from perturb.units.interventions import Edit, as_sets, edit_units, random_sets
from perturb.units.table import dissect

__all__ = ["Causal", "CausalEffects", "Places", "ace", "causal_effects", "find_places"]

SCALINGS = ("budget", "paper", "code")
# The paper's penalty is for pixels of pictures of this size.
_PAPER_PIXELS = 256 * 256


class Causal(NamedTuple):
    """What the optimisation found.

    Attributes:
      layer: name of the layer.
      concept: name of the concept.
      alpha: `[units]` in [0, 1].
      order: `[units]`, units by alpha, highest first; the first n are the causal set of size n.
      places: of the training samples; its `value` is what is inserted.
      history: `[steps]`, the effect on each training batch, by the soft concept.
    """

    layer: str
    concept: str
    alpha: np.ndarray
    order: np.ndarray
    places: Places
    history: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class CausalEffects(NamedTuple):
    """The measured effect of S sets, beside random sets of their sizes. Shares are in [0, 1].

    Attributes:
      layer: name of the layer.
      concept: name of the concept that is meant.
      concepts: names of all concepts.
      sets: `[S, units]`.
      present: the concept's share of the pixels under the cells where it is, before any edit.
      ablated: `[S]`, the same share with the set off at these cells.
      inserted: `[S]`, its share under the cells where it was not, with the set on.
      effect: `[S]`, `inserted - ablated`, from -1 to 1; -present is what no edit gives.
      effect_low: `[S]`, lower end of the 95 % bootstrap interval over the pairs.
      effect_high: `[S]`, upper end.
      replicates: `[S, R]` the effects of the bootstrap, the same resampling for all: their
        differences compare sets.
      leak_ablated: `[S, concepts]`, change of the area of each concept in the whole image with
        the set off; that of the other concepts is leakage.
      leak_ablated_low: `[S, concepts]`, lower end of its interval.
      leak_ablated_high: `[S, concepts]`, upper end.
      leak_inserted: `[S, concepts]`, the same change with the set on.
      leak_inserted_low: `[S, concepts]`, lower end of its interval.
      leak_inserted_high: `[S, concepts]`, upper end.
      control_sets: `[K, C, units]`, random sets of each size.
      control_sizes: `[K]`, numbers of units.
      control_effect: `[K, C]`, the effect of each random set.
      p_value: `[S]`, of the effect among random sets of its size, one-sided; NaN without
        controls.
      pairs: `(N, M)`.
    """

    layer: str
    concept: str
    concepts: tuple[str, ...]
    sets: np.ndarray
    present: float
    ablated: np.ndarray
    inserted: np.ndarray
    effect: np.ndarray
    effect_low: np.ndarray
    effect_high: np.ndarray
    replicates: np.ndarray
    leak_ablated: np.ndarray
    leak_ablated_low: np.ndarray
    leak_ablated_high: np.ndarray
    leak_inserted: np.ndarray
    leak_inserted_low: np.ndarray
    leak_inserted_high: np.ndarray
    control_sets: np.ndarray
    control_sizes: np.ndarray
    control_effect: np.ndarray
    p_value: np.ndarray
    pairs: tuple[int, int]

    def __repr__(self) -> str:
        return display.summary(self)


def ace(
    generator: Generator,
    *,
    layer: str,
    concept: str,
    concepts: Concepts | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    start: PyTree = None,
    scaling: str = "budget",
    size: int = 8,
    penalty: float | None = None,
    rate: float | None = None,
    epochs: int = 10,
    pairs: int = 200,
    batch_size: int = 20,
) -> Causal:
    """Finds the units of a layer that cause a concept, by gradient.

    Args:
      generator: checked first by `check_generator`.
      layer: a map `[h, w, units]`.
      concept: one of the concepts' names.
      concepts: of kind "masks", with a soft form; None takes the generator's own labels.
      samples: to find places in: how many latents, or `(start, stop)`.
      key, latents: where they come from; see `dissect`.
      start: `[units]`, nonnegative, scaled to a largest alpha of 1; None takes the units' IoU with
        the concept on the same samples.
      scaling: what keeps alpha small. "code": the effect in shares, `.005 sum(alpha^2)`, as in the
        published code. "paper": the effect in pixels of a picture of 256 x 256, `100 |alpha|`, as
        in the paper. "budget" (ours): alpha sums to `size` exactly, no penalty, so that what is
        optimised is a set of that size.
      size: number of units that "budget" shares alpha among.
      penalty: instead of .005 or 100.
      rate: of Adam; None is .01, for "budget" .05.
      epochs: number of rounds over the pairs.
      pairs: number of places of either kind, at most.
      batch_size: pairs of one step.
    Raises:
      ValueError: if a name or option does not fit, or the concept occurs in too few samples.
    """
    check_generator(generator)
    concepts = labels(generator) if concepts is None else concepts
    shape, column = check(generator, layer, concept, concepts)
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}")
    if not 1 <= size <= shape[-1]:
        raise ValueError(f"size must be in 1 to {shape[-1]} units, got {size}")
    where: Record = {"samples": samples, "key": key, "latents": latents}
    places = find_places(
        generator, layer=layer, concept=concept, concepts=concepts, pairs=pairs, **where
    )
    if start is None:
        start = dissect(generator, layer=layer, concepts=concepts, replicates=0, **where).iou[
            :, column
        ]
    begin = np.asarray(start, np.float32)
    if begin.shape != shape[-1:] or begin.min() < 0 or not begin.max() > 0:
        raise ValueError(
            f"start must be {shape[-1]} numbers from 0 up, not all 0, got shape {begin.shape}"
        )
    people, _, _ = sampling.population(samples, key, latents)
    order = _batches(len(places.present), len(places.absent), batch_size, epochs)
    # Rate, penalty and size are traced, so that other values run the compiled program.
    alpha, history = _optimise(
        generator,
        concepts,
        people,
        places,
        order,
        jnp.asarray(begin / begin.max()),
        np.float32((0.05 if scaling == "budget" else 0.01) if rate is None else rate),
        np.float32((100.0 if scaling == "paper" else 0.005) if penalty is None else penalty),
        np.float32(size),
        column,
        layer=layer,
        scaling=scaling,
    )
    alpha = np.asarray(alpha)
    return Causal(
        layer, concept, alpha, np.argsort(-alpha, kind="stable"), places, np.asarray(history)
    )


def causal_effects(
    generator: Generator,
    *,
    layer: str,
    concept: str,
    sets: ArrayLike,
    value: ArrayLike,
    concepts: Concepts | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    controls: int = 20,
    pairs: int = 200,
    replicates: int = 1000,
    chunk: int = 8,
) -> CausalEffects:
    """Measures what sets of units do to a concept at its places, by the concept's hard mask.

    For an honest figure give other samples than those that the sets were chosen on.

    Args:
      generator: checked first by `check_generator`.
      layer, concept, concepts, samples, key, latents: see `ace`.
      sets: sequences of units, or booleans `[S, units]`.
      value: `[units]`, what is inserted: `Causal.places.value`.
      controls: number of random sets for each size of set.
      pairs: number of places of either kind, at most.
      replicates: number of bootstrap copies over pairs.
      chunk: number of sets run at once; changes memory and time only.
    Raises:
      ValueError: as `ace`, or if a unit does not exist.
    """
    check_generator(generator)
    concepts = labels(generator) if concepts is None else concepts
    shape, column = check(generator, layer, concept, concepts)
    chosen = as_sets(layer, shape[-1], sets)
    inserted = np.asarray(value, np.float32)
    if inserted.shape != shape[-1:]:
        raise ValueError(f"value must be [{shape[-1]}], got shape {list(inserted.shape)}")
    where: Record = {"samples": samples, "key": key, "latents": latents}
    places = find_places(
        generator, layer=layer, concept=concept, concepts=concepts, pairs=pairs, **where
    )
    seed = jax.random.fold_in(random_key(key), 2**31 + 2)
    # An effect grows with the number of units: a set is compared with random sets of its own size.
    sizes = np.unique(chosen.sum(-1))
    random = np.stack(
        [random_sets(shape[-1], int(n), controls, jax.random.fold_in(seed, int(n))) for n in sizes]
    )
    # The first set is empty: what the pictures show unedited comes from the same program
    # and batches.
    asked = np.concatenate(
        [np.zeros((1, shape[-1]), bool), chosen, random.reshape(-1, shape[-1])]
    ).astype(np.float32)
    people, _, _ = sampling.population(samples, key, latents)
    run = functools.partial(_measure, generator, concepts, people, layer=layer, chunk=chunk)
    off, off_area = run(asked, places.present, places.present_cells, np.zeros_like(inserted))
    on, on_area = run(asked, places.absent, places.absent_cells, inserted)
    # [sets, pairs] of the concept itself, [sets, pairs, concepts] of the areas.
    off, on = np.asarray(off)[..., column], np.asarray(on)[..., column]
    off_area, on_area = (np.asarray(a) - np.asarray(a)[:1] for a in (off_area, on_area))
    weights = [
        statistics.resampled(side.shape[1], replicates, seed=i) for i, side in enumerate((off, on))
    ]
    count = len(chosen) + 1
    effect = on.mean(1) - off.mean(1)
    # Both kinds of place are samples by themselves, so each is resampled by itself.
    copies = on[1:count] @ weights[1].T - off[1:count] @ weights[0].T
    low, high = statistics.percentiles(copies)
    null = effect[count:].reshape(len(sizes), controls)
    mine = null[np.searchsorted(sizes, chosen.sum(-1))]
    p_value = statistics.p_value(effect[1:count], mine.T, sides=1)
    leaks: list[np.ndarray] = []
    for area, weight in ((off_area, weights[0]), (on_area, weights[1])):
        change = area[1:count]
        spread = np.einsum("rn,snl->slr", weight, change)
        leaks.extend((change.mean(1), *statistics.percentiles(spread)))
    return CausalEffects(
        layer,
        concept,
        concepts.names,
        chosen,
        float(off[0].mean()),
        off[1:count].mean(1),
        on[1:count].mean(1),
        effect[1:count],
        low,
        high,
        copies,
        leaks[0],
        leaks[1],
        leaks[2],
        leaks[3],
        leaks[4],
        leaks[5],
        random,
        sizes,
        null,
        p_value,
        (off.shape[1], on.shape[1]),
    )


def _batches(n: int, m: int, batch: int, epochs: int) -> np.ndarray:
    """`[steps, 2, batch]`: numbers of present and absent pairs, each epoch in a new order."""
    # Fixed, so that the units found depend on the samples alone.
    rng = np.random.default_rng(0)
    steps = max(1, round(epochs * max(n, m) / batch))
    # Whole rounds over each list, so that a short one is seen more often, not less evenly.
    rows = [
        np.concatenate([rng.permutation(k) for _ in range(-(-steps * batch // k))])[: steps * batch]
        for k in (n, m)
    ]
    return np.stack([r.reshape(steps, batch) for r in rows], 1)


@functools.partial(jax.jit, static_argnames=("layer", "scaling"))
def _optimise(
    generator: Generator,
    concepts: Concepts,
    people: PyTree,
    places: Places,
    order: PyTree,
    alpha: PyTree,
    rate: jax.Array | float,
    penalty: jax.Array | float,
    size: PyTree,
    column: ArrayLike,
    *,
    layer: str,
    scaling: str,
) -> tuple[jax.Array, jax.Array]:
    places = jax.tree.map(jnp.asarray, places)
    optimiser = optax.adam(rate)

    def constrain(a: jax.Array) -> jax.Array:
        return _on_budget(a, size) if scaling == "budget" else jnp.clip(a, 0, 1)

    def loss(a: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        present, absent = at
        cells = jnp.concatenate([places.present_cells[present], places.absent_cells[absent]])
        indices = jnp.concatenate([places.present[present], places.absent[absent]])
        prefix, suffix = taps.split(generator, layer)
        x, live = prefix(sampling.pick(generator, people, indices))
        # Both kinds of place in one batch: the first half is edited to 0, the second to the
        # typical features.
        on = (jnp.arange(len(cells)) >= len(present)).astype(jnp.float32).reshape(-1, 1, 1, 1)
        strength = one_cell(cells, (x.shape[1], x.shape[2])) * a.reshape(1, 1, 1, -1)
        edited = edit_units(x, Edit(strength, on * places.value.reshape(1, 1, 1, -1)))
        outputs = suffix(edited, live)
        soft = concepts.probabilities(outputs)[..., column][..., None]
        share = at_cells(shares_under(soft, generator, x.shape[1:3]), cells)[:, 0]
        effect = share[len(present) :].mean() - share[: len(present)].mean()
        if scaling == "code":
            return penalty * (a * a).sum() - effect, effect
        if scaling == "paper":
            pixels = _paper_pixels(generator, outputs["image"].shape[1:3], x.shape[1:3])
            # The length has no slope at 0, where alpha may begin.
            return penalty * jnp.sqrt((a * a).sum() + 1e-12) - pixels * effect, effect
        return -effect, effect

    def step(carry: PyTree, at: jax.Array) -> tuple[PyTree, jax.Array]:
        a, state = carry
        gradient, effect = jax.grad(loss, has_aux=True)(a, at)
        update, state = optimiser.update(gradient, state)
        return (constrain(a + update), state), effect

    alpha = constrain(alpha)
    (alpha, _), history = lax.scan(step, (alpha, optimiser.init(alpha)), order)
    return alpha, history


def _paper_pixels(generator: Generator, size: tuple[int, ...], grid: tuple[int, ...]) -> float:
    """How many pixels a cell of the layer would cover, were the picture 256 x 256."""
    height, width, _, _ = sampling.frame(size, generator.canvas)
    return _PAPER_PIXELS * height * width / (size[0] * size[1] * grid[0] * grid[1])


def _on_budget(a: jax.Array, size: jax.Array) -> jax.Array:
    """The nearest point of [0, 1]^units whose sum is `size`: all shifted alike, then clipped."""

    def halve(ends: tuple[jax.Array, jax.Array], _: None) -> tuple[PyTree, None]:
        low, high = ends
        middle = (low + high) / 2
        over = jnp.clip(a + middle, 0, 1).sum() > size
        return (jnp.where(over, low, middle), jnp.where(over, middle, high)), None

    # At the one end all are 0, at the other all are 1; 40 halvings reach float32's resolution.
    ends = (-a.max(), 1 - a.min())
    (low, high), _ = lax.scan(halve, ends, None, length=40)
    return jnp.clip(a + (low + high) / 2, 0, 1)


def _measure(
    generator: Generator,
    concepts: Concepts,
    people: PyTree,
    sets: PyTree,
    indices: Array,
    cells: PyTree,
    value: ArrayLike,
    *,
    layer: str,
    chunk: int,
    batch: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Shares under the cells and areas in the image, `[sets, pairs, L]`, in batches of one size."""
    run = functools.partial(
        _run_sets, generator, concepts, people, sets, value=value, layer=layer, chunk=chunk
    )
    rows = []
    for first in range(0, len(indices), batch):
        # The last batch repeats the last pair, for another size would be another program.
        at = np.minimum(first + np.arange(batch), len(indices) - 1)
        rows.append(jax.device_get(run(indices[at], cells[at])))
    shares, areas = (np.concatenate(part, 1)[:, : len(indices)] for part in zip(*rows, strict=True))
    return shares.astype(np.float64), areas.astype(np.float64)


@functools.partial(jax.jit, static_argnames=("layer", "chunk"))
def _run_sets(
    generator: Generator,
    concepts: Concepts,
    people: PyTree,
    sets: ArrayLike,
    indices: PyTree,
    cells: PyTree,
    *,
    value: Array,
    layer: str,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    prefix, suffix = taps.split(generator, layer)
    x, live = prefix(sampling.pick(generator, people, indices))
    spot = one_cell(cells, (x.shape[1], x.shape[2]))

    def run(units: jax.Array) -> tuple[jax.Array, jax.Array]:
        edited = edit_units(x, Edit(spot * units.reshape(1, 1, 1, -1), value))
        masks = concepts(suffix(edited, live))
        return at_cells(shares_under(masks, generator, x.shape[1:3]), cells), masks.mean((1, 2))

    found: tuple[jax.Array, jax.Array] = lax.map(run, sets, batch_size=chunk)
    return found
