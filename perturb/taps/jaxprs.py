"""Cut a traced program: inline the calls around a value, then slice the equations before and after
it.

A value is addressed by where it is made: the equation numbers from the outermost program inwards,
and which output of the last one. Programs are built from the trace's own equations with
`jax.extend.core`, so a rule attached to an equation (a derivative, a batching rule) stays with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from perturb.types import ArrayLike, Function, PyTree

__all__ = ["Address", "Program", "Split", "callee", "inline", "split", "stages"]

# Equations that run one program once on their own operands, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
}
# Equations that only repeat or count: cheaper to run again than to carry over a cut.
_SPREADS = {"broadcast_in_dim", "iota"}


class Address(NamedTuple):
    """Where a value is made: which output of the equation at `path`."""

    path: tuple[int, ...]
    output: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A trace with the calls around the addressed values inlined.

    Attributes:
      template: the traced program, for its debug information and effects.
      inputs: variables of `consts`, then of the arguments.
      consts: values closed over by the traced function, hoisted once.
      eqns: equations in execution order.
      outputs: variables or literals.
      values: the variables at the addresses asked for.
    """

    template: PyTree
    inputs: list[PyTree]
    consts: list[PyTree]
    eqns: list[core.JaxprEqn]
    outputs: list[PyTree]
    values: list[PyTree]

    def slice(
        self, eqns: Sequence[core.JaxprEqn], inputs: Iterable[PyTree], outputs: Iterable[PyTree]
    ) -> Function:
        """Returns `eqns` as a function of `inputs` that gives the list of `outputs`."""
        jaxpr = self.template.replace(
            constvars=[], invars=list(inputs), outvars=list(outputs), eqns=list(eqns)
        )
        found: Function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
        return found


class Split(NamedTuple):
    """A program in two: `prefix(*inputs) -> [value, *live]`, `suffix(value, *live) -> outputs`."""

    prefix: Callable[..., list[PyTree]]
    suffix: Callable[..., list[PyTree]]
    value: ArrayLike
    live: list[PyTree]


def callee(eqn: Any) -> PyTree:
    """Returns the program that a call equation runs, or None for any other equation."""
    key = _CALLS.get(eqn.primitive.name)
    inner = None if key is None else eqn.params.get(key)
    # Only where operands and inputs match one by one can the call be replaced by its equations.
    if inner is None or len(inner.invars) != len(eqn.invars):
        return None
    return inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())


def inline(closed: Any, addresses: Sequence[Address]) -> Program:
    """Copies the traced program, replacing each call that holds an addressed value by its
    equations.

    Every other call stays a call. A custom derivative or a rematerialisation that is inlined is
    gone: derivatives through it are those of its equations.
    """
    # Every call on the way to an address, and no other, is opened.
    around = {address.path[:d] for address in addresses for d in range(1, len(address.path))}
    found: dict[Address, PyTree] = {}
    wanted = {address.path for address in addresses}
    eqns: list[PyTree] = []
    constvars, consts = list(closed.jaxpr.constvars), list(closed.consts)

    def copy(
        jaxpr: Any, env: dict[PyTree, PyTree], path: tuple[int, ...], stack: Any
    ) -> list[PyTree]:
        def read(atom: Any) -> PyTree:
            return atom if isinstance(atom, core.Literal) else env.get(atom, atom)

        for i, eqn in enumerate(jaxpr.eqns):
            here = (*path, i)
            source = eqn.source_info
            if stack is not None:
                # Inner scopes are relative to the call: put together, profiles and names stay as
                # they were.
                source = source.replace(name_stack=stack + source.name_stack)
            operands = [read(atom) for atom in eqn.invars]
            if here in around:
                inner = callee(eqn)
                inside = dict(zip(inner.jaxpr.invars, operands, strict=True))
                for var, value in zip(inner.jaxpr.constvars, inner.consts, strict=True):
                    # Constants of an inner program become inputs of the whole, one for each call of
                    # it.
                    inside[var] = core.Var(var.aval)
                    constvars.append(inside[var])
                    consts.append(value)
                results = copy(inner.jaxpr, inside, here, source.name_stack)
            else:
                # One program may be called twice: its variables must not be bound twice.
                results = [
                    v if isinstance(v, core.DropVar) else core.Var(v.aval) for v in eqn.outvars
                ]
                eqns.append(eqn.replace(invars=operands, outvars=results, source_info=source))
            env.update(zip(eqn.outvars, results, strict=True))
            if here in wanted:
                found.update({Address(here, k): var for k, var in enumerate(results)})
        return [read(atom) for atom in jaxpr.outvars]

    outputs = copy(closed.jaxpr, {}, (), None)
    return Program(
        template=closed.jaxpr,
        inputs=[*constvars, *closed.jaxpr.invars],
        consts=consts,
        eqns=eqns,
        outputs=outputs,
        values=[found[address] for address in addresses],
    )


