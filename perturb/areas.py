"""Masks of an exact area: from scores to the mask that keeps the highest of them.

>>> import jax.numpy as jnp
>>> u = jnp.arange(100.0).reshape(10, 10)
>>> mask = exact_area(u, 0.25, temperature=0.1)
>>> round(float(mask.mean()), 6), int((mask > 0.5).sum())
(0.25, 25)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from perturb import _sums
from perturb._xla import by_platform

__all__ = ["WHOLE", "binarise", "course", "exact_area", "standard"]

# The area that a shrinking mask starts from.
WHOLE = 0.95


def exact_area(
    scores: jax.Array, area: jax.Array | float, *, temperature: jax.Array | float
) -> jax.Array:
    """Returns `sigmoid((scores - t) / temperature)` with the threshold `t` that makes its mean `area`.

    The threshold is found by safeguarded Newton steps; the derivative is that of the exact projection:
    an increase everywhere changes nothing, and what one pixel gains the others lose.

    Args:
      scores: any shape, finite.
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
) -> tuple[jax.Array, Any]:
    flat = u.reshape(-1)
    # A start from one pixel in many; the stride is odd, so that it does not keep to some columns.
    stride = flat.size // 2048 | 1
    t = None if stride < 8 else _threshold(flat[::stride], area, temperature, most=12)
    t = _threshold(flat, area, temperature, t, most=16)
    z = (u - t) / temperature
    m = jax.nn.sigmoid(z)
    return m, (m, z, temperature)


def _threshold(
    u: jax.Array,
    area: jax.Array,
    temperature: jax.Array,
    start: jax.Array | None = None,
    *,
    most: int,
) -> jax.Array:
    """The `t` that makes the mean of `sigmoid((u - t) / temperature)` the area.

    `most` is the number of Newton steps on a GPU, where the host would have to be asked after each
    whether to go on. Masks under way need 9 from no start and 5 from one.
    """
    # At these two thresholds every pixel is at most, and at least, the wanted mean.
    wanted = jnp.log(area) - jnp.log1p(-area)
    shift = temperature * wanted
    low, high = u.min() - shift, u.max() - shift
    begin = 0.5 * (low + high) if start is None else jnp.clip(start, low, high)

    def narrow(found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        n, low, high, t, best, least = found
        m = jax.nn.sigmoid((u - t) / temperature)
        share, slope = _sums.mean(m, bound=1), _sums.mean(m * (1 - m), bound=1) / temperature
        # Barriers: fused into one loop, jax 0.12 rounds these few numbers by how many slots there are.
        share, slope = jax.lax.optimization_barrier((share, slope))
        low, high = jnp.where(share > area, t, low), jnp.where(share > area, high, t)
        # Newton on the log odds of the mean, nearly straight even where hardly a pixel is left.
        odds = jnp.log(share + 1e-12) - jnp.log1p(1e-7 - share) - wanted
        odds = jax.lax.optimization_barrier(odds)
        # Once the threshold is right to float32, the next step leaves the bracket by rounding.
        best = jnp.where(jnp.abs(odds) < least, t, best)
        step = odds * share * (1 - share) / jnp.maximum(slope, 1e-12)
        newton = t + jax.lax.optimization_barrier(step)
        inside = (newton > low) & (newton < high)
        t = jnp.where(inside, newton, 0.5 * (low + high))
        return n + 1, low, high, t, best, jnp.minimum(least, jnp.abs(odds))

    def unsure(found: tuple[jax.Array, ...]) -> jax.Array:
        return (found[0] < 24) & (found[-1] > 2e-6)

    def until_sure(first: tuple[jax.Array, ...]) -> jax.Array:
        return jax.lax.while_loop(unsure, narrow, first)[-2]

    def so_many(found: tuple[jax.Array, ...]) -> jax.Array:
        for _ in range(most):
            go_on = unsure(found)
            found = jax.tree.map(functools.partial(jnp.where, go_on), narrow(found), found)
        return found[-2]

    first: tuple[jax.Array, ...] = (jnp.int32(0), low, high, begin, begin, jnp.float32(jnp.inf))
    return by_platform(so_many, until_sure, first)


def _exact_area_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The threshold moves so that the mean stays: what one pixel gains the others lose."""
    m, z, temperature = kept
    edge = m * (1 - m)
    width = jnp.maximum(_sums.mean(edge), 1e-12)
    pull = _sums.mean(g * edge) / width
    by_score = edge * (g - pull) / temperature
    return by_score, pull * m.size, -_sums.total(by_score * z)


_exact_area.defvjp(_exact_area_forward, _exact_area_backward)


def binarise(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """Returns 1 on the `count` highest scores and 0 elsewhere; ties go to the lower pixel index.

    Args:
      scores: any shape, finite.
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

    def narrow(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # more than `count` are above low, at most `count` above high
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        few = _sums.count(order > middle) <= count
        return jnp.where(few, low, middle), jnp.where(few, middle, high)

    lowest, highest = jnp.int32(-(2**31)), jnp.int32(2**31 - 1)
    _, threshold = jax.lax.fori_loop(0, 33, narrow, (lowest, highest))
    above = order > threshold
    level = order == threshold
    left = count - _sums.count(above)
    return (above | (level & (jnp.cumsum(level) <= left))).astype(jnp.float32).reshape(scores.shape)


@jax.custom_vjp
def standard(u: jax.Array) -> jax.Array:
    """Scores of mean 0 and deviation at most 1.

    Without the floor on the variance a flat start would divide by zero: its huge first gradient would
    then fill the memory of the step rule and freeze every later step.
    """
    return _standard_forward(u)[0]


def _standard_forward(u: jax.Array) -> tuple[jax.Array, Any]:
    u = u - _sums.mean(u)
    size = jnp.sqrt(_sums.mean(u**2) + 0.1)
    return u / size, (u / size, size)


def _standard_backward(kept: Any, g: jax.Array) -> tuple[jax.Array]:
    y, size = kept
    return ((g - _sums.mean(g) - y * _sums.mean(g * y)) / size,)


standard.defvjp(_standard_forward, _standard_backward)


def course(
    way: Any, area: jax.Array, progress: jax.Array, whole: jax.Array | float = WHOLE
) -> tuple[jax.Array, jax.Array]:
    """Area and temperature at `progress`: the area shrinks first, then the edge sharpens.

    Args:
      way: has `soft`, `sharp` and `shrink`, see `Blobs`.      progress: in [0, 1].
      whole: the area it starts from.
    """
    t = jnp.clip(progress / way.shrink, 0, 1)
    late = jnp.clip((progress - way.shrink) / (1 - way.shrink), 0, 1)
    return whole * (area / whole) ** t, way.soft * (way.sharp / way.soft) ** late
