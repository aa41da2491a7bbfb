"""Units switched off and on: what changes in the pictures, and what changes beside what was meant.

Everything is one formula, `x (1 - a) + v a` on the activation `x` of a layer, with `a` in [0, 1]
for each unit and place (`Bau et al. 2018 <https://arxiv.org/abs/1811.10597>`_, appendix). What lies
before the layer is computed once; only what follows runs again for each edit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb import display, statistics, taps
from perturb._numerics import devices
from perturb.inputs import random_key
from perturb.types import ArrayLike, PyTree
from perturb.units import linear, sampling
from perturb.units.concepts import Concepts, labels
from perturb.units.subject import Subject

__all__ = [
    "Edit",
    "Effects",
    "as_sets",
    "edit_units",
    "random_sets",
    "set_units",
    "unit_effects",
]

_HIGHEST = lax.Precision.HIGHEST


class Edit(NamedTuple):
    """Values for the units of a layer, and how strongly each is set.

    Attributes:
      strength: a in [0, 1], broadcast against the activation: `[units]`, `[h, w, units]`, ....
      value: v, array broadcast likewise.
    """

    strength: jax.Array | np.ndarray
    value: jax.Array | np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def edit_units(activation: jax.Array, edit: Edit) -> jax.Array:
    """Returns `x (1 - a) + v a` for an activation `[B, h, w, units]` or `[B, units]`.

    Args:
      activation: `[B, h, w, units]` or `[B, units]`.
      edit: an `Edit` whose arrays broadcast against the activation.

    >>> x = jnp.ones((1, 2, 2, 3))
    >>> edit_units(x, Edit(np.array([0.0, 1.0, 0.5]), np.array([0.0, 7.0, 0.0])))[0, 0, 0].tolist()
    [1.0, 7.0, 0.5]
    """
    a, v = (
        # Axes are lined up from the right: units last, then places, then the batch.
        jnp.asarray(part, activation.dtype).reshape(
            (1,) * (activation.ndim - np.ndim(part)) + np.shape(part)
        )
        for part in edit
    )
    return activation * (1 - a) + v * a


def set_units(
    generator: Subject,
    latents: PyTree,
    edits: Mapping[str, Mapping[int, PyTree]],
    *,
    where: Mapping[str, PyTree] | PyTree = None,
    strength: float = 1.0,
) -> dict[str, jax.Array]:
    """Returns what the generator draws with units set to values: 0 is off.

    Other values, places and strengths do not recompile, nor do other units of the same layers.

    Args:
      generator: its layers are edited.
      latents: pytree of arrays of leading size B.
      edits: `{layer: {unit: value}}`; a value is a number, or `[h, w]` of the layer.
      where: a mask `[h, w]` or `[B, h, w]` in [0, 1] on the grid of the layer, or one by layer:
        units are set there only. None is everywhere.
      strength: a in [0, 1] that multiplies the mask; .5 goes half way to the value.
    Returns:
      the generator's outputs.
    Raises:
      ValueError: if a layer or unit does not exist, or a value or mask does not fit the layer.
    """
    shapes = sampling.check_layers(generator, tuple(edits))
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if isinstance(where, Mapping) and (extra := [n for n in where if n not in edits]):
        raise ValueError(f"where must be for layers of edits, got {extra[0]!r}")
    built = {}
    for name, shape in shapes.items():
        # Full arrays, not numbers of units: other units, values and places are then other numbers
        # in the same compiled program.
        values = np.zeros(shape, np.float32)
        chosen = np.zeros(shape[-1], np.float32)
        for unit, value in edits[name].items():
            _check_units(name, shape[-1], [unit])
            if np.ndim(value) and np.shape(value) != shape[:-1]:
                raise ValueError(
                    f"the value of unit {unit} of {name!r} must be a number or {list(shape[:-1])}, "
                    f"got shape {np.shape(value)}"
                )
            values[..., unit], chosen[unit] = value, strength
        mask = where.get(name) if isinstance(where, Mapping) else where
        mask = np.ones(shape[:-1], np.float32) if mask is None else jnp.asarray(mask)
        if mask.shape[-len(shape) + 1 :] != shape[:-1] or mask.ndim > len(shape):
            raise ValueError(
                f"where must be {list(shape[:-1])} for {name!r}, or one of these an image, got "
                f"shape {list(mask.shape)}"
            )
        built[name] = Edit(mask[..., None] * chosen.reshape((1,) * mask.ndim + (-1,)), values)
    found: dict[str, jax.Array] = _edited(generator, latents, built)
    return found


@jax.jit
def _edited(generator: Subject, latents: PyTree, edits: dict[str, Edit]) -> dict[str, jax.Array]:
    changes = {n: functools.partial(edit_units, edit=edit) for n, edit in edits.items()}
    found: dict[str, jax.Array] = taps.edit(generator, changes)(latents)
    return found


class Effects(NamedTuple):
    """What setting units does to every concept: the leakage is in the columns not meant.

    Area is the share of all pixels; for concepts of kind "scores" read mean score. S sets of units,
    R random sets for each of the K sizes that occur among them.

    Attributes:
      layer: its name.
      concepts: their names.
      sets: `[S, units]`, True for the units of each set.
      before: `[concepts]`, the area with nothing set.
      after: `[S, concepts]`.
      ratio: `after / before`, what is left; NaN where there was nothing before.
      ratio_low: `[S, concepts]`, lower end of the 95 % bootstrap interval over the samples.
      ratio_high: `[S, concepts]`, upper end.
      change: `after - before`.
      change_low: `[S, concepts]`, lower end of its interval; samples are paired.
      change_high: `[S, concepts]`, upper end.
      images: `[concepts]`, in how many samples a mask occurs before; below 20 a ratio means
        little.
      control_sets: `[K, R, units]`, random sets for each size.
      control_sizes: `[K]`, numbers of units.
      control_ratio: `[K, R, concepts]`, what random sets of the same size leave.
      control_change: the same as `after - before`.
      p_value: `[S, concepts]`, two-sided, of the change among those of random sets of the same
        size: `min(1, 2 (1 + number as extreme) / (1 + R))`; NaN without controls.
    """

    layer: str
    concepts: tuple[str, ...]
    sets: np.ndarray
    before: np.ndarray
    after: np.ndarray
    ratio: np.ndarray
    ratio_low: np.ndarray
    ratio_high: np.ndarray
    change: np.ndarray
    change_low: np.ndarray
    change_high: np.ndarray
    images: np.ndarray
    control_sets: np.ndarray
    control_sizes: np.ndarray
    control_ratio: np.ndarray
    control_change: np.ndarray
    p_value: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        if self.change.ndim != 2:
            return display.plain(self)
        rows = []
        for s, units in enumerate(self.sets):
            # What changes most, in whichever direction; the rest is leakage.
            c = int(np.argmax(np.abs(np.nan_to_num(self.change[s]))))
            ends = self.change_low[s, c], self.change_high[s, c]
            rows.append(
                (
                    s,
                    int(units.sum()),
                    self.concepts[c],
                    display.interval(self.change[s, c], *ends),
                    f"{self.ratio[s, c]:.3f}",
                    f"{self.p_value[s, c]:.2g}",
                )
            )
        header = ("set", "units", "concept that changes most", "change of its area", "left", "p")
        return display.table(f"{self.layer}: units set", header, rows)


def unit_effects(
    generator: Subject,
    *,
    layer: str,
    units: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None = None,
    concepts: Concepts | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    value: ArrayLike = 0.0,
    where: Any = None,
    controls: int | Sequence[Sequence[int]] | np.ndarray = 0,
    replicates: int = 200,
    batch_size: int = 64,
    chunk: int = 2,
) -> Effects:
    """Sets units, one by one or set by set, and measures the effect on every concept.

    The layer's activation is computed once for each batch; the rest of the generator runs for each
    set. Where a convolution follows the layer, sets of up to a quarter of its units run only their
    own part of it. Each set is applied to the same samples.

    Args:
      generator: checked first, by its own `check`.
      layer: a name of `layers(generator)`.
      units: numbers, each set alone; or sequences of numbers, each set together; None is every unit
        of the layer alone.
      concepts: of either kind; None takes the generator's own labels.
      samples: how many latents, or `(start, stop)`: a range of them.
      key: of the latents and of the random sets; not consumed.
      latents: instead of samples and key, a pytree of leading size N.
      value: what units are set to: a number, `[units]` (a quantile of each, to insert), or
        `[h, w, units]`.
      where: a mask `[h, w]` in [0, 1] on the layer's grid; None is everywhere.
      controls: number of random sets for each size of set, drawn from all units of the layer, those
        that are meant included; or the sets themselves, sequences of units.
      replicates: number of bootstrap copies.
      batch_size: number of samples run at once; changes memory and time only.
      chunk: number of sets run at once; changes memory and time only.
    Raises:
      ValueError: if there is no such layer or unit, if the generator cannot be trusted, or if an
        option does not fit.
    """
    generator.check()
    concepts = labels(generator) if concepts is None else concepts
    people, start, stop = sampling.population(samples, key, latents)
    shape = sampling.check_layers(generator, layer)[layer]
    sets = as_sets(layer, shape[-1], units)
    if isinstance(controls, int):
        sizes = np.unique(sets.sum(-1))
        # Beyond all indices of samples. By size below, so that the random sets of one size do not
        # depend on which others are asked for.
        seed = jax.random.fold_in(random_key(key), 2**31 + 1)
        control = np.stack(
            [
                random_sets(shape[-1], int(n), controls, jax.random.fold_in(seed, int(n)))
                for n in sizes
            ]
        )
    else:
        control = as_sets(layer, shape[-1], controls)[None]
        sizes = control[0].sum(-1)[:1]
        if (control.sum(-1) != sizes).any():
            raise ValueError("controls must be sets of one size, got several sizes")
    place = np.ones(shape[:-1], np.float32) if where is None else np.asarray(where, np.float32)
    values = np.asarray(value, np.float32)
    if place.shape != shape[:-1]:
        raise ValueError(f"where must be {list(shape[:-1])}, got shape {list(place.shape)}")
    if values.shape not in ((), shape[-1:], shape):
        raise ValueError(
            f"value must be a number, [{shape[-1]}] or {list(shape)}, got shape "
            f"{list(values.shape)}"
        )
    # The first set is empty: what is drawn before.
    asked = np.concatenate([np.zeros((1, shape[-1]), bool), sets, control.reshape(-1, shape[-1])])
    values = np.broadcast_to(values, shape)
    few = max(1, int(asked.sum(-1).max()))
    # float64 holds whole numbers of pixels exactly up to 2**53.
    sums = np.zeros((len(asked), sampling.FIXED + replicates, len(concepts.names)))
    count, images = np.zeros(sums.shape[1]), np.zeros(len(concepts.names), np.int64)
    size = sampling.safe_batch(generator, batch_size)

    def sweep(there: PyTree, _: int, block: sampling.Block) -> PyTree:
        fed = sampling.feed(people, block[0], size)
        options = {"layer": layer, "replicates": replicates, "chunk": chunk, "few": few}
        return jax.device_get(_sweep(*there, fed, asked, place, values, *block, **options))

    blocks = sampling.blocks(start, stop, size)
    for batch, weight, occurs in devices.each(sweep, (generator, concepts), blocks):
        sums += np.asarray(batch, np.float64)
        count = count + np.asarray(weight, np.float64)
        images += np.asarray(occurs)
    pixels = math.prod(sampling.image_size(generator)) if concepts.kind == "masks" else 1
    # A bootstrap copy of few samples may hold none of them.
    areas = sums / (np.where(count > 0, count, 1) * pixels)[None, :, None]
    return _summary(layer, concepts.names, sets, control, sizes, areas, images)


def random_sets(units: int, size: int, n: int, key: jax.Array) -> np.ndarray:
    """Returns `n` random sets of `size` distinct units of a layer, as booleans `[n, units]`.

    Args:
      units: number of units of the layer.
      size: number of units in a set.
      n: number of sets.
      key: random key.
    """
    if not 0 <= size <= units:
        raise ValueError(f"size must be in 0 to {units}, got {size}")
    # The units whose number in a random order is below the size are a random set of it.
    order = jax.vmap(lambda k: jax.random.permutation(k, units))(jax.random.split(key, n))
    return np.asarray(order).reshape(n, units) < size


@functools.partial(jax.jit, static_argnames=("layer", "replicates", "chunk", "few"))
def _sweep(
    generator: Subject,
    concepts: Concepts,
    people: sampling.Population,
    sets: jax.Array,
    place: jax.Array,
    values: jax.Array,
    first: jax.Array,
    inside: jax.Array,
    *,
    layer: str,
    replicates: int,
    chunk: int,
    few: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    latents = sampling.draw(generator, people, first, len(inside))
    prefix, suffix = taps.split(generator, layer)
    activation, live = prefix(latents)
    weights = sampling.replicate_weights(inside, first, replicates)

    # Not for sets of many units: there all is computed anew, and nothing is the sum of two
    # roundings.
    head = linear.head(suffix, activation, live) if 4 * few <= sets.shape[-1] else None

    def draw(units: jax.Array) -> dict[str, jax.Array]:
        if head is None:
            mask = units.astype(jnp.float32).reshape((1,) * place.ndim + (-1,))
            result: dict[str, jax.Array] = suffix(
                edit_units(activation, Edit(place[..., None] * mask, values)), live
            )
            return result
        # The set's units first. Smaller sets are filled up with others, whose strength is 0.
        chosen, at = lax.top_k(units.astype(jnp.float32), few)
        x, v = (jnp.take(part, at, axis=-1) for part in (activation, values))
        strength = place[..., None] * chosen.reshape((1,) * place.ndim + (-1,))
        found = head.tail(head.plain + head.change((v - x) * strength[None], at))
        result = found
        return result

    def run(units: jax.Array) -> jax.Array:
        found = concepts(draw(units))
        # Pixels, not shares: whole numbers stay exact, so equal areas are equal.
        return found.sum((1, 2), dtype=jnp.float32) if concepts.kind == "masks" else found

    # Batched over sets, the small convolutions would have a kernel each: slower than one by one.
    each = lax.map(run, sets, batch_size=chunk if head is None else None)
    occurs = ((each[0] > 0) & (inside[:, None] > 0)).sum(0)
    sums = jnp.einsum("rb,sbl->srl", weights, each, precision=_HIGHEST)
    return sums, weights.sum(1), occurs


def _check_units(layer: str, count: int, units: Sequence[int] | np.ndarray) -> None:
    for unit in units:
        if not isinstance(unit, (int, np.integer)) or not 0 <= unit < count:
            raise ValueError(f"units of {layer!r} are 0 to {count - 1}, got {unit!r}")


def as_sets(layer: str, count: int, units: PyTree) -> np.ndarray:
    """Returns sets of units as booleans `[S, units]`, from numbers, sequences of them, or None for
    each.

    Args:
      layer: name of the layer, for messages.
      count: number of units of the layer.
      units: numbers, sequences of numbers, booleans `[S, units]`, or None for each unit alone.
    """
    if units is None:
        return np.eye(count, dtype=bool)
    if isinstance(units, np.ndarray) and units.dtype == bool and units.ndim == 2:
        if units.shape[1] != count:
            raise ValueError(f"sets of {layer!r} must be [S, {count}], got shape {units.shape}")
        return units
    found = np.zeros((len(units), count), bool)
    for row, chosen in zip(found, units, strict=True):
        chosen = [chosen] if np.ndim(chosen) == 0 else list(chosen)
        _check_units(layer, count, chosen)
        row[chosen] = True
    if not len(found):
        raise ValueError("units must name at least one unit or set, got none")
    return found


def _summary(
    layer: str,
    names: tuple[str, ...],
    sets: np.ndarray,
    control: np.ndarray,
    sizes: np.ndarray,
    areas: np.ndarray,
    images: np.ndarray,
) -> Effects:
    before, after = areas[0], areas[1 : len(sets) + 1]
    others = areas[len(sets) + 1 :].reshape(*control.shape[:2], *areas.shape[1:])
    # Ratios within a bootstrap copy: before and after share their samples.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, other_ratio = after / before, others[:, :, 0] / before[0]
    ratio = np.where(before > 0, ratio, np.nan)
    other_ratio = np.where(before[0] > 0, other_ratio, np.nan)
    change, other_change = after - before, others[:, :, 0] - before[0]
    p_value = np.full(change[:, 0].shape, np.nan)
    count = control.shape[1]
    for s, size in enumerate(sets.sum(-1)):
        if count and (match := np.flatnonzero(sizes == size)).size:
            p_value[s] = statistics.p_value(change[s, 0], other_change[match[0]])

    def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return statistics.percentiles(values[:, sampling.FIXED :], axis=1)

    ratio_low, ratio_high = interval(ratio)
    change_low, change_high = interval(change)
    return Effects(
        layer=layer,
        concepts=names,
        sets=sets,
        before=before[0],
        after=after[:, 0],
        ratio=ratio[:, 0],
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        change=change[:, 0],
        change_low=change_low,
        change_high=change_high,
        images=images,
        control_sets=control,
        control_sizes=sizes,
        control_ratio=other_ratio,
        control_change=other_change,
        p_value=p_value,
    )
