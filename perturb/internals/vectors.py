"""A concept as a direction: how well a weighted sum of units finds it, and how many units that
takes.

`Fong and Vedaldi 2018 <https://arxiv.org/abs/1801.03454>`_ (Net2Vec) binarise units, weight them
and cut the sum. Here the weights are the least-squares answer to "what share of this cell is the
concept", from sums of whole numbers: pictures without the concept count too, parts of the pictures
merge to the same weights to the last bit, and raw activations (in 255 levels) find more than
binarised ones. `net2vec` is the published fit, whose loss has no logarithm.

Weights and cuts are made on the even pictures, figures on the odd ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals._blocks import blocks
from perturb.internals._layers import check_layer, reader
from perturb.model import Model
from perturb.statistics import Interval, percentiles
from perturb.types import ArrayLike, ImageSource, PyTree

__all__ = [
    "ConceptVectors",
    "Moments",
    "concept_vectors",
    "fit",
    "lasso_order",
    "merge_moments",
    "moments",
    "net2vec",
]

# Activations become whole numbers, of which sums are exact in any order.
LEVELS = 255
_LOW, _HIGH, _BINS = -1.0, 2.0, 1536


class Moments(NamedTuple):
    """Sums over cells of a layer, whole numbers: all that least squares needs. The last feature is
    1.

    Attributes:
      gram: `[units + 1, units + 1]`, of products of levels.
      cross: `[units + 1, concepts]`, of levels times pixels of the concept under the cell.
      cells: how many.
      pixels: under a cell.
    """

    gram: np.ndarray
    cross: np.ndarray
    cells: int
    pixels: int

    def __repr__(self) -> str:
        return display.summary(self)


def moments(levels: np.ndarray, under: np.ndarray, pixels: int) -> Moments:
    """Returns the sums of some cells.

    Args:
      levels: `[cells, units]`, integers from 0 to 255.
      under: `[cells, concepts]`, pixels of each concept under a cell.
      pixels: under a cell in all.
    """
    # Products of whole numbers below 2**53: exact in float64, in any order.
    x = np.concatenate([levels, np.full((len(levels), 1), LEVELS)], 1).astype(np.float64)
    gram, cross = x.T @ x, x.T @ under.astype(np.float64)
    return Moments(gram.astype(np.int64), cross.astype(np.int64), len(levels), pixels)


def merge_moments(*parts: Moments) -> Moments:
    """Returns the sums of all cells from those of parts of them, in any order."""
    return Moments(
        np.sum([p.gram for p in parts], 0),
        np.sum([p.cross for p in parts], 0),
        sum(p.cells for p in parts),
        parts[0].pixels,
    )


def fit(sums: Moments, *, ridge: float = 1e-4, units: Sequence[int] | None = None) -> np.ndarray:
    """Returns the weights `[units + 1, concepts]` of least squares; the last row is the offset.

    Args:
      ridge: added to the mean square of each unit, in squared levels of the largest.
      units: only these; the weights of others are 0.
    """
    count = len(sums.gram)
    at = np.arange(count) if units is None else np.append(np.asarray(units, int), count - 1)
    gram = sums.gram[np.ix_(at, at)] / (sums.cells * LEVELS**2)
    penalty = ridge * np.eye(len(at))
    # The offset is not penalised.
    penalty[-1, -1] = 0
    cross = sums.cross[at] / (sums.cells * sums.pixels * LEVELS)
    weights = np.zeros((count, sums.cross.shape[1]))
    # Not `solve`: dead units leave rows of zeros where the ridge is 0.
    weights[at] = np.linalg.lstsq(gram + penalty, cross, rcond=1e-12)[0]
    return weights


def lasso_order(sums: Moments, concept: int, *, steps: int = 30, sweeps: int = 50) -> list[int]:
    """Returns units in the order in which they enter the L1 path of a concept (lowest number first
    on ties).
    """
    n = sums.cells
    gram = sums.gram / (n * LEVELS**2)
    cross = sums.cross[:, concept] / (n * sums.pixels * LEVELS)
    mean = gram[-1, :-1]
    covariance = gram[:-1, :-1] - np.outer(mean, mean)
    target = cross[:-1] - mean * cross[-1]
    scale = np.sqrt(np.maximum(np.diag(covariance), 0))
    # A unit that never changes cannot enter, and has no scale to divide by.
    alive = scale > 1e-9
    safe = np.where(alive, scale, 1)
    covariance, target = covariance / np.outer(safe, safe), np.where(alive, target / safe, 0)
    top = np.abs(target).max(initial=0.0)
    weights, order = np.zeros(len(target)), []
    # Just below the strength at which the first unit enters, and down from there.
    for strength in top * np.geomspace(0.999, 1e-3, steps):
        for _ in range(sweeps):
            before = weights.copy()
            for u in np.flatnonzero(alive):
                # What is left for unit u without its own part: columns have variance 1.
                rest = target[u] - covariance[u] @ weights + weights[u]
                weights[u] = np.sign(rest) * max(abs(rest) - strength, 0.0)
            if np.abs(weights - before).max() <= 1e-9 * top:
                break
        fresh = [int(u) for u in np.flatnonzero(weights) if u not in order]
        # Units that enter in the same step are ordered by what they weigh there.
        order += sorted(fresh, key=lambda u: -abs(weights[u]))
    return order


class ConceptVectors(NamedTuple):
    """Directions of concepts in a layer. K concepts; figures are of the odd pictures.

    Attributes:
      layer: its name.
      concepts: their names.
      weights: `[units, K]`, per unit of activation.
      offset: `[K]`, added to `activation @ weights`.
      cut: `[K]`: the concept is where `activation @ weights + offset`, enlarged to the picture,
        is above this.
      iou: `[K]` Intervals, of all pixels.
      single: `[K]`, the best unit alone, chosen on the even pictures.
      single_iou: `[K]` Intervals, the IoU of that unit.
      gain: `[K]` Intervals of the paired difference.
      sizes: `[F]`, numbers of units.
      curve: `[F, K]`, the IoU with so few units, in the order of the L1 path.
    """

    layer: str
    concepts: tuple[str, ...]
    weights: np.ndarray
    offset: np.ndarray
    cut: np.ndarray
    iou: list[Interval]
    single: np.ndarray
    single_iou: list[Interval]
    gain: list[Interval]
    sizes: np.ndarray
    curve: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def concept_vectors(
    model: Model,
    images: ImageSource,
    masks: ArrayLike,
    *,
    layer: str,
    concepts: Sequence[str],
    binarise: float | None = None,
    ridge: float = 1e-4,
    sizes: Sequence[int] = (),
    batch_size: int = 32,
) -> ConceptVectors:
    """Fits the direction of every concept on the even pictures and measures it on the odd ones.

    Args:
      model: whose layer is read; maps `[B, h, w, units]` whose cells share out the picture's
        pixels.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      masks: `[N, H, W, K]` booleans, likewise.
      layer: a name of `perturb.taps.names(model, images)`.
      concepts: `[K]` names.
      binarise: None fits raw activations; a quantile as .995 fits whether units are above it.
      ridge: see `fit`.
      sizes: numbers of units to draw the curve at; none saves the time.
      batch_size: pictures run at once.
    """
    first = np.asarray(images[0:2])
    shape = check_layer(model, layer, first)
    height, width = first.shape[1:3]
    if len(shape) != 3 or height % shape[0] or width % shape[1]:
        raise ValueError(
            f"layer {layer!r} must be a map whose cells share out {height} x {width} px, got "
            f"{list(shape)}"
        )
    names = tuple(str(c) for c in concepts)
    run = functools.partial(_run, model, images, masks, layer, batch_size)
    values = [a[even].reshape(-1, shape[2]) for even, _, a, _ in run()]
    even_values = np.concatenate(values)
    threshold = np.quantile(even_values, binarise or 0.995, axis=0)
    top = np.maximum(np.quantile(even_values, 0.999, axis=0), 1e-12)

    def levels(a: np.ndarray) -> np.ndarray:
        if binarise is not None:
            found: np.ndarray = (a > threshold) * LEVELS
            return found
        found = np.rint(np.clip(a / top, 0, 1) * LEVELS)
        return found

    cell = (height // shape[0]) * (width // shape[1])

    def part(even: np.ndarray, a: np.ndarray, m: np.ndarray) -> Moments:
        under = m.reshape(len(m), shape[0], height // shape[0], shape[1], width // shape[1], -1)
        under = under.sum((2, 4))
        return moments(
            levels(a[even]).reshape(-1, shape[2]), under[even].reshape(-1, len(names)), cell
        )

    sums = functools.reduce(merge_moments, (part(even, a, m) for even, _, a, m in run()))
    orders = [lasso_order(sums, k) for k in range(len(names))] if len(sizes) else []
    fits = [fit(sums, ridge=ridge)]
    for size in sizes:
        columns = [fit(sums, ridge=ridge, units=o[:size])[:, k] for k, o in enumerate(orders)]
        fits.append(np.stack(columns, 1))
    counts: PyTree = 0
    single: PyTree = 0
    for even, _, a, m in run():
        score = [_enlarge(levels(a) / LEVELS @ w[:-1] + w[-1], (height, width)) for w in fits]
        # Pixels by score: the best threshold is found from these without holding any picture.
        counts = counts + np.stack([_histogram(s[even], m[even]) for s in score])
        active = _enlarge(a[even], (height, width)) > threshold
        flat = active.reshape(-1, shape[2]).astype(np.float32)
        with_all = np.concatenate([m[even], np.ones_like(m[even][..., :1])], -1)
        single = single + flat.T @ with_all.reshape(-1, len(names) + 1).astype(np.float32)
    cuts = np.stack([_best_cut(c) for c in counts])
    present = counts[0, ..., 1].sum(-1)
    # The unit is chosen on the even pictures too, or the single unit would be the more flattered.
    best = (single[:, :-1] / np.maximum(single[:, -1:] + present - single[:, :-1], 1)).argmax(0)
    rows: list[np.ndarray] = []
    for even, inside, a, m in run():
        odd = ~even & inside
        found = [
            _enlarge(levels(a[odd]) / LEVELS @ w[:-1] + w[-1], (height, width)) > c
            for w, c in zip(fits, cuts, strict=True)
        ]
        found.append(_enlarge(a[odd][..., best], (height, width)) > threshold[best])
        rows.append(
            np.stack(
                [np.stack([(f & m[odd]).sum((1, 2)), (f | m[odd]).sum((1, 2))]) for f in found]
            )
        )
    both, union = np.moveaxis(np.concatenate(rows, 2), 1, 0).astype(np.float64)  # [F + 2, N, K]
    # The same pictures in a copy for both, so that their difference is paired.
    pick = np.random.default_rng(0).integers(0, both.shape[1], (1000, both.shape[1]))
    replicas = np.stack(
        [both[f][pick].sum(1) / np.maximum(union[f][pick].sum(1), 1) for f in (0, -1)]
    )
    # Sums before the quotient: an IoU over all pixels, not a mean of IoUs.
    iou = both.sum(1) / np.maximum(union.sum(1), 1)

    def interval(value: float, draws: np.ndarray) -> Interval:
        low, high = percentiles(draws)
        return Interval(float(value), float(low), float(high), both.shape[1])

    ks = range(len(names))
    weights = fits[0][:-1] / (1.0 if binarise is not None else top[:, None])
    return ConceptVectors(
        layer=layer,
        concepts=names,
        weights=weights,
        offset=fits[0][-1],
        cut=cuts[0],
        iou=[interval(iou[0, k], replicas[0, :, k]) for k in ks],
        single=best,
        single_iou=[interval(iou[-1, k], replicas[1, :, k]) for k in ks],
        gain=[interval(iou[0, k] - iou[-1, k], replicas[0, :, k] - replicas[1, :, k]) for k in ks],
        sizes=np.asarray(sizes, int),
        curve=iou[1:-1],
    )


def net2vec(
    active: ArrayLike,
    present: ArrayLike,
    *,
    key: jax.Array,
    steps: int = 3000,
    rate: float = 1e-4,
    batch: int = 16,
) -> np.ndarray:
    """Fits one concept as published: the loss without a logarithm, and only pictures that hold the
    concept.

    `M = sigmoid(sum_u w_u [a_u > T_u])`; the loss is `-sum alpha L M + (1 - alpha)(1 - L)(1 - M)`
    over the pixels, mean over the batch, with alpha = 1 - mean share of the concept; SGD with
    momentum .9 and weights that start uniform within 1 / sqrt(units).

    Args:
      active: `[N, h, w, units]`, whether units are above their .995 quantile.
      present: `[N, h, w]` masks; pictures without the concept are left out.
      key: random key of start and batches; not consumed.
      steps: number of steps of the descent.
      rate: learning rate, positive.
      batch: number of pictures a step.
    Returns:
      `[units]`.
    """
    present = np.asarray(present, np.float32)
    held = np.flatnonzero(present.any((1, 2)))
    if not len(held):
        raise ValueError("present must hold the concept in at least one picture, got none")
    x, y = jnp.asarray(np.asarray(active)[held], jnp.float32), jnp.asarray(present[held])
    alpha = 1 - y.mean()
    bound = x.shape[-1] ** -0.5
    start = jax.random.uniform(key, x.shape[-1:], minval=-bound, maxval=bound)

    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        m = jax.nn.sigmoid(x @ w)
        return -(alpha * y * m + (1 - alpha) * (1 - y) * (1 - m)).sum((1, 2)).mean()

    def step(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[PyTree, None]:
        w, speed = carry
        at = jax.random.randint(jax.random.fold_in(key, i + 1), (batch,), 0, len(x))
        speed = 0.9 * speed - rate * jax.grad(loss)(w, x[at], y[at])
        return (w + speed, speed), None

    (w, _), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), jnp.arange(steps))
    return np.asarray(w)


def _run(model: Model, images: ImageSource, masks: PyTree, layer: str, batch_size: int) -> PyTree:
    """Yields which pictures are even, which are in range, activations and masks, block by block."""
    for block in blocks(images, batch_size):
        at = block.indices
        a = np.asarray(reader([layer])(model, block.images)[1][layer])[: len(at)]
        m = np.asarray(masks[block.first : block.first + len(at)], bool)
        yield at % 2 == 0, np.ones(len(at), bool), a, m


def _enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges `[B, h, w, K]` bilinearly, half-pixel centres, edges held."""
    for axis, n in ((1, size[0]), (2, size[1])):
        cells = values.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * cells / n - 0.5, 0, cells - 1)
        # The lower neighbour of the last cell is the one before it: its upper neighbour
        # then exists.
        low = np.minimum(at.astype(int), max(cells - 2, 0))
        shape = [1] * values.ndim
        shape[axis] = n
        t = (at - low).astype(np.float32).reshape(shape)
        a = np.take(values, low, axis)
        values = a + t * (np.take(values, np.minimum(low + 1, cells - 1), axis) - a)
    return values


def _histogram(scores: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Pixels by score, without and with the concept: `[K, bins, 2]`."""
    place = np.clip((scores - _LOW) * (_BINS / (_HIGH - _LOW)), 0, _BINS - 1).astype(np.int64)
    k = scores.shape[-1]
    at = (np.arange(k) * _BINS + place) * 2 + masks
    return np.bincount(at.reshape(-1), minlength=k * _BINS * 2).reshape(k, _BINS, 2)


def _best_cut(counts: np.ndarray) -> np.ndarray:
    """The lower edge of the bin from which on the IoU is highest, `[K]`."""
    # Cumulated from the top: every bin's edge as a threshold at once.
    above = counts[:, ::-1].cumsum(1)[:, ::-1]
    both, active, present = above[..., 1], above.sum(-1), counts[..., 1].sum(-1, keepdims=True)
    iou = both / np.maximum(active + present - both, 1)
    found: np.ndarray = _LOW + iou.argmax(-1) * ((_HIGH - _LOW) / _BINS)
    return found
