"""Runs an edit of few units as a small convolution, where a convolution follows the layer.

A convolution is linear: of `x + d` it is that of `x`, computed once, plus that of `d`. If `d` is
nonzero in K of U units, the second needs K / U of the multiplications. All the rest of the
generator runs on the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from perturb import display
from perturb.taps import jaxprs
from perturb.types import PyTree

__all__ = ["Head", "head"]

_OPTIONS = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "precision",
    "preferred_element_type",
)


class Head(NamedTuple):
    """A suffix, cut behind its first convolution.

    Attributes:
      plain: the convolution of the activation as it is.
      change: `(d [B, h, w, K], units [K]) -> ` what `d`, in these units alone, adds to it.
      tail: the sum to the generator's outputs.
    """

    plain: jax.Array
    change: Callable[[jax.Array, jax.Array], jax.Array]
    tail: Callable[[jax.Array], PyTree]

    def __repr__(self) -> str:
        return display.summary(self)


def head(
    suffix: Callable[[PyTree, PyTree], PyTree], activation: jax.Array, live: PyTree
) -> Head | None:
    """Returns the suffix cut behind its first convolution, or None if that is not all that reads
    the activation.

    Args:
      suffix: of `perturb.taps.split`.
      activation: `[B, h, w, units]`, and live: as the prefix gave them.
    """
    leaves, tree = jax.tree.flatten(live)

    def flat(x: jax.Array, *rest: object) -> PyTree:
        return suffix(x, jax.tree.unflatten(tree, rest))

    closed, shape = jax.make_jaxpr(flat, return_shape=True)(activation, *leaves)
    value = closed.jaxpr.invars[0]
    readers = [eqn for eqn in closed.jaxpr.eqns if value in eqn.invars]
    # A second reader, such as a shortcut, needs the whole edited activation.
    if len(readers) != 1 or value in closed.jaxpr.outvars:
        return None
    (eqn,) = readers
    if eqn.primitive.name != "conv_general_dilated" or eqn.invars[0] is not value:
        return None
    params, kernel = eqn.params, eqn.invars[1]
    numbers = params["dimension_numbers"]
    # In groups, few units are not one smaller convolution. Channels last, because `d` is.
    grouped = params["feature_group_count"] != 1 or params["batch_group_count"] != 1
    if grouped or kernel is value or numbers.lhs_spec[1] != activation.ndim - 1:
        return None
    program = jaxprs.Program(
        template=closed.jaxpr,
        inputs=[*closed.jaxpr.constvars, *closed.jaxpr.invars],
        consts=list(closed.consts),
        eqns=list(closed.jaxpr.eqns),
        outputs=list(closed.jaxpr.outvars),
        values=[eqn.outvars[0]],
    )
    cut = jaxprs.split(program)
    inputs = [*program.consts, activation, *leaves]
    plain, *rest = cut.prefix(*inputs)
    # A kernel may be computed on the way, as by modulation: what it needs runs once, beside the
    # prefix.
    (weight,) = program.slice(program.eqns[: program.eqns.index(eqn)], program.inputs, [kernel])(
        *inputs
    )
    options = {name: params[name] for name in _OPTIONS}

    def change(d: jax.Array, units: jax.Array) -> jax.Array:
        # Input channels of the kernel that belong to the units.
        few = jnp.take(weight, units, axis=numbers.rhs_spec[1])
        return lax.conv_general_dilated(d, few, **options)

    def tail(total: jax.Array) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(shape), cut.suffix(total, *rest))

    return Head(plain, change, tail)
