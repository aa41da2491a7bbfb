"""Flax NNX modules. They carry no names; here each runs under its own for `perturb.taps`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Unpack, cast

import jax

from perturb.adapters._base import Apply, Options, build, require, scopes
from perturb.model import Model
from perturb.types import PyTree, Variables

__all__ = ["from_nnx"]


def from_nnx(
    module: Any, *, call: Mapping[str, PyTree] | None = None, **options: Unpack[Options]
) -> Model:
    """Returns a Flax NNX module as a `Model`, in inference mode; the module itself is left alone.

    Models of modules made by the same code compile to one program. A module that draws random
    numbers in inference too is refused by NNX itself: its streams are left out.

    Args:
      module: a module that takes images `[B, H, W, C]`.
      call: keywords of the call, such as `{"train": False}`.
      **options: see `perturb.adapters._base.Options`: `mean`, `std`, `geometry`, `class_names`, ...
    """
    nnx = require("flax.nnx", "flax")
    copy = nnx.clone(module)
    copy.eval()
    for _, part in nnx.iter_modules(copy):
        if isinstance(getattr(part, "rngs", None), nnx.Rngs | nnx.RngStream):
            # Streams of random numbers count their uses: state that would change in a pure call.
            part.rngs = None
    definition, variables = nnx.split(copy)
    named: Options = {"name": type(module).__name__, **options}
    return build(_Nnx, definition, variables, named, call=tuple(sorted((call or {}).items())))


@dataclasses.dataclass(frozen=True)
class _Nnx(Apply):
    call: tuple[tuple[str, Any], ...]

    def outputs(self, variables: Variables, x: jax.Array) -> PyTree:
        nnx = require("flax.nnx", "flax")
        # A copy: else a module that counts its calls, or scans, holds variables of another trace.
        module = nnx.merge(self.module, variables, copy=True)
        called = {path: part for path, part in nnx.iter_modules(module) if callable(part)}
        for path, name in scopes(called).items():
            part, kind = called[path], cast(Any, type(called[path]))
            # Past NNX's own setter, which takes account of what modules hold. The copy lives for
            # this call.
            object.__setattr__(part, "_scope", name or type(module).__name__)
            object.__setattr__(part, "__class__", _scoped(kind))
        return module(x, **dict(self.call))


@functools.cache
def _scoped(kind: Any) -> type:
    """The same class, whose call runs under the name of the module at hand."""

    def call(self: PyTree, *args: object, **kwargs: object) -> PyTree:
        with jax.named_scope(self._scope):
            return kind.__call__(self, *args, **kwargs)

    found: type = type(kind)(
        kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__}
    )
    return found
