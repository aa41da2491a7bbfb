"""Follows the axes of the picture through a traced program: where rows, columns and the batch end
up.

Every axis of every value is a product of factors, outermost first: the batch `b`, an axis of places
`p0`, `p1`, ..., a cut of one (`p0.0` the outer part, `p0.1` the inner one), nothing in particular
(channels) or not known. Convolutions say which axes are places, transposes move them, reshapes join
and cut them, so `[B, C, H, W]`, `[B, H, W, C]` and `[B, 1 + H W, C]` are told apart without a
guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from perturb.taps.jaxprs import Address, callee
from perturb.types import PyTree

__all__ = ["Axes", "Axis", "Factor", "follow", "inputs", "place"]


class Factor(NamedTuple):
    """A factor of an axis.

    Attributes:
      kind: "b", "p0", "p0.1", ..., "" for none of these, "?" where it is not known, "t" for tokens.
      size: how many steps.
      before, inner, after: of tokens, how many come before the places, the places' own factors, and
        how many come after.
    """

    kind: str
    size: int
    before: int = 0
    inner: tuple[Any, ...] = ()
    after: int = 0


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]

# They may change how long an axis is, or the order along it, but not which axis is which.
_WINDOWS = {
    "reduce_window",
    "reduce_window_sum",
    "reduce_window_max",
    "reduce_window_min",
    "cumsum",
    "cumprod",
    "cummax",
    "cumlogsumexp",
    "pad",
    "rev",
    "sort",
    "fft",
    "top_k",
}
# Calls that leave JAX: nothing is known of what comes back.
_OUTSIDE = {"pure_callback", "io_callback", "host_call"}
_REDUCTIONS = {"argmax", "argmin"}


def inputs(shape: Sequence[int]) -> Axes:
    """Returns the axes of pictures `[B, ..., C]`."""
    middle = [(Factor(f"p{i}", n),) for i, n in enumerate(shape[1:-1])]
    return ((Factor("b", shape[0]),), *middle, (Factor("", shape[-1]),))


def place(axis: Axis) -> str:
    """Returns which axis of the picture this one runs along, "" if it is not one alone.

    >>> place((Factor("p1.0", 4),)), place((Factor("p0", 4), Factor("", 2)))
    ('p1', 'p0')
    >>> place((Factor("", 2),))
    ''
    """
    first, rest = axis[0], axis[1:]
    return _outer(first.kind) if all(f.kind == "" for f in rest) else ""


def _outer(kind: str) -> str:
    """Returns `p0` for it and for its outermost part: a coarser grid of the same picture."""
    base, *cuts = kind.split(".")
    return base if base.startswith("p") and not any(c != "0" for c in cuts) else ""


def follow(closed: core.ClosedJaxpr, given: Sequence[Axes]) -> dict[Address, Axes]:
    """Returns the axes of every value of a traced program, by where it is made.

    Args:
      closed: the program, as `jax.make_jaxpr` gives it.
      given: axes of its inputs.
    """
    found: dict[Address, Axes] = {}
    _run(closed.jaxpr, list(given), (), found)
    return found


def plain(shape: Sequence[int], kind: str = "") -> Axes:
    """Returns axes that run along nothing of the picture."""
    return tuple((Factor(kind, n),) for n in shape)


def _run(
    jaxpr: core.Jaxpr, given: list[Axes], path: tuple[int, ...], found: dict[Address, Axes] | None
) -> list[Axes]:
    env = dict(zip(jaxpr.invars, given, strict=True))

    def read(atom: core.Var | core.Literal) -> Axes:
        shape = getattr(atom.aval, "shape", ())
        return plain(shape) if isinstance(atom, core.Literal) else env.get(atom, plain(shape))

    for i, eqn in enumerate(jaxpr.eqns):
        operands = [read(atom) for atom in eqn.invars]
        here = (*path, i)
        inner = callee(eqn)
        if inner is not None:
            results = _run(inner.jaxpr, operands, here, found)
        else:
            results = _equation(eqn, operands)
        for k, (var, axes) in enumerate(zip(eqn.outvars, results, strict=True)):
            env[var] = axes
            if found is not None:
                found[Address(here, k)] = axes
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: core.JaxprEqn, operands: list[Axes]) -> list[Axes]:
    name, shapes = eqn.primitive.name, [getattr(v.aval, "shape", ()) for v in eqn.outvars]
    moved = [any(f.kind for axis in axes for f in axis) for axes in operands]
    if name in _LOOPS:
        return _LOOPS[name](eqn, operands)
    # Made of weights and constants alone.
    if not any(moved):
        return [plain(s) for s in shapes]
    if name in _RULES:
        return _RULES[name](eqn, operands, shapes)
    if (name.startswith("reduce_") and "axes" in eqn.params) or name in _REDUCTIONS:
        gone = set(eqn.params["axes"])
        kept = tuple(axis for i, axis in enumerate(operands[0]) if i not in gone)
        return [kept for _ in shapes]
    if name in _WINDOWS:
        return [_resized(operands[0], s) for s in shapes]
    if name == "split":
        return _split(eqn, operands, shapes)
    if name == "tile":
        return [_repeated(operands[0], shapes[0])]
    full = [axes for axes in operands if axes]
    if name not in _OUTSIDE and all(_spreads(axes, s) for axes in full for s in shapes):
        # An elementwise function, whatever its name.
        return [_unify(full, s) for s in shapes]
    return [plain(s, "?") for s in shapes]


def _spreads(axes: Axes, shape: Sequence[int]) -> bool:
    """Whether an operand is spread over a result of this shape axis by axis."""
    return len(axes) == len(shape) and all(
        _size(axis) in (1, n) for axis, n in zip(axes, shape, strict=True)
    )


def _unify(operands: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """Returns the axes of a sum or the like: what any operand knows."""
    each = zip(*operands, strict=True)
    return tuple(
        _same([a for a in axes if _size(a) == n] or axes)
        for axes, n in zip(each, shape, strict=True)
    )


def _repeated(axes: Axes, shape: Sequence[int]) -> Axes:
    """Returns the axes after a tiling: an axis of one step that is spread is no place any more."""
    return tuple(
        axis if _size(axis) == n else (Factor("" if _size(axis) == 1 else "?", n),)
        for axis, n in zip(axes, shape, strict=True)
    )


def _same(axes: Sequence[Axis]) -> Axis:
    known = [a for a in axes if any(f.kind not in ("", "?") for f in a)]
    if not known:
        return next((a for a in axes if a[0].kind == "?"), axes[0])
    # The simplest of them: the fewest factors, cut least.
    first = min(known, key=lambda a: (len(a), len(a[0].kind)))
    for other in known:
        # Two cuts of one axis that differ only in how deep they are cut are the same places.
        alike = [_outer(f.kind) or f.kind for f in first] == [
            _outer(f.kind) or f.kind for f in other
        ]
        if not alike and not (place(first) and place(first) == place(other)):
            return (Factor("?", math.prod(f.size for f in first)),)
    return first


def _resize(axis: Axis, size: int) -> Axis:
    """Returns an axis after a window, padding or crop that gave it another size."""
    if _size(axis) == size:
        return axis
    if place(axis):
        return (Factor(place(axis), size),)
    return (Factor("" if all(f.kind == "" for f in axis) else "?", size),)


def _resized(axes: Axes, shape: Sequence[int]) -> Axes:
    if len(axes) != len(shape):
        return plain(shape, "?")
    return tuple(_resize(axis, n) for axis, n in zip(axes, shape, strict=True))


def _size(axis: Axis) -> int:
    return math.prod(f.size for f in axis)


def _transpose(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    return [tuple(operands[0][i] for i in eqn.params["permutation"])]


def _broadcast(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    axes = list(plain(shapes[0]))
    for axis, i in zip(operands[0], eqn.params["broadcast_dimensions"], strict=True):
        if _size(axis) == shapes[0][i]:
            axes[i] = axis
    return [tuple(axes)]


def _squeeze(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    gone = {d % len(operands[0]) for d in eqn.params["dimensions"]}
    return [tuple(axis for i, axis in enumerate(operands[0]) if i not in gone)]


def _reshape(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    return [refactor(operands[0], shapes[0])]


def refactor(axes: Axes, shape: Sequence[int]) -> Axes:
    """Returns the axes after a reshape: factors are joined, cut, and joined again.

    >>> tokens = refactor(inputs((2, 4, 3, 5)), (2, 12, 5))
    >>> [f.kind for f in tokens[1]], [a[0].kind for a in refactor(tokens, (2, 4, 3, 5))]
    (['p0', 'p1'], ['b', 'p0', 'p1', ''])
    """
    # A reshape keeps the order of all factors; those of one step fit anywhere. Reversed, to pop
    # from the end.
    left = [f for axis in axes for f in axis if f.size != 1][::-1]
    ones = [axis for axis in axes if _size(axis) == 1]
    out: list[Axis] = []
    known = True
    for size in shape:
        if size == 1:
            # An axis of one step keeps its place where all of them are kept.
            same = len(axes) == len(shape) and _size(axes[len(out)]) == 1
            out.append(axes[len(out)] if same and ones else (Factor("", 1),))
            continue
        took: list[Factor] = []
        while known and size > 1:
            factor = left.pop()
            if size % factor.size == 0:
                took.append(factor)
                size //= factor.size
            elif factor.size % size == 0:
                # The new axis ends inside a factor: its inner part begins the next one.
                outer, inner = _cut(factor, size)
                took.append(outer)
                left.append(inner)
                size = 1
            else:
                known = False
        out.append(_join(took) if known else (Factor("?", shape[len(out)]),))
    return tuple(out)


def _cut(factor: Factor, size: int) -> tuple[Factor, Factor]:
    rest = factor.size // size
    if factor.kind in ("", "?", "t"):
        # Tokens and places cannot be cut apart by a reshape: part of a grid is no grid.
        kind = factor.kind if factor.kind != "t" else "?"
        return Factor(kind, size), Factor(kind, rest)
    return Factor(factor.kind + ".0", size), Factor(factor.kind + ".1", rest)


def _join(factors: Sequence[Factor]) -> Axis:
    """Puts the parts of an axis that was cut together again."""
    out: list[Factor] = []
    for factor in factors:
        out.append(factor)
        while len(out) > 1:
            a, b = out[-2:]
            whole = a.kind[:-2] if a.kind.endswith(".0") and b.kind == a.kind[:-1] + "1" else None
            if a.kind == b.kind == "":
                whole = ""
            if whole is None:
                break
            out[-2:] = [Factor(whole, a.size * b.size)]
    return tuple(out)


def _convolve(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    spec = eqn.params["dimension_numbers"]
    lhs, axes = operands[0], list(plain(shapes[0]))
    # Groups over the batch mix pictures, as in the gradient of a kernel.
    if eqn.params["batch_group_count"] == 1:
        axes[spec.out_spec[0]] = lhs[spec.lhs_spec[0]]
    else:
        axes[spec.out_spec[0]] = (Factor("?", shapes[0][spec.out_spec[0]]),)
    for i, o in zip(spec.lhs_spec[2:], spec.out_spec[2:], strict=True):
        # A stride or a border changes how many steps a place has.
        axes[o] = _resize(lhs[i], shapes[0][o])
    return [tuple(axes)]


def _product(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    (sums, batches) = eqn.params["dimension_numbers"]
    lhs, rhs = operands
    both = [_same((lhs[i], rhs[j])) for i, j in zip(*batches, strict=True)]

    def free(axes: Axes, gone: PyTree, other: Axes, beside: PyTree) -> list[Axis]:
        kept = [a for i, a in enumerate(axes) if i not in (*gone[0], *gone[1])]
        # A picture resized by a matrix (rows of weights over places) has places again.
        along = [place(other[j]) for j in beside]
        one = len(along) == 1 and len(kept) == 1 and len(other[beside[0]]) == 1
        if one and along[0] and all(f.kind == "" for axis in axes for f in axis):
            return [(Factor(along[0], _size(kept[0])),)]
        return kept

    first = free(lhs, (sums[0], batches[0]), rhs, sums[1])
    second = free(rhs, (sums[1], batches[1]), lhs, sums[0])
    return [(*both, *first, *second)]


def _slice(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    strides = eqn.params["strides"] or (1,) * len(shapes[0])
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    each = zip(operands[0], starts, limits, strides, strict=True)
    return [tuple(_part(axis, a, b, s) for axis, a, b, s in each)]


def _part(axis: Axis, start: int, stop: int, stride: int) -> Axis:
    size = len(range(start, stop, stride))
    if size == _size(axis):
        return axis
    first = axis[0]
    # Rows and columns in one axis, cut from within: tokens without a class token.
    if len(axis) > 1 and stride == 1 and not place(axis) and all(_outer(f.kind) for f in axis):
        first, axis = _tokens(0, axis, 0), (_tokens(0, axis, 0),)
    if first.kind == "t":
        end = first.before + _size(first.inner)
        if stride == 1 and start <= first.before and stop >= end:
            return _whole(first.before - start, first.inner, stop - end)
        outside = stop <= first.before or start >= end
        # One token is no place any more; several of them are.
        return (Factor("" if outside or size == 1 else "?", size),)
    if size == 1 and not place(axis):
        return (Factor("", 1),)
    return _resize(axis, size)


def _tokens(before: int, inner: Axis, after: int) -> Factor:
    return Factor("t", before + _size(inner) + after, before, inner, after)


def _whole(before: int, inner: Axis, after: int) -> Axis:
    return (_tokens(before, inner, after),) if before or after else inner


def _crop(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    axes = []
    for axis, n in zip(operands[0], shapes[0], strict=True):
        # Where it starts is not known, so of tokens nothing is known either.
        axes.append(axis if n == _size(axis) or (n > 1 and place(axis)) else _part(axis, 0, n, 1))
        if n != _size(axis) and n > 1:
            axes[-1] = _resize(axis, n)
    return [tuple(axes)]


def _split(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    at, start, results = eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        axes = list(operands[0])
        axes[at] = _part(axes[at], start, start + size, 1)
        results.append(tuple(axes))
        start += size
    return results


def _concatenate(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    at = eqn.params["dimension"]
    axes = []
    for i, n in enumerate(shapes[0]):
        parts = [axes_[i] for axes_ in operands]
        axes.append(_same(parts) if i != at else _chain(parts, n))
    return [tuple(axes)]


def _chain(parts: Sequence[Axis], size: int) -> Axis:
    """Joins axes end to end: padded or rolled places, tokens beside places, channels."""
    known = [a for a in parts if any(f.kind for f in a)]
    if not known:
        return (Factor("", size),)
    alone = {place(a) for a in known}
    if len(alone) == 1 and alone != {""}:
        return (Factor(alone.pop(), size),)
    if (len(known) == 1 and all(_outer(f.kind) for f in known[0])) or known[0][0].kind == "t":
        at = next(i for i, a in enumerate(parts) if a is known[0])
        before, after = (sum(map(_size, side)) for side in (parts[:at], parts[at + 1 :]))
        if len(known) == 1 and known[0][0].kind == "t":
            t = known[0][0]
            return _whole(t.before + before, t.inner, t.after + after)
        if len(known) == 1:
            return _whole(before, known[0], after)
    if all(f.kind == "" for a in known for f in a):
        return (Factor("", size),)
    return (Factor("?", size),)


def _gather(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    source, index = operands[0], operands[1]
    # Of newer releases of JAX.
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    axes = list(plain(shapes[0]))
    gone = (*numbers.collapsed_slice_dims, *batching)
    kept = [i for i in range(len(source)) if i not in gone]
    for i, o in zip(kept, numbers.offset_dims, strict=True):
        axes[o] = _resize(source[i], sizes[i]) if sizes[i] > 1 else (Factor("", sizes[i]),)
    rows = [o for o in range(len(shapes[0])) if o not in numbers.offset_dims]
    for o, axis in zip(rows, index[:-1], strict=False):
        axes[o] = axis
    fixed = all(f.kind == "" for axis in index for f in axis)
    if fixed and len(rows) == len(numbers.start_index_map):
        # Rows taken by number, as in enlarging by the nearest: places again.
        for o, i in zip(rows, numbers.start_index_map, strict=True):
            axes[o] = _resize(source[i], shapes[0][o])
    elif fixed and any(place(source[i]) for i in numbers.start_index_map) and rows:
        return [plain(shapes[0], "?")]
    return [tuple(axes)]


def _first(eqn: core.JaxprEqn, operands: list[Axes], shapes: PyTree) -> list[Axes]:
    return [operands[0]]


def _scan(eqn: core.JaxprEqn, operands: list[Axes]) -> list[Axes]:
    constants, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    body = eqn.params["jaxpr"].jaxpr
    start = operands[: constants + carried]
    steps = [axes[1:] for axes in operands[constants + carried :]]
    # Twice: after one step the carry may run along more, or less, than at the start.
    results = _run(body, [*start, *steps], (), None)
    carry = [
        _unify(pair, [_size(a) for a in pair[0]])
        for pair in zip(results[:carried], start[constants:], strict=True)
    ]
    results = _run(body, [*start[:constants], *carry, *steps], (), None)
    length = (Factor("", eqn.params["length"]),)
    return [*results[:carried], *((length, *axes) for axes in results[carried:])]


def _while(eqn: core.JaxprEqn, operands: list[Axes]) -> list[Axes]:
    skip = eqn.params["cond_nconsts"]
    return _run(eqn.params["body_jaxpr"].jaxpr, operands[skip:], (), None)


def _cond(eqn: core.JaxprEqn, operands: list[Axes]) -> list[Axes]:
    # What any branch knows; the first operand is the choice.
    each = [_run(b.jaxpr, operands[1:], (), None) for b in eqn.params["branches"]]
    return [_unify(axes, [_size(a) for a in axes[0]]) for axes in zip(*each, strict=True)]


_LOOPS: dict[str, Callable[..., list[Axes]]] = {"scan": _scan, "while": _while, "cond": _cond}
_RULES: dict[str, Callable[..., list[Axes]]] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "conv_general_dilated": _convolve,
    "dot_general": _product,
    "slice": _slice,
    "dynamic_slice": _crop,
    "dynamic_update_slice": _first,
    "scatter": _first,
    "scatter-add": _first,
    "scatter_add": _first,
    "concatenate": _concatenate,
    "gather": _gather,
}
