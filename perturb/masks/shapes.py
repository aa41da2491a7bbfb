"""How a mask is written down: the parameters that are optimised, and the mask they stand for.

A parametrisation is a small record with `init`, `scores` and `mask`; all act on one item, and the
solver maps them over its slots. Masks have the shape of the image without its channels, so a signal
`[L, C]` or a volume `[D, H, W, C]` needs no other code than a picture.

>>> import jax.numpy as jnp
>>> way, size = Blobs(), (40, 40)
>>> mask = way.mask(way.init(size), size, jnp.float32(0.25), jnp.float32(1))
>>> mask.visible.shape, round(float(mask.visible.mean()), 6)
((40, 40), 0.25)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.masks.areas import WHOLE, binarise, course, exact_area, standard
from perturb.masks.upsampling import gaussian_upsample, grid_shape, per_axis, upsample
from perturb.types import PyTree

__all__ = [
    "Blobs",
    "Grid",
    "Mask",
    "Narrowing",
    "Parametrisation",
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

    def __repr__(self) -> str:
        return display.summary(self)


class Parametrisation(Protocol):
    """How a mask is written down: a record, registered as a pytree, of one item's mask."""

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns the first parameters.

        Args:
          size: the image's shape without channels, px.
        """

    def scores(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, *guide: jax.Array
    ) -> jax.Array:
        """Returns `[*size]`: a region of any area is made of the highest of these.

        Args:
          params: array, what is optimised.
          size: the image's shape without channels, px.
          area: the share of the pixels asked for, in (0, 1).
          guide: what is known of the item (`perturb.guided`), `[*size]`; none for most.
        """

    def mask(
        self,
        params: jax.Array,
        size: Sequence[int],
        area: jax.Array,
        progress: jax.Array,
        *guide: jax.Array,
    ) -> Mask:
        """Returns the soft mask.

        Args:
          params: array, what is optimised.
          size: the image's shape without channels, px.
          area: the share of the pixels asked for, in (0, 1).
          progress: from 0, the first step, to 1, the last.
          guide: as for `scores`.
        """

    def project(self, params: jax.Array) -> jax.Array:
        """Returns the nearest parameters that are allowed.

        Args:
          params: array, what a step has made of them.
        """


def _phase_table(step: int, sigma: float, dims: int) -> tuple[np.ndarray, int]:
    """Weights `[(2r + 1)^dims, step, ...]` of the neighbours of a pixel: they repeat every
    `step`.
    """
    # Constants of the published code: 9 x 9 neighbours for a step of 7 and sigma 21. The kernel is
    # not yet 0 at their edge, so another reach would give other masks.
    reach = 1 + math.ceil(sigma / step)
    axis = np.arange(step)[None, :] - step * np.arange(-reach, reach + 1)[:, None]
    square = np.zeros(())
    for d in range(dims):
        shape = [1] * (2 * dims)
        shape[d], shape[dims + d] = axis.shape
        square = square + (axis.astype(np.float64) ** 2).reshape(shape)
    # In float64, and rounded once when it becomes an array of the mask's type.
    kernel = np.exp(-2 * np.maximum(np.sqrt(square) / sigma - 0.5, 0) ** 2)
    return kernel.reshape(-1, *[step] * dims), reach


# The derivative is written by hand: autodiff would keep all 81 windows of the loop for the way
# back, each as large as the padded mask.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _smooth_max(padded: jax.Array, step: int, sigma: float, coldness: float) -> jax.Array:
    found: jax.Array = _smooth_max_forward(padded, step, sigma, coldness)[0]
    return found


def _windows(padded: jax.Array, step: int, sigma: float) -> tuple[PyTree, ...]:
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
) -> tuple[PyTree, PyTree]:
    table, starts, cells, spread, phases = _windows(padded, step, sigma)
    full = tuple(a * b for a, b in zip(spread, phases, strict=True))

    # A loop over the neighbours holds one window at a time; no maximum has to be subtracted before
    # exp, for no product exceeds 1 and exp(20) is far from overflow.
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
    step: int, sigma: float, coldness: float, kept: PyTree, g: jax.Array
) -> tuple[jax.Array]:
    padded, mask, bottom = kept
    table, starts, cells, spread, phases = _windows(padded, step, sigma)
    g = g / bottom
    over_phases = tuple(range(1, 2 * len(cells), 2))

    def add(j: jax.Array, total: jax.Array) -> jax.Array:
        at = [starts[j, d] for d in range(len(cells))]
        weight = table[j].reshape(phases)
        w = jax.lax.dynamic_slice(padded, at, cells).reshape(spread) * weight
        # The slope of sum(w e^cw) / sum(e^cw) by one w; `g` is divided by the denominator already.
        share = g * jnp.exp(coldness * w) * (1 + coldness * (w - mask)) * weight
        # Windows overlap, so each adds to what is there; all phases of a cell share its parameter.
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

    Every parameter paints the kernel `exp(-2 max(d / sigma - 1/2, 0)^2)` around its place, and a
    pixel takes the softmax-weighted mean of what reaches it. That mean is lower than the maximum:
    all-ones parameters give 0.976 to 0.996 with the published constants. The weights of the 81
    neighbours repeat every `step` pixels, so a table of 81 x 7 x 7 does the work of 81 x 260 x 260.

    Args:
      params: `[*cells]` in [0, 1], `cells = ceil(size / step)`.
      size: the image's shape without channels, px.
      step: px between parameters.
      sigma: kernel radius in pixels.
      coldness: inverse temperature of the softmax, positive.
      unbiased: divide by what all-ones parameters give and repeat the outermost parameters beyond
        the border, so that the mask reaches 1. False is the original: biased, and zero beyond the
        border.
    Returns:
      `visible` `[*size]` and `inner`, the padded mask on which the original measures its area.
    Raises:
      ValueError: if `sigma` is too small for `step`.
    """
    # The published geometry: a margin of one sigma, padded by as many cells as a blob reaches; its
    # padded mask (260 px for 224) ends step - 1 px before the last cell does.
    margin = math.ceil(sigma)
    padding = 1 + math.ceil((margin + sigma) / step)
    # exp(20 w) would overflow float16.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blobs:
    """Scores on a grid, spread as Gaussian blobs, cut at the exact visible area (our default).

    Attributes:
      cells: grid cells along the shorter side; the step is at least one px.
      widest: greatest width of a blob, as a share of the shorter side.
      narrowest: least width of a blob, as a share of the shorter side.
      blob: width of a blob (sigma) as a share of the root of the wanted area in px, so that small
        areas are drawn with finer blobs than large ones.
      soft: temperature of the mask's edge while it shrinks, in standard deviations of the scores.
        Low from the start: a softer mask relies on half-blurred pixels that vanish when it is
        binarised.
      sharp: temperature at the end, in standard deviations of the scores.
      shrink: share of the steps over which the area falls from all but everything to what was
        asked. What remains is chosen while its surroundings still help, not from a blank picture.
      aspect: relative extent of a blob along each axis; `(1 / 8, 1, 1)` for clips lets it reach one
        frame where it reaches 8 px. None is 1 along all.
    """

    # `cells`, `widest` and `aspect` decide shapes and are static; the rest is traced, so that other
    # values run the same program.
    cells: int = dataclasses.field(default=32, metadata={"static": True})
    widest: float = dataclasses.field(default=0.1, metadata={"static": True})
    narrowest: jax.Array | float = 0.02
    blob: jax.Array | float = 0.2
    soft: jax.Array | float = 0.1
    sharp: jax.Array | float = 0.025
    shrink: jax.Array | float = 0.5
    aspect: tuple[float, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def step(self, size: Sequence[int]) -> PyTree:
        """Returns the px between cells for an image of `size`, one number or one an axis.

        Args:
          size: the image's shape without channels, px.
        """
        if self.aspect is None:
            return max(1, round(min(size) / self.cells))
        return tuple(max(1, round(self._short(size) * a / self.cells)) for a in self.aspect)

    def _short(self, size: Sequence[int]) -> float:
        return min(n / a for n, a in zip(size, self.aspect or (1,) * len(size), strict=True))

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns flat scores `[*cells]`: every pixel equally likely."""
        return jnp.zeros(grid_shape(size, self.step(size)), jnp.float32)

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns `[*size]` scores of mean 0 and deviation at most 1; the mask keeps the
        highest.
        """
        step, short, aspect = self.step(size), self._short(size), self.aspect
        pixels = area * (math.prod(size) / math.prod(aspect or (1,)))
        # A square root is rounded correctly everywhere; a power by 1/2 need not be.
        extent = jnp.sqrt(pixels) if len(size) == 2 else pixels ** (1 / len(size))
        sigma: PyTree = jnp.clip(self.blob * extent, self.narrowest * short, self.widest * short)
        axes = aspect or (1.0,) * len(size)
        finest = max(a / s for a, s in zip(axes, per_axis(step, size), strict=True))
        # By the widest blob, not that of this area: the area is traced, but a shape cannot be.
        reach = max(1, math.ceil(3 * self.widest * short * finest))
        sigma = sigma if aspect is None else tuple(sigma * a for a in axes)
        u = gaussian_upsample(params, size, step=step, sigma=sigma, reach=reach)
        return standard(u)

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
class Narrowing(Blobs):
    """Finer blobs, for masks of which a step shows several (`perturb.solver.Recipe.together`).

    Each of them begins with an area of its own, from the whole range, and narrows to the one asked,
    while its edge sharpens. What is sought is the nearest of the areas .05, .071, .1, .141, .2 and
    so on: so near areas are cut from the same scores, and their regions are nested.

    Attributes:
      whole: the area that a mask begins with, a share in (0, 1).
    """

    cells: int = dataclasses.field(default=56, metadata={"static": True})
    widest: float = dataclasses.field(default=0.05, metadata={"static": True})
    narrowest: jax.Array | float = 0.018
    # Up to a tenth of the picture as fine as `narrowest`; the region of a half wants twice that.
    blob: jax.Array | float = 0.0569
    soft: jax.Array | float = 0.5
    sharp: jax.Array | float = 0.05
    shrink: jax.Array | float = 0.8
    blunt: jax.Array | float = 0.0
    whole: jax.Array | float = WHOLE

    def begun_with(self, whole: jax.Array | float) -> Narrowing:
        """Returns the same, whose area falls, or grows, from `whole` to what was asked."""
        return dataclasses.replace(self, whole=whole)

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns `[*size]` scores of mean 0 and deviation at most 1; the mask keeps the
        highest.
        """
        return super().scores(params, size, _rung(area))

    def mask(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, progress: jax.Array
    ) -> Mask:
        """Returns the soft mask, of the area sought, which may be a fifth off the one asked."""
        now, temperature = course(self, _rung(area), progress, self.whole)
        u = self.scores(params, size, area)
        return Mask(exact_area(u, now, temperature=temperature), params)


def _rung(area: jax.Array) -> jax.Array:
    found: jax.Array = 0.1 * 2 ** (jnp.round(2 * jnp.log2(area / 0.1)) / 2)
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothMax:
    """Parameters in [0, 1] under a smooth max-convolution, as published; the area is a penalty.

    Attributes:
      step: px between parameters.
      sigma: kernel radius, px.
      coldness: inverse temperature of the softmax, positive.
      unbiased: see `smooth_max`.
    """

    step: int = dataclasses.field(default=7, metadata={"static": True})
    sigma: float = dataclasses.field(default=21.0, metadata={"static": True})
    coldness: float = dataclasses.field(default=20.0, metadata={"static": True})
    unbiased: bool = dataclasses.field(default=False, metadata={"static": True})

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns all ones: everything is kept."""
        return jnp.ones(grid_shape(size, self.step), jnp.float32)

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
      blur: standard deviation in pixels, for "blurred".
      straight: whether the gradient passes "blurred" as if there were no blur (the caffe
        original).
      start: value of every cell at the start, in [0, 1].
    """

    cells: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    step: int = dataclasses.field(default=8, metadata={"static": True})
    method: str = dataclasses.field(default="bilinear", metadata={"static": True})
    blur: float = dataclasses.field(default=0.0, metadata={"static": True})
    straight: bool = dataclasses.field(default=False, metadata={"static": True})
    start: jax.Array | float = 1.0

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns `[*cells]`, all at `start`."""
        # The published grids have a fixed number of cells; a step fits pictures of any shape.
        cells = self.cells or grid_shape(size, self.step)
        return jnp.ones(cells, jnp.float32) * self.start

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns the enlarged mask itself."""
        if not self.straight:
            return upsample(params, size, method=self.method, blur=self.blur)
        plain = upsample(params, size, method="nearest")
        blurred = upsample(params, size, method=self.method, blur=self.blur)
        # The value is that of the blurred mask, the gradient that of the plain one.
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
      soft: temperature while the area shrinks, see `Blobs`.
      sharp: temperature at the end, see `Blobs`.
      shrink: share of the steps over which the area shrinks, see `Blobs`.
    """

    soft: jax.Array | float = 0.1
    sharp: jax.Array | float = 0.025
    shrink: jax.Array | float = 0.5

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns flat scores `[*size]`."""
        return jnp.zeros(tuple(size), jnp.float32)

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns the scores with mean 0 and deviation 1."""
        return standard(params)

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
