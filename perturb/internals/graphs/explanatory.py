"""Explanatory graph: the parts of an object that the filters of a layer each hold several of.

Zhang et al., Interpreting CNN Knowledge via an Explanatory Graph, 2018. A filter's map is a heap of
activations of several parts. It is fitted by a mixture of nodes, each a Gaussian over places, whose
places in an image move with those of nodes one layer up. No labels are used.

Where we differ from the released code, and why: displacements of parents are in pixels in every
layer (there, cells of the upper map are added to cells of the lower); the precision that a parent
adds to a node's density is to the power 1/M (15 full factors span many orders of magnitude); a
density at another node's place is the Gaussian's, not the nearest point of a grid; the flipped
picture is that of the picture (there the flipped features are those of the unflipped one).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.types import ArrayLike, PyTree

__all__ = ["Layer", "Nodes", "evidence_maps", "fit_layer", "infer"]

GRID = 6
NONE = 0.1
ROUNDS = 20
PARENTS = 15


class Nodes(NamedTuple):
    """Nodes of a layer: `C` filters with `N` nodes each; places in cells, row before column.

    Attributes:
      mu: `[C, N, 2]` rest place.
      sigma: `[C, N]` deviation around it.
    """

    mu: jax.Array
    sigma: jax.Array

    def __repr__(self) -> str:
        return display.summary(self)


class Layer(NamedTuple):
    """What a layer of the graph knows.

    Attributes:
      nodes: see `Nodes`.
      places: `[I, C, N, 2]` where each node is inferred in each image, px, row before column.
      scores: `[I, C, N]` evidence times density there.
      parents: `[C, N, M]` indices into the upper layer's flattened nodes; None in the top layer.
      flipped: `[I]` whether the flipped picture was taken.
      stride: pixels from a cell to the next.
    """

    nodes: Nodes
    places: np.ndarray
    scores: np.ndarray
    parents: np.ndarray | None
    flipped: np.ndarray
    stride: float

    def __repr__(self) -> str:
        return display.summary(self)


class _Parents(NamedTuple):
    """What the parents say of each node in each image: `[C, N]`, `[I, C, N, ...]`, in cells."""

    shift: jax.Array
    sigma: jax.Array
    factor: jax.Array


def evidence_maps(activations: ArrayLike, deviation: jax.Array | float | None = None) -> np.ndarray:
    """Returns `[I, C, n, n]`: activations `[I, n, n, C]` from 0 on, over the deviation of each
    unit.

    Args:
      activations: `[I, n, n, C]`, at least 0.
      deviation: `[C]`, by which each unit is divided; None measures it on these activations.
    """
    a = np.maximum(np.asarray(activations, np.float32), 0)
    scale = a.std((0, 1, 2)) if deviation is None else np.asarray(deviation)
    return np.moveaxis(a / np.maximum(scale, 1e-6), -1, 1)


def _grid(nodes: Nodes, n: int) -> tuple[jax.Array, jax.Array]:
    """Offsets `[N, 36, 2]` of candidate places from a node, and half the side they span, `[N]`."""
    half = jnp.minimum(0.3 * n / 2, 3 * nodes.sigma)
    line = (jnp.arange(GRID) + 0.5) / GRID * 2 - 1
    square = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    return half[:, None, None] * square, half


def _evidence(maps: jax.Array, at: jax.Array) -> jax.Array:
    """Activation at places `[I, N, 36, 2]`, by narrow Gaussians over the cells of `[I, n, n]`.

    Beyond three widths the kernel keeps its value there: the small floor of the original, which all
    cells have in common. What is above it comes from the nearest cells alone.
    """
    n = maps.shape[-1]
    width = 0.025 * n
    floor, near = math.exp(-4.5), int(3 * width + 0.5)
    flat = maps.reshape(len(maps), -1)
    base = jnp.round(at).astype(int)
    found = floor * flat.sum(1)[:, None, None]
    for step in itertools.product(range(-near, near + 1), repeat=2):
        cell = base + jnp.array(step)
        inside = ((cell >= 0) & (cell < n)).all(-1)
        index = jnp.clip(cell, 0, n - 1) @ jnp.array([n, 1])
        value = jnp.take_along_axis(flat, index.reshape(len(flat), -1), 1).reshape(index.shape)
        d2 = jnp.minimum(((at - cell) ** 2).sum(-1), (3 * width) ** 2)
        found += jnp.where(inside, jnp.exp(-d2 / (2 * width**2)) - floor, 0) * value
    return found


def _density(offset: jax.Array, sigma: jax.Array) -> jax.Array:
    return jnp.exp(-(offset**2).sum(-1) / (2 * sigma**2)) / (2 * jnp.pi * sigma**2)


class _Seen(NamedTuple):
    offsets: jax.Array  # [N, 36, 2]
    centre: jax.Array  # [I, N, 2]
    density: jax.Array  # [I, N, 36]
    evidence: jax.Array  # [I, N, 36]
    responsibility: jax.Array  # [I, N, 36]


def _look(maps: jax.Array, nodes: Nodes, parents: _Parents) -> _Seen:
    """One filter: candidate places of its nodes in every image, and whose each is."""
    offsets, half = _grid(nodes, maps.shape[-1])
    centre = nodes.mu + parents.shift
    sigma = jnp.where(jnp.isinf(parents.sigma), nodes.sigma, parents.sigma)
    at = centre[:, :, None] + offsets
    density = _density(offsets, sigma[:, None]) * parents.factor[..., None]
    evidence = _evidence(maps, at)
    # [I, N, 36, N]: every node's density at every candidate place, 0 beyond the other's candidates.
    away = at[:, :, :, None] - centre[:, None, None]
    others = _density(away, sigma) * parents.factor[:, None, None]
    others = jnp.where((jnp.abs(away) <= half[:, None]).all(-1), others, 0)
    none = NONE * density.sum(-1).mean(-1)
    responsibility = density / (others.sum(-1) + none[:, None, None])
    return _Seen(offsets, centre, density, evidence, responsibility)


@jax.jit
def _round(
    maps: jax.Array, nodes: Nodes, parents: _Parents, number: jax.Array, widest: float
) -> Nodes:
    """One round of every filter: a damped mean shift of the places, and new deviations."""

    def one(part: PyTree) -> Nodes:
        maps, nodes, parents = part
        seen = _look(maps, nodes, parents)
        weight = (seen.responsibility * seen.evidence).sum(0)
        pull = (weight[..., None] * seen.offsets).sum(1) / nodes.sigma[:, None] ** 2
        total = jnp.maximum(weight.sum(1), 1e-8)
        # Smaller from round to round, so that nodes settle.
        step = nodes.sigma.min() / number**0.25
        mass = (seen.density * seen.evidence).sum(0)
        spread = (mass * (seen.offsets**2).sum(-1)).sum(1) / jnp.maximum(mass.sum(1), 1e-12)
        # Neither to a point nor over the whole map: the clip keeps a node from either.
        sigma = jnp.clip(jnp.sqrt(spread), widest / 10, widest)
        return Nodes(nodes.mu + pull / total[:, None] * step**2, sigma)

    by_filter = (maps.swapaxes(0, 1), nodes, _by_filter(parents))
    found: Nodes = jax.lax.map(one, by_filter)
    return found


def _by_filter(parents: _Parents) -> _Parents:
    return _Parents(parents.shift.swapaxes(0, 1), parents.sigma, parents.factor.swapaxes(0, 1))


@jax.jit
def _infer(
    maps: jax.Array, nodes: Nodes, parents: _Parents
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def one(part: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        seen = _look(*part)
        value = seen.density * seen.evidence
        best = value.argmax(-1)
        offset = jnp.take_along_axis(
            jnp.broadcast_to(seen.offsets, (*value.shape, 2)), best[..., None, None], 2
        )[:, :, 0]
        likely = (seen.evidence * jnp.log(seen.density + 1e-12)).sum((1, 2))
        return seen.centre + offset, value.max(-1), likely

    by_filter = (maps.swapaxes(0, 1), nodes, _by_filter(parents))
    places, scores, likely = jax.lax.map(one, by_filter)
    return places.swapaxes(0, 1), scores.swapaxes(0, 1), likely.sum(0)


def _no_parents(images: int, nodes: Nodes) -> _Parents:
    shape = nodes.sigma.shape
    return _Parents(
        jnp.zeros((images, *shape, 2)), jnp.full(shape, jnp.inf), jnp.ones((images, *shape))
    )


def _from_parents(upper: Layer, chosen: np.ndarray, stride: float) -> _Parents:
    """The product of the parents' Gaussians, in closed form, in cells of the lower layer."""
    images = len(upper.places)
    places = upper.places.reshape(images, -1, 2) / stride
    moved = jnp.asarray(places - places.mean(0))[:, chosen]
    sigma = np.asarray(upper.nodes.sigma).reshape(-1)[chosen] * upper.stride / stride
    weights = jnp.asarray(1 / sigma**2 / chosen.shape[-1])
    total = weights.sum(-1)
    shift = (weights[..., None] * moved).sum(-2) / total[..., None]
    # Parents that disagree about an image lower the node's density there.
    apart = ((moved - shift[..., None, :]) ** 2).sum(-1)
    factor = jnp.exp(-(weights * apart).sum(-1) / 2)
    return _Parents(shift, 1 / jnp.sqrt(total), factor)


