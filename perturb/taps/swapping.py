"""Functions inside a function, exchanged for others: the part of taps that rules of attribution need.

`taps.edit` replaces what an inner function gives; here the inner function itself is replaced, so that a
rule sees what went into it. The model is traced, not rewritten: no hooks, no copies of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from perturb.taps.jaxprs import callee

__all__ = ["swap"]

Swap = Callable[..., Any]


def swap(f: Callable[..., Any], swaps: Mapping[str, Swap]) -> Callable[..., Any]:
    """Returns `f` with the inner functions of these names exchanged.

    Args:
      f: a pure function of arrays (or pytrees of them).
      swaps: by name of an inner jitted function (`relu`) or of a primitive (`conv_general_dilated`):
        `rule(old, varied, *operands) -> outputs`, where `old(*operands)` is the function as it was and
        `varied` says of each operand whether it depends on the first argument of `f`. Functions none
        of whose operands depends on it stay as they are.
    Returns:
      a function of the same arguments. A custom derivative around an exchanged function is lost.

    >>> import jax.numpy as jnp
    >>> f = lambda x: jax.nn.relu(x) + 1
    >>> float(swap(f, {"relu": lambda old, varied, x: 10 * old(x)})(jnp.float32(2.0)))
    21.0
    """

    def g(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        first = len(jax.tree.leaves(args[0]))
        leaves = jax.tree.leaves(args)
        varied = [True] * first + [False] * (len(leaves) - first)
        outputs, _ = _run(closed, leaves, varied, swaps)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return g


def _run(
    closed: Any, inputs: Sequence[Any], varied: Sequence[bool], swaps: Mapping[str, Swap]
) -> tuple[list[Any], list[bool]]:
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    moves = {v for v, m in zip(jaxpr.invars, varied, strict=True) if m}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    def depends(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and atom in moves

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        which = [depends(atom) for atom in eqn.invars]
        old = _alone(jaxpr, eqn)
        inner = callee(eqn)
        name = _name(eqn)
        if not any(which):
            results = old(*operands)
        elif name in swaps:
            result = swaps[name](_single(old), tuple(which), *operands)
            results = list(result) if isinstance(result, (tuple, list)) else [result]
        elif inner is not None and _holds(inner.jaxpr, swaps):
            results, _ = _run(inner, operands, which, swaps)
        else:
            results = old(*operands)
        env.update(zip(eqn.outvars, results, strict=True))
        if any(which):
            moves.update(eqn.outvars)
    return [read(atom) for atom in jaxpr.outvars], [depends(atom) for atom in jaxpr.outvars]


def _name(eqn: Any) -> str:
    """The inner function's name for a call, the primitive's for any other equation."""
    return eqn.params.get("name", "") if eqn.primitive.name == "jit" else eqn.primitive.name


def _holds(jaxpr: Any, swaps: Mapping[str, Swap]) -> bool:
    for eqn in jaxpr.eqns:
        inner = callee(eqn)
        if _name(eqn) in swaps or (inner is not None and _holds(inner.jaxpr, swaps)):
            return True
    return False


def _alone(jaxpr: Any, eqn: Any) -> Callable[..., list[Any]]:
    """One equation as a function of its operands."""
    slots = [core.Var(atom.aval) for atom in eqn.invars]
    outs = [core.Var(v.aval) for v in eqn.outvars]
    one = jaxpr.replace(
        constvars=[], invars=slots, outvars=outs, eqns=[eqn.replace(invars=slots, outvars=outs)]
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(one, ()))


def _single(old: Callable[..., list[Any]]) -> Callable[..., Any]:
    def call(*operands: Any) -> Any:
        results = old(*operands)
        return results[0] if len(results) == 1 else results

    return call
