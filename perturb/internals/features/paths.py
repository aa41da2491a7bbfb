"""Does a picture take the way through the network that natural pictures take? Geirhos et al. 2024.

A network can be built that shows one thing when it is visualised and does another on natural
pictures: a fooling circuit tells the two apart and switches. Then a visualisation reaches the unit
by another way, and that shows in the layers before it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import taps
from perturb.internals._layers import units_last
from perturb.internals.features.loop import activations, filling, layer_value
from perturb.internals.features.objectives import Objective, Seen, per_item
from perturb.model import Model
from perturb.statistics import ranks
from perturb.types import ArrayLike, PyTree

__all__ = ["path_similarity", "paths", "routes"]

_SPAN = 1e-3  # between same and other, below which a layer does not tell them apart


def path_similarity(
    model: Model,
    picture: ArrayLike,
    same: PyTree,
    other: PyTree,
    layers: tuple[str, ...],
) -> np.ndarray:
    """Returns how alike the way through the network is of a picture and of natural pictures, by
    layer.

    The rank correlation of a picture's activations with those of natural pictures that excite the
    same unit, scaled so that 0 is what other natural pictures have with these and 1 what they have
    among themselves (Geirhos et al. 2024).

    Args:
      model: the network, a `perturb.Model`.
      picture: `[H, W, C]`.
      same: `[B, H, W, C]` natural pictures that excite the unit, at least 2.
      other: `[B, H, W, C]` natural pictures that do not.
      layers: names, in the order of the network.
    Returns:
      `[layers]`; NaN where a layer does not tell the two groups apart.
    """
    same, other = np.asarray(same, np.float32), np.asarray(other, np.float32)
    if len(same) < 2 or len(other) < 1:
        raise ValueError(
            f"same must have 2 pictures or more and other 1, got {len(same)} and {len(other)}"
        )
    every = np.concatenate([np.asarray(picture, np.float32)[None], same, other])
    alike = np.arange(len(every)) <= len(same)
    found = []
    for rows in pooled(model, every, layers):
        alike_to = likeness(rows)
        found.append(_scaled(alike_to[0, 1:], alike_to[1:, 1:], alike[1:]))
    return np.array(found)


def paths(
    model: Model,
    pictures: ArrayLike,
    natural: ArrayLike,
    values: np.ndarray,
    layers: tuple[str, ...],
    *,
    alike: int = 16,
) -> np.ndarray:
    """Returns the path similarity of one picture an item, by layer, `[N, layers]`.

    Args:
      model: the network, a `perturb.Model`.
      pictures: `[N, H, W, C]`.
      natural: `[B, H, W, C]`.
      values: `[N, B]` what each item's objective answers to each natural picture.
      layers: names, in the order of the network.
      alike: how many natural pictures, those with the largest values, are the same kind; at least 2
        and below B.
    Raises:
      ValueError: if there are too few natural pictures.
    """
    pictures, natural = np.asarray(pictures, np.float32), np.asarray(natural, np.float32)
    same = _same(values, alike)
    found = []
    for rows in pooled(model, np.concatenate([pictures, natural]), layers):
        every = likeness(rows)[:, len(pictures) :]
        mine, among = every[: len(pictures)], every[len(pictures) :]
        found.append([_scaled(m, among, s) for m, s in zip(mine, same, strict=True)])
    return np.array(found).T


def routes(
    model: Model,
    objective: Objective,
    pictures: ArrayLike,
    natural: ArrayLike,
    values: np.ndarray,
    layers: tuple[str, ...],
    *,
    alike: int = 16,
) -> np.ndarray:
    """Returns how alike the ways are on which the objective is reached, by layer, `[N, layers]`.

    Activations say what else a picture has in it. `a * d objective / d a` says what of it the
    objective was reached by, and is silent where a unit is not used, whatever its activation. It is
    the mean rank correlation with the natural pictures that excite the same, over that among these:
    1 is as alike as they are, 0 no likeness at all.

    Args:
      model, pictures, natural, values, layers, alike: as for `paths`.
      objective: as given to `visualise`.
    Raises:
      ValueError: if there are too few natural pictures.
    """
    pictures, natural = np.asarray(pictures, np.float32), np.asarray(natural, np.float32)
    items, _ = per_item(objective)
    found = []
    for i, same in enumerate(_same(values, alike)):
        item = jax.tree.map(lambda x, i=i: x[i], items)
        every = np.concatenate([pictures[i : i + 1], natural[same]])
        row = []
        for rows in _effects(model, item, jnp.asarray(every), layers):
            pairs = likeness(np.asarray(rows, np.float64))
            inner = _mean(pairs[1:, 1:][~np.eye(alike, dtype=bool)])
            row.append(_mean(pairs[0, 1:]) / inner if inner > _SPAN else np.nan)
        found.append(row)
    return np.array(found)


@functools.partial(jax.jit, static_argnums=3)
def _effects(
    model: Model, item: Objective, pictures: jax.Array, layers: tuple[str, ...]
) -> list[jax.Array]:
    """`[B, C]` a layer: activation times slope of the objective, summed over places."""
    read = taps.read(model, layers)(pictures)[1]

    def value(shift: dict[str, jax.Array]) -> jax.Array:
        moved = {n: (lambda a, s=s: a + s) for n, s in shift.items()}
        network = taps.edit(lambda x: activations(model, x, item.layers), moved)
        outputs, values = network(pictures)

        def one(*row: PyTree) -> jax.Array:
            return item(Seen(*jax.tree.map(lambda x: x[None], row)))

        return jax.vmap(one)(pictures, outputs, values).sum()

    slopes = jax.grad(value)({n: jnp.zeros_like(v) for n, v in read.items()})
    found = []
    for name in layers:
        each = units_last(model, read[name] * slopes[name])
        found.append(each.sum(tuple(range(1, each.ndim - 1))))
    return found


def _same(values: np.ndarray, alike: int) -> np.ndarray:
    """`[N, B]` bool: the natural pictures that each item answers most to."""
    count = values.shape[1]
    if not 2 <= alike < count:
        raise ValueError(
            f"alike must be at least 2 and below the {count} natural pictures, got {alike}"
        )
    order = np.argsort(-values, axis=1, kind="stable")
    found = np.zeros(values.shape, bool)
    np.put_along_axis(found, order[:, :alike], True, 1)
    return found


def pooled(model: Model, pictures: np.ndarray, layers: tuple[str, ...]) -> list[np.ndarray]:
    """`[B, C]` a layer. Means over places: where in the picture a thing lies is no part of the
    way.
    """
    size, found = 32, []
    for name in layers:
        rows = []
        for at in range(0, len(pictures), size):
            block = pictures[at : at + size]
            full = jnp.asarray(block[filling(len(block), min(size, len(pictures)))])
            value = np.asarray(layer_value(model, full, name), np.float64)[: len(block)]
            rows.append(value.mean(tuple(range(1, value.ndim - 1))))
        found.append(np.concatenate(rows))
    return found


def likeness(rows: np.ndarray) -> np.ndarray:
    """Rank correlations of all pairs of rows, NaN with one that is constant: it has no ranks."""
    ranked = ranks(rows)
    ranked = ranked - ranked.mean(1, keepdims=True)
    length = np.linalg.norm(ranked, axis=1, keepdims=True)
    ranked = ranked / np.where(length > 0, length, np.nan)
    found: np.ndarray = ranked @ ranked.T
    return found


def _scaled(mine: np.ndarray, among: np.ndarray, same: np.ndarray) -> float:
    """The mean likeness to the same, 0 at that of the others with them, 1 at theirs."""
    pairs = among[np.ix_(same, same)]
    inner = _mean(pairs[~np.eye(len(pairs), dtype=bool)])
    outer = _mean(among[np.ix_(~same, same)])
    span = inner - outer
    return (_mean(mine[same]) - outer) / span if span > _SPAN else np.nan


def _mean(numbers: np.ndarray) -> float:
    return float(np.nanmean(numbers)) if np.isfinite(numbers).any() else np.nan
