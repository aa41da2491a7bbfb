"""Which pixels a unit can see: the receptive field of any traced network, exact.

The program is walked backwards from the unit, equation by equation: a pixel is marked where a
change of it could reach the unit for *some* weights and *some* picture. So the support of every
gradient lies inside, and residual, depthwise, dilated, attention and pooling layers need no
formula. The formula for plain stacks of windows is here as a check.

>>> import jax, jax.numpy as jnp
>>> f = lambda x: jax.lax.conv_general_dilated(x, jnp.ones((3, 3, 1, 1)), (2, 2), "SAME",
...     dimension_numbers=("NHWC", "HWIO", "NHWC"))
>>> seen = influence(f, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))((0, 1, 1, 0))
>>> box(seen[0, ..., 0])
(2, 2, 5, 5)
>>> window_formula([(3, 2, 0)]), window_formula([(3, 2, 1), (2, 2, 0)])
((0, 3, 2), (-1, 5, 4))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from perturb import taps
from perturb.internals._layers import check_layer, input_struct, units_last
from perturb.model import Model
from perturb.taps.jaxprs import callee
from perturb.types import ArrayLike, PyTree

__all__ = ["box", "influence", "receptive_field", "window_formula"]

# Each output element depends on the input elements at its own place.
_POINTWISE = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "ceil",
        "clamp",
        "clz",
        "conj",
        "copy",
        "copy_p",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "name",
        "ne",
        "neg",
        "nextafter",
        "not",
        "optimization_barrier",
        "or",
        "population_count",
        "pow",
        "real",
        "reduce_precision",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "sharding_constraint",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
    ]
)
# Only moves, repeats or adds elements: its own transpose marks what it read.
_MOVES = frozenset(
    [
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "cumsum",
        "dynamic_slice",
        "dynamic_update_slice",
        "expand_dims",
        "gather",
        "pad",
        "rev",
        "reshape",
        "slice",
        "squeeze",
        "transpose",
    ]
)
_WINDOWS = frozenset(
    ["reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window"]
)


def receptive_field(
    model: Model, layer: str, *, size: Sequence[int], places: PyTree, units: PyTree = None
) -> np.ndarray:
    """Returns which pixels can change units of a layer at given places.

    Args:
      model: the network; traced, never run.
      layer: a name of `perturb.taps.names(model, images)`.
      size: `(H, W)` of the picture, px.
      places: `[P, ...]` indices of places on the layer's own grid: `[P, 2]` rows and columns of a
        map, `[P, 1]` tokens, `[P, 0]` for a layer of one number a unit.
      units: `[P]`, one for each place; None marks all units of a place together.
    Returns:
      `[P, H, W]`, booleans.
    Raises:
      ValueError: if there is no such layer, or a place or unit lies outside it.
    """
    # One picture: nothing is run, so the batch of one that XLA compiles differently does not arise.
    struct = input_struct(model, size, 1)
    shape = check_layer(model, layer, struct)
    places = np.asarray(places, np.int32).reshape(len(places), -1)
    if places.shape[1] != len(shape) - 1 or ((places < 0) | (places >= shape[:-1])).any():
        raise ValueError(
            f"places must be [P, {len(shape) - 1}] within {list(shape[:-1])} of layer {layer!r}, "
            f"got shape {list(places.shape)}, up to {places.max(0, initial=0).tolist()}"
        )
    chosen = np.full(len(places), -1, np.int32) if units is None else np.asarray(units, np.int32)
    if chosen.shape != places.shape[:1] or (chosen >= shape[-1]).any():
        raise ValueError(
            f"units must be one for each place, 0 to {shape[-1] - 1}, got "
            f"{np.ravel(units)[:5].tolist()}"
        )
    return np.asarray(_fields(model, places, chosen, layer=layer, size=tuple(size)))


@functools.partial(jax.jit, static_argnames=("layer", "size"))
def _fields(
    model: Model, places: jax.Array, units: jax.Array, *, layer: str, size: tuple[int, int]
) -> jax.Array:
    def activation(images: jax.Array) -> jax.Array:
        return units_last(model, taps.read(model, layer)(images)[1][layer])

    back = influence(activation, input_struct(model, size, 1))
    shape = jax.eval_shape(activation, input_struct(model, size, 1)).shape

    def one(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        place, unit = at
        # Units below 0: all of them.
        row = jnp.where(unit < 0, 1.0, (jnp.arange(shape[-1]) == unit).astype(jnp.float32))
        index = (0, *place, slice(None))
        return back(jnp.zeros(shape).at[index].set(row))[0].any(-1)

    # Place by place: the marks of one fill as much memory as the network's activations.
    found: jax.Array = lax.map(one, (places, units))
    return found


def influence(f: Callable[..., jax.Array], x: PyTree) -> Callable[[PyTree], jax.Array]:
    """Returns `back`: for elements of `f(x)`, the elements of `x` that they can depend on.

    Args:
      f: a pure function of one array that returns one array.
      x: its argument, or a `jax.ShapeDtypeStruct`.
    Returns:
      `back(marks)`, where marks is one index, a tuple, or an array of the output's shape that is
      above 0 at the elements asked for; booleans of the shape of `x`. Loops (scan, while, cond) and
      what is not known mix everything: an upper bound.
    """
    closed, out = jax.make_jaxpr(f, return_shape=True)(x)

    def back(marks: PyTree) -> jax.Array:
        if isinstance(marks, tuple):
            marks = jnp.zeros(out.shape).at[marks].set(1.0)
        values = dict.fromkeys(closed.jaxpr.invars)
        (found,) = _back(closed.jaxpr, closed.consts, values, [_binary(jnp.asarray(marks))])
        return found > 0

    return back


def box(support: ArrayLike) -> tuple[int, int, int, int]:
    """Returns top, left, bottom, right of the smallest box around what is true in `[H, W]`, ends
    excluded.

    Args:
      support: `[H, W]` booleans.
    """
    support = np.asarray(support, bool)
    if not support.any():
        return 0, 0, 0, 0
    rows, columns = (np.flatnonzero(support.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def window_formula(windows: Iterable[tuple[int, ...]]) -> tuple[int, int, int]:
    """Returns offset, size and step, px, of the receptive field of a stack of windows, along one
    axis.

    Place i sees the pixels `[offset + i step, offset + i step + size)`.

    Args:
      windows: from the picture on, `(kernel, stride, padding)` or
        `(kernel, stride, padding, dilation)`.
    """
    offset, size, step = 0, 1, 1
    for kernel, stride, padding, *more in windows:
        dilation = more[0] if more else 1
        offset -= padding * step
        size += (kernel - 1) * dilation * step
        step *= stride
    return offset, size, step


def _binary(marks: jax.Array) -> jax.Array:
    return (marks > 0).astype(jnp.float32)


def _back(
    jaxpr: Any, consts: Sequence[PyTree], values: dict[PyTree, PyTree], marks: Sequence[PyTree]
) -> list[jax.Array]:
    """Marks of the inputs from those of the outputs (None: not asked for).

    `values` holds the inputs; None for those that depend on the picture, whose values play no part.
    """
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | values

    def value(atom: core.Var | core.Literal) -> jax.Array:
        found: jax.Array = atom.val if isinstance(atom, core.Literal) else env[atom]
        return found

    for eqn in jaxpr.eqns:
        operands = [value(atom) for atom in eqn.invars]
        # None stands for what depends on the picture: its value plays no part, only its marks do.
        if any(v is None for v in operands):
            env.update(dict.fromkeys(eqn.outvars))
            continue
        # What does not depend on the picture is computed: the indices of a gather must be known.
        results = eqn.primitive.bind(*operands, **eqn.params)
        results = results if eqn.primitive.multiple_results else [results]
        env.update(zip(eqn.outvars, results, strict=True))

    marked: dict[PyTree, jax.Array] = {}

    def add(atom: Any, mark: PyTree) -> None:
        if mark is None or isinstance(atom, core.Literal) or value(atom) is not None:
            return
        # A value that is used twice is marked by either use; a maximum, because marks are 0 or 1.
        marked[atom] = jnp.maximum(marked[atom], mark) if atom in marked else mark

    for atom, mark in zip(jaxpr.outvars, marks, strict=True):
        add(atom, mark)
    # Backwards, so that all uses of a value are marked before the equation that makes it.
    for eqn in reversed(jaxpr.eqns):
        asked = [marked.pop(v, None) for v in eqn.outvars]
        if all(mark is None for mark in asked):
            continue
        known = [value(atom) for atom in eqn.invars]
        for atom, mark in zip(eqn.invars, _through(eqn, known, asked), strict=True):
            add(atom, mark)
    return [marked.get(v, jnp.zeros(v.aval.shape)) for v in jaxpr.invars]


def _through(eqn: Any, known: Sequence[PyTree], asked: Sequence[PyTree]) -> list[PyTree]:
    """Marks of an equation's operands."""
    name, avals = eqn.primitive.name, [atom.aval for atom in eqn.invars]
    inner = callee(eqn)
    if inner is not None:
        values = dict(zip(inner.jaxpr.invars, known, strict=True))
        return list(_back(inner.jaxpr, inner.consts, values, asked))
    if name in _POINTWISE:
        return [_pointwise(aval, eqn, asked) for aval in avals]
    mark = asked[0]
    # Where only data moves the transpose is exact; a traced index could point anywhere.
    if name in _MOVES and len(asked) == 1:
        moving = [i for i, v in enumerate(known) if v is None]
        if not any(jnp.issubdtype(avals[i].dtype, jnp.integer) for i in moving[1:]):
            return _transpose(eqn, known, moving, mark)
    # A kernel of ones: no weight may cancel another. A kernel that depends on the picture
    # mixes all.
    if name == "conv_general_dilated" and known[1] is not None:
        return [_convolution(eqn, avals, mark), None]
    if name == "dot_general":
        # Ones in place of values: every product that could be above 0 is.
        a, b = (jnp.ones(aval.shape) for aval in avals)
        return [
            _pull(lambda x: _bind(eqn, x, b), avals[0].shape, mark),
            _pull(lambda x: _bind(eqn, a, x), avals[1].shape, mark),
        ]
    if name in _WINDOWS and len(avals) <= 2:
        keys = [
            "window_dimensions",
            "window_strides",
            "padding",
            "base_dilation",
            "window_dilation",
        ]
        sizes, strides, padding, base, dilation = (eqn.params[key] for key in keys)

        def window(x: jax.Array) -> jax.Array:
            found: jax.Array = lax.reduce_window(
                x,
                0.0,
                lax.add,
                sizes,
                strides,
                padding,
                base_dilation=base,
                window_dilation=dilation,
            )
            return found

        return [_pull(window, avals[0].shape, mark), *[None] * (len(avals) - 1)]
    # A reduction sees all along its axes, whatever it computes.
    if "axes" in eqn.params and name.startswith(("reduce_", "arg")):
        axes = tuple(eqn.params["axes"])
        spread = functools.reduce(jnp.maximum, [m for m in asked if m is not None])
        return [
            jnp.broadcast_to(jnp.expand_dims(spread, axes), a.shape) if a.shape else None
            for a in avals
        ]
    # Unknown to this file: everything may depend on everything. Too large, never too small.
    return [_everything(aval, asked) for aval in avals]


