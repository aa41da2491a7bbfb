"""Flax linen modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from perturb import messages
from perturb.adapters._base import Apply, Options, build
from perturb.model import Model
from perturb.types import Function, PyTree, Variables

__all__ = ["from_linen"]


def from_linen(
    module: Any,
    variables: Variables,
    *,
    method: str | Function | None = None,
    mean: PyTree = 0.0,
    std: PyTree = 1.0,
    geometry: Any = None,
    class_names: Any = (),
    output: str = "logits",
    select: Any = None,
    channels: int = 3,
    name: str | None = None,
    **apply_kwargs: object,
) -> Model:
    """Returns a Flax linen module as a `Model`.

    Two models of equal modules and options compile to one program, whatever their weights.

    Args:
      module: a linen module that takes images `[B, H, W, C]`.
      variables: what `module.apply` takes: all its collections, batch statistics included.
      method: the module's method to call, `__call__` if None.
      mean, std: one number or one a channel; the module sees `(images - mean) / std`.
      geometry, class_names, output, select, channels: see `Model`.
      name: for records; the module's class if None.
      **apply_kwargs: static keywords of the call, such as `train=False`.
    Raises:
      ValueError: if `module` is no linen module, if `variables` has no collection `params`, if the
        module or a keyword is not hashable, or `mean` and `std` are not numbers, one a channel,
        with `std` not 0.
    """
    options = Options(
        mean=mean,
        std=std,
        geometry=geometry,
        class_names=class_names,
        output=output,
        select=select,
        channels=channels,
        name=name,
    )
    if isinstance(module, type):
        raise ValueError(f"module must be made first, got the class: write {module.__name__}(...)")
    if callable(module) and not hasattr(module, "apply"):
        raise ValueError(
            f"module must be a flax.linen.Module, got {messages.short(module)}: a function of "
            "(variables, images) is perturb.Model(function, variables)"
        )
    # Mostly the bare parameters, which Flax would report as a missing leaf deep inside.
    if isinstance(variables, Mapping) and variables and "params" not in variables:
        known = ", ".join(map(str, list(variables)[:3]))
        raise ValueError(
            f"variables must hold the collection 'params', got {known}: write "
            "from_linen(module, {'params': params}), with 'batch_stats' where there are any"
        )
    kwargs = tuple(sorted(apply_kwargs.items()))
    return build(_Linen, module, variables, options, method=method, kwargs=kwargs)


@dataclasses.dataclass(frozen=True)
class _Linen(Apply):
    method: Any
    kwargs: tuple[tuple[str, PyTree], ...]

    def outputs(self, variables: Variables, x: jax.Array) -> PyTree:
        return self.module.apply(variables, x, method=self.method, **dict(self.kwargs))