def _choose(
    upper: Layer, places: ArrayLike, scores: ArrayLike, size: float, number: int
) -> np.ndarray:
    """Indices `[C, N, M]` of the parents that move with each node, from what is best above."""
    images = len(upper.places)
    above = upper.places.reshape(images, -1, 2)
    strength = upper.scores.reshape(images, -1).sum(0)
    spread = above.var(0).sum(-1)
    middle = above.mean(0)
    inside = ((middle > 0.1 * size) & (middle < 0.9 * size)).all(-1)
    # Nodes that never move carry no information about where anything is.
    usable = inside & (spread >= np.median(spread[inside]) if inside.any() else inside)
    if usable.sum() < number:
        usable = np.ones_like(usable)
    candidates = np.flatnonzero(usable)
    candidates = candidates[np.argsort(-strength[candidates], kind="stable")][:600]
    delta = above[:, candidates] - above[:, candidates].mean(0)
    mine = np.asarray(places) - np.asarray(places).mean(0)
    found = np.empty((*mine.shape[1:3], min(number, len(candidates))), int)
    for c in range(mine.shape[1]):
        apart = ((mine[:, c, :, None] - delta[:, None]) ** 2).sum(-1)
        together = np.asarray(scores)[:, c, :, None] * np.exp(-apart / (2 * apart.mean() + 1e-12))
        order = np.argsort(-together.sum(0), axis=-1, kind="stable")
        found[c] = candidates[order[:, : found.shape[2]]]
    return found