def _convolution(eqn: core.JaxprEqn, avals: Sequence[PyTree], mark: jax.Array) -> jax.Array:
    shapes = [list(avals[0].shape), list(avals[1].shape)]
    lhs, rhs, out = eqn.params["dimension_numbers"]
    if eqn.params["feature_group_count"] == eqn.params["batch_group_count"] == 1:
        # Every output channel sees every input channel: one of each tells the places.
        shapes[0][lhs[1]] = shapes[1][rhs[0]] = shapes[1][rhs[1]] = 1
        mark = mark.max(out[1], keepdims=True)
    weights = jnp.ones(shapes[1])
    found = _pull(lambda x: _bind(eqn, x, weights), shapes[0], mark)
    return jnp.broadcast_to(found, avals[0].shape)


def _pointwise(aval: PyTree, eqn: Any, asked: Sequence[PyTree]) -> jax.Array:
    # Of several outputs (a barrier), each belongs to the operand of its own shape.
    fits = [
        m
        for v, m in zip(eqn.outvars, asked, strict=True)
        if m is not None and v.aval.shape == aval.shape
    ]
    return functools.reduce(jnp.maximum, fits) if fits else _everything(aval, asked)


def _everything(aval: PyTree, asked: Sequence[PyTree]) -> jax.Array:
    top = functools.reduce(jnp.maximum, [m.max(initial=0.0) for m in asked if m is not None])
    return jnp.broadcast_to(top, aval.shape)


