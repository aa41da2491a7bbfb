"""Units that draw artifacts: found by what comes out where they are high, or by how rarely they
fire.

`Bau et al. 2018 <https://arxiv.org/abs/1811.10597>`_ rank units by the Fréchet distance of the
images that maximise them; a set of few images biases that distance, so the kernel distance
(`Bińkowski et al. 2018 <https://arxiv.org/abs/1801.01401>`_), which has no bias, takes its place.
Choi et al. (IJCAI 2022, sequential ablation) need no real images: neurons active on few samples
draw what is rarely right. A repair is only worth the distance on samples that it was not chosen on,
beside the same repair of random units: `repair_effect` gives both, over all images and over those
of the units.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_dissect.generator import Generator, check_generator
from perturb import Model, display, statistics, taps
from perturb.inputs import random_key
from perturb.types import Array, ArrayLike, PyTree
from perturb.units import sampling
from perturb.units.interventions import Edit, as_sets, edit_units, random_sets

__all__ = [
    "RepairEffect",
    "activation_rate",
    "artifact_scores",
    "conditional_distance",
    "kernel_distance",
    "repair",
    "repair_effect",
]


class RepairEffect(NamedTuple):
    """Distance from real images before and after units are switched off, on held-out samples.

    Attributes:
      layer: its name.
      units: `[n]`, switched off.
      before: number, the kernel distance over all samples as they are.
      after: number, the same with the units off.
      change: `after - before`; negative is better.
      change_low: number, lower end of the 95 % bootstrap interval over samples, resampled alike
        before and after.
      change_high: number, upper end.
      control_change: `[R]`, of random sets of as many units.
      control_units: `[R, units]`, those sets.
      p_value: share of controls that improve as much, counting the units themselves; NaN without.
      before_active: number, the distance over only those samples in which the units are most
        active, as the published figures are.
      after_active: number, the same with the units off.
      image_change: mean absolute change of the pixels; near 0 the units did nothing.
    """

    layer: str
    units: np.ndarray
    before: float
    after: float
    change: float
    change_low: float
    change_high: float
    control_change: np.ndarray
    control_units: np.ndarray
    p_value: float
    before_active: float
    after_active: float
    image_change: float

    def __repr__(self) -> str:
        return display.summary(self)


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the kernel inception distance of two sets of features, unbiased: it may fall below 0.

    The squared maximum mean discrepancy under the kernel `(x @ y / F + 1)^3`, over all pairs at
    once.

    Args:
      a, b: `[N, F]` and `[M, F]`, at least 2 rows each.
    Raises:
      ValueError: if the shapes do not fit or a number is not finite.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((300, 4))
    >>> bool(abs(kernel_distance(x[:150], x[150:])) < 0.1 < kernel_distance(x[:150], x[150:] + 1))
    True
    """
    # Cubes of inner products, and a difference of sums that nearly cancel: too much for float32.
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features must be [N, F] and [M, F], 2 rows or more, got shapes {a.shape} and "
            f"{b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features must be finite, got NaN or infinite values")
    return _distance(_kernel(a, a), _kernel(a, b), _kernel(b, b))


def conditional_distance(
    generator: Generator,
    *,
    layer: str,
    features: Model,
    real: ArrayLike,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    top: int = 50,
    batch_size: int = 64,
) -> np.ndarray:
    """Returns for each unit how far from real images those are in which it is most active:
    `[units]`.

    Args:
      generator: checked first by `check_generator`.
      layer: a name of `layers(generator)`.
      features: its outputs `[B, F]` are what images are compared by; it sees the generator's
        images.
      real: `[N, F]`, the features of real images.
      samples, key, latents: see `dissect`.
      top: samples of each unit, those of its highest activation anywhere; at least 2.
      batch_size: number of samples run at once; changes memory and time only.
    Raises:
      ValueError: if something does not fit, or there are fewer samples than `top`.
    """
    check_generator(generator)
    shape = sampling.check_layers(generator, layer)[layer]
    # One empty set of units: the images as they are.
    found, peaks = _features(
        generator, layer, features, samples, key, latents, batch_size, np.zeros((1, shape[-1]))
    )[:2]
    found = found[0]
    goal = _checked(real, found)
    if not 2 <= top <= len(found):
        raise ValueError(f"top must be in 2 to the {len(found)} samples, got {top}")
    # The kernels of all pairs once; the distance of each unit's samples is then a sum over
    # a part of them.
    own, cross, others = _kernel(found, found), _kernel(found, goal), _kernel(goal, goal)
    chosen = np.argsort(-peaks, 0, kind="stable")[:top].T
    return np.array([_distance(own[np.ix_(c, c)], cross[c], others) for c in chosen])


