"""How a mask is written down: the parameters that are optimised, and the mask they stand for.

A parametrisation is a small record with `init`, `scores` and `mask`; all act on one item, and the
solver maps them over its slots. Masks have the shape of the image without its channels, so a signal
`[L, C]` or a volume `[D, H, W, C]` needs no other code than a picture.

Nothing here multiplies matrices over the batch: upsampling and smoothing are sums of shifted copies,
whose value does not depend on how many neighbours an item has.

>>> import jax.numpy as jnp
>>> u = jnp.arange(100.0).reshape(10, 10)
>>> mask = exact_area(u, 0.25, temperature=0.1)
>>> round(float(mask.mean()), 6), int((mask > 0.5).sum())
(0.25, 25)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import _sums

__all__ = [
    "Blobs",
    "Grid",
    "Mask",
    "Pixels",
    "SmoothMax",
    "binarise",
    "course",
    "exact_area",
    "gaussian_upsample",
    "smooth_max",
    "upsample",
]


class Mask(NamedTuple):
    """What a parametrisation gives for one item.

    Attributes:
      visible: `[*size]` float32 in [0, 1], laid over the image.
      inner: what a penalty is taken on: the low-resolution parameters, or the padded mask.
    """

    visible: jax.Array
    inner: jax.Array


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
    t = None if stride < 8 else _threshold(flat[::stride], area, temperature)
    t = _threshold(flat, area, temperature, t)
    z = (u - t) / temperature
    m = jax.nn.sigmoid(z)
    return m, (m, z, temperature)


def _threshold(
    u: jax.Array, area: jax.Array, temperature: jax.Array, start: jax.Array | None = None
) -> jax.Array:
    """The `t` that makes the mean of `sigmoid((u - t) / temperature)` the area."""
    # At these two thresholds every pixel is at most, and at least, the wanted mean.
    wanted = jnp.log(area) - jnp.log1p(-area)
    shift = temperature * wanted
    low, high = u.min() - shift, u.max() - shift
    begin = 0.5 * (low + high) if start is None else jnp.clip(start, low, high)

    def narrow(found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        n, low, high, t, best, least = found
        m = jax.nn.sigmoid((u - t) / temperature)
        share, slope = _sums.mean(m, bound=1), _sums.mean(m * (1 - m), bound=1) / temperature
        low, high = jnp.where(share > area, t, low), jnp.where(share > area, high, t)
        # Newton on the log odds of the mean, nearly straight even where hardly a pixel is left.
        odds = jnp.log(share + 1e-12) - jnp.log1p(1e-7 - share) - wanted
        # Once the threshold is right to float32, the next step leaves the bracket by rounding.
        best = jnp.where(jnp.abs(odds) < least, t, best)
        newton = t + odds * share * (1 - share) / jnp.maximum(slope, 1e-12)
        inside = (newton > low) & (newton < high)
        t = jnp.where(inside, newton, 0.5 * (low + high))
        return n + 1, low, high, t, best, jnp.minimum(least, jnp.abs(odds))

    def unsure(found: tuple[jax.Array, ...]) -> jax.Array:
        return (found[0] < 24) & (found[-1] > 2e-6)

    first: tuple[jax.Array, ...] = (jnp.int32(0), low, high, begin, begin, jnp.float32(jnp.inf))
    return jax.lax.while_loop(unsure, narrow, first)[-2]


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
        few = (order > middle).sum() <= count
        return jnp.where(few, low, middle), jnp.where(few, middle, high)

    lowest, highest = jnp.int32(-(2**31)), jnp.int32(2**31 - 1)
    _, threshold = jax.lax.fori_loop(0, 33, narrow, (lowest, highest))
    above = order > threshold
    level = order == threshold
    left = count - above.sum()
    return (above | (level & (jnp.cumsum(level) <= left))).astype(jnp.float32).reshape(scores.shape)


def _expand(x: jax.Array, axis: int, table: jax.Array, step: int, length: int) -> jax.Array:
    """One axis of an upsampling: pixel `step * c + p` is `sum_o x[c + o - reach] * table[o, p]`."""
    reach = table.shape[0] // 2
    x = jnp.moveaxis(x, axis, -1)
    cells = x.shape[-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(reach, reach)], mode="edge")

    # A loop, not a sum written out: its gradient compiles four times faster and runs no slower.
    def add(o: jax.Array, total: jax.Array) -> jax.Array:
        window = jax.lax.dynamic_slice_in_dim(padded, o, cells, axis=-1)
        return total + window[..., None] * table[o]

    total = jax.lax.fori_loop(0, table.shape[0], add, jnp.zeros((*x.shape, step), x.dtype))
    return jnp.moveaxis(total.reshape(*x.shape[:-1], cells * step)[..., :length], -1, axis)


def gaussian_upsample(
    grid: jax.Array, size: Sequence[int], *, step: Any, sigma: Any, reach: int
) -> jax.Array:
    """Spreads every parameter as a Gaussian blob; cell `c` sits at pixel `step * (c + 1/2) - 1/2`.

    Args:
      grid: `[*cells]` with `cells = ceil(size / step)`.
      size: the image's shape without channels, px.
      step: px between cells, one number or one an axis.
      sigma: width of a blob in px, one number or one an axis; may be traced.
      reach: blobs are cut after this many cells; `3 * sigma / step` loses 0.3 %.
    Returns:
      `[*size]` float32; a constant grid stays that constant, up to the edges.
    """
    steps = _steps(size, step)
    sigmas = sigma if isinstance(sigma, Sequence) else (sigma,) * len(size)
    for axis, (length, step, sigma) in enumerate(zip(size, steps, sigmas, strict=True)):
        offset = jnp.arange(step, dtype=jnp.float32) - (step - 1) / 2
        cell = jnp.arange(-reach, reach + 1, dtype=jnp.float32) * step
        z = (offset[None, :] - cell[:, None]) / jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-3)
        # The nearest cell keeps the sum away from zero where blobs are narrower than the grid.
        table = jnp.exp(-0.5 * (z**2 - (z**2).min(0, keepdims=True)))
        grid = _expand(grid, axis, table / table.sum(0, keepdims=True), step, length)
    return grid


def upsample(
    grid: jax.Array, size: Sequence[int], *, method: str = "bilinear", blur: float = 0.0
) -> jax.Array:
    """Enlarges a grid to the image.

    Args:
      grid: `[*cells]`.
      size: the image's shape without channels, px.
      method: "nearest"; "bilinear", half-pixel centres; "corners", bilinear with the corner pixels of
        grid and image on top of each other; "blurred", nearest followed by a Gaussian of `blur` px.
      blur: px, for "blurred".
    Returns:
      `[*size]` float32.
    Raises:
      ValueError: if the method is unknown.
    """
    if method not in ("nearest", "bilinear", "corners", "blurred"):
        raise ValueError(f"method must be nearest, bilinear, corners or blurred, got {method!r}")
    for axis, length in enumerate(size):
        cells = grid.shape[axis]
        at: np.ndarray = (np.arange(length) + 0.5) * cells / length - 0.5
        if method == "corners":
            at = np.arange(length) * ((cells - 1) / max(length - 1, 1))
        if method in ("bilinear", "corners"):
            at = np.clip(at, 0, cells - 1)
            low = np.floor(at).astype(np.int32)
            high = np.minimum(low + 1, cells - 1)
            shape = [1] * grid.ndim
            shape[axis] = length
            part = jnp.asarray(at - low, grid.dtype).reshape(shape)
            grid = jnp.take(grid, low, axis) * (1 - part) + jnp.take(grid, high, axis) * part
        else:
            grid = jnp.take(grid, np.clip(np.round(at).astype(np.int32), 0, cells - 1), axis)
    if method == "blurred":
        for axis in range(len(size)):
            taps = jnp.asarray(gaussian_taps(blur), grid.dtype)
            grid = _expand(grid, axis, taps[:, None], 1, size[axis])
    return grid


def gaussian_taps(sigma: float, truncate: float = 4.0) -> np.ndarray:
    """Returns `[2 ceil(truncate * sigma) + 1]` weights `exp(-i^2 / 2 sigma^2)` that sum to 1."""
    reach = math.ceil(truncate * sigma)
    i = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-0.5 * (i / sigma) ** 2) if sigma > 0 else (i == 0).astype(np.float64)
    return weights / weights.sum()


# ---------------------------------------------------------------------------------------------------
# The smooth maximum of extremal perturbations


def _phase_table(step: int, sigma: float, dims: int) -> tuple[np.ndarray, int]:
    """Weights `[(2r + 1)^dims, step, ...]` of the neighbours of a pixel: they repeat every `step`."""
    reach = 1 + math.ceil(sigma / step)
    axis = np.arange(step)[None, :] - step * np.arange(-reach, reach + 1)[:, None]
    square = np.zeros(())
    for d in range(dims):
        shape = [1] * (2 * dims)
        shape[d], shape[dims + d] = axis.shape
        square = square + (axis.astype(np.float64) ** 2).reshape(shape)
    kernel = np.exp(-2 * np.maximum(np.sqrt(square) / sigma - 0.5, 0) ** 2)
    return kernel.reshape(-1, *[step] * dims), reach


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _smooth_max(padded: jax.Array, step: int, sigma: float, coldness: float) -> jax.Array:
    return _smooth_max_forward(padded, step, sigma, coldness)[0]


def _windows(padded: jax.Array, step: int, sigma: float) -> tuple[Any, ...]:
    dims = padded.ndim
    table, reach = _phase_table(step, sigma, dims)
    cells = tuple(n - 2 * reach for n in padded.shape)
    starts = np.array(list(itertools.product(range(2 * reach + 1), repeat=dims)), np.int32)
    # [cells, 1, cells, 1, ...] against [1, step, 1, step, ...]: nearest upsampling by broadcasting.
    spread = tuple(n for c in cells for n in (c, 1))
    phases = tuple(n for _ in cells for n in (1, step))
    return jnp.asarray(table, padded.dtype), jnp.asarray(starts), cells, spread, phases


def _smooth_max_forward(
    padded: jax.Array, step: int, sigma: float, coldness: float
) -> tuple[Any, Any]:
    table, starts, cells, spread, phases = _windows(padded, step, sigma)
    full = tuple(a * b for a, b in zip(spread, phases, strict=True))

    def add(j: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        window = jax.lax.dynamic_slice(padded, [starts[j, d] for d in range(len(cells))], cells)
        w = window.reshape(spread) * table[j].reshape(phases)
        e = jnp.exp(coldness * w)
        return sums[0] + w * e, sums[1] + e

    zeros = jnp.zeros(full, padded.dtype)
    top, bottom = jax.lax.fori_loop(0, len(starts), add, (zeros, zeros))
    mask = top / bottom
    return mask, (padded, mask, bottom)


def _smooth_max_backward(
    step: int, sigma: float, coldness: float, kept: Any, g: jax.Array
) -> tuple[jax.Array]:
    padded, mask, bottom = kept
    table, starts, cells, spread, phases = _windows(padded, step, sigma)
    g = g / bottom
    over_phases = tuple(range(1, 2 * len(cells), 2))

    def add(j: jax.Array, total: jax.Array) -> jax.Array:
        at = [starts[j, d] for d in range(len(cells))]
        weight = table[j].reshape(phases)
        w = jax.lax.dynamic_slice(padded, at, cells).reshape(spread) * weight
        share = g * jnp.exp(coldness * w) * (1 + coldness * (w - mask)) * weight
        old = jax.lax.dynamic_slice(total, at, cells)
        return jax.lax.dynamic_update_slice(total, old + share.sum(over_phases), at)

    return (jax.lax.fori_loop(0, len(starts), add, jnp.zeros_like(padded)),)


_smooth_max.defvjp(_smooth_max_forward, _smooth_max_backward)


def smooth_max(
    params: jax.Array,
    size: Sequence[int],
    *,
    step: int = 7,
    sigma: float = 21.0,
    coldness: float = 20.0,
    unbiased: bool = False,
) -> Mask:
    """The smooth max-convolution of extremal perturbations (Fong et al. 2019, section 3.2).

    Every parameter paints the kernel `exp(-2 max(d / sigma - 1/2, 0)^2)` around its place, and a pixel
    takes the softmax-weighted mean of what reaches it. That mean is lower than the maximum: all-ones
    parameters give 0.976 to 0.996 with the published constants. The weights of the 81 neighbours
    repeat every `step` pixels, so a table of 81 x 7 x 7 does the work of 81 x 260 x 260.

    Args:
      params: `[*cells]` in [0, 1], `cells = ceil(size / step)`.
      size: the image's shape without channels, px.
      step: px between parameters.
      sigma: kernel radius, px.
      coldness: inverse temperature of the softmax.
      unbiased: divide by what all-ones parameters give and repeat the outermost parameters beyond the
        border, so that the mask reaches 1. False is the original: biased, and zero beyond the border.
    Returns:
      `visible` `[*size]` and `inner`, the padded mask on which the original measures its area.
    Raises:
      ValueError: if `sigma` is too small for `step`.
    """
    margin = math.ceil(sigma)
    padding = 1 + math.ceil((margin + sigma) / step)
    params = params.astype(jnp.promote_types(params.dtype, jnp.float32))
    padded = jnp.pad(params, padding, mode="edge" if unbiased else "constant")
    full = _smooth_max(padded, step, float(sigma), float(coldness))
    if unbiased:
        full = full / _smooth_max(jnp.ones_like(padded), step, float(sigma), float(coldness))
    shape = tuple(full.shape[i] * full.shape[i + 1] for i in range(0, full.ndim, 2))
    full = full.reshape(shape)
    inner = full[tuple(slice(0, n - step + 1) for n in shape)]
    visible = full[tuple(slice(margin, margin + n) for n in size)]
    if visible.shape != tuple(size):
        raise ValueError(
            f"sigma must be wide enough for the blobs of step {step} px to meet, got {sigma}; "
            "the paper has sigma = 3 step"
        )
    return Mask(visible, inner)


# The area that a shrinking mask starts from.
WHOLE = 0.95


@jax.custom_vjp
def _standard(u: jax.Array) -> jax.Array:
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


_standard.defvjp(_standard_forward, _standard_backward)


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


def _steps(size: Sequence[int], step: Any) -> tuple[int, ...]:
    return (step,) * len(size) if isinstance(step, int) else step


def _cells(size: Sequence[int], step: Any) -> tuple[int, ...]:
    return tuple(math.ceil(n / s) for n, s in zip(size, _steps(size, step), strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blobs:
    """Scores on a grid, spread as Gaussian blobs, cut at the exact visible area (our default).

    Attributes:
      cells: grid cells along the shorter side; the step is at least one px.
      blob: width of a blob (sigma) as a share of the root of the wanted area in px, so that small
        areas are drawn with finer blobs than large ones.
      narrowest, widest: bounds of that width, as shares of the shorter side.
      soft, sharp: temperature of the mask's edge while it shrinks, and at the end, in standard
        deviations of the scores. Low from the start: a softer mask lives on half-blurred pixels that
        vanish when it is binarised.
      shrink: share of the steps over which the area falls from all but everything to what was asked.
        What remains is chosen while its surroundings still help, not from a blank picture.
      aspect: relative extent of a blob along each axis; `(1 / 8, 1, 1)` for clips lets it reach one
        frame where it reaches 8 px. None is 1 along all.
    """

    cells: int = dataclasses.field(default=32, metadata={"static": True})
    widest: float = dataclasses.field(default=0.1, metadata={"static": True})
    narrowest: jax.Array | float = 0.02
    blob: jax.Array | float = 0.2
    soft: jax.Array | float = 0.1
    sharp: jax.Array | float = 0.025
    shrink: jax.Array | float = 0.5
    aspect: tuple[float, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def step(self, size: Sequence[int]) -> Any:
        """Returns the px between cells for an image of `size`, one number or one an axis."""
        if self.aspect is None:
            return max(1, round(min(size) / self.cells))
        return tuple(max(1, round(self._short(size) * a / self.cells)) for a in self.aspect)

    def _short(self, size: Sequence[int]) -> float:
        return min(n / a for n, a in zip(size, self.aspect or (1,) * len(size), strict=True))

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns flat scores `[*cells]`: every pixel equally likely."""
        return jnp.zeros(_cells(size, self.step(size)), jnp.float32)

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns `[*size]` scores of mean 0 and deviation at most 1; the mask keeps the highest."""
        step, short, aspect = self.step(size), self._short(size), self.aspect
        pixels = area * (math.prod(size) / math.prod(aspect or (1,)))
        extent = jnp.sqrt(pixels) if len(size) == 2 else pixels ** (1 / len(size))
        sigma: Any = jnp.clip(self.blob * extent, self.narrowest * short, self.widest * short)
        axes = aspect or (1.0,) * len(size)
        finest = max(a / s for a, s in zip(axes, _steps(size, step), strict=True))
        reach = max(1, math.ceil(3 * self.widest * short * finest))
        sigma = sigma if aspect is None else tuple(sigma * a for a in axes)
        u = gaussian_upsample(params, size, step=step, sigma=sigma, reach=reach)
        return _standard(u)

    def mask(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, progress: jax.Array
    ) -> Mask:
        """Returns the mask of exact soft area; `progress` in [0, 1] says how far it has come."""
        area, temperature = course(self, area, progress)
        u = self.scores(params, size, area)
        return Mask(exact_area(u, area, temperature=temperature), params)

    def project(self, params: jax.Array) -> jax.Array:
        """Scores are free: returns them as they are."""
        return params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothMax:
    """Parameters in [0, 1] under a smooth max-convolution, as published; the area is a penalty.

    Attributes:
      step: px between parameters.      sigma: kernel radius, px.      coldness: softmax sharpness.
      unbiased: see `smooth_max`.
    """

    step: int = dataclasses.field(default=7, metadata={"static": True})
    sigma: float = dataclasses.field(default=21.0, metadata={"static": True})
    coldness: float = dataclasses.field(default=20.0, metadata={"static": True})
    unbiased: bool = dataclasses.field(default=False, metadata={"static": True})

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns all ones: everything is kept."""
        return jnp.ones(_cells(size, self.step), jnp.float32)

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns the visible mask itself."""
        return self.mask(params, size, area, jnp.float32(1)).visible

    def mask(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, progress: jax.Array
    ) -> Mask:
        """Returns the visible mask and the padded one that carries the area penalty."""
        return smooth_max(
            params,
            size,
            step=self.step,
            sigma=self.sigma,
            coldness=self.coldness,
            unbiased=self.unbiased,
        )

    def project(self, params: jax.Array) -> jax.Array:
        """Clips to [0, 1]."""
        return jnp.clip(params, 0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """A low-resolution mask in [0, 1], enlarged to the image (meaningful perturbations).

    Attributes:
      cells: `(h, w)` of the grid, or None for one cell every `step` px.
      step: px between cells where `cells` is None.
      method: "nearest", "bilinear" or "blurred"; see `upsample`.
      blur: px, for "blurred".
      straight: let the gradient pass "blurred" as if there were no blur (the caffe original).
      start: value of every cell at the start.
    """

    cells: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    step: int = dataclasses.field(default=8, metadata={"static": True})
    method: str = dataclasses.field(default="bilinear", metadata={"static": True})
    blur: float = dataclasses.field(default=0.0, metadata={"static": True})
    straight: bool = dataclasses.field(default=False, metadata={"static": True})
    start: jax.Array | float = 1.0

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns `[*cells]`, all at `start`."""
        cells = self.cells or _cells(size, self.step)
        return jnp.ones(cells, jnp.float32) * self.start

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns the enlarged mask itself."""
        if not self.straight:
            return upsample(params, size, method=self.method, blur=self.blur)
        plain = upsample(params, size, method="nearest")
        blurred = upsample(params, size, method=self.method, blur=self.blur)
        return plain + jax.lax.stop_gradient(blurred - plain)

    def mask(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, progress: jax.Array
    ) -> Mask:
        """Returns the enlarged mask and the grid that carries the penalties."""
        return Mask(self.scores(params, size, area), params)

    def project(self, params: jax.Array) -> jax.Array:
        """Clips to [0, 1]."""
        return jnp.clip(params, 0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """One free score a pixel (or a channel), cut at the exact area; no smoothness at all.

    Attributes:
      soft, sharp, shrink: see `Blobs`.
    """

    soft: jax.Array | float = 0.1
    sharp: jax.Array | float = 0.025
    shrink: jax.Array | float = 0.5

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns flat scores `[*size]`."""
        return jnp.zeros(tuple(size), jnp.float32)

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns the scores with mean 0 and deviation 1."""
        return _standard(params)

    def mask(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, progress: jax.Array
    ) -> Mask:
        """Returns the mask of exact soft area; `progress` in [0, 1] says how far it has come."""
        area, temperature = course(self, area, progress)
        u = self.scores(params, size, area)
        return Mask(exact_area(u, area, temperature=temperature), params)

    def project(self, params: jax.Array) -> jax.Array:
        """Scores are free: returns them as they are."""
        return params
