"""Name the values of a traced program: tags, module scopes, inner functions, convolutions.

Linen and Keras run every module under `jax.named_scope`, and JAX keeps the scopes with each
equation. A scope entered twice is two scope objects, which is how two calls of one module are told
apart.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import NamedTuple

import jax.numpy as jnp
from jax.extend import core, source_info_util

from perturb import messages
from perturb.taps.jaxprs import Address, callee
from perturb.types import PyTree, Record

__all__ = ["Names", "find_names"]

# JAX exports no name for the class of a scope.
_SCOPE = type(source_info_util.new_name_stack("scope").stack[0])
# Scopes that JAX itself adds.
_OWN = {"rematted_computation"}
_LAYERS = {"conv_general_dilated": "conv", "dot_general": "dense"}
# What a layer does after its convolution or product: add a bias, crop, or put axes in order.
_TAIL = frozenset(
    ["add", "broadcast_in_dim", "convert_element_type", "reshape", "slice", "squeeze", "transpose"]
)

# The scopes of an equation, outermost first: name, and which entering of it.
_Scopes = tuple[tuple[str, int], ...]


class Names(NamedTuple):
    """The named values of one trace.

    Attributes:
      sites: address and abstract value by name, in execution order.
      hidden: why a name that is in the program cannot be tapped.
      root: the outermost scope when it holds all others; names are relative to it.
    """

    sites: dict[str, tuple[Address, PyTree]]
    hidden: dict[str, str]
    root: str | None

    def find(self, name: str) -> Address:
        """Returns the address of `name`, given relative to the root or with it."""
        # A name that exists as given wins over one without the root.
        for candidate in (name, name.removeprefix(f"{self.root}/")):
            if candidate in self.sites:
                return self.sites[candidate][0]
        for candidate in (name, name.removeprefix(f"{self.root}/")):
            # Names inside loops are kept without their number.
            reason = self.hidden.get(re.sub(r"#\d+", "", candidate))
            if reason:
                raise ValueError(f"{name!r} {reason}")
        if not self.sites:
            raise ValueError(f"no activation named {name!r}: none has a name, mark it by taps.tag")
        raise ValueError(
            f"no activation named {messages.short(name)}; nearest: "
            f"{messages.most_alike(name, self.sites)} (taps.names lists all {len(self.sites)})"
        )


class _Found(NamedTuple):
    kind: str
    parent: tuple[str, ...]
    base: str
    address: Address
    aval: PyTree


class _Level:
    """One program of the nest: who calls it, and which value each scope in it returns."""

    def __init__(self, jaxpr: core.Jaxpr, parent: _Level | None = None, number: int = 0):
        self.jaxpr, self.parent, self.number = jaxpr, parent, number
        self.path: tuple[int, ...] = (*parent.path, number) if parent else ()
        # Where each value is made, which are returned, and which are read here.
        self.made = {v: (i, k) for i, e in enumerate(jaxpr.eqns) for k, v in enumerate(e.outvars)}
        self.results: dict[PyTree, list[int]] = {}
        for k, v in enumerate(jaxpr.outvars):
            if isinstance(v, core.Var):
                self.results.setdefault(v, []).append(k)
        self.reads = {v for e in jaxpr.eqns for v in e.invars if isinstance(v, core.Var)}
        self.stacks = [_stack(eqn) for eqn in jaxpr.eqns]
        self.live = self._live()
        self.uses: dict[PyTree, set[int]] = {}
        self.groups: dict[_Scopes, list[int]] = {}
        for i, (eqn, scopes) in enumerate(zip(jaxpr.eqns, self.stacks, strict=True)):
            if scopes is None:
                continue
            for var in eqn.invars:
                if isinstance(var, core.Var):
                    self.uses.setdefault(var, set()).add(i)
            # An equation belongs to its own scope and to all around it.
            for depth in range(1, len(scopes) + 1):
                self.groups.setdefault(scopes[:depth], []).append(i)

    def _live(self) -> set[PyTree]:
        """Returns the values that the outputs of the outermost program depend on."""
        if self.parent is None:
            live = set(self.results)
        else:
            outer = self.parent.jaxpr.eqns[self.number].outvars
            live = {
                v
                for v, places in self.results.items()
                for k in places
                if outer[k] in self.parent.live
            }
        for eqn in reversed(self.jaxpr.eqns):
            if eqn.effects or not live.isdisjoint(eqn.outvars):
                live.update(v for v in eqn.invars if isinstance(v, core.Var))
        return live

    def output(self, members: list[int]) -> PyTree:
        """Returns the output of the equations `members`: the last value that others use.

        Not simply the last: under a derivative inside the function, what is saved for the backward
        pass comes after the activation.
        """
        inside = set(members)
        made = [v for i in members for v in self.jaxpr.eqns[i].outvars if v in self.live]
        used = [v for v in made if v in self.results or self.uses.get(v, set()) - inside]
        real = [v for v in used if _is_real(v)]
        several = real or used or made
        return several[-1] if several else None

    def locate(self, var: PyTree) -> Address:
        """Addresses `var` in the outermost program that sees it.

        A value that a call only returns is addressed outside the call, so that to tap it the call
        (with its custom derivative, or its rematerialisation) need not be opened.
        """
        places = self.results.get(var, [])
        if self.parent is not None and len(places) == 1 and var not in self.reads:
            return self.parent.locate(self.parent.jaxpr.eqns[self.number].outvars[places[0]])
        number, index = self.made[var]
        return Address((*self.path, number), index)

    def ends_its_scope(self, number: int) -> bool:
        """Whether a layer's equation gives its scope's output, up to a bias and the like."""
        members = self.groups.get(self.stacks[number] or (), [])
        if not members:
            return False
        var = self.output(members)
        end = self.made[var][0] if var is not None else 0
        rest = [self.jaxpr.eqns[i].primitive.name for i in members if number < i <= end]
        return number <= end and _TAIL.issuperset(rest)


def find_names(closed: core.ClosedJaxpr) -> Names:
    """Names the values of a traced program."""
    found: list[_Found] = []
    hidden: dict[tuple[str, ...], str] = {}
    _walk(_Level(closed.jaxpr), (), {}, found, hidden)
    roots = {(*f.parent, f.base)[0] for f in found if f.kind == "scope"}
    root = roots.pop() if len(roots) == 1 else None

    def join(*parts: str) -> str:
        return "/".join(parts[1:] if len(parts) > 1 and parts[0] == root else parts)

    sites: dict[str, tuple[Address, PyTree]] = {}
    owned: set[Address] = set()
    seen: set[tuple[Address, str]] = set()
    for kind in ("tag", "scope", "function", "layer"):
        for f in (f for f in found if f.kind == kind):
            # A function or layer whose value is a module's output, or is named so already, adds
            # none.
            if kind in ("function", "layer") and (
                f.address in owned or (f.address, f.base) in seen
            ):
                continue
            seen.add((f.address, f.base))
            if kind != "function":
                owned.add(f.address)
            sites[_free(join(*f.parent, f.base), kind, sites)] = f.address, f.aval
    # Of names for one value the last given is the innermost module.
    order = list(sites)[::-1]
    # By place in the program. Infinity puts a call's own result behind what is made inside it.
    order.sort(key=lambda name: (*sites[name][0].path, math.inf, sites[name][0].output))
    reasons = {join(*parts): reason for parts, reason in hidden.items()}
    return Names({name: sites[name] for name in order}, reasons, root)


def _walk(
    level: _Level,
    scope: tuple[str, ...],
    counts: dict[tuple[str, ...], int],
    found: list[_Found],
    hidden: dict[tuple[str, ...], str],
) -> None:
    def add(kind: str, parent: tuple[str, ...], base: str, var: PyTree) -> None:
        if var in level.live:
            found.append(_Found(kind, parent, base, level.locate(var), var.aval))
        else:
            hidden.setdefault((*parent, base), "has no effect on what the function returns")

    shown: dict[_Scopes, tuple[str, ...]] = {(): scope}
    for i, (eqn, scopes) in enumerate(zip(level.jaxpr.eqns, level.stacks, strict=True)):
        if scopes is None:
            continue
        for key in (scopes[:d] for d in range(1, len(scopes) + 1) if scopes[:d] not in shown):
            parent, name, var = shown[key[:-1]], key[-1][0], level.output(level.groups[key])
            if "->" in name:
                # The scope that JAX gives to an einsum: its output is in the order asked for.
                shown[key] = parent
                add("layer", parent, "dense", var)
                continue
            count = counts[*parent, name] = counts.get((*parent, name), 0) + 1
            base = name if count == 1 else f"{name}#{count}"
            shown[key] = (*parent, base)
            add("scope", parent, base, var)
        parent, primitive, inner = shown[scopes], eqn.primitive.name, callee(eqn)
        if primitive == "name":
            add("tag", (), eqn.params["name"], eqn.outvars[0])
        elif primitive in _LAYERS and _is_real(eqn.outvars[0]):
            if not level.ends_its_scope(i):
                add("layer", parent, _LAYERS[primitive], eqn.outvars[0])
        elif inner is not None:
            below = _Level(inner.jaxpr, level, i)
            base, var = _function_name(eqn, inner), level.output([i])
            if base and var is None:
                add("function", parent, base, None)
            elif base and _is_real(var):
                made = inner.jaxpr.outvars[eqn.outvars.index(var)]
                # What a call only passes through is made, and so named, elsewhere.
                if isinstance(made, core.Var) and made in below.made:
                    found.append(_Found("function", parent, base, below.locate(made), var.aval))
            _walk(below, parent, counts, found, hidden)
        else:
            if primitive == "scan" and (base := _only_scope(eqn)):
                # Linen runs a scanned module's body under its name, and the scan itself outside it.
                # What a scan returns may be indices or counts as well: the first array of floats is
                # the layer's.
                var = next((v for v in eqn.outvars if v in level.live and _is_real(v)), None)
                taken = any((f.parent, f.base) == (parent, base) for f in found)
                if var is not None and not taken:
                    add("scope", parent, base, var)
            reason = (
                f"lies inside the body of a {primitive}, where it has no single value: "
                f"tap what the {primitive} returns, or write the loop out"
            )
            for body in core.jaxprs_in_params(eqn.params):
                _hide(body, parent, reason, hidden)


def _only_scope(eqn: core.JaxprEqn) -> str:
    """Returns the scope that all of a loop's body lies in, "" if there is none."""
    (body,) = core.jaxprs_in_params(eqn.params)
    stacks = [_stack(inner) for inner in body.eqns]
    names = {stack[0][0] if stack else "" for stack in stacks}
    return names.pop() if len(names) == 1 else ""


