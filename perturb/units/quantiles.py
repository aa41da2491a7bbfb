"""Exact quantiles of activations over any number of samples, in memory that does not grow with
them.

A running top-k for the top share of the values would grow with the samples. Floats in their order
are integers in their order: the first pass counts their upper 16 bits, the second, where the wanted
rank falls, the lower 16. Counts add, so passes over parts of the samples merge.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb import display, taps
from perturb._numerics import devices
from perturb.types import PyTree
from perturb.units import sampling
from perturb.units.subject import Subject

__all__ = [
    "Histogram",
    "histogram",
    "merge_histograms",
    "quantiles",
    "round_down",
    "rounded_quantiles",
]

_BINS = 1 << 16


class Histogram(NamedTuple):
    """Counts of the values of each unit of a layer.

    Attributes:
      counts: `[units, 65536]`: by upper bits, or by lower bits within one bin of the upper.
      above: `[units]`, of the second pass: the least value above that bin, as an ordered integer.
    """

    counts: np.ndarray
    above: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def histogram(
    generator: Subject,
    *,
    layer: str | Sequence[str],
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    within: Mapping[str, Histogram] | None = None,
    quantile: float = 0.99,
    domain: str = "cells",
    batch_size: int = 64,
) -> dict[str, Histogram]:
    """Counts the values of every unit: of all samples or, for a part of them, to be merged.

    Args:
      generator: its layers are read.
      layer: one name, or several for one pass over all.
      samples: how many, or `(start, stop)`; see `dissect`.
      key: random key of the latents; not consumed.
      latents: pytree of leading size N, instead of samples and key.
      within: the merged counts of the first pass over *all* samples, for the second pass.
      quantile: of the second pass, in (0, 1).
      domain: "cells": each cell of the layer's own grid counts once; "visible": as often as pixels
        of the image lie under it.
      batch_size: number of samples run at once; changes memory and time only.
    Returns:
      a histogram for each layer.
    """
    people, start, stop = sampling.population(samples, key, latents)
    shapes = sampling.check_layers(generator, layer)
    if domain not in ("cells", "visible"):
        raise ValueError(f"domain must be 'cells' or 'visible', got {domain!r}")
    size = sampling.image_size(generator)
    seen = {n: _visible(size, shape, generator, domain) for n, shape in shapes.items()}
    # Counters are of 32 bits on the device.
    if max(map(np.sum, seen.values())) * (stop - start) >= 2**32:
        raise ValueError(f"samples must have under 2**32 cells at once, got {samples}: split them")
    bins = {}
    if within is not None:
        for name in shapes:
            bins[name] = _rank(within[name].counts, quantile).bins.astype(np.uint32)

    def empty() -> PyTree:
        # Flat, for one scatter over all units; nothing lies above the bin yet, so the largest
        # integer.
        return {
            name: (
                jnp.zeros((shape[-1] * _BINS,), jnp.uint32),
                jnp.full((shape[-1],), 0xFFFFFFFF, jnp.uint32),
            )
            for name, shape in shapes.items()
        }

    # Counted where the block ran: of each device what it has seen so far.
    states: dict[int, PyTree] = {}

    def step(there: PyTree, n: int, block: sampling.Block) -> None:
        first, inside = block
        fed = sampling.feed(people, first, batch_size)
        before = states[n] if n in states else empty()
        states[n] = _step(there, fed, first, inside, seen, bins, before)
        # Else blocks are fed faster than they are counted, and pile up.
        jax.block_until_ready(states[n])

    for _ in devices.each(step, generator, sampling.blocks(start, stop, batch_size)):
        pass
    parts = [
        {
            n: Histogram(np.asarray(counts).reshape(-1, _BINS), np.asarray(above))
            for n, (counts, above) in state.items()
        }
        for state in states.values() or [empty()]
    ]
    if len(parts) == 1:
        return parts[0]
    # All together are fewer than 2**32, see above.
    merged = merge_histograms(*parts)
    return {n: Histogram(h.counts.astype(np.uint32), h.above) for n, h in merged.items()}


def merge_histograms(*parts: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Returns the histograms of all samples from those of parts of them.

    Args:
      parts: `{layer: Histogram}` each, from `histogram` on a part of the samples.
    """
    merged = {}
    for name in parts[0]:
        # Of all parts together there may be more than 32 bits hold.
        counts = np.stack([p[name].counts for p in parts]).sum(0, dtype=np.uint64)
        above = np.stack([p[name].above for p in parts]).min(0)
        merged[name] = Histogram(counts, above)
    return merged


def quantiles(coarse: Histogram, fine: Histogram, quantile: float) -> np.ndarray:
    """Returns the quantile of each unit `[units]`, float64: that of `numpy.quantile`, linear.

    Args:
      coarse, fine: of the first and the second pass over all samples.
      quantile: the one that the second pass was made for, in (0, 1).
    """
    rank = _rank(coarse.counts, quantile)
    if (fine.counts.sum(-1, dtype=np.int64) != rank.held).any():
        raise ValueError(
            f"fine does not belong to coarse at quantile {quantile}: run the second pass with "
            "within= the first, over all the same samples"
        )

    def value(offset: np.ndarray) -> np.ndarray:
        low, _ = _holding(fine.counts, offset)
        inside = (rank.bins.astype(np.uint32) << 16) | np.minimum(low, _BINS - 1).astype(np.uint32)
        # The next value may lie beyond the bin: then it is the least of those above.
        return _unordered(np.where(low < _BINS, inside, fine.above))

    here = value(rank.offset)
    after = value(rank.offset + 1) if rank.fraction else here
    # As numpy.quantile interpolates, from the nearer end.
    step, t = after - here, rank.fraction
    found: np.ndarray = here + step * t if t < 0.5 else after - step * (1 - t)
    return found


