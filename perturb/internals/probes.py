"""Information by depth: what a straight line through a layer's units can tell about a picture.

For every layer a linear probe is fitted to every factor of the pictures, the class among them
(`Alain and Bengio 2016 <https://arxiv.org/abs/1610.01644>`_): on the even pictures, its ridge
chosen there; the figure is of the odd ones. A network of random weights lets much through, so the
same probe reads that too, and the difference is paired picture by picture.

Probes are ridge regressions, one solve for all factors of a layer: exact, without steps or seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import statistics
from perturb.internals._blocks import blocks
from perturb.internals._layers import check_layer, reader
from perturb.model import Model
from perturb.statistics import Interval
from perturb.types import ArrayLike, ImageSource, PyTree

__all__ = ["Probe", "information_by_depth", "probe"]

RIDGES = tuple(np.geomspace(1e-4, 1e2, 13))


class Probe(NamedTuple):
    """What one layer tells of one factor.

    Attributes:
      layer, factor: their names.
      kind: "class" (a share of right answers) or "number" (the share of variance explained, R^2).
      score: of the odd pictures, with its 95 % interval over them.
      chance: of the commonest class, or 0.
      random: the same of a network with random weights, or None.
      gain: score less random, paired by picture, or None.
    """

    layer: str
    factor: str
    kind: str
    score: Interval
    chance: float
    random: Interval | None
    gain: Interval | None


def information_by_depth(
    model: Model,
    images: ImageSource,
    factors: Mapping[str, PyTree],
    *,
    layers: Sequence[str],
    random: Model | None = None,
    places: int = 2,
    batch_size: int = 32,
) -> list[Probe]:
    """Probes layers for factors; in the order of depth they are the curves.

    Args:
      model: whose layers are read.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      factors: what is known of the pictures: `[N]` integers or words are classes, `[N]` or `[N, D]`
        floats are numbers (an angle as its cosine and sine).
      layers: names of `perturb.taps.names(model, images)`.
      random: a network of random weights to hold against, as of `random_network`.
      places: maps are averaged to so many places a side, so that a probe can ask where.
      batch_size: pictures run at once.
    Returns:
      a `Probe` for each layer and factor, layers outermost.
    """
    if not factors or len(images) < 16:
        raise ValueError(
            f"factors must name at least one and images be 16 or more, got {len(factors)} and "
            f"{len(images)}"
        )
    for name, values in factors.items():
        if len(values) != len(images):
            raise ValueError(
                f"factors[{name!r}] must be one a picture, {len(images)}, got {len(values)}"
            )
    nets = [model] if random is None else [model, random]
    codes = [_codes(net, images, layers, places, batch_size) for net in nets]
    found = []
    for layer in layers:
        scores = [probe(c[layer], factors) for c in codes]
        for name in factors:
            kind, chance, own, total = scores[0][name]
            score, other, gain = _score(own, total), None, None
            if random is not None:
                null = scores[1][name][2]
                # Paired: both networks are probed on the same odd pictures.
                other, gain = _score(null, total), _score(own - null, total)
            found.append(Probe(layer, name, kind, score, chance, other, gain))
    return found


def probe(
    codes: ArrayLike, factors: Mapping[str, PyTree]
) -> dict[str, tuple[str, float, np.ndarray, np.ndarray]]:
    """Fits factors to codes on the even rows and scores the odd ones.

    Args:
      codes: `[N, D]`.
      factors: see `information_by_depth`.
    Returns:
      for each factor its kind, the chance, and for the odd rows `[M]` what the probe gained and
      `[M]` what there was to gain: 0 or 1 of 1 for classes; variance explained of the variance for
      numbers.
    """
    codes = np.asarray(codes, np.float64)
    even = codes[::2]
    centre, size = even.mean(0), even.std(0)
    # Standardised on the even pictures, so that one ridge means the same for every unit.
    codes = np.where(size > 1e-9, (codes - centre) / np.where(size > 1e-9, size, 1), 0)
    columns = {name: _columns(np.asarray(values)) for name, values in factors.items()}
    # All factors side by side: the decomposition of the codes is shared by them.
    y = np.concatenate([c.values for c in columns.values()], 1)
    # Half of the even rows chooses the ridge, then all of them are fitted.
    first, second = _Ridge(codes[::4], y[::4]), _Ridge(codes[::2], y[::2])
    tried = [first.predict(codes[2::4], r) for r in RIDGES]
    found, start = {}, 0
    for name, c in columns.items():
        at = slice(start, start + c.values.shape[1])
        start = at.stop
        mean = y[::4, at].mean(0)
        losses = [((t[:, at] - y[2::4, at]) ** 2).sum() for t in tried]
        best = RIDGES[int(np.argmin(losses))]
        answer, truth = second.predict(codes[1::2], best)[:, at], y[1::2, at]
        if c.kind == "class":
            right = (answer.argmax(1) == truth.argmax(1)) * 1.0
            chance = float(truth[:, y[::2, at].mean(0).argmax()].mean())
            found[name] = "class", chance, right, np.ones(len(right))
        else:
            mean = y[::2, at].mean(0)
            # About the mean of the pictures that were fitted: the mean of the tested ones is not
            # known to a probe.
            total = ((truth - mean) ** 2).sum(1)
            found[name] = "number", 0.0, total - ((truth - answer) ** 2).sum(1), total
    return found


class _Factor(NamedTuple):
    kind: str
    values: np.ndarray


def _columns(values: np.ndarray) -> _Factor:
    if values.dtype.kind == "f":
        wide = values.reshape(len(values), -1).astype(np.float64)
        # One scale for all columns: cosine and sine of an angle must keep their proportion.
        return _Factor("number", (wide - wide.mean(0)) / np.maximum(wide.std(), 1e-12))
    kinds, at = np.unique(values, return_inverse=True)
    return _Factor("class", np.eye(len(kinds))[at])


class _Ridge:
    """Least squares with a penalty, for any number of penalties: one singular value
    decomposition.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self._x, self._y = x.mean(0), y.mean(0)
        u, self._s, self._v = np.linalg.svd(x - self._x, full_matrices=False)
        self._u = u.T @ (y - self._y)
        self._number = len(x)

    def predict(self, x: np.ndarray, ridge: float) -> np.ndarray:
        # By the number of pictures, so that the same ridge means the same for half of them.
        shrunk = self._s / (self._s**2 + ridge * self._number)
        found: np.ndarray = (x - self._x) @ self._v.T @ (shrunk[:, None] * self._u) + self._y
        return found


