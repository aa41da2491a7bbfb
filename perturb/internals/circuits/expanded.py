"""Expanded weights: what one unit gives another across any number of layers, as a linear map.

Voss et al., Visualizing Weights, 2021. The weights between two taps of a model are the gradient of
the upper unit with relu as the identity and the maximum of a pool as the mean: exact where the path
is linear, and otherwise what reaches the unit if units in between fire independently. Paths through
skip connections, bottlenecks and separable kernels come for free.

Beside them stand two figures that say when not to believe them: the mean of the true gradient over
images on which the unit is active, and the cancellation index of the paths through a middle layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, taps
from perturb.model import Model
from perturb.taps.swapping import swap
from perturb.types import ArrayLike, Function, PyTree

__all__ = ["LINEAR", "Expanded", "expanded_weights"]

# Inner functions that are taken as the identity.
_GATES = ("relu", "relu6", "leaky_relu", "gelu", "silu", "elu", "hard_swish", "celu")


class Expanded(NamedTuple):
    """Weights between a unit and all of a lower layer.

    Attributes:
      weights: `[*lower]`, without the batch: the linear map's row for the unit at its place.
      gradient: the same of the model as it is, mean over images on which the unit is above 0;
        NaN where there is none.
      active: number of images on which the unit is above 0.
      cancellation: `[*lower]`, `|sum| / sum |.|` over the units of the middle layer: 1 where all
        paths agree, near 0 where opposite ones cancel; None without a middle layer.
    """

    weights: np.ndarray
    gradient: np.ndarray
    active: int
    cancellation: np.ndarray | None

    def __repr__(self) -> str:
        return display.summary(self)


def _identity(old: PyTree, varied: tuple[bool, ...], x: jax.Array, *rest: object) -> jax.Array:
    return x


def _maximum(old: PyTree, varied: tuple[bool, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    """Against a constant it is a relu; of two activations, the mean."""
    if varied == (True, True):
        # Which is the larger depends on the image; the linear map takes them as equally likely.
        return (a + b) / 2
    x = a if varied[0] else b
    return jnp.broadcast_to(x, jnp.broadcast_shapes(jnp.shape(a), jnp.shape(b)))


def _window_mean(old: PyTree, varied: tuple[bool, ...], x: jax.Array) -> jax.Array:
    p = old.params

    def total(x: jax.Array) -> jax.Array:
        found: jax.Array = jax.lax.reduce_window(
            x,
            jnp.zeros((), x.dtype),
            jax.lax.add,
            p["window_dimensions"],
            p["window_strides"],
            p["padding"],
            base_dilation=p["base_dilation"],
            window_dilation=p["window_dilation"],
        )
        return found

    # Over the count of what lies inside: windows at the border hold fewer cells.
    return total(x) / total(jnp.ones_like(x))


def _slices_mean(old: PyTree, varied: tuple[bool, ...], x: jax.Array) -> jax.Array:
    """`perturb.nets` takes the maximum of shifted slices: a sum takes its place, over a count."""

    def add(
        old: PyTree, varied: PyTree, choice: jax.Array, a: jax.Array, b: jax.Array
    ) -> jax.Array:
        return a + b

    def border(old: PyTree, varied: PyTree, x: jax.Array, value: jax.Array) -> jax.Array:
        found: jax.Array = old(x, jnp.zeros_like(value))
        return found

    total = swap(old, {"_where": add, "pad": border})
    found: jax.Array = total(x) / total(jnp.ones_like(x))
    return found


LINEAR: dict[str, Function] = {
    **dict.fromkeys(_GATES, _identity),
    "max": _maximum,
    "max_pool": _slices_mean,
    "reduce_window_max": _window_mean,
}


def expanded_weights(
    model: Model,
    images: ArrayLike,
    *,
    lower: str,
    upper: str,
    unit: int,
    place: tuple[int, ...] | None = None,
    through: str | None = None,
) -> Expanded:
    """Returns the weights from a lower layer to one unit of an upper one.

    Args:
      model: any model; batch normalisation counts with its stored statistics.
      images: `[B, H, W, C]`; the weights do not depend on them where the path between the layers
        has nothing but kernels, sums, relu and pools, the true gradient does.
      lower, upper: names of activations, see `perturb.taps.names`.
      unit: channel of the upper activation.
      place: where in the upper activation; None is the middle.
      through: name of an activation between the two, for the cancellation index.
    Raises:
      ValueError: if a layer, the unit or the place is not there.

    >>> from perturb import taps
    >>> net = lambda w, x: taps.tag(jax.nn.relu(taps.tag(x @ w, "a")) @ w, "b")
    >>> two = Model(net, jnp.eye(3) * 2)
    >>> expanded_weights(two, np.ones((1, 3)), lower="a", upper="b", unit=1).weights.tolist()
    [0.0, 2.0, 0.0]
    """
    images = jnp.asarray(images, jnp.float32)
    shape = taps.read(model, upper)(images)[1][upper].shape
    axis = model.channel_axis(np.empty(shape))
    if not -shape[axis] <= unit < shape[axis]:
        raise ValueError(f"unit must be in 0 to {shape[axis] - 1} of {upper!r}, got {unit}")
    sides = tuple(n for i, n in enumerate(shape) if i not in (0, axis))
    where = tuple(n // 2 for n in sides) if place is None else tuple(place)
    if len(where) != len(sides) or any(not 0 <= p < n for p, n in zip(where, sides, strict=True)):
        raise ValueError(f"place must lie in {sides} of {upper!r}, got {place}")
    at = list(where)
    # The axes of one image are those of the batch less the first.
    at.insert(axis - 1, unit)

    def rise(layer: str, shown: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The unit `[B]` as a function of what is added to a layer."""

        def f(added: jax.Array) -> jax.Array:
            edited = taps.edit(
                lambda m, x: taps.read(m, upper)(x)[1][upper], {layer: lambda a: a + added}
            )
            found: jax.Array = edited(model, shown)[(slice(None), *at)]
            return found

        return f

    # Never a batch of one: XLA compiles it to other arithmetic.
    shown = images if len(images) > 1 else images.repeat(2, 0)
    zero = jnp.zeros_like(taps.read(model, lower)(shown)[1][lower])
    # The slope of a linear map does not depend on where it is taken: at what is added of 0.
    linear = jax.grad(lambda d: swap(rise(lower, shown), LINEAR)(d).sum())(zero)
    values, back = jax.vjp(rise(lower, shown), zero)
    gradients = np.asarray(back(jnp.ones_like(values))[0])[: len(images)]
    active = np.asarray(values)[: len(images)] > 0
    empty = np.full(zero.shape[1:], np.nan, np.float32)
    cancellation = None
    if through is not None:
        cancellation = _cancellation(model, shown, rise, lower, through, zero)
    return Expanded(
        np.asarray(linear[0]),
        gradients[active].mean(0) if active.any() else empty,
        int(active.sum()),
        cancellation,
    )


