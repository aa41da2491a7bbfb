"""Calls a function of NumPy arrays from inside a JAX program, such as an engine outside JAX.

`jax.pure_callback` copies its operands to a JAX array inside the callback and so waits for the very
threads that wait for it: with two cores it sometimes hangs for ever. Here the callback is handed
NumPy arrays and touches nothing of JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from perturb.types import PyTree

__all__ = ["host_call"]

_call = Primitive("host_call")
_call.multiple_results = True


def host_call(
    run: Any, outs: Sequence[jax.ShapeDtypeStruct], fixed: PyTree, rows: PyTree
) -> list[PyTree]:
    """Returns `run(*fixed, *rows)`.

    Args:
      run: of NumPy arrays, gives a list of them; hashable. Row by row.
      outs: shape and dtype of each result, `[B, ...]` like `rows` (or without B: then it is not
        rows).
      fixed: arrays without a batch, such as weights.
      rows: arrays `[B, ...]`.
    """
    types = tuple((tuple(o.shape), jnp.dtype(o.dtype).name) for o in outs)
    found: list[PyTree] = _call.bind(*fixed, *rows, run=run, outs=types, fixed=len(fixed))
    return found


@functools.lru_cache(maxsize=256)
def _compiled(run: Any, outs: PyTree, fixed: int) -> PyTree:
    # Outside of jit a primitive is run by itself: compiled once for each network and shape.
    return jax.jit(lambda *args: _call.bind(*args, run=run, outs=outs, fixed=fixed))


_call.def_impl(lambda *args, **params: _compiled(**params)(*args))


def _types(*args: object, run: Any, outs: PyTree, fixed: int) -> list[PyTree]:
    return [jax.core.ShapedArray(shape, jnp.dtype(dtype)) for shape, dtype in outs]


# Not as a decorator: JAX has no type for it, and the function would lose its own.
_call.def_abstract_eval(_types)


def _lower(ctx: Any, *args: PyTree, run: Any, outs: PyTree, fixed: int) -> PyTree:
    # Without an effect or a token: XLA may drop a call whose results are not read, or run it twice.
    results, _, _ = mlir.emit_python_callback(
        ctx,
        lambda *given: tuple(run(*given)),
        None,
        list(args),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=False,
        returns_token=False,
    )
    return results


mlir.register_lowering(_call, _lower)


def _batch(args: PyTree, dims: Any, *, run: Any, outs: PyTree, fixed: int) -> PyTree:
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    spread = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args, dims, strict=True)
    ]
    rows = spread[fixed].shape[1]
    folds = all(d is None for d in dims[:fixed])
    if not folds or any(shape[:1] != (rows,) for shape, _ in outs):
        # Weights of their own, or sums over a batch: one after another.
        found = jax.lax.map(
            lambda given: _call.bind(*given, run=run, outs=outs, fixed=fixed), tuple(spread)
        )
        return found, [0] * len(outs)
    # The function acts row by row, so a mapped axis is only a larger batch.
    flat = [a.reshape(-1, *a.shape[2:]) for a in spread[fixed:]]
    larger = tuple(((size * shape[0], *shape[1:]), dtype) for shape, dtype in outs)
    found = _call.bind(*args[:fixed], *flat, run=run, outs=larger, fixed=fixed)
    return [f.reshape(size, -1, *f.shape[1:]) for f in found], [0] * len(outs)


batching.primitive_batchers[_call] = _batch