def _hide(
    jaxpr: core.Jaxpr, scope: tuple[str, ...], reason: str, hidden: dict[tuple[str, ...], str]
) -> None:
    """Notes the names inside a loop's body, to answer those who ask for one."""
    for eqn in jaxpr.eqns:
        names = tuple(name for name, _ in _stack(eqn) or ())
        for depth in range(1, len(names) + 1):
            hidden[(*scope, *names[:depth])] = reason
        if eqn.primitive.name == "name":
            hidden[(eqn.params["name"],)] = reason
        inner = callee(eqn)
        if inner is not None and _function_name(eqn, inner):
            hidden[(*scope, *names, _function_name(eqn, inner))] = reason
        for body in core.jaxprs_in_params(eqn.params):
            _hide(body, (*scope, *names), reason, hidden)


def _stack(eqn: core.JaxprEqn) -> _Scopes | None:
    """Returns the scopes of an equation, outermost first; None for a backward pass, which has
    none.
    """
    stack = eqn.source_info.name_stack.stack
    if any(not isinstance(entry, _SCOPE) and entry.name == "transpose" for entry in stack):
        return None
    # ids tell two calls apart; the trace keeps the scopes alive, so that none is given twice.
    return tuple((e.name, id(e)) for e in stack if isinstance(e, _SCOPE) and e.name not in _OWN)


def _function_name(eqn: core.JaxprEqn, inner: core.ClosedJaxpr) -> str:
    """Returns the name of a called function, or "" for lambdas and the private ones of
    libraries.
    """
    # `<lambda>` is no identifier.
    name = eqn.params.get("name") or inner.jaxpr.debug_info.func_name
    return name if name.isidentifier() and not name.startswith("_") else ""


def _is_real(var: PyTree) -> bool:
    # Keys, indices and masks are no activations.
    return hasattr(var.aval, "dtype") and jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _free(name: str, kind: str, taken: Record) -> str:
    """Numbers a name: layers conv_1, conv_2, ...; all others relu, relu#2, ..."""
    if kind != "layer" and name not in taken:
        return name
    sign, start = ("_", 1) if kind == "layer" else ("#", 2)
    return next(n for k in itertools.count(start) if (n := f"{name}{sign}{k}") not in taken)