def _score(gained: np.ndarray, total: np.ndarray) -> Interval:
    """The share that was gained, by the mean of all pictures."""
    return statistics.bootstrap(
        lambda g, t: g.sum(-1) / np.maximum(t.sum(-1), 1e-12), gained, total, draws=2000
    )


def _codes(
    model: Model, images: ImageSource, layers: Sequence[str], places: int, batch_size: int
) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    checked = False
    for block in blocks(images, batch_size):
        if not checked:
            for name in layers:
                check_layer(model, name, jnp.asarray(block.images))
            checked = True
        found = _step(model, block.images, layers=tuple(layers), places=places)
        for name, value in found.items():
            rows[name].append(np.asarray(value)[block.inside])
    return {name: np.concatenate(parts) for name, parts in rows.items()}


@functools.partial(jax.jit, static_argnames=("layers", "places"))
def _step(
    model: Model, images: jax.Array, *, layers: tuple[str, ...], places: int
) -> dict[str, jax.Array]:
    found = {}
    for name, value in reader(layers)(model, images)[1].items():
        if value.ndim == 4:
            down, across = (_shares(n, min(places, n)) for n in value.shape[1:3])
            value = jnp.einsum("ph,bhwu,qw->bpqu", down, value, across)
        elif value.ndim == 3:  # tokens
            value = value.mean(1)
        found[name] = value.reshape(len(value), -1)
    return found


def _shares(cells: int, places: int) -> np.ndarray:
    """`[places, cells]`: the mean over the cells of each place."""
    at = np.arange(cells) * places // cells
    of = (at[None] == np.arange(places)[:, None]).astype(np.float32)
    found: np.ndarray = of / of.sum(1, keepdims=True)
    return found