def _cancellation(
    model: Model, shown: jax.Array, rise: PyTree, lower: str, middle: str, zero: jax.Array
) -> np.ndarray:
    between = jnp.zeros_like(taps.read(model, middle)(shown)[1][middle])
    weights = jax.grad(lambda d: swap(rise(middle, shown), LINEAR)(d).sum())(between)
    axis = model.channel_axis(between)

    def path(added: jax.Array) -> jax.Array:
        edited = taps.edit(
            lambda m, x: taps.read(m, middle)(x)[1][middle], {lower: lambda a: a + added}
        )
        found: jax.Array = edited(model, shown)
        return found

    _, back = jax.vjp(swap(path, LINEAR), zero)
    units = between.shape[axis]

    def share(unit: jax.Array) -> jax.Array:
        chosen = jax.nn.one_hot(unit, units, dtype=weights.dtype)
        found: jax.Array = back(
            weights * jnp.expand_dims(chosen, [i for i in range(weights.ndim) if i != axis])
        )[0][0]
        return found

    # Unit by unit: all at once the gradients of the whole middle layer would be held.
    shares = np.asarray(jax.lax.map(share, jnp.arange(units)), np.float64)
    size = np.abs(shares).sum(0)
    found: np.ndarray = np.divide(
        np.abs(shares.sum(0)), size, out=np.ones_like(size), where=size > 0
    )
    return found
