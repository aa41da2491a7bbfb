"""Equinox modules. They are written for one image, channels first; `jax.vmap` makes the batch.

Equinox names its own layers by class for `perturb.taps`: `eqx.nn.Conv`, `eqx.nn.Conv#2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from perturb.adapters._base import Apply, Options, build, channels_last, require
from perturb.model import Model
from perturb.types import PyTree, Variables

__all__ = ["from_equinox"]


def from_equinox(
    module: Any,
    state: PyTree = None,
    *,
    call: Mapping[str, PyTree] | None = None,
    **options: Unpack[Options],
) -> Model:
    """Returns an Equinox module as a `Model`, in inference mode.

    Models of modules made by the same code compile to one program.

    Args:
      module: takes one normalised image `[C, H, W]`.
      state: of a module with batch statistics, which takes `(image, state)`; see
        `equinox.nn.make_with_state`.
      call: keywords of the call, such as `{"key": None}` or `{"train": False}`.
      **options: see `perturb.adapters._base.Options`: `mean`, `std`, `geometry`, `class_names`, ...
        With `output="segmentation"`, maps `[classes, H, W]` come back as `[H, W, classes]`.
    """
    equinox = require("equinox", "equinox")
    whole = (equinox.nn.inference_mode(module), state)
    variables, static = equinox.partition(whole, equinox.is_array)
    # A tuple of modules: hashable, and equal for modules of equal structure.
    given: Options = {"name": type(module).__name__, "channels_first": True, **options}
    return build(
        _Equinox,
        static,
        variables,
        given,
        maps=given.get("output") == "segmentation",
        call=tuple(sorted((call or {}).items())),
    )


@dataclasses.dataclass(frozen=True)
class _Equinox(Apply):
    maps: bool
    call: tuple[tuple[str, Any], ...]

    def outputs(self, variables: Variables, x: jax.Array) -> PyTree:
        module, state = require("equinox", "equinox").combine(variables, self.module)

        def one(x: jax.Array) -> PyTree:
            if state is None:
                return module(x, **dict(self.call))
            return module(x, state, **dict(self.call))[0]

        try:
            # The name that Equinox's examples give to the axis of its batch norm.
            y = jax.vmap(one, axis_name="batch")(jnp.moveaxis(x, -1, 1))
        except TypeError as error:
            if "required" not in str(error):
                raise
            raise ValueError(
                f"the call of {type(module).__name__} needs more than an image ({error}): write "
                "from_equinox(module, state) for its state, from_equinox(module, call={'key': "
                "None}) for keywords"
            ) from error
        return channels_last(y) if self.maps else y
