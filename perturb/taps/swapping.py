"""Functions inside a function, exchanged for others: the part of taps that rules of attribution
need.

`taps.edit` replaces what an inner function gives; here the inner function itself is replaced, so
that a rule sees what went into it. The model is traced, not rewritten: no hooks, no copies of its
layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from perturb.taps.jaxprs import callee
from perturb.types import Array, Function, PyTree

__all__ = ["HOLD", "LAYER", "Inner", "Layer", "swap"]

Swap = Function
LAYERS = ("conv_general_dilated", "dot_general")
# Not the name of any function: a rule for whole layers, see `swap`.
LAYER = "<layer>"


def HOLD(old: Function, varied: tuple[bool, ...], *operands: object) -> PyTree:
    """The rule of a function whose values count as constants: nothing depends on its inputs any
    more.
    """
    return jax.tree.map(jax.lax.stop_gradient, old(*operands))


@dataclasses.dataclass(frozen=True)
class Inner:
    """An inner function as it was, with the parameters of its equation."""

    run: Callable[..., list[PyTree]]
    params: Mapping[str, PyTree]

    def __call__(self, *operands: PyTree) -> PyTree:
        results = self.run(*operands)
        return results[0] if len(results) == 1 else results


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or product with a kernel, and the bias that follows: `layer(x, kernel, *bias)`.

    Attributes:
      weighted, input_first: the equation, and whether its first operand is the input.
      params: of the equation.
      kernel_axis, unit_axis: the axis of the units in the kernel and in the outputs.
    """

    weighted: Inner
    params: Mapping[str, PyTree]
    input_first: bool
    kernel_axis: int
    unit_axis: int

    def __call__(self, x: PyTree, kernel: PyTree, *bias: PyTree) -> PyTree:
        y = self.weighted(x, kernel) if self.input_first else self.weighted(kernel, x)
        return y + bias[0] if bias else y


def swap(f: Function, swaps: Mapping[str, Swap]) -> Function:
    """Returns `f` with the inner functions of these names exchanged.

    Args:
      f: a pure function of arrays (or pytrees of them).
      swaps: by name of an inner jitted function (`relu`) or of a primitive
        (`conv_general_dilated`): `rule(old, varied, *operands) -> outputs`, where `old(*operands)`
        is the function as it was and `varied` says of each operand whether it depends on the first
        argument of `f`. Functions none of whose operands depends on it stay as they are.
        `old.params` are the primitive's parameters. The rule `HOLD` makes constants of what a
        function gives, as `stop_gradient` in the model does. The name `LAYER` stands for every
        convolution or product of what depends on the first argument with a kernel that does not,
        together with the bias that is added next, if there is one: `rule(old, x, kernel, *bias)`
        with a `Layer`.
    Returns:
      a function of the same arguments. A custom derivative around an exchanged function is lost.

    >>> import jax.numpy as jnp
    >>> f = lambda x: jax.nn.relu(x) + 1
    >>> float(swap(f, {"relu": lambda old, varied, x: 10 * old(x)})(jnp.float32(2.0)))
    21.0
    """

    def g(*args: object) -> PyTree:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        first = len(jax.tree.leaves(args[0]))
        leaves = jax.tree.leaves(args)
        varied = [_MOVES] * first + [_FIXED] * (len(leaves) - first)
        outputs, _ = _run(closed, leaves, varied, swaps)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return g


# How a value depends on the first argument: not at all, in value only, or with a derivative.
_FIXED, _HELD, _MOVES = range(3)


