"""Models of other frameworks as a `Model`: one small function each.

A framework ends here: what leaves is `apply(variables, images)`, pure, hashable, with the
normalisation inside.

>>> import flax.linen as nn, jax.numpy as jnp
>>> module, images = nn.Dense(10), jnp.ones((2, 8, 8, 3))
>>> model = from_linen(module, module.init(jax.random.key(0), images), mean=0.5, std=0.25)
>>> model(images).shape
(2, 8, 8, 10)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb.geometry import Geometry
from perturb.model import Model

__all__ = ["from_linen"]


def from_linen(
    module: Any,
    variables: Any,
    *,
    method: str | Callable[..., Any] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    geometry: Geometry | None = None,
    class_names: Sequence[str] = (),
    output: str = "logits",
    channels: int = 3,
    name: str | None = None,
    **apply_kwargs: Any,
) -> Model:
    """Returns a Flax linen module as a `Model`.

    Two models of equal modules and options compile to one program, whatever their weights.

    Args:
      module: a linen module that takes images `[B, H, W, C]`.
      variables: what `module.apply` takes: all its collections, batch statistics included.
      method: the module's method to call, `__call__` if None.
      mean, std: one number or one a channel; the module sees `(images - mean) / std`.
      geometry, class_names, output, channels: see `Model`.
      name: for records; the module's class if None.
      **apply_kwargs: static keywords of the call, such as `train=False`.
    Raises:
      ValueError: if the module or a keyword is not hashable, or `mean` and `std` are not numbers, one
        a channel, with `std` not 0.
    """
    apply = _LinenApply(
        module=module,
        method=method,
        mean=_per_channel(mean, channels, "mean"),
        std=_per_channel(std, channels, "std"),
        kwargs=tuple(sorted(apply_kwargs.items())),
    )
    if 0.0 in apply.std:
        raise ValueError(f"std must not be 0, got {std}")
    try:
        hash(apply)
    except TypeError as error:
        raise ValueError(
            f"module and apply_kwargs must be hashable (tuples for lists), got {module}, {apply_kwargs}"
        ) from error
    return Model(
        apply,
        variables,
        geometry=geometry,
        class_names=tuple(class_names),
        output=output,
        channels=channels,
        name=name or type(module).__name__,
    )


@dataclasses.dataclass(frozen=True)
class _LinenApply:
    """`module.apply` on normalised images; equal by value, so equal nets share compiled programs."""

    module: Any
    method: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def __call__(self, variables: Any, images: jax.Array) -> Any:
        x = _normalise(images, self.mean, self.std)
        return self.module.apply(variables, x, method=self.method, **dict(self.kwargs))


def _normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    images = jnp.asarray(images)
    shape = (1,) * (images.ndim - 1) + (-1,)
    dtype = jnp.promote_types(images.dtype, jnp.bfloat16)
    return (images - np.reshape(mean, shape).astype(dtype)) / np.reshape(std, shape).astype(dtype)


def _per_channel(value: float | Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    values = tuple(float(v) for v in np.ravel(value))
    if len(values) not in (1, channels) or not np.isfinite(values).all():
        raise ValueError(
            f"{name} must be one number, or one for each of {channels} channels, got {value}"
        )
    return values
