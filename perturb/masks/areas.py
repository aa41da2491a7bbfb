"""Masks of an exact area: from scores to the mask that keeps the highest of them.

>>> import jax.numpy as jnp
>>> u = jnp.arange(100.0).reshape(10, 10)
>>> mask = exact_area(u, 0.25, temperature=0.1)
>>> round(float(mask.mean()), 6), int((mask > 0.5).sum())
(0.25, 25)
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perturb._numerics import sums
from perturb._numerics.xla import by_platform
from perturb.types import PyTree

__all__ = ["LEAST", "WHOLE", "binarise", "course", "drawn", "even", "exact_area", "standard"]

# The area that a shrinking mask starts from.
WHOLE = 0.95
# And the least of those that are drawn.
LEAST = 0.01
# The fraction of the golden ratio: its multiples fill [0, 1) evenly however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2

# On a GPU: thresholds that are tried side by side, and passes over all pixels.
_WAYS = 16
_PASSES = 8


def exact_area(
    scores: jax.Array, area: jax.Array | float, *, temperature: jax.Array | float
) -> jax.Array:
    """Returns `sigmoid((scores - t) / temperature)` with the threshold `t` that makes its mean
    `area`.

    The threshold is found by safeguarded Newton steps; the derivative is that of the exact
    projection: an increase everywhere changes nothing, and what one pixel gains the others lose.

    Args:
      scores: array of any shape, finite.
      area: wanted mean, in (0, 1).
      temperature: softness in units of the scores, positive.
    Returns:
      the mask, same shape, float32 in [0, 1].
    """
    return _exact_area(
        scores.astype(jnp.float32),
        jnp.asarray(area, jnp.float32),
        jnp.asarray(temperature, jnp.float32),
    )


@jax.custom_vjp
def _exact_area(u: jax.Array, area: jax.Array, temperature: jax.Array) -> jax.Array:
    return _exact_area_forward(u, area, temperature)[0]


def _exact_area_forward(
    u: jax.Array, area: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, PyTree]:
    t = by_platform(_counted, _until_sure, u.reshape(-1), area, temperature)
    z = (u - t) / temperature
    m = jax.nn.sigmoid(z)
    return m, (m, z, temperature)


def _until_sure(u: jax.Array, area: jax.Array, temperature: jax.Array) -> jax.Array:
    """Finds the threshold in as many steps as it takes, from that of some of the pixels."""
    # The stride is odd, so that it does not keep to some columns.
    stride = u.size // 2048 | 1

    def unsure(found: _Found) -> jax.Array:
        return (found.steps < 24) & (found.error > 2e-6)

    def search(u: jax.Array, begin: jax.Array | None = None) -> jax.Array:
        low, high = _bracket(*sums.extremes(u), area, temperature)
        t = 0.5 * (low + high) if begin is None else jnp.clip(begin, low, high)
        first = _Found(jnp.int32(0), low, high, t, t, jnp.float32(jnp.inf))
        return jax.lax.while_loop(unsure, lambda f: _narrow(u, area, temperature, f), first).best

    return search(u, None if stride < 8 else search(u[::stride]))


def _counted(u: jax.Array, area: jax.Array, temperature: jax.Array) -> jax.Array:
    """Finds the threshold in a fixed number of passes.

    A loop with a condition would make a GPU ask the host after each pass whether to go on. A sample
    of the pixels is compared with `_WAYS` thresholds at once, then with as many between two of
    these. From there secants on the log odds over all pixels: Newton's slope is another sum of the
    same terms, and these would be written out to be read twice.
    """
    sample = u[:: u.size // 2048 | 1]
    low, high = _bracket(sample.min(), sample.max(), area, temperature)
    for _ in range(2):
        part = (high - low) / (_WAYS + 1)
        at = low + part * jnp.arange(1, _WAYS + 1)
        m = jax.nn.sigmoid((sample - at[:, None]) / temperature)
        shares = jax.vmap(functools.partial(sums.mean, bound=1))(m)
        low = low + part * (shares > area).sum()
        high = low + part
    # The sample's own secant, between the two last thresholds.
    above = _odds(jnp.where(shares > area, shares, 1).min(), area)
    below = _odds(jnp.where(shares > area, 0, shares).max(), area)
    t, slope = low + part * above / (above - below), (below - above) / part
    best, least, last, before = t, jnp.float32(jnp.inf), t, jnp.float32(0)
    for _ in range(_PASSES):
        share = sums.mean(jax.nn.sigmoid((u - t) / temperature), bound=1)
        odds = _odds(share, area)
        # The old slope where the last two thresholds are the same; never flatter or steeper than
        # odds can be.
        moved = (t != last) & (jnp.abs(odds - before) > 1e-6)
        slope = jnp.where(moved, (odds - before) / jnp.where(moved, t - last, 1), slope)
        slope = jnp.clip(slope, -1 / temperature, -0.02 / temperature)
        best, least = jnp.where(jnp.abs(odds) < least, t, best), jnp.minimum(least, jnp.abs(odds))
        t, last, before = t - odds / slope, t, odds
    return best


def _odds(share: jax.Array, area: jax.Array) -> jax.Array:
    """The log odds of `share` over those of `area`."""
    return jnp.log(share + 1e-12) - jnp.log1p(1e-7 - share) - _wanted(area)


def _wanted(area: jax.Array) -> jax.Array:
    return jnp.log(area) - jnp.log1p(-area)


class _Found(NamedTuple):
    """How far a search has come: the bracket, where to look next, and the best so far."""

    steps: jax.Array
    low: jax.Array
    high: jax.Array
    t: jax.Array
    best: jax.Array
    error: jax.Array


def _bracket(
    least: jax.Array, most: jax.Array, area: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Thresholds at which every pixel is at least, and at most, the wanted mean."""
    shift = temperature * _wanted(area)
    return least - shift, most - shift