def _run(
    closed: core.ClosedJaxpr,
    inputs: Sequence[PyTree],
    varied: Sequence[int],
    swaps: Mapping[str, Swap],
    zeros: Sequence[bool] = (),
) -> tuple[list[PyTree], list[int]]:
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    levels: dict[PyTree, int] = dict(zip(jaxpr.invars, varied, strict=True))
    names, still, written = _names(jaxpr, zeros)

    def read(atom: core.Var | core.Literal) -> PyTree:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    def level(atom: core.Var | core.Literal) -> int:
        return _FIXED if isinstance(atom, core.Literal) else levels.get(atom, _FIXED)

    def depends(atom: core.Var | core.Literal) -> bool:
        return level(atom) == _MOVES

    biases = _biases(jaxpr) if LAYER in swaps else {}
    waiting: dict[PyTree, PyTree] = {}
    for number, (eqn, name) in enumerate(zip(jaxpr.eqns, names, strict=True)):
        which = [depends(atom) for atom in eqn.invars]
        deep = max(map(level, eqn.invars), default=_FIXED)
        if (
            LAYER in swaps
            and eqn.primitive.name in LAYERS
            and sorted(map(level, eqn.invars)) == [_FIXED, _MOVES]
        ):
            (out,) = eqn.outvars
            levels[out] = _MOVES
            # A sum with another moving value is a shortcut, not a bias.
            add = biases.get(out)
            if add is not None and not any(depends(a) for a in add.invars if a is not out):
                # The rule is to see the bias too, so the layer waits for the addition that follows.
                waiting[out] = eqn
                continue
            env[out] = _layer(jaxpr, eqn, None, which, read, swaps[LAYER])
            continue
        weighted = [a for a in eqn.invars if not isinstance(a, core.Literal) and a in waiting]
        if weighted:
            layer = waiting[weighted[0]]
            which = [depends(atom) for atom in layer.invars]
            env[eqn.outvars[0]] = _layer(jaxpr, layer, eqn, which, read, swaps[LAYER])
            levels.update(dict.fromkeys(eqn.outvars, _MOVES))
            continue
        operands = [read(atom) for atom in eqn.invars]
        flat = [_is_zero(atom, still) for atom in eqn.invars]
        old = _alone(jaxpr, eqn)
        inner = callee(eqn)
        if not any(which):
            results = old(*operands)
        elif name in swaps:
            if number in written:
                # max(x, 0) has two operands; a rule for relu expects one.
                old, operands, which = _alone_relu(eqn, old, operands, written[number])
            result = swaps[name](Inner(old, eqn.params), tuple(which), *operands)
            results = list(result) if isinstance(result, (tuple, list)) else [result]
            deep = _HELD if swaps[name] is HOLD else deep
        elif inner is not None and _holds(inner.jaxpr, swaps, flat):
            results, out = _run(inner, operands, [level(a) for a in eqn.invars], swaps, flat)
            levels.update(zip(eqn.outvars, out, strict=True))
            deep = _FIXED
        elif LAYER in swaps and inner is None and any(_holds(b, swaps) for b in _bodies(eqn)):
            raise ValueError(
                f"a {eqn.primitive.name} of the model holds layers with a kernel, which have no "
                "place in the order of layers: write the loop out"
            )
        elif eqn.primitive.name in _LOOPS and any(_holds(b, swaps) for b in _bodies(eqn)):
            results = _LOOPS[eqn.primitive.name](eqn, operands, which, swaps)
        elif inner is None and any(_holds(b, swaps) for b in _bodies(eqn)):
            raise ValueError(
                f"a {eqn.primitive.name} of the model holds functions that this rule must change "
                "and cannot reach: write the loop out, or as a lax.scan"
            )
        elif eqn.primitive.name in _OUTSIDE:
            raise ValueError(
                "the model leaves JAX by a callback, where this rule cannot follow: for a torch "
                'network use from_torch(net, engine="torchax")'
            )
        else:
            results = old(*operands)
        env.update(zip(eqn.outvars, results, strict=True))
        if eqn.primitive.name == "stop_gradient":
            # The model's own stop_gradient: a value that varies, without a derivative.
            deep = min(deep, _HELD)
        if deep:
            levels.update(dict.fromkeys(eqn.outvars, deep))
    return [read(atom) for atom in jaxpr.outvars], [level(atom) for atom in jaxpr.outvars]


def _scan(
    eqn: core.JaxprEqn, operands: list[PyTree], which: list[bool], swaps: PyTree
) -> list[PyTree]:
    """The same scan with the rules inside its body."""
    body, fixed, carried = (eqn.params[n] for n in ("jaxpr", "num_consts", "num_carry"))
    end = fixed + carried
    flags = list(which)
    # Until no more of the carry is found to vary: what a step adds to it may take several rounds to
    # come around.
    while True:
        out = _flags(body.jaxpr, flags)[:carried]
        new = [*flags[:fixed], *map(any, zip(flags[fixed:end], out, strict=True)), *flags[end:]]
        if new == flags:
            break
        flags = new

    def step(carry: list[PyTree], given: list[PyTree]) -> tuple[list[PyTree], list[PyTree]]:
        results, _ = _run(body, [*operands[:fixed], *carry, *given], _levels(flags), swaps)
        return results[:carried], results[carried:]

    options = {n: eqn.params[n] for n in ("length", "reverse", "unroll")}
    carry, stacked = jax.lax.scan(step, operands[fixed:end], operands[end:], **options)
    return [*carry, *stacked]


