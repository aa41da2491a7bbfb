"""What the rules for transformers share: attention and skip connections found in the trace,
balanced products.

Nothing is known of the network but its primitives. An attention is two products of which both
factors depend on the image: queries by keys, then what became of that by values. A skip connection
is a sum of two such values. Gates, norms and softmaxes are what their primitives say: `erf`,
`rsqrt`, `exp`, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax

from perturb import layouts
from perturb.model import Model
from perturb.taps.swapping import HOLD, Inner, swap
from perturb.types import ArrayLike, Function, PyTree

__all__ = [
    "CURVED",
    "balanced",
    "check_weights",
    "places",
    "shared",
    "threaded",
    "token_layout",
]

Rule = Function
Visit = Callable[[int, jax.Array], jax.Array]
# Functions that are not affine, even piecewise: gates, denominators. Of the softmax there is `exp`
# alone.
CURVED = (
    *(
        "erf",
        "erfc",
        "tanh",
        "logistic",
        "rsqrt",
        "sqrt",
        "cbrt",
        "log",
        "log1p",
        "sin",
        "cos",
        "pow",
    ),
    *("exp", "exp2", "expm1"),
)


def _less(value: jax.Array, share: float) -> jax.Array:
    """The same value with a share of its derivative."""
    fixed = jax.lax.stop_gradient(value)
    return fixed + share * (value - fixed)


def shared(old: Inner, varied: tuple[bool, ...], *operands: jax.Array) -> jax.Array:
    """A product of two values that depend on the image: each has half of the derivative."""
    return _less(old(*operands), 0.5) if varied == (True, True) else old(*operands)


def _power(old: Inner, varied: tuple[bool, ...], x: jax.Array) -> jax.Array:
    """`x ** n` is a product of n equal factors; negative powers are denominators, and constants."""
    power = old.params.get("y", 2)
    y = old(x)
    return _less(y, 1 / power) if power > 0 else jax.lax.stop_gradient(y)


def _quotient(old: Inner, varied: tuple[bool, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    found: jax.Array = old(a, jax.lax.stop_gradient(b))
    return found


def balanced(held: tuple[str, ...] = CURVED) -> dict[str, Rule]:
    """Returns rules under which every product hands on its value once: gates, denominators held,
    factors sharing.

    Args:
      held: functions whose values count as constants. Without "exp" the softmax keeps its own
        derivative.
    """
    rules: dict[str, Rule] = dict.fromkeys(held, HOLD)
    rules |= {"mul": shared, "dot_general": shared, "square": _power, "integer_pow": _power}
    return rules | ({"div": _quotient} if "exp" in held else {})


def threaded(
    f: Function,
    *,
    weights: Visit | None = None,
    skips: Visit | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> Function:
    """Returns `f` whose attention weights and skip connections pass through functions.

    Args:
      f: of the images, and more.
      weights: `(number, [B, heads, queries, keys]) -> the same`, of every attention in the order of
        execution.
      skips: `(number, sum) -> the same`, of every sum of two values that depend on the image.
      rules: further rules of `perturb.taps.swapping`.
    """
    rules = dict(rules or {})
    count = {"weights": 0, "skips": 0}
    waiting: list[tuple[int, ...]] = []

    def product(old: Inner, varied: tuple[bool, ...], a: jax.Array, b: jax.Array) -> jax.Array:
        if varied == (True, True) and weights is not None:
            # A product that follows another, and has a factor of that one's shape: weights by
            # values, after queries by keys. Between them lie only functions that keep the shape.
            which = [i for i, v in enumerate((a, b)) if waiting and _like(v.shape, waiting[-1])]
            contracted, batch = old.params["dimension_numbers"]
            if which:
                waiting.clear()
                at = which[0]
                order = _upright((a, b)[at].ndim, contracted[at], batch[at])
                found = _seen(weights, count["weights"], (a, b)[at], order)
                count["weights"] += 1
                a, b = (found, b) if at == 0 else (a, found)
            else:
                # Its shape alone is needed: nothing is multiplied twice.
                waiting[:] = [jax.eval_shape(lambda x, y: old(x, y), a, b).shape]
        rule = rules.get("dot_general")
        result: jax.Array = rule(old, varied, a, b) if rule else old(a, b)
        return result

    def sum_(old: Inner, varied: tuple[bool, ...], a: jax.Array, b: jax.Array) -> jax.Array:
        rule = rules.get("add")
        y = rule(old, varied, a, b) if rule else old(a, b)
        # Sums within a gate's polynomial have no rank of tokens, or are none of two branches; nor
        # are scores.
        if skips is not None and varied == (True, True) and y.ndim > 2:
            count["skips"] += 1
            y = skips(count["skips"] - 1, y)
        found: jax.Array = y
        return found

    def g(*args: object) -> jax.Array:
        # A function may be traced more than once; each trace counts from 0.
        count.update(weights=0, skips=0)
        waiting.clear()
        found: jax.Array = swap(f, {**rules, "dot_general": product, "add": sum_})(*args)
        return found

    return g


def _like(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    # Sorted, for the axes may have been exchanged in between.
    return len(shape) == len(other) and sorted(shape) == sorted(other)


def _upright(rank: int, contracted: PyTree, batch: PyTree) -> tuple[int, ...]:
    """The order of axes `(pictures, heads, queries, keys)` of attention weights in a product with
    values.
    """
    free = [i for i in range(rank) if i not in (*contracted, *batch)]
    return (*sorted(batch), *free, *contracted)


def _seen(weights: Visit, number: int, value: jax.Array, order: tuple[int, ...]) -> jax.Array:
    turned = value.transpose(order)
    # One head, or pictures and heads in one axis, have one axis less.
    whole = turned if turned.ndim == 4 else turned[:, None]
    changed = weights(number, whole).reshape(turned.shape)
    back = sorted(range(len(order)), key=lambda i: order[i])
    return changed.transpose(back)


def token_layout(model: Model, images: ArrayLike) -> layouts.Layout:
    """Returns the layout of a model's tokens, the first of its layers that has any.

    Raises:
      ValueError: if it has none.
    """
    for layout in layouts.layouts(model, images).values():
        if layout.tokens and len(layout.shape) == 3 and layout.channel_axes == (2,):
            return layout
    raise ValueError(
        f"model {model.name} has no layer of tokens [B, N, C] that tracing can follow: this method "
        "is for transformers; use grad_cam, or Model(layouts={NAME: 'BNC'})"
    )


def places(layout: layouts.Layout, values: jax.Array) -> jax.Array:
    """Returns `[B, *grid]` of values `[B, tokens]`, tokens without a place left out."""
    kept = values[:, layout.before : layout.before + math.prod(layout.grid)]
    return kept.reshape(len(values), *layout.grid)


def check_weights(weights: list[PyTree], tokens: int) -> None:
    """Refuses attention weights that are not of all tokens to all tokens.

    Raises:
      ValueError: if there are none, or some are within windows or of fewer tokens.
    """
    if not weights:
        raise ValueError("the model has no attention that its trace shows: this method needs one")
    for one in weights:
        if one.shape[2:] != (tokens, tokens):
            raise ValueError(
                f"attention must be of all {tokens} tokens to all of them, the model has one of "
                f"{one.shape[2]} to {one.shape[3]}: this method has no meaning there; use libragrad"
            )
