"""What a layer sees in one picture: its units at a place, its places in a few groups, the whole
drawn larger.

Olah et al. 2018, The Building Blocks of Interpretability. Each is made of pictures that `visualise`
makes and of sums that `attribute` knows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals.features import objectives
from perturb.internals.features.attribution import maps_of, slopes_at
from perturb.internals.features.loop import Features, filling, layer_value, visualise
from perturb.internals.features.presets import Preset
from perturb.model import Model
from perturb.types import ArrayLike

__all__ = [
    "Dictionary",
    "Groups",
    "caricatures",
    "factors",
    "groups",
    "semantic_dictionary",
]


class Dictionary(NamedTuple):
    """The units that answer most at one place, the strongest first.

    Attributes:
      units: `[K]` their numbers.
      values: `[K]` their activations there.
      images: `[K, H, W, C]` what each looks for.
      found: all that is known of the pictures.
    """

    units: np.ndarray
    values: np.ndarray
    images: np.ndarray
    found: Features

    def __repr__(self) -> str:
        return display.summary(self)


class Groups(NamedTuple):
    """A layer's value on one picture as a few groups of units, `value ≈ sum_k places_k units_k`.

    Attributes:
      places: `[K, h, w]` where each group is, not below 0.
      units: `[K, C]` which units it is of, of length 1, not below 0.
      images: `[K, H, W, C]` what the direction of each group looks for.
      explained: share of the value's squares that the groups hold, in [0, 1].
      effect: `[K]` of each group for a class, `sum places_k units_k · d score / d value`; NaN
        without a target.
      found: all that is known of the pictures.
    """

    places: np.ndarray
    units: np.ndarray
    images: np.ndarray
    explained: float
    effect: np.ndarray
    found: Features

    def __repr__(self) -> str:
        return display.summary(self)


def semantic_dictionary(
    model: Model,
    layer: str,
    image: ArrayLike,
    place: tuple[int, int],
    *,
    count: int = 6,
    preset: str | Preset = "lucid",
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    batch_size: int = 16,
    key: jax.Array,
) -> Dictionary:
    """Says in pictures what a layer sees at one place: the units that answer most there.

    Args:
      model, layer, preset, size, steps, batch_size, key: as for `visualise`.
      image: `[H, W, C]` in [0, 1].
      place: `(y, x)` in cells of the layer.
      count: number of units, at least 1.
    Raises:
      ValueError: if the layer has no such place, or not as many units.
    """
    value = maps_of(model, layer, image)
    height, width, units = value.shape
    y, x = place
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"place must be within {height} x {width} cells of {layer}, got {place}")
    if not 1 <= count <= units:
        raise ValueError(f"count must be 1 to {units}, the units of {layer}, got {count}")
    # Units that are equal are taken by number.
    first = np.argsort(-value[y, x], kind="stable")[:count]
    found = visualise(
        model,
        objectives.channel(layer, first),
        preset=preset,
        size=size,
        steps=steps,
        batch_size=batch_size,
        key=key,
    )
    return Dictionary(first, value[y, x][first], found.images, found)


def groups(
    model: Model,
    layer: str,
    image: ArrayLike,
    *,
    count: int = 6,
    target: int | None = None,
    preset: str | Preset = "lucid",
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    batch_size: int = 16,
    key: jax.Array,
) -> Groups:
    """Factors a layer's value on a picture into groups of units that are active together.

    Args:
      model, layer, preset, size, steps, batch_size, key: as for `visualise`.
      image: `[H, W, C]` in [0, 1].
      count: number of groups, at least 1.
      target: class whose score the groups' effect is on; None leaves that out.
    Raises:
      ValueError: if the layer has no places, negative values, or too few of either for `count`.
    """
    value = maps_of(model, layer, image)
    height, width, units = value.shape
    if value.min() < 0:
        raise ValueError(
            f"layer {layer} has values below 0, down to {value.min():.3g}: take one after a ReLU"
        )
    where, what = factors(value.reshape(-1, units), count)
    left = value.reshape(-1, units) - where @ what
    explained = 1 - float((left**2).sum()) / max(float((value**2).sum()), 1e-20)
    effect = np.full(count, np.nan)
    if target is not None:
        pair = jnp.stack([jnp.asarray(image, jnp.float32)] * 2)
        slope = np.asarray(slopes_at(model, layer, pair, jnp.full(2, target))[0])
        slope = slope.reshape(-1, units)
        effect = np.einsum("pk,kc,pc->k", where, what, slope)
    found = visualise(
        model,
        objectives.direction(layer, what),
        preset=preset,
        size=size,
        steps=steps,
        batch_size=batch_size,
        key=key,
    )
    places = where.T.reshape(count, height, width)
    return Groups(places, what, found.images, explained, effect, found)


def caricatures(
    model: Model,
    layer: str,
    images: ArrayLike,
    *,
    power: float = 1.0,
    preset: str | Preset = "lucid",
    steps: int | None = None,
    batch_size: int = 16,
    key: jax.Array,
) -> Features:
    """Draws what a layer sees in each picture larger than it is: as much of it as can be.

    Args:
      model, layer, preset, steps, batch_size, key: as for `visualise`.
      images: `[B, H, W, C]` in [0, 1].
      power: of the cosine, at least 0: how much the direction counts beside the length.
    Raises:
      ValueError: if there is no such layer.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4:
        raise ValueError(f"images must be [B, H, W, C], got shape {images.shape}")
    full = images[filling(len(images))]
    reference = np.asarray(layer_value(model, jnp.asarray(full), layer))[: len(images)]
    return visualise(
        model,
        objectives.caricature(layer, reference, power=power, each=True),
        preset=preset,
        size=images.shape[1:3],
        steps=steps,
        batch_size=batch_size,
        key=key,
    )