def _cond(
    eqn: core.JaxprEqn, operands: list[PyTree], which: list[bool], swaps: PyTree
) -> list[PyTree]:
    """The same choice with the rules inside its branches."""

    def branch(body: PyTree) -> Callable[..., list[PyTree]]:
        # The first operand is the choice of the branch.
        return lambda *given: _run(body, given, _levels(which[1:]), swaps)[0]

    found: list[PyTree] = jax.lax.switch(
        operands[0], [branch(b) for b in eqn.params["branches"]], *operands[1:]
    )
    return found


def _levels(moves: Sequence[bool]) -> list[int]:
    return [_MOVES if moved else _FIXED for moved in moves]


# Calls that leave JAX.
_OUTSIDE = {"pure_callback", "io_callback", "host_call"}
_LOOPS = {"scan": _scan, "cond": _cond}


def _biases(jaxpr: core.Jaxpr) -> dict[PyTree, PyTree]:
    """The addition that takes each value, where nothing else does."""
    # A value that is read twice, or returned, is needed without the bias.
    uses: dict[PyTree, list[PyTree]] = {}
    for eqn in jaxpr.eqns:
        for atom in eqn.invars:
            if not isinstance(atom, core.Literal):
                uses.setdefault(atom, []).append(eqn)
    outputs = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    return {
        var: eqns[0]
        for var, eqns in uses.items()
        if len(eqns) == 1
        and eqns[0].primitive.name == "add"
        and var not in outputs
        and eqns[0].outvars[0].aval.shape == var.aval.shape
    }


def _layer(
    jaxpr: core.Jaxpr,
    eqn: Any,
    add: PyTree,
    which: Sequence[bool],
    read: Callable[[PyTree], PyTree],
    rule: Swap,
) -> PyTree:
    """The rule's output for a convolution or product, with the addition of its bias."""
    weighted = Inner(_alone(jaxpr, eqn), eqn.params)
    first = which[0]
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        axes = numbers.rhs_spec[0], numbers.out_spec[1]
    else:
        contracted, batch = eqn.params["dimension_numbers"]
        side = 1 if first else 0
        shape = eqn.invars[side].aval.shape
        free = [i for i in range(len(shape)) if i not in (*contracted[side], *batch[side])]
        # One free axis is a dense layer; where there are more, the last counts the units.
        last = len(eqn.outvars[0].aval.shape) - 1
        axes = free[-1] if free else -1, last if first else len(batch[0]) + len(free) - 1
    old = Layer(weighted, eqn.params, first, *axes)
    x, kernel = (read(eqn.invars[i]) for i in ((0, 1) if first else (1, 0)))
    if add is None:
        return rule(old, x, kernel)
    (bias,) = (read(a) for a in add.invars if a is not eqn.outvars[0])
    return rule(old, x, kernel, bias)


def _flags(jaxpr: core.Jaxpr, varied: Sequence[bool]) -> list[bool]:
    """Which outputs depend on inputs that vary."""
    moves = {v for v, m in zip(jaxpr.invars, varied, strict=True) if m}
    for eqn in jaxpr.eqns:
        if any(not isinstance(a, core.Literal) and a in moves for a in eqn.invars):
            moves.update(eqn.outvars)
    return [not isinstance(a, core.Literal) and a in moves for a in jaxpr.outvars]


def _bodies(eqn: core.JaxprEqn) -> list[PyTree]:
    return list(core.jaxprs_in_params(eqn.params))


# What a zero stays a zero through.
_SPREADS = {"broadcast_in_dim", "convert_element_type", "reshape", "copy", "squeeze"}


def _names(
    jaxpr: core.Jaxpr, zeros: Sequence[bool] = ()
) -> tuple[list[str], set[PyTree], dict[int, int]]:
    """Returns the name of each equation, what is known to be zero, and which relus are written out.

    The inner function's name for a call, the primitive's for any other, and `relu` for one that is
    written out: `max(x, 0)`, `where(x > 0, x, 0)`, `x * (x > 0)`, `clamp(0, x, limit)`.
    """
    still = {v for v, z in zip(jaxpr.invars, zeros, strict=False) if z}
    made: dict[PyTree, PyTree] = {}
    names, written = [], {}
    for number, eqn in enumerate(jaxpr.eqns):
        name = eqn.params.get("name", "") if eqn.primitive.name == "jit" else eqn.primitive.name
        if (at := _relu_of(eqn, still, made)) is not None:
            name, written[number] = "relu", at
        names.append(name)
        if eqn.primitive.name in _SPREADS and _is_zero(eqn.invars[0], still):
            still.add(eqn.outvars[0])
        made.update(dict.fromkeys(eqn.outvars, eqn))
    return names, still, written