def fit_layer(
    maps: ArrayLike,
    *,
    stride: float,
    density: float = 0.1,
    upper: Layer | None = None,
    flipped: PyTree = None,
    rounds: int = ROUNDS,
    parents: int = PARENTS,
    seed: int = 0,
) -> Layer:
    """Fits the nodes of one layer to maps of one category's objects; layers are fitted from the
    top.

    Args:
      maps: `[I, C, n, n]`, see `evidence_maps`.
      stride: px of the picture a cell.
      density: nodes a cell and filter; Zhang's are .05 to .2.
      upper: the layer above, fitted on the same images; None for the top layer.
      flipped: maps of the flipped pictures: for each image the likelier is taken. A lower layer
        takes what the upper took.
      rounds: of the fit, 20 in the original.
      parents: edges a node, 15 in the original.
      seed: a whole number that decides the first places.
    Raises:
      ValueError: if the maps are not square ones of filters.
    """
    maps = jnp.asarray(maps, jnp.float32)
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3]:
        raise ValueError(f"maps must be [I, C, n, n], got shape {maps.shape}")
    images, filters, n, _ = maps.shape
    number = max(2, int(np.ceil(density * n * n)))
    rng = np.random.default_rng(seed)
    cells = np.stack([rng.permutation(n * n)[:number] for _ in range(filters)])
    mu = np.stack(np.unravel_index(cells, (n, n)), -1).astype(np.float32)
    nodes = Nodes(jnp.asarray(mu), jnp.full((filters, number), 0.15 * n))
    widest = float(np.sqrt(n * n / number))
    above, chosen = _no_parents(images, nodes), None
    turned = np.zeros(images, bool) if upper is None else upper.flipped
    other = None if flipped is None else jnp.asarray(flipped, jnp.float32)
    for i in range(1, rounds + 1):
        if other is not None and upper is None:
            ways = [_infer(m, nodes, above)[2] for m in (maps, other)]
            turned = np.asarray(ways[1] > ways[0])
        shown = maps if other is None else jnp.where(turned[:, None, None, None], other, maps)
        nodes = _round(shown, nodes, above, jnp.float32(i), widest)
        # Edges from the second round on, and then for good once the places have settled.
        if upper is not None and i in (1, 5, 10):
            places, scores, _ = _infer(shown, nodes, above)
            pixels = (np.asarray(places) + 0.5) * stride
            chosen = _choose(upper, pixels, scores, n * stride, parents)
            above = _from_parents(upper, chosen, stride)
    shown = maps if other is None else jnp.where(turned[:, None, None, None], other, maps)
    places, scores, _ = _infer(shown, nodes, above)
    pixels = (np.asarray(places) + 0.5) * stride
    return Layer(nodes, pixels, np.asarray(scores), chosen, turned, float(stride))


def infer(layer: Layer, maps: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns places `[I, C, N, 2]` (px) and scores of a top layer's nodes in other images.

    Args:
      layer: a fitted top layer.
      maps: `[I, C, n, n]` of the other images, see `evidence_maps`.
    """
    if layer.parents is not None:
        raise ValueError("infer needs a layer without parents: fit the whole graph on these images")
    maps = jnp.asarray(maps, jnp.float32)
    places, scores, _ = _infer(maps, layer.nodes, _no_parents(len(maps), layer.nodes))
    return (np.asarray(places) + 0.5) * layer.stride, np.asarray(scores)
