"""Keras 3 models on the JAX backend. Keras names its layers itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from perturb.adapters._base import Apply, Options, build, require
from perturb.model import Model
from perturb.types import PyTree, Variables

__all__ = ["from_keras"]


def from_keras(
    module: Any,
    *,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    **options: Unpack[Options],
) -> Model:
    """Returns a Keras model (built, channels last) as a `Model`, in inference mode.

    Args:
      module: takes images `[B, H, W, C]`.
      preprocess: what `keras.applications` calls `preprocess_input`; it is given images in [0,
        255], in place of `mean` and `std`.
      **options: see `perturb.adapters._base.Options`: `mean`, `std`, `geometry`, `class_names`, ...
    Raises:
      ValueError: if Keras runs on another backend, or if the model is not built.
    """
    keras = require("keras", "'keras>=3.10'")
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras must run on JAX, got the backend {keras.backend.backend()!r}: set "
            "KERAS_BACKEND=jax in the environment before Keras is imported"
        )
    if not module.built:
        raise ValueError(
            f"Keras model {module.name} has no weights yet: call it once, model(images), or "
            "model.build((None, height, width, channels)), then load its weights"
        )
    parts = (module.trainable_variables, module.non_trainable_variables)
    # Copies: Keras gives its own arrays away (donates them) when it predicts or trains.
    # Under their own names, which say what layer they are of.
    names = tuple(_names(part) for part in parts)
    variables = tuple(
        {n: jnp.array(v.value) for n, v in zip(own, part, strict=True)}
        for own, part in zip(names, parts, strict=True)
    )
    options = {"name": module.name, **options}
    return build(_Keras, module, variables, options, preprocess=preprocess, names=names)


@dataclasses.dataclass(frozen=True)
class _Keras(Apply):
    preprocess: Callable[[jax.Array], jax.Array] | None
    names: tuple[tuple[str, ...], ...]

    def outputs(self, variables: Variables, x: jax.Array) -> PyTree:
        x = x if self.preprocess is None else self.preprocess(255 * x)
        parts = ([part[n] for n in own] for own, part in zip(self.names, variables, strict=True))
        # The second result is the state after the call, which inference does not change.
        return self.module.stateless_call(*parts, x, training=False)[0]


def _names(part: PyTree) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    names = []
    for v in part:
        seen[v.path] = seen.get(v.path, 0) + 1
        names.append(v.path if seen[v.path] == 1 else f"{v.path}#{seen[v.path]}")
    return tuple(names)