def _is_zero(atom: core.Var | core.Literal, still: set[PyTree]) -> bool:
    return bool(np.all(atom.val == 0)) if isinstance(atom, core.Literal) else atom in still


def _relu_of(eqn: Any, still: set[PyTree], made: Mapping[PyTree, PyTree]) -> int | None:
    """Returns which operand of a relu that is written out goes in, None for any other equation."""
    kind, given = eqn.primitive.name, eqn.invars

    def maker(atom: Any) -> PyTree:
        found = None if isinstance(atom, core.Literal) else made.get(atom)
        if found is not None and found.primitive.name in ("convert_element_type", "copy"):
            # Conversions in between do not change the sign.
            return maker(found.invars[0])
        return found

    def positive(atom: Any, x: Array) -> bool:
        """Whether this is x > 0."""
        found = maker(atom)
        fits = found is not None and found.primitive.name in ("gt", "ge")
        return fits and found.invars[0] is x and _is_zero(found.invars[1], still)

    def variance(atom: Any) -> bool:
        """Whether this is a mean of squares less a squared mean, kept from falling below 0."""
        found = maker(atom)
        if found is None or found.primitive.name != "sub":
            return False
        second = maker(found.invars[1])
        return second is not None and second.primitive.name in ("square", "integer_pow", "mul")

    if kind == "max":
        for zero, x in ((0, 1), (1, 0)):
            # Flax clips its variances so, and a scalar is no layer: neither is a relu.
            if _is_zero(given[zero], still):
                return None if variance(given[x]) or not given[x].aval.shape else x
    if kind == "clamp" and _is_zero(given[0], still):
        return 1
    if kind == "select_n" and len(given) == 3 and _is_zero(given[1], still):
        return 2 if positive(given[0], given[2]) else None
    if kind == "jit" and eqn.params.get("name") == "_where" and len(given) == 3:
        # As jnp.where calls itself.
        return 1 if _is_zero(given[2], still) and positive(given[0], given[1]) else None
    if kind == "mul":
        return next((x for x in (0, 1) if positive(given[1 - x], given[x])), None)
    return None


def _alone_relu(
    eqn: core.JaxprEqn, old: Function, operands: list[PyTree], at: int
) -> tuple[Function, list[PyTree], list[bool]]:
    """A relu that is written out, as a function of the one operand that a rule is to see."""

    def relu(x: jax.Array) -> list[PyTree]:
        # x * (x > 0) reads x twice: as a function of one operand it is relu itself.
        if eqn.primitive.name == "mul":
            return [jax.nn.relu(x)]
        found: list[PyTree] = old(*operands[:at], x, *operands[at + 1 :])
        return found

    return relu, [operands[at]], [True]


def _holds(jaxpr: core.Jaxpr, swaps: Mapping[str, Swap], zeros: Sequence[bool] = ()) -> bool:
    names, still, _ = _names(jaxpr, zeros)
    for eqn, name in zip(jaxpr.eqns, names, strict=True):
        if name in swaps or eqn.primitive.name in _OUTSIDE:
            return True
        if LAYER in swaps and eqn.primitive.name in LAYERS:
            return True
        flat = [_is_zero(atom, still) for atom in eqn.invars]
        inner = callee(eqn)
        inside = [inner.jaxpr] if inner is not None else _bodies(eqn)
        if any(_holds(body, swaps, flat if inner is not None else ()) for body in inside):
            return True
    return False


def _alone(jaxpr: Any, eqn: Any) -> Callable[..., list[PyTree]]:
    """One equation as a function of its operands."""
    # Variables of its own: an equation may read one value twice, or literals.
    slots = [core.Var(atom.aval) for atom in eqn.invars]
    outs = [core.Var(v.aval) for v in eqn.outvars]
    one = jaxpr.replace(
        constvars=[], invars=slots, outvars=outs, eqns=[eqn.replace(invars=slots, outvars=outs)]
    )
    found: Callable[..., list[PyTree]] = core.jaxpr_as_fun(core.ClosedJaxpr(one, ()))
    return found