def stages(
    program: Program,
) -> Callable[[Sequence[PyTree], Callable[[PyTree, PyTree], PyTree]], list[PyTree]]:
    """Cuts the program after each of its values.

    Returns:
      `run(inputs, replace)`: the outputs, with `replace(variable, value)` in the place of each of
      the program's values once it is made.
    """
    made = {var: i for i, eqn in enumerate(program.eqns) for var in eqn.outvars}
    # A set: several names may be of one value, and nothing lies between.
    cuts = [0, *sorted({made[var] + 1 for var in program.values}), len(program.eqns)]
    pieces = []
    values, needed = set(program.values), _variables(program.outputs)
    # Backwards, to know what later pieces read of this one.
    for start, stop in zip(reversed(cuts[:-1]), reversed(cuts[1:]), strict=True):
        eqns = program.eqns[start:stop]
        bound = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
        writes = [var for var in bound if var in needed or var in values]
        reads = [var for var in _reads(eqns) if var not in bound]
        pieces.append((program.slice(eqns, reads, writes), reads, writes))
        needed = (needed - set(bound)) | set(reads)
    pieces.reverse()

    def run(inputs: Sequence[PyTree], replace: Callable[[PyTree, PyTree], PyTree]) -> list[PyTree]:
        env = dict(zip(program.inputs, inputs, strict=True))
        for function, reads, writes in pieces:
            results = function(*(env[var] for var in reads))
            for var, value in zip(writes, results, strict=True):
                env[var] = replace(var, value) if var in values else value
        return [a.val if isinstance(a, core.Literal) else env[a] for a in program.outputs]

    return run


def split(program: Program) -> Split:
    """Cuts the program at its one value by dataflow.

    The suffix holds what depends on the value and is needed for the outputs, and nothing else; all
    that it reads besides the value is computed (or passed on) by the prefix.
    """
    (value,) = program.values
    after = {value}
    before, behind = [], []
    for eqn in program.eqns:
        if any(var in after for var in _variables(eqn.invars)):
            after.update(eqn.outvars)
            behind.append(eqn)
        else:
            before.append(eqn)
    behind = _needed(behind, _variables(program.outputs))
    bound = {var for eqn in behind for var in eqn.outvars}
    # An output may be made before the value: then it crosses the cut like a shortcut.
    reads = [*_reads(behind), *(v for v in program.outputs if isinstance(v, core.Var))]
    live = [v for v in dict.fromkeys(reads) if v not in bound and v is not value]
    for eqn in reversed(before):
        # A bias spread over the batch costs nothing to spread again; what crosses stays small.
        if (
            eqn.primitive.name in _SPREADS
            and eqn.outvars[0] in live
            and eqn.outvars[0] is not value
        ):
            behind.insert(0, eqn)
            live.remove(eqn.outvars[0])
            live += [v for v in _reads([eqn]) if v not in live and v is not value]
    before = _needed(before, {value, *live})
    return Split(
        prefix=program.slice(before, program.inputs, [value, *live]),
        suffix=program.slice(behind, [value, *live], program.outputs),
        value=value,
        live=live,
    )


def _variables(atoms: Iterable[PyTree]) -> set[PyTree]:
    return {atom for atom in atoms if isinstance(atom, core.Var)}


def _reads(eqns: Iterable[core.JaxprEqn]) -> dict[PyTree, None]:
    return dict.fromkeys(v for eqn in eqns for v in eqn.invars if isinstance(v, core.Var))


def _needed(eqns: Sequence[core.JaxprEqn], outputs: set[PyTree]) -> list[PyTree]:
    """Drops equations that nothing in `outputs` depends on; one with an effect stays."""
    needed, kept = set(outputs), []
    for eqn in reversed(eqns):
        # An effect (a print, a callback) is wanted for itself, read or not.
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed |= _variables(eqn.invars)
            kept.append(eqn)
    return kept[::-1]
