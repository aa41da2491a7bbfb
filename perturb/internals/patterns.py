"""Patterns: what a unit detects, as against what it must subtract; PatternNet and
PatternAttribution.

Kindermans et al., Learning how to explain neural networks, 2018. A unit `y = w x` sees signal and
distractor, `x = s + d` with `w d = 0`; the weights must cancel the distractor, so they do not show
the signal, and a pattern `a` with `s = a y` does: `a = cov(x, y) / var(y)`, or one for either sign
of the activation. All statistics are gradients with respect to kernels, so no patches are cut out.

Where we differ: whether a unit fires is decided by the activation with its bias, `y` is without it
(the paper's convention); a unit that never fires has the pattern 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, rows
from perturb.model import Model
from perturb.taps.swapping import LAYER, Layer, swap
from perturb.types import Array, ArrayLike, PyTree

__all__ = [
    "Moments",
    "Patterns",
    "add_moments",
    "fit_patterns",
    "pattern_attribution",
    "pattern_net",
    "patterns_of",
    "signal_quality",
]


class Moments(NamedTuple):
    """Sums over all places of a layer, for each unit; `kernel` arrays have the kernel's shape.

    Attributes:
      number: `[units]` places where the unit fires.
      number_off: `[units]` places where it does not.
      x: kernel-shaped sum of what the unit sees where it fires; shape `kernel`.
      x_off: the same where it does not fire; shape `kernel`.
      xy: sum of what it sees times its activation without bias, where it fires; shape `kernel`.
      xy_off: the same where it does not fire; shape `kernel`.
      y: `[units]` sum of the activation over all places.
      yy: `[units]` sum of its square.
    """

    number: PyTree
    number_off: PyTree
    x: jax.Array
    x_off: jax.Array | float
    xy: jax.Array | float
    xy_off: jax.Array | float
    y: jax.Array
    yy: PyTree

    def __repr__(self) -> str:
        return display.summary(self)


class Patterns(NamedTuple):
    """Patterns of every layer with a kernel, in the order of execution; each of the kernel's shape.

    Attributes:
      linear: `cov(x, y) / var(y)` over all places.
      positive: `cov(x, y) / var(y)` over places where the unit fires; its product with the kernel
        is 1.
      negative: the same over places where it does not fire, one array a layer.
    """

    linear: tuple[jax.Array, ...]
    positive: tuple[jax.Array, ...]
    negative: tuple[jax.Array, ...]

    def __repr__(self) -> str:
        return display.summary(self)


def add_moments(model: Model, images: jax.Array, before: PyTree = None) -> tuple[Moments, ...]:
    """Returns the sums of every layer with a kernel over a batch, added to those `before`.

    Args:
      model: whose normalisation is folded into its kernels: a pattern is that of one layer.
      images: `[B, H, W, C]` in [0, 1].
      before: the tuple returned for earlier batches; None starts at 0.
    """
    found = _moments(model, jnp.asarray(images))
    result: tuple[Moments, ...] = found if before is None else jax.tree.map(jnp.add, before, found)
    return result


@jax.jit
def _moments(model: Model, images: jax.Array) -> tuple[Moments, ...]:
    found: list[Moments] = []

    def note(layer: Layer, x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
        # The derivative for the kernel sums what the unit saw, weighted by what is handed in:
        # convolutions need no patches.
        y, back = jax.vjp(lambda w: layer(x, w), kernel)
        # Firing is decided with the bias, `y` is without it: as in the paper.
        on = (layer(x, kernel, *bias) > 0).astype(y.dtype)
        off = 1 - on
        units = tuple(i for i in range(y.ndim) if i != layer.unit_axis)
        found.append(
            Moments(
                number=on.sum(units),
                number_off=off.sum(units),
                x=back(on)[0],
                x_off=back(off)[0],
                xy=back(on * y)[0],
                xy_off=back(off * y)[0],
                y=y.sum(units),
                yy=(y * y).sum(units),
            )
        )
        result: jax.Array = layer(x, kernel, *bias)
        return result

    swap(lambda x: model(x), {LAYER: note})(images)
    return tuple(found)


def patterns_of(
    moments: Moments, kernel: jax.Array, axis: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the linear, the positive and the negative pattern of a layer's units.

    Args:
      moments: sums of the layer.
      kernel: of the layer.
      axis: of its units.
    """
    m = moments

    def spread(v: jax.Array) -> jax.Array:
        return v.reshape([-1 if i == axis else 1 for i in range(kernel.ndim)])

    def project(v: jax.Array) -> jax.Array:
        return (kernel * v).sum([i for i in range(kernel.ndim) if i != axis], keepdims=True)

    def divide(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))

    number = spread(m.number + m.number_off)
    # Of all places, also for the one-sided patterns, as the paper defines them.
    mean = spread(m.y) / number
    linear = divide(
        (m.xy + m.xy_off) / number - (m.x + m.x_off) / number * mean,
        spread(m.yy) / number - mean**2,
    )
    one_sided = []
    for count, x, xy in ((m.number, m.x, m.xy), (m.number_off, m.x_off, m.xy_off)):
        n = jnp.maximum(spread(count), 1)
        found = xy / n - x / n * mean
        # A unit that fired once has no covariance: what is left is rounding, and is no direction.
        scale = project(jnp.abs(found)) + jnp.finfo(kernel.dtype).tiny
        along = project(found)
        one_sided.append(jnp.where(jnp.abs(along) > 1e-6 * scale, divide(found, along), 0))
    return linear, one_sided[0], one_sided[1]


