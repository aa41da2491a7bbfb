"""Excitation backpropagation and its contrastive form (Zhang et al. 2016).

Probability flows from the target back to a layer: each unit hands its share on to the units below
in proportion to what they bring, `R_in = x w⁺ᵀ (R / (x w⁺))` (equation 4). Convolutions, matrix
products, sums over places and skip connections are exchanged for ones with that rule; factors and
biases that do not depend on the image pass everything on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb import layouts, taps
from perturb.attribution import _common
from perturb.model import Model
from perturb.taps.swapping import Inner, swap
from perturb.types import ArrayLike, PyTree

__all__ = ["contrastive_excitation", "excitation"]

Rule = Callable[..., Any]
# A unit that nothing excites hands nothing on: 0 over this, and not 0 / 0.
_TINY = 1e-20


def excitation(
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str | None = None
) -> np.ndarray:
    """Returns `[B, H, W]`: the winning probability that reaches each place of a layer.

    Args:
      model, images, targets: as for `gradient`.
      layer: an activation of values from 0 on; None is the last one with places left.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    name = layer or _common.last_layer(model, pixels)
    return _common.enlarge(_map(model, pixels, classes, name)[:number], pixels.shape[1:-1])


def contrastive_excitation(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    layer: str,
    contrast_layer: str | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`, at least 0: the same less what flows to "not the target".

    Args:
      model, images, targets: as for `gradient`.
      layer: where the map is read.
      contrast_layer: after `layer`, where the flow under the last layer's reversed weights is taken
        off; None is the last one with places left.

    Raises:
      ValueError: if both layers are the same, where the two flows are equal, or as `gradient`.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    upper = contrast_layer or _common.last_layer(model, pixels)
    if upper == layer:
        given = "contrast_layer" if contrast_layer else "the last layer with places"
        raise ValueError(
            f"layer must lie before {given}, got {layer!r} for both: nothing would be left of the "
            "map; read it at an earlier layer"
        )
    found = _contrast(model, pixels, classes, layer, upper)
    return _common.enlarge(found[:number], pixels.shape[1:-1])


def _linear(sign: float = 1.0) -> Rule:
    """The rule of a convolution or product with weights that do not depend on the image."""

    def rule(old: Rule, varied: tuple[bool, ...], x: jax.Array, *rest: jax.Array) -> jax.Array:
        # Weights that depend on the image (attention) are none: such a product keeps its
        # derivative.
        if varied != (True, *[False] * len(rest)):
            found: jax.Array = old(x, *rest)
            return found
        positive = [jnp.maximum(sign * w, 0) for w in rest]
        found = _flow(lambda x: old(x, *rest), lambda x: old(x, *positive))(x)
        return found

    return rule


def _flow(old: Rule, positive: Rule) -> Rule:
    """`old` with the excitation rule of the linear map `positive` as its derivative."""

    @jax.custom_vjp
    def g(x: jax.Array) -> jax.Array:
        found: jax.Array = old(x)
        return found

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return old(x), x

    def backward(x: jax.Array, r: jax.Array) -> tuple[jax.Array]:
        x = jnp.maximum(x, 0)
        # Only units above 0 excite those behind them.
        z, back = jax.vjp(positive, x)
        return (x * back(r / (z + _TINY))[0],)

    g.defvjp(forward, backward)
    return g


def _sum(old: Rule, varied: tuple[bool, ...], x: jax.Array) -> jax.Array:
    found: jax.Array = _flow(old, old)(x)
    return found


def _add(old: Rule, varied: tuple[bool, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    """A skip connection shares by value; a bias takes nothing."""
    if varied != (True, True):
        found: jax.Array = old(a, b)
        return found

    @jax.custom_vjp
    def g(a: jax.Array, b: jax.Array) -> jax.Array:
        found: jax.Array = old(a, b)
        return found

    def backward(kept: PyTree, r: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = (jnp.maximum(v, 0) for v in kept)
        share = r / (a + b + _TINY)
        return a * share, b * share

    g.defvjp(lambda a, b: (old(a, b), (a, b)), backward)
    return g(a, b)


def _scale(old: Rule, varied: tuple[bool, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    """A factor that does not depend on the image (normalisation, one over a count) passes all
    on.
    """
    if varied == (True, True) or (varied == (False, True) and jnp.ndim(b) < jnp.ndim(a)):
        found: jax.Array = old(a, b)
        return found
    x, fixed, first = (a, b, True) if varied[0] else (b, a, False)
    y = old(x, fixed) if first else old(fixed, x)
    if jnp.shape(y) != jnp.shape(x):
        result: jax.Array = y
        return result
    # The value of `y` with the derivative of `x`: everything is passed on.
    result = x + jax.lax.stop_gradient(y - x)
    return result


def _outside(sign: float = 1.0) -> Rule:
    """The rule of a network that another framework runs, which has the same rules inside."""

    def rule(old: Inner, varied: tuple[bool, ...], *operands: jax.Array) -> PyTree:
        run, count = old.params["run"], old.params["fixed"]
        weights, rows = operands[:count], operands[count:]

        @jax.custom_vjp
        def g(*rows: jax.Array) -> PyTree:
            return old(*weights, *rows)

        def backward(rows: tuple[jax.Array, ...], r: PyTree) -> tuple[jax.Array, ...]:
            slopes = jax.tree.leaves(r)
            return tuple(run.excitation(weights, rows, slopes, varied[count:], sign < 0))

        g.defvjp(lambda *rows: (old(*weights, *rows), rows), backward)
        return g(*rows)

    return rule


_RULES: dict[str, Rule] = {
    "host_call": _outside(),
    "conv_general_dilated": _linear(),
    "dot_general": _linear(),
    "reduce_sum": _sum,
    "reduce_window_sum": _sum,
    "add": _add,
    "mul": _scale,
    "div": _scale,
}


@functools.partial(jax.jit, static_argnames="layer")
def _map(model: Model, images: jax.Array, targets: jax.Array, layer: str) -> jax.Array:
    return _common.pull(model, images, targets, layer, _RULES)[1].sum(-1)


@functools.partial(jax.jit, static_argnames=("layer", "upper"))
def _contrast(
    model: Model, images: jax.Array, targets: jax.Array, layer: str, upper: str
) -> jax.Array:
    plus = _common.flow(model, images, targets, upper, _RULES)[1]
    # The classifier is the last weighted function after the contrast layer.
    last = _last_only()
    minus = _common.flow(model, images, targets, upper, {**_RULES, **last(model, images, upper)})[1]
    # The two flows differ above the contrast layer only. Below it one pass carries their
    # difference, for the rule is linear in what it hands back.
    lower = taps.read(model, layer)(images)[1][layer]

    def between(a: jax.Array) -> jax.Array:
        seen: dict[str, jax.Array] = {}
        edits = {layer: lambda _: a, upper: lambda u: seen.setdefault("value", u)}
        taps.edit(model, edits)(images)
        return seen["value"]

    _, back = jax.vjp(swap(between, _RULES), lower)
    lowest = layouts.layer_layout(model, images, layer)
    return jnp.maximum(lowest.to_places(back(plus - minus)[0]).sum(-1), 0)


def _last_only() -> Callable[..., dict[str, Rule]]:
    """Rules that reverse the weights of the last convolution or product."""

    def make(model: Model, images: jax.Array, upper: str) -> dict[str, Rule]:
        prefix, suffix = taps.split(model, upper)
        activation, live = prefix(images)
        seen: list[int] = []

        def count(old: Rule, varied: tuple[bool, ...], *operands: jax.Array) -> jax.Array:
            seen.append(len(seen))
            found: jax.Array = old(*operands)
            return found

        kinds = {"conv_general_dilated": _linear, "dot_general": _linear, "host_call": _outside}
        # Which one is the last is known only at the end: the functions are counted in a
        # trace before.
        jax.eval_shape(swap(lambda a: suffix(a, live), dict.fromkeys(kinds, count)), activation)
        total, done = len(seen), []

        def counted(kind: Callable[[float], Rule]) -> Rule:
            def rule(old: Rule, varied: tuple[bool, ...], *operands: jax.Array) -> PyTree:
                done.append(1)
                sign = -1.0 if len(done) == total else 1.0
                return kind(sign)(old, varied, *operands)

            return rule

        return {name: counted(kind) for name, kind in kinds.items()}

    return make