def factors(rows: ArrayLike, count: int, *, steps: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[N, K]` and `[K, C]`, not below 0, whose product is near the rows `[N, C]`.

    The squared distance is made small column by column (Cichocki and Phan 2009), from a start by
    singular vectors (Boutsidis and Gallopoulos 2008), so that no random number is drawn. Rows of
    the second have length 1; groups come by size.

    Args:
      rows: `[N, C]`, not below 0.
      count: K, from 1 to the smaller of N and C.
      steps: updates of each.
    Raises:
      ValueError: if rows are negative or `count` is out of range.

    >>> where, what = factors([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]], 2)
    >>> (where @ what).round(3).tolist()
    [[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]]
    """
    rows = np.asarray(rows, np.float64)
    most = min(rows.shape)
    if not 1 <= count <= most:
        raise ValueError(f"count must be 1 to {most} for values of shape {rows.shape}, got {count}")
    if rows.min() < 0:
        raise ValueError(f"rows must not be below 0, got {rows.min():.3g}")
    u, s, v = np.linalg.svd(rows, full_matrices=False)
    first, second = np.zeros((len(rows), count)), np.zeros((count, rows.shape[1]))
    for k in range(count):
        # A singular pair's sign is open: the part that holds more of it is taken.
        pairs = [(np.maximum(z * u[:, k], 0), np.maximum(z * v[k], 0)) for z in (1, -1)]
        a, b = max(pairs, key=lambda p: float(np.linalg.norm(p[0]) * np.linalg.norm(p[1])))
        length = np.linalg.norm(a) * np.linalg.norm(b)
        scale = np.sqrt(s[k] * length) if length else 0.0
        first[:, k] = scale * a / max(float(np.linalg.norm(a)), 1e-12)
        second[k] = scale * b / max(float(np.linalg.norm(b)), 1e-12)
    for _ in range(steps):
        _climb(first, rows @ second.T, second @ second.T)
        _climb(second.T, rows.T @ first, first.T @ first)
    length = np.maximum(np.linalg.norm(second, axis=1), 1e-12)
    first, second = first * length, second / length[:, None]
    order = np.argsort(-np.linalg.norm(first, axis=0), kind="stable")
    return first[:, order], second[order]


def _climb(columns: np.ndarray, cross: np.ndarray, square: np.ndarray) -> None:
    """Sets each column to its best with the others held, in place."""
    for k in range(len(square)):
        if square[k, k] > 0:
            step = (cross[:, k] - columns @ square[:, k]) / square[k, k]
            columns[:, k] = np.maximum(columns[:, k] + step, 0)