def fit_patterns(model: Model, batches: Iterable[PyTree]) -> Patterns:
    """Returns the patterns of a model's layers from batches of images, one pass.

    Args:
      model: a network without batch normalisation of its own (folded, or none).
      batches: arrays `[B, H, W, C]` in [0, 1]; all of one size compile once.
    Raises:
      ValueError: if there are no batches.
    """
    total, last = None, None
    for batch in batches:
        last = jnp.asarray(batch)
        total = add_moments(model, last, total)
    if total is None or last is None:
        raise ValueError("batches must hold at least one array of images, got none")
    kernels, axes = _kernels(model, last)
    found = [patterns_of(m, k, a) for m, k, a in zip(total, kernels, axes, strict=True)]
    return Patterns(*(tuple(each) for each in zip(*found, strict=True)))


def _kernels(model: Model, images: jax.Array) -> tuple[list[jax.Array], list[int]]:
    kernels: list[jax.Array] = []
    axes: list[int] = []

    def note(layer: Layer, x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
        kernels.append(kernel)
        axes.append(layer.kernel_axis)
        found: jax.Array = layer(x, kernel, *bias)
        return found

    # Twice one image: a batch of one compiles to other arithmetic.
    swap(lambda x: model(x), {LAYER: note})(images[:1].repeat(2, 0))
    return kernels, axes


def pattern_net(model: Model, images: ArrayLike, targets: PyTree, patterns: Patterns) -> np.ndarray:
    """Returns `[B, H, W, C]`, the signal in the input: the target's score handed back by patterns.

    The gradient with every kernel exchanged for its positive pattern. Layers deep down multiply
    many patterns: it is a direction, of no scale.

    Args:
      model, images, targets: as for `perturb.attribution.gradient`.
      patterns: of this model, see `fit_patterns`.
    """
    return _handed_back(model, images, targets, patterns.positive, False)


def pattern_attribution(
    model: Model, images: ArrayLike, targets: PyTree, patterns: Patterns
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: how much the signal at each pixel adds to the target's score.

    The same with every kernel exchanged for the product of kernel and positive pattern, summed over
    channels. Of a linear network it sums to the score.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      patterns: what `fit_patterns` returned for this model.
    """
    found: np.ndarray = _handed_back(model, images, targets, patterns.positive, True).sum(-1)
    return found


def _handed_back(
    model: Model, images: ArrayLike, targets: PyTree, positive: tuple[jax.Array, ...], weigh: bool
) -> np.ndarray:
    pixels, classes, number = rows.checked_batch(model, images, targets)
    return np.asarray(_back(model, pixels, classes, positive, weigh)[:number])


@functools.partial(jax.jit, static_argnames="weigh")
def _back(
    model: Model,
    images: jax.Array,
    targets: PyTree,
    positive: tuple[jax.Array, ...],
    weigh: bool,
) -> jax.Array:
    def total(images: jax.Array) -> jax.Array:
        used = iter(positive)

        def exchange(layer: Layer, x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
            # Layers come in the order of execution, in which the patterns were fitted.
            pattern = next(used)
            return _with_kernel(layer, kernel, bias, kernel * pattern if weigh else pattern)(x)

        outputs = swap(lambda x: model(x), {LAYER: exchange})(images)
        return rows.score(model, outputs, targets).sum()

    # Starts as the score itself: the gradient would start as 1.
    scores = rows.score(model, model(images), targets)
    found: jax.Array = jax.grad(total)(images) * rows.beside(scores, images)
    return found


def _with_kernel(
    layer: Layer, kernel: jax.Array, bias: PyTree, other: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The layer, whose derivative is that of a layer with another kernel."""

    @jax.custom_vjp
    def g(x: jax.Array) -> jax.Array:
        found: jax.Array = layer(x, kernel, *bias)
        return found

    def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        return (jax.vjp(lambda x: layer(x, other), x)[1](g)[0],)

    g.defvjp(lambda x: (layer(x, kernel, *bias), x), backward)
    return g


def signal_quality(x: Array, kernel: ArrayLike, signal: Array) -> float:
    """Returns rho, how little of a unit's activation can be read from what is not signal (eq. 5).

    `rho = 1 - max_v corr(w x, v (x - S(x)))`, whose maximum is a linear regression: here in closed
    form from second moments, in float64.

    Args:
      x: `[N, D]` what the unit sees.
      kernel: `[D]` weights of the unit.
      signal: `[N, D]`, the estimate `S(x)`.

    >>> rng = np.random.default_rng(0)
    >>> y, e = rng.normal(size=(2, 200_000))
    >>> x, w = np.outer(y, [1, 0]) + np.outer(e, [1, 1]), np.array([1.0, -1.0])
    >>> round(signal_quality(x, w, np.outer(x @ w, w / (w @ w))), 2)
    0.55
    """
    x, kernel, signal = (np.asarray(v, np.float64) for v in (x, kernel, signal))
    y = x @ kernel
    rest = x - signal
    y, rest = y - y.mean(), rest - rest.mean(0)
    covariance, along = rest.T @ rest, rest.T @ y
    scale = np.sqrt(y @ y)
    if not scale:
        return float("nan")
    # Directions without variance are rounding: the residual never has the full rank of x.
    explained = along @ np.linalg.pinv(covariance, rcond=1e-9, hermitian=True) @ along
    return float(1 - np.sqrt(max(explained, 0.0)) / scale)