def activation_rate(
    generator: Generator,
    *,
    layer: str,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Returns in what share of the samples each neuron of a layer is above 0: `[h, w, units]`.

    Args:
      generator, layer, samples, key, latents: see `dissect`.
      batch_size: number of samples run at once; changes memory and time only.
    """
    check_generator(generator)
    shape = sampling.check_layers(generator, layer)[layer]
    people, start, stop = sampling.population(samples, key, latents)
    # Counts of integers are exact in any order: the rates do not depend on the batch size.
    total = np.zeros(shape, np.int64)
    for first, inside in sampling.blocks(start, stop, sampling.safe_batch(generator, batch_size)):
        fed = sampling.feed(people, first, len(inside))
        total += np.asarray(_fired(generator, fed, first, inside, layer=layer)).astype(np.int64)
    return total / (stop - start)


def artifact_scores(
    generator: Generator, latents: PyTree, rates: Mapping[str, PyTree], *, rare: float = 0.3
) -> np.ndarray:
    """Returns how many rare neurons are active in each sample: `[B]`, more in worse images.

    Args:
      generator: of the rates, a `Generator`.
      latents: pytree of leading size B.
      rates: `{layer: activation_rate}`.
      rare: largest rate of a rare neuron. Those that are never active have none to count.
    Raises:
      ValueError: if a rate does not fit its layer.
    """
    _check_rates(generator, rates, rare)
    limits = {n: jnp.asarray(r, jnp.float32) for n, r in rates.items()}
    return np.asarray(_rare_active(generator, latents, limits, jnp.float32(rare)))


def repair(
    generator: Generator, latents: PyTree, rates: Mapping[str, PyTree], *, rare: float = 0.3
) -> dict[str, jax.Array]:
    """Returns what is drawn with rare neurons switched off, layer by layer: sequential ablation.

    A later layer is made from the repaired earlier ones, and its neurons are judged then.

    Args:
      generator, latents, rates, rare: see `artifact_scores`.
    Raises:
      ValueError: if a rate does not fit its layer.
    """
    _check_rates(generator, rates, rare)
    limits = {n: jnp.asarray(r, jnp.float32) for n, r in rates.items()}
    found: dict[str, jax.Array] = _repaired(generator, latents, limits, jnp.float32(rare))
    return found


def repair_effect(
    generator: Generator,
    *,
    layer: str,
    units: ArrayLike,
    features: Model,
    real: ArrayLike,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    controls: int = 20,
    replicates: int = 200,
    active: float = 0.2,
    batch_size: int = 64,
) -> RepairEffect:
    """Measures whether switching units off brings the images nearer to real ones.

    Give samples that the units were not chosen on, and real images that were not used either.

    Args:
      generator, layer, features, real, samples, key, latents: see `conditional_distance`.
      units: numbers of the units to switch off together.
      controls: random sets of as many units.
      replicates: number of bootstrap copies.
      active: share of the samples, those of the highest activation of the units, that the
        conditional figures are over. Activations are scaled to each unit's highest before they are
        added up.
      batch_size: number of samples run at once; changes memory and time only.
    Raises:
      ValueError: if something does not fit.
    """
    check_generator(generator)
    shape = sampling.check_layers(generator, layer)[layer]
    chosen = as_sets(layer, shape[-1], [units])[0]
    # Sample i is drawn from the key folded with i, which is below 2**31: no control shares
    # a sample's key.
    seed = jax.random.fold_in(random_key(key), 2**31 + 3)
    control = random_sets(shape[-1], int(chosen.sum()), controls, seed)
    sets = np.concatenate([np.zeros_like(chosen)[None], chosen[None], control])
    found, peaks, moved = _features(
        generator, layer, features, samples, key, latents, batch_size, sets
    )
    goal = _checked(real, found[0])
    others = _kernel(goal, goal)
    before, after = (_Sums(_kernel(f, f), _kernel(f, goal), others) for f in found[:2])
    null = [kernel_distance(f, goal) - before.distance() for f in found[2:]]
    change = after.distance() - before.distance()
    n = len(found[0])
    low, top = statistics.percentiles(
        [after.distance(w) - before.distance(w) for w in n * statistics.resampled(n, replicates)]
    )
    largest = peaks.max(0)
    # A unit that never fires has a highest activation of 0.
    share = peaks[:, chosen] / np.where(largest > 0, largest, 1)[chosen]
    # The unbiased distance is over pairs: two samples are the fewest.
    most = np.argsort(-share.sum(1), kind="stable")[: max(2, round(active * n))]
    pair = [kernel_distance(f[most], goal) for f in found[:2]]
    return RepairEffect(
        layer,
        np.flatnonzero(chosen),
        before.distance(),
        after.distance(),
        change,
        float(low),
        float(top),
        np.array(null),
        control,
        (1 + sum(c <= change for c in null)) / (1 + controls) if controls else float("nan"),
        pair[0],
        pair[1],
        float(moved[1].mean()),
    )


class _Sums(NamedTuple):
    """Kernels of samples with samples, with real images, and of these."""

    own: np.ndarray
    cross: np.ndarray
    others: np.ndarray

    def distance(self, weights: np.ndarray | None = None) -> float:
        if weights is None:
            return _distance(*self)
        # A sample drawn twice is still one sample: pairs of it with itself stay out.
        w = weights.astype(np.float64)
        pairs = w @ self.own @ w - (w * w) @ np.diag(self.own)
        count = w.sum() ** 2 - (w * w).sum()
        cross = (w @ self.cross).sum() / (w.sum() * self.cross.shape[1])
        return float(pairs / count - 2 * cross + _off_diagonal(self.others))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = (a @ b.T / a.shape[1] + 1) ** 3
    return found


def _off_diagonal(kernel: np.ndarray) -> float:
    n = len(kernel)
    # Without the pairs of a sample with itself, whose kernel is large whatever the distance: that
    # is what makes the estimate unbiased.
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


def _distance(own: np.ndarray, cross: np.ndarray, others: np.ndarray) -> float:
    return _off_diagonal(own) + _off_diagonal(others) - 2 * float(cross.mean())


def _checked(real: ArrayLike, found: np.ndarray) -> np.ndarray:
    goal = np.asarray(real, np.float64)
    if goal.ndim != 2 or goal.shape[1] != found.shape[1] or len(goal) < 2:
        raise ValueError(
            f"real must be features [N, {found.shape[1]}] of at least 2 images, got shape "
            f"{goal.shape}"
        )
    return goal


def _check_rates(generator: Generator, rates: Mapping[str, PyTree], rare: float) -> None:
    shapes = sampling.check_layers(generator, tuple(rates))
    for name, shape in shapes.items():
        if np.shape(rates[name]) != shape:
            raise ValueError(
                f"the rate of {name!r} must be {list(shape)}, got shape "
                f"{list(np.shape(rates[name]))}"
            )
    if not 0 <= rare <= 1:
        raise ValueError(f"rare must be in [0, 1], got {rare}")


def _features(
    generator: Generator,
    layer: str,
    features: Model,
    samples: PyTree,
    key: PyTree,
    latents: PyTree,
    batch_size: int,
    sets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features `[sets, N, F]` with each set off, peaks `[N, units]`, pixel changes `[sets, N]`."""
    people, start, stop = sampling.population(samples, key, latents)
    size = sampling.safe_batch(generator, batch_size)
    rows = []
    off = np.asarray(sets, np.float32)
    for first, inside in sampling.blocks(start, stop, size):
        each, peaks, moved = jax.device_get(
            _run(
                generator,
                features,
                sampling.feed(people, first, size),
                off,
                first,
                inside,
                layer=layer,
            )
        )
        at = np.flatnonzero(inside)
        rows.append((each[:, at], peaks[at], moved[:, at]))
    found = np.concatenate([r[0] for r in rows], 1).astype(np.float64)
    return found, np.concatenate([r[1] for r in rows]), np.concatenate([r[2] for r in rows], 1)


@functools.partial(jax.jit, static_argnames="layer")
def _run(
    generator: Generator,
    features: Model,
    people: PyTree,
    sets: Array,
    first: PyTree,
    inside: PyTree,
    *,
    layer: str,
) -> tuple[jax.Array, ...]:
    prefix, suffix = taps.split(generator, layer)
    # What lies before the layer is the same for all sets, and runs once.
    x, live = prefix(sampling.draw(generator, people, first, len(inside)))
    plain = suffix(x, live)["image"]

    def run(units: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = suffix(edit_units(x, Edit(units, jnp.zeros_like(units))), live)["image"]
        found = features(image)
        # Shapes are known while tracing, so this ends the run before anything is computed.
        if found.ndim != 2:
            raise ValueError(
                f"features must give [B, F], got shape {list(found.shape)} from {features.name}"
            )
        return found, jnp.abs(image - plain).mean((1, 2, 3))

    # One set after the other: under `vmap` the activations of all sets would be held at once.
    each, moved = jax.lax.map(run, sets)
    return each, sampling.span(x).max((1, 2)), moved


@functools.partial(jax.jit, static_argnames="layer")
def _fired(
    generator: Generator, people: PyTree, first: PyTree, inside: PyTree, *, layer: str
) -> jax.Array:
    _, values = taps.read(generator, layer)(sampling.draw(generator, people, first, len(inside)))
    fired = values[layer] > 0
    # The last block is filled up with samples that must not count.
    found: jax.Array = (fired & (inside > 0).reshape((-1,) + (1,) * (fired.ndim - 1))).sum(0)
    return found


@jax.jit
def _rare_active(
    generator: Generator, latents: PyTree, rates: PyTree, rare: jax.Array | float
) -> jax.Array:
    _, values = taps.read(generator, list(rates))(latents)
    found = [
        ((values[n] > 0) & (r[None] <= rare)).sum(tuple(range(1, values[n].ndim)))
        for n, r in rates.items()
    ]
    return jnp.stack(found).sum(0)


@jax.jit
def _repaired(
    generator: Generator, latents: PyTree, rates: PyTree, rare: PyTree
) -> dict[str, jax.Array]:
    def without(rate: jax.Array) -> PyTree:
        return lambda x: jnp.where((x > 0) & (rate[None] <= rare), jnp.zeros((), x.dtype), x)

    found: dict[str, jax.Array] = taps.edit(generator, {n: without(r) for n, r in rates.items()})(
        latents
    )
    return found