def rounded_quantiles(coarse: Histogram, shares: np.ndarray) -> np.ndarray:
    """Returns quantiles `[shares, units]` from the first pass alone, rounded up to 8 binary digits;
    0 stays 0.

    Args:
      coarse: the merged `Histogram` of the first pass.
      shares: `[shares]` in (0, 1).
    """
    found = []
    for share in shares:
        bins = _rank(coarse.counts, float(share)).bins.astype(np.uint32)
        # The bin that begins with +0 holds nothing else but numbers below 1e-40.
        zero = bins == _BINS >> 1
        # The upper end of the bin: sign, exponent and seven bits are those of its values.
        found.append(np.where(zero, 0.0, _unordered((bins << 16) | np.uint32(0xFFFF))))
    return np.stack(found)


def round_down(values: np.ndarray) -> np.ndarray:
    """Returns the largest float32 not above each float64: `a > x` then stays what it was for
    float32 a.

    Args:
      values: float64 array.
    """
    near = values.astype(np.float32)
    return np.where(near.astype(np.float64) > values, np.nextafter(near, np.float32(-np.inf)), near)


class _Rank(NamedTuple):
    """Where a quantile falls: the bin of the lower of its two values, and its place there."""

    bins: np.ndarray
    offset: np.ndarray
    held: np.ndarray
    fraction: float


def _rank(counts: np.ndarray, quantile: float) -> _Rank:
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be in (0, 1), got {quantile}")
    # NumPy's "linear": the quantile lies at place (N - 1) q of the sorted values.
    position = (int(counts[0].sum(dtype=np.int64)) - 1) * np.float64(quantile)
    place = int(np.floor(position))
    bins, before = _holding(counts, np.full(len(counts), place))
    held = counts[np.arange(len(counts)), bins].astype(np.int64)
    return _Rank(bins, place - before, held, float(position - place))


def _holding(counts: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bin that holds the value of rank `place` [units], and how many values lie before
    it.

    65536 where there is none. By blocks of 256 bins: sums over all of them are most of a short run.
    """
    units, side = np.arange(len(counts)), 256
    parts = counts.reshape(len(counts), side, side)
    ends = np.cumsum(parts.sum(-1, dtype=np.int64), -1)
    block = (ends <= place[:, None]).sum(-1)
    beyond = block == side
    block = np.minimum(block, side - 1)
    start = np.where(block > 0, ends[units, block - 1], 0)
    inner = start[:, None] + np.cumsum(parts[units, block], -1, dtype=np.int64)
    at = np.minimum((inner <= place[:, None]).sum(-1), side - 1)
    before = np.where(at > 0, inner[units, at - 1], start)
    return np.where(beyond, _BINS, block * side + at), before


def _visible(
    size: tuple[int, int], shape: tuple[int, ...], generator: Subject, domain: str
) -> np.ndarray:
    """How often each cell of a layer counts, `[h, w]`."""
    grid = shape[:2] if len(shape) == 3 else (1, 1)
    if domain == "cells":
        return np.ones(grid, np.uint32)
    rows, columns = sampling.cells(size, grid, generator.canvas)
    over = [np.bincount(at, minlength=n) for at, n in zip((rows, columns), grid, strict=True)]
    return np.outer(*over).astype(np.uint32)


@functools.partial(jax.jit, donate_argnames="state")
def _step(
    generator: Subject,
    people: sampling.Population,
    first: jax.Array,
    inside: jax.Array,
    seen: dict[str, jax.Array],
    bins: dict[str, jax.Array],
    state: dict[str, tuple[jax.Array, jax.Array]],
) -> dict[str, tuple[jax.Array, jax.Array]]:
    latents = sampling.draw(generator, people, first, len(inside))
    _, values = taps.read(generator, list(state))(latents)
    new = {}
    for name, (counts, above) in state.items():
        x = _ordered(sampling.span(values[name]))
        weight = (inside.astype(jnp.uint32).reshape(-1, 1, 1) * seen[name][None])[..., None]
        # The first pass counts upper halves; the second, the lower halves of what falls into the
        # bin.
        digits = x >> 16
        if bins:
            here = bins[name].reshape(1, 1, 1, -1)
            beyond = jnp.where((digits > here) & (weight > 0), x, jnp.uint32(0xFFFFFFFF))
            above = jnp.minimum(above, beyond.min((0, 1, 2)))
            weight = jnp.where(digits == here, weight, 0)
            digits = x & 0xFFFF
        units = jnp.arange(x.shape[-1], dtype=jnp.uint32).reshape(1, 1, 1, -1)
        # What does not count is out of bounds and dropped: it would cost a write far off.
        at = jnp.where(weight > 0, units * _BINS + digits, jnp.uint32(counts.shape[0]))
        weight = jnp.broadcast_to(weight, at.shape)
        new[name] = counts.at[at].add(weight, mode="drop"), above
    return new


def _ordered(x: jax.Array) -> jax.Array:
    """Floats as integers in the same order; -0 is 0."""
    x = x.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(x == 0, jnp.float32(0), x), jnp.uint32)
    # Negative floats are ordered backwards as integers: turning all bits mends that and puts them
    # below the positive ones, which get the top bit.
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _unordered(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.uint32)
    bits = np.where(x >> 31 == 1, x & np.uint32(0x7FFFFFFF), ~x)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)