def _narrow(u: jax.Array, area: jax.Array, temperature: jax.Array, found: _Found) -> _Found:
    _, low, high, t, best, least = found
    m = jax.nn.sigmoid((u - t) / temperature)
    # Two loops: in one of both a CPU works the exponential out for every sum, and not in vectors.
    share, slope = (sums.mean(x, bound=1) for x in (m, m * (1 - m)))
    # Barriers: fused into one loop, jax 0.12 rounds these few numbers by how many slots there are.
    share, slope = jax.lax.optimization_barrier((share, slope / temperature))
    low, high = jnp.where(share > area, t, low), jnp.where(share > area, high, t)
    # Newton on the log odds of the mean, nearly straight even where hardly a pixel is left.
    odds = jax.lax.optimization_barrier(_odds(share, area))
    # Once the threshold is right to float32, the next step leaves the bracket by rounding.
    best = jnp.where(jnp.abs(odds) < least, t, best)
    newton = t + jax.lax.optimization_barrier(
        odds * share * (1 - share) / jnp.maximum(slope, 1e-12)
    )
    inside = (newton > low) & (newton < high)
    t = jnp.where(inside, newton, 0.5 * (low + high))
    return _Found(found.steps + 1, low, high, t, best, jnp.minimum(least, jnp.abs(odds)))


