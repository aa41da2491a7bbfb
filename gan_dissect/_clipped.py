"""Pictures that a generator clips, with a gradient that leads back into the range.

Where a pixel is clipped its derivative is 0, and a picture that is white all over can never become
grey: most published nets clip to [0, 1] or [-1, 1]. Here the last clips before the image keep their
values, and let a gradient pass if following it brings the pixel back into the range, as projected
gradients do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from perturb.taps.jaxprs import callee
from perturb.types import Array, PyTree

__all__ = ["passing"]

# What may stand between the last clip and the image: it moves and scales pixels, one by one.
_PIXELWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "reshape",
        "transpose",
        "broadcast_in_dim",
        "squeeze",
        "rev",
        "convert_element_type",
        "slice",
        "concatenate",
        "pad",
        "copy",
        "max",
        "min",
        "clamp",
    ]
)
_CLIPPED = {"max": (0, 1), "min": (0, 1), "clamp": (1,)}
Path = tuple[int, ...]


def passing(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns `f` of one array with the same values, and a gradient behind the clips that end it.

    >>> f = lambda x: jnp.clip(3 * x, 0, 1)
    >>> g = jax.grad(lambda x: (passing(f)(x) - 0.5) ** 2)
    >>> float(jax.grad(lambda x: (f(x) - 0.5) ** 2)(2.0)), float(g(2.0))
    (0.0, 3.0)
    """

    def g(x: jax.Array) -> jax.Array:
        closed = jax.make_jaxpr(f)(x)
        found: set[Path] = set()
        _walk(closed.jaxpr, [True], [True], (), found)
        (value,) = _run(closed, [x], (), found)
        result: jax.Array = value
        return result

    return g


def _walk(
    jaxpr: core.Jaxpr, varied: list[bool], wanted: list[bool], path: Path, found: set[Path]
) -> list[bool]:
    """Adds the clips between the wanted outputs and whatever else makes them.

    Args:
      varied: which inputs depend on the argument.
      wanted: which outputs the image is made of, pixel by pixel.
    Returns:
      which inputs the image is made of, pixel by pixel.
    """
    moves = {v for v, m in zip(jaxpr.invars, varied, strict=True) if m}
    for eqn in jaxpr.eqns:
        if any(_variable(a) and a in moves for a in eqn.invars):
            moves.update(eqn.outvars)
    image = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _variable(v)}
    # Backwards from the image, so that an equation is met after everything that reads its result.
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if image.isdisjoint(eqn.outvars):
            continue
        depends = [_variable(a) and a in moves for a in eqn.invars]
        inner, name = callee(eqn), eqn.primitive.name
        if inner is not None:
            at = [v in image for v in eqn.outvars]
            through = _walk(inner.jaxpr, depends, at, (*path, i), found)
            image |= {a for a, t in zip(eqn.invars, through, strict=True) if t and _variable(a)}
        elif name in _PIXELWISE:
            # With two operands that vary it is a maximum of two pictures, not a range of values.
            if name in _CLIPPED and sum(depends) == 1 and depends.index(True) in _CLIPPED[name]:
                found.add((*path, i))
            image |= {a for a, d in zip(eqn.invars, depends, strict=True) if d}
    return [v in image for v in jaxpr.invars]


def _run(
    closed: core.ClosedJaxpr, inputs: list[PyTree], path: Path, found: set[Path]
) -> list[PyTree]:
    """The program, with another derivative at the clips found and the calls that hold them
    inlined.
    """
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> jax.Array:
        found: jax.Array = env[atom] if _variable(atom) else atom.val
        return found

    for i, eqn in enumerate(jaxpr.eqns):
        here, operands = (*path, i), [read(a) for a in eqn.invars]
        if here in found:
            results = [_lenient(eqn, operands)]
        elif any(clip[: len(here)] == here for clip in found):
            results = _run(callee(eqn), operands, here, found)
        else:
            slots, outs = ([core.Var(a.aval) for a in atoms] for atoms in (eqn.invars, eqn.outvars))
            # A program of one equation, because binding a primitive that itself holds a program (a
            # custom derivative, a loop) takes more than its parameters.
            alone = jaxpr.replace(
                constvars=[],
                invars=slots,
                outvars=outs,
                eqns=[eqn.replace(invars=slots, outvars=outs)],
            )
            results = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*operands)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _lenient(eqn: Any, operands: list[PyTree]) -> jax.Array:
    @jax.custom_vjp
    def clip(*values: jax.Array) -> jax.Array:
        found: jax.Array = eqn.primitive.bind(*values, **eqn.params)
        return found

    def forward(*values: jax.Array) -> tuple[jax.Array, PyTree]:
        return clip(*values), values

    def backward(values: Array, g: jax.Array) -> tuple[jax.Array, ...]:
        kept = clip(*values)

        # Descent subtracts the gradient: where it has the sign of `x - kept` the step leads back
        # into the range.
        def pulled(x: jax.Array) -> jax.Array:
            back = g * (x - kept) > 0
            spread = jnp.where((x == kept) | back, g, 0)
            # A scalar operand is the limit, which `_walk` found not to depend on the argument.
            return spread if x.shape == g.shape else jnp.zeros_like(x)

        return tuple(pulled(x) for x in values)

    clip.defvjp(forward, backward)
    return clip(*(jnp.asarray(value) for value in operands))


def _variable(atom: core.Var | core.Literal) -> bool:
    return not isinstance(atom, core.Literal)