def _bind(eqn: Any, *operands: PyTree) -> jax.Array:
    params = dict(eqn.params)
    if params.get("preferred_element_type") is not None:
        # Marks are float32 whatever the network's type: an equation must not be asked for another.
        params["preferred_element_type"] = jnp.dtype(jnp.float32)
    if eqn.primitive.name == "convert_element_type":
        params["new_dtype"] = jnp.dtype(jnp.float32)
    found: jax.Array = eqn.primitive.bind(*operands, **params)
    return found


def _pull(
    linear: Callable[[jax.Array], jax.Array], shape: Sequence[int], mark: jax.Array
) -> jax.Array:
    # The transpose of a linear map of ones sums the marks of all outputs that an input reaches.
    (found,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(tuple(shape), jnp.float32))(mark)
    return _binary(found)


def _transpose(
    eqn: Any, known: Sequence[PyTree], moving: Sequence[int], mark: jax.Array
) -> list[PyTree]:
    def linear(parts: list[jax.Array]) -> jax.Array:
        operands = list(known)
        for i, part in zip(moving, parts, strict=True):
            operands[i] = part
        # What is known beside what moves is data (a pad's value, a part to be joined) or an index.
        operands = [
            jnp.zeros(jnp.shape(v)) if i not in moving and not _is_index(v) else v
            for i, v in enumerate(operands)
        ]
        return _bind(eqn, *operands)

    primals = [jnp.zeros(eqn.invars[i].aval.shape) for i in moving]
    (found,) = jax.vjp(linear, primals)[1](mark)
    marks: list[PyTree] = [None] * len(known)
    for i, part in zip(moving, found, strict=True):
        marks[i] = _binary(part)
    return marks


def _is_index(value: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.asarray(value).dtype, jnp.integer)