def _exact_area_backward(kept: PyTree, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The threshold moves so that the mean stays: what one pixel gains the others lose."""
    m, z, temperature = kept
    # The derivative of the sigmoid, times the temperature: how much a pixel weighs in the mean.
    # Where all pixels are saturated its sum is 0; the floor below keeps 0 / 0 out of the gradient.
    edge = m * (1 - m)
    width, moved = sums.means((edge, g * edge), bounds=(None, None))
    pull = moved / jnp.maximum(width, 1e-12)
    by_score = edge * (g - pull) / temperature
    return by_score, pull * m.size, -sums.total(by_score * z)


_exact_area.defvjp(_exact_area_forward, _exact_area_backward)


def binarise(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """Returns 1 on the `count` highest scores and 0 elsewhere; ties go to the lower pixel index.

    Args:
      scores: array of any shape, finite.
      count: how many, 0 to `scores.size`; may be traced.
    Returns:
      float32 of the same shape with exactly `count` ones.
    """
    u = scores.astype(jnp.float32).reshape(-1)
    # Floats order like sign-magnitude integers: one search over 32 bits finds the count-th score
    # exactly, without sorting 50,000 pixels at every check.
    # Both zeros count as equal; adding 0 would be simplified away.
    bits = jax.lax.bitcast_convert_type(jnp.where(u == 0, 0.0, u), jnp.int32)
    order = jnp.where(bits < 0, jnp.int32(-(2**31)) - bits - 1, bits)
    count = jnp.asarray(count, jnp.int32)

    threshold = by_platform(_by_digits, _by_halves, order, count)
    above = order > threshold
    level = order == threshold
    left = count - sums.count(above)
    return (above | (level & (jnp.cumsum(level) <= left))).astype(jnp.float32).reshape(scores.shape)


def _by_halves(order: jax.Array, count: jax.Array) -> jax.Array:
    """The lowest integer that at most `count` of `order` are above."""

    def narrow(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # more than `count` are above low, at most `count` above high
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        few = sums.count(order > middle) <= count
        return jnp.where(few, low, middle), jnp.where(few, middle, high)

    lowest, highest = jnp.int32(-(2**31)), jnp.int32(2**31 - 1)
    found: jax.Array = jax.lax.fori_loop(0, 33, narrow, (lowest, highest))[1]
    return found


def _by_digits(order: jax.Array, count: jax.Array) -> jax.Array:
    """Finds the same, four bits a round: on a GPU every round of a loop is a launch by the host."""
    top = jnp.uint32(2**31)
    order = order.astype(jnp.uint32) ^ top
    found = jnp.uint32(0)
    for shift in range(28, -4, -4):
        # The highest integers of the lower 15 digits; those that more than `count` are above are
        # too low.
        highest = found + (jnp.arange(1, 16, dtype=jnp.uint32) << shift) - 1
        above = jax.vmap(lambda t: sums.count(order > t))(highest)
        found = found + ((above > count).sum().astype(jnp.uint32) << shift)
    result: jax.Array = (found ^ top).astype(jnp.int32)
    return result


@jax.custom_vjp
def standard(u: jax.Array) -> jax.Array:
    """Scores of mean 0 and deviation at most 1.

    Without the floor on the variance a flat start would divide by zero: its huge first gradient
    would then fill the memory of the step rule and freeze every later step.
    """
    return _standard_forward(u)[0]


def _standard_forward(u: jax.Array) -> tuple[jax.Array, PyTree]:
    u = u - sums.mean(u)
    size = jnp.sqrt(sums.mean(u**2) + 0.1)
    return u / size, (u / size, size)


def _standard_backward(kept: PyTree, g: jax.Array) -> tuple[jax.Array]:
    y, size = kept
    mean, along = sums.means((g, g * y), bounds=(None, None))
    return ((g - mean - y * along) / size,)


standard.defvjp(_standard_forward, _standard_backward)


def course(
    way: PyTree, area: jax.Array, progress: jax.Array, whole: jax.Array | float = WHOLE
) -> tuple[jax.Array, jax.Array]:
    """Area and temperature at `progress`: the area shrinks first, then the edge sharpens.

    Args:
      way: has `soft`, `sharp` and `shrink`, see `Blobs`.
      area: the share of the pixels asked for, in (0, 1).
      progress: from 0, the first step, to 1, the last.
      whole: the area it starts from, a share in (0, 1).
    """
    t = jnp.clip(progress / way.shrink, 0, 1)
    # Once it has shrunk, unless it says otherwise.
    begin = getattr(way, "blunt", way.shrink)
    late = jnp.clip((progress - begin) / (1 - begin), 0, 1)
    return whole * (area / whole) ** t, way.soft * (way.sharp / way.soft) ** late


def even(step: jax.Array | float, part: jax.Array | float) -> jax.Array:
    """Returns numbers in [0, 1) that lie evenly over all steps, in a fixed order.

    Args:
      step: number of the step, from 0.
      part: how far through the step, in [0, 1): several of a step lie evenly too.
    """
    return jnp.asarray((0.5 + step * _GOLDEN + part) % 1.0)


def drawn(
    part: jax.Array,
    power: float,
    *,
    least: jax.Array | float = LEAST,
    most: jax.Array | float = WHOLE,
) -> jax.Array:
    """Returns the area that lies `part` of the way from `least` to `most`.

    Args:
      part: in [0, 1], as of `even`.
      power: above 1 small areas are drawn more often.
      least, most: areas, shares in (0, 1).
    """
    found: jax.Array = jnp.asarray(least + (most - least) * part**power)
    return found
