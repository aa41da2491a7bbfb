"""Directions layer by layer: where in the generator an attribute is made, and what else moves with
it.

A generator that takes a latent for each layer, a leaf `[layers, D]` of its latents, can be edited
in some layers only, two samples can share layers (style mixing), and leaves of noise can be drawn
anew by themselves. What a direction does is measured by rescoring: `Yang et al. 2021
<https://arxiv.org/abs/1911.09267>`_ average `max(after - before, 0)`, which is above 0 for noise
alone; here changes keep their sign and their interval, and stand beside those of random directions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_dissect.directions import random_directions
from gan_dissect.generator import Generator, check_generator
from perturb import Model, display, statistics
from perturb.inputs import random_key
from perturb.types import Array, ArrayLike, PyTree
from perturb.units import sampling
from perturb.units.concepts import Concepts

__all__ = [
    "Identity",
    "Monotonicity",
    "Rescoring",
    "identity",
    "mix",
    "monotonicity",
    "move",
    "redraw",
    "rescore",
    "rescore_layers",
]


class Rescoring(NamedTuple):
    """What K directions do to A attributes; the diagonal is what was meant if directions are in
    their order.

    Attributes:
      attributes: their names.
      change: `[K, A]`, mean of score after minus before, the samples paired.
      change_low: `[K, A]`, lower end of its 95 % bootstrap interval over samples.
      change_high: `[K, A]`, upper end.
      clipped: `[K, A]`, mean of `max(after - before, 0)` as published; above 0 under noise.
      control_change: `[R, A]`, of random directions, moved as far.
      p_value: `[K, A]`, two-sided, of the change among the controls: `min(1, 2 (1 + number as
        extreme) / (1 + R))`; NaN without.
      before: `[A]`, mean score of the samples.
    """

    attributes: tuple[str, ...]
    change: np.ndarray
    change_low: np.ndarray
    change_high: np.ndarray
    clipped: np.ndarray
    control_change: np.ndarray
    p_value: np.ndarray
    before: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Identity(NamedTuple):
    """How much of the picture stays itself.

    Attributes:
      similarity: cosine, in [-1, 1], between the embeddings before and after, mean over samples.
      low: number, lower end of its 95 % bootstrap interval.
      high: number, upper end.
      control: `[R]`, of random directions, moved as far.
    """

    similarity: float
    low: float
    high: float
    control: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Monotonicity(NamedTuple):
    """How an attribute follows the distance, over P positions.

    Attributes:
      positions: `[P]`.
      scores: `[P]`, mean over the samples.
      scores_low: `[P]`, lower end of its 95 % bootstrap interval.
      scores_high: `[P]`, upper end.
      rank_correlation: Spearman's, of position and score, mean over samples.
      rising: share of steps between positions that go up, over all samples.
      saturation: `[P - 1]`, each step's rise over the largest one; near 0 nothing is left to
        gain.
      control_rank_correlation: `[R]`, of random directions.
    """

    positions: np.ndarray
    scores: np.ndarray
    scores_low: np.ndarray
    scores_high: np.ndarray
    rank_correlation: float
    rising: float
    saturation: np.ndarray
    control_rank_correlation: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def move(
    latents: PyTree,
    direction: ArrayLike,
    distance: ArrayLike,
    *,
    layers: Sequence[int] | None = None,
    leaf: str | None = None,
) -> jax.Array:
    """Returns latents moved along a direction, in all layers or in some.

    Args:
      latents: `[B, D]`, `[B, layers, D]`, or a dict with a leaf of these shapes.
      direction: `[D]`, or `[layers, D]` with one for each; taken as it is, not at length 1.
      distance: a number, or `[B]`.
      layers: numbers of the layers that are moved; None is all, and all there is for `[B, D]`.
      leaf: key of the leaf in a dict; None if the latents are one array.
    Raises:
      ValueError: if the leaf, a layer, or the shapes do not fit.

    >>> import numpy as np
    >>> move(np.zeros((1, 3, 2)), np.array([1.0, 2.0]), 2.0, layers=[1]).tolist()
    [[[0.0, 0.0], [2.0, 4.0], [0.0, 0.0]]]
    """
    z = _leaf(latents, leaf)
    d = jnp.asarray(direction)
    if d.shape not in (z.shape[-1:], z.shape[1:]):
        raise ValueError(
            f"direction must be {list(z.shape[-1:])} or {list(z.shape[1:])}, got shape "
            f"{list(d.shape)}"
        )
    far = jnp.asarray(distance, jnp.float32)
    if far.shape not in ((), z.shape[:1]):
        raise ValueError(f"distance must be a number or [{len(z)}], got shape {list(far.shape)}")
    mask = np.float32(1) if layers is None else _chosen(z.shape[1:], layers)
    found: jax.Array = _with_leaf(latents, leaf, _moved(z, d, far, mask))
    return found


def mix(a: ArrayLike, b: ArrayLike, *, layers: Sequence[int], leaf: str | None = None) -> jax.Array:
    """Returns the latents `a` with some layers taken from `b`: style mixing.

    Args:
      a, b: latents with a leaf `[B, layers, D]`.
      layers: numbers of those taken from `b`.
      leaf: see `move`.
    Raises:
      ValueError: if there is no such layer or the shapes differ.
    """
    x, y = _leaf(a, leaf), _leaf(b, leaf)
    if x.shape != y.shape or x.ndim != 3:
        raise ValueError(
            f"a and b must have the same leaf [B, layers, D], got shapes {list(x.shape)} and "
            f"{list(y.shape)}"
        )
    found: jax.Array = _with_leaf(a, leaf, jnp.where(_chosen(x.shape[1:], layers)[None] > 0, y, x))
    return found


def redraw(
    generator: Generator, latents: PyTree, key: jax.Array, *, leaves: Sequence[str]
) -> PyTree:
    """Returns latents whose named leaves are drawn anew, one sample each: other noise, the rest
    kept.

    Args:
      generator: whose `latent` is drawn from.
      latents: a dict of leading size B.
      key: random key of the new leaves; consumed.
      leaves: keys, such as the noise of some layers.
    Raises:
      ValueError: if there is no such leaf.
    """
    for name in leaves:
        _leaf(latents, name)
    size = len(jax.tree.leaves(latents)[0])
    # Whole latents are drawn, because a leaf may only come with the others; the rest is dropped.
    fresh = jax.vmap(generator.draw)(jax.random.split(key, size))
    return {k: fresh[k] if k in leaves else v for k, v in latents.items()}


def rescore(
    generator: Generator,
    directions: Array,
    scores: Concepts,
    *,
    distance: float = 2.0,
    layers: Sequence[int] | None = None,
    leaf: str | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    controls: int = 20,
    replicates: int = 200,
    batch_size: int = 64,
) -> Rescoring:
    """Moves samples along each direction and scores them again: the matrix of what changes what.

    Args:
      generator: checked first by `check_generator`.
      directions: `[K, D]`, or `[K, layers, D]`; of length 1 for distances to mean the same.
      scores: concepts of kind "scores".
      distance: how far, in units of the latents.
      layers, leaf: see `move`.
      samples, key, latents: see `dissect`.
      controls: random directions of length 1.
      replicates: number of bootstrap copies.
      batch_size: number of samples run at once; changes memory and time only.
    Raises:
      ValueError: if something does not fit.
    """
    found = _changes(
        generator,
        directions,
        scores,
        [distance],
        _Moves(layers, leaf, samples, key, latents, controls, batch_size),
    )
    before, after = found[0], found[1][0]
    count = len(directions)
    change = after - before[None]
    # Over samples and paired: both scores of a sample are drawn together.
    low, high = _bootstrap(change[:count], replicates)
    mean = change.mean(1)
    # The controls were moved in the same pass as the directions, behind them.
    null = mean[count:]
    p_value = statistics.p_value(mean[:count], null[:, None])
    return Rescoring(
        scores.names,
        mean[:count],
        low,
        high,
        np.maximum(change[:count], 0).mean(1),
        null,
        p_value,
        before.mean(0),
    )


def rescore_layers(
    generator: Generator,
    directions: Array,
    scores: Concepts,
    *,
    leaf: str | None = None,
    **options: Any,
) -> list[Rescoring]:
    """Returns the rescoring of each layer moved alone: where an attribute is made.

    Args:
      generator, directions, scores, leaf: see `rescore`; the leaf must be `[B, layers, D]`.
      **options: the others of `rescore`.
    Raises:
      ValueError: if the latents have no layers, or something else does not fit.
    """
    shape = jax.eval_shape(generator.draw, jax.random.key(0))
    one = _leaf(shape, leaf)
    if len(one.shape) != 2:
        raise ValueError(
            f"latents of generator {generator.name} must have a leaf [layers, D], got "
            f"{list(one.shape)}"
        )
    return [
        # Layers are a mask that is traced: one program serves all of them.
        rescore(generator, directions, scores, layers=[k], leaf=leaf, **options)
        for k in range(one.shape[0])
    ]


def identity(
    generator: Generator,
    direction: ArrayLike,
    features: Model,
    *,
    distance: float = 2.0,
    controls: int = 20,
    replicates: int = 200,
    layers: Sequence[int] | None = None,
    leaf: str | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    batch_size: int = 64,
) -> Identity:
    """Measures whether a direction leaves alone what an embedding recognises.

    Args:
      generator, distance, controls, replicates, layers, leaf, samples, key, latents, batch_size:
        see `rescore`.
      direction: `[D]` or `[layers, D]`.
      features: images to embeddings `[B, F]`.
    Raises:
      ValueError: if something does not fit.
    """
    one = np.asarray(direction)[None]
    # An embedding as scores without meaning, so that the pass is the one of every rescoring.
    embedding = Concepts(_embed, _columns(generator, features), features, kind="scores")
    before, found = _changes(
        generator,
        one,
        embedding,
        [distance],
        _Moves(layers, leaf, samples, key, latents, controls, batch_size),
    )
    after = found[0]
    lengths = np.linalg.norm(before, axis=-1)[None] * np.linalg.norm(after, axis=-1)
    # An embedding of 0, as of an empty picture, has no direction: cosine 0 rather than NaN.
    cosine = (before[None] * after).sum(-1) / np.maximum(lengths, 1e-12)
    low, high = _bootstrap(cosine[:1, :, None], replicates)
    return Identity(
        float(cosine[0].mean()), float(low[0, 0]), float(high[0, 0]), cosine[1:].mean(1)
    )


def monotonicity(
    generator: Generator,
    direction: ArrayLike,
    scores: Concepts,
    *,
    name: str | None = None,
    positions: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
    controls: int = 20,
    replicates: int = 200,
    layers: Sequence[int] | None = None,
    leaf: str | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    batch_size: int = 64,
) -> Monotonicity:
    """Measures whether an attribute rises all the way along a direction, and where it stops rising.

    Args:
      generator, scores, controls, replicates, layers, leaf, samples, key, latents, batch_size: see
        `rescore`.
      direction: `[D]` or `[layers, D]`.
      name: which of the scores; may be left out if there is one.
      positions: at least 3, in rising order.
    Raises:
      ValueError: if something does not fit.
    """
    at = np.asarray(positions, np.float64)
    if at.ndim != 1 or len(at) < 3 or (np.diff(at) <= 0).any():
        raise ValueError(f"positions must be at least 3 in rising order, got {list(positions)}")
    if (name is None and len(scores.names) > 1) or (name is not None and name not in scores.names):
        raise ValueError(f"name must be one of {', '.join(scores.names)}, got {name!r}")
    column = 0 if name is None else scores.names.index(name)
    _, found = _changes(
        generator,
        np.asarray(direction)[None],
        scores,
        list(at),
        _Moves(layers, leaf, samples, key, latents, controls, batch_size),
    )
    # [directions, samples, positions]
    seen = np.stack([f[..., column] for f in found], -1)
    ranks = _spearman(at, seen)
    low, high = _bootstrap(seen[:1], replicates)
    mean = seen[0].mean(0)
    rises = np.diff(mean)
    # 0 where the attribute does not change at all, at any position.
    top = np.abs(rises).max()
    return Monotonicity(
        at,
        mean,
        low[0],
        high[0],
        float(ranks[0].mean()),
        float((np.diff(seen[0], axis=1) > 0).mean()),
        rises / (top if top else 1.0),
        ranks[1:].mean(1),
    )


def _leaf(latents: PyTree, leaf: str | None) -> jax.Array:
    if isinstance(latents, dict):
        if leaf not in latents:
            raise ValueError(f"leaf must be one of {', '.join(sorted(latents))}, got {leaf!r}")
        found: jax.Array = latents[leaf]
        return found
    if leaf is not None:
        raise ValueError(f"leaf must be None for latents that are one array, got {leaf!r}")
    found = latents
    return found


def _with_leaf(latents: PyTree, leaf: str | None, value: jax.Array) -> PyTree:
    return value if leaf is None else {**latents, leaf: value}


def _moved(z: PyTree, d: Array, far: PyTree, mask: PyTree) -> jax.Array:
    """`z` plus `far` times the direction, where the mask of the layers is 1."""
    step = jnp.broadcast_to(d, z.shape[1:]) * mask
    found: jax.Array = z + far.reshape((-1,) + (1,) * (z.ndim - 1)) * step[None]
    return found


def _chosen(shape: tuple[int, ...], layers: Sequence[int]) -> np.ndarray:
    if len(shape) != 2:
        raise ValueError(f"layers are for latents [B, layers, D], got shape [B, {shape[-1]}]")
    chosen = np.zeros((shape[0], 1), np.float32)
    for k in layers:
        if not 0 <= k < shape[0]:
            raise ValueError(f"layers must be in 0 to {shape[0] - 1}, got {k}")
        chosen[k] = 1
    return chosen


class _Moves(NamedTuple):
    """What is moved besides the direction, and which samples: the arguments of `rescore`."""

    layers: Sequence[int] | None
    leaf: str | None
    samples: int | tuple[int, int] | None
    key: jax.Array | None
    latents: PyTree
    controls: int
    batch_size: int


def _changes(
    generator: Generator,
    directions: ArrayLike,
    scores: Concepts,
    distances: list[float],
    moves: _Moves,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Scores before `[N, A]` and, for each distance, after `[K + controls, N, A]`."""
    layers, leaf, samples, key, latents, controls, batch_size = moves
    check_generator(generator)
    if scores.kind != "scores":
        raise ValueError(
            f"scores must be concepts of kind 'scores', got masks ({', '.join(scores.names[:3])})"
        )
    people, start, stop = sampling.population(samples, key, latents)
    one = _leaf(jax.eval_shape(generator.draw, jax.random.key(0)), leaf).shape
    d = np.asarray(directions, np.float32)
    if d.shape[1:] not in (one, one[-1:]):
        raise ValueError(
            f"directions must be [K, {', '.join(map(str, one[-1:]))}] for latents {list(one)}, got "
            f"shape {list(d.shape)}"
        )
    # No sample's index reaches 2**31: the controls share a key with none.
    seed = jax.random.fold_in(random_key(key), 2**31 + 4)
    null = np.asarray(random_directions(seed, controls, one[-1]))
    # One vector for all layers, each moved by its full length, as a direction [D] is.
    null = np.broadcast_to(
        null.reshape(controls, *(1,) * (d.ndim - 2), one[-1]), (controls, *d.shape[1:])
    )
    ways = np.concatenate([d, null])
    # A mask and not the numbers: other layers are no other program.
    mask = np.float32(1) if layers is None else _chosen(one, layers)
    before, after = [], []
    for first, inside in sampling.blocks(start, stop, sampling.safe_batch(generator, batch_size)):
        fed = sampling.feed(people, first, len(inside))
        run = functools.partial(
            _scored, generator, scores, fed, ways, mask, first, inside, leaf=leaf
        )
        keep = np.flatnonzero(inside)
        # Distances are traced: other distances run the same program.
        plain, moved = jax.device_get(run(np.asarray(distances, np.float32)))
        # Blocks are filled up to one size; what does not belong to the samples asked for
        # falls away.
        before.append(plain[keep])
        after.append(moved[:, :, keep])
    joined = np.concatenate(after, 2).astype(np.float64)
    return np.concatenate(before).astype(np.float64), list(joined)


@functools.partial(jax.jit, static_argnames="leaf")
def _scored(
    generator: Generator,
    scores: Concepts,
    people: PyTree,
    ways: ArrayLike,
    mask: ArrayLike,
    first: PyTree,
    inside: PyTree,
    distances: ArrayLike,
    *,
    leaf: str | None,
) -> tuple[jax.Array, jax.Array]:
    latents = sampling.draw(generator, people, first, len(inside))

    z = _leaf(latents, leaf)

    def one(way: jax.Array, distance: jax.Array) -> jax.Array:
        return scores(generator(_with_leaf(latents, leaf, _moved(z, way, distance, mask))))

    # One direction and one distance at a time: the memory is that of a single batch,
    # however many there are.
    return scores(generator(latents)), jax.lax.map(
        lambda distance: jax.lax.map(lambda way: one(way, distance), ways), distances
    )


def _columns(generator: Generator, features: Model) -> tuple[str, ...]:
    size = sampling.image_size(generator)
    one = jax.eval_shape(generator.draw, jax.random.key(0))
    # Traced on shapes alone, with two rows as everywhere: a batch of one is another program.
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2, *s.shape), s.dtype), one)
    image = jax.eval_shape(generator, batch)["image"]
    found = jax.eval_shape(features, image)
    if len(found.shape) != 2:
        raise ValueError(
            f"features must give [B, F], got shape {list(found.shape)} from {features.name} for "
            f"images of {size[0]} x {size[1]}"
        )
    return tuple(f"feature {k}" for k in range(found.shape[1]))


def _embed(features: Model, outputs: dict[str, jax.Array]) -> jax.Array:
    found: jax.Array = features(outputs["image"])
    return found


def _bootstrap(values: np.ndarray, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of the mean over the samples, the second axis of `[K, N, A]`."""
    weights = statistics.resampled(values.shape[1], replicates)
    return statistics.percentiles(np.einsum("rn,kna->rka", weights, values), axis=0)


def _spearman(positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis with rising positions."""
    # An attribute that does not move at all follows nothing.
    found: np.ndarray = np.nan_to_num(
        statistics.spearman(values, np.broadcast_to(positions, values.shape))
    )
    return found
