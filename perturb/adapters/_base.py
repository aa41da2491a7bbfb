"""What all adapters share: the normalisation, the fields of the model, and names for its parts."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from perturb.geometry import Geometry
from perturb.model import Model
from perturb.types import PyTree, Record, Variables

__all__ = ["Apply", "Options", "build", "channels_last", "require", "scopes"]


class Options(TypedDict, total=False):
    """Keywords that every adapter takes.

    Attributes:
      mean, std: one number or one a channel; the network sees `(images - mean) / std`.
      geometry, class_names, output, select, channels, channels_first: see `perturb.Model`.
      name: for records; the network's class if not given.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    geometry: Geometry | None
    class_names: Sequence[str]
    output: str
    select: Any
    channels: int
    channels_first: bool
    name: str | None


@dataclasses.dataclass(frozen=True)
class Apply:
    """A network on normalised images; equal by value, so that equal networks share programs.

    Attributes:
      module: what runs; hashable.
      mean, std: see `Options`.
    """

    module: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, variables: Variables, images: jax.Array) -> PyTree:
        """Returns the outputs for `images` `[B, H, W, C]` in [0, 1]."""
        images = jnp.asarray(images)
        shape = (1,) * (images.ndim - 1) + (-1,)
        # Integers become floats; bfloat16, float32 and float64 stay what they are. NumPy's arrays
        # belong to no device.
        dtype = jnp.promote_types(images.dtype, jnp.bfloat16)
        mean, std = (np.reshape(v, shape).astype(dtype) for v in (self.mean, self.std))
        return self.outputs(variables, (images - mean) / std)

    def outputs(self, variables: Variables, x: jax.Array) -> PyTree:
        """Returns the outputs for `x` `[B, H, W, C]`, normalised."""
        raise NotImplementedError


def build(
    kind: type[Apply], module: Any, variables: Variables, options: Options, **fields: object
) -> Model:
    """Returns the model of a network.

    Args:
      kind: how it is run; made with `module`, `mean`, `std` and `fields`.
      variables: its arrays, a pytree.
      options: of the adapter's caller.
    Raises:
      ValueError: if the network is not hashable, or `mean` and `std` are not numbers, one a
        channel, with `std` not 0.
    """
    given: Record = dict(options)
    channels = given.get("channels", 3)
    mean = _per_channel(given.pop("mean", 0.0), channels, "mean")
    std = _per_channel(given.pop("std", 1.0), channels, "std")
    if 0.0 in std:
        raise ValueError(f"std must not be 0, got {options['std']}")
    apply = kind(module, mean, std, **fields)
    try:
        # Static parts are keys of compiled programs; found out here, the error names the network.
        hash(apply)
    except TypeError as error:
        raise ValueError(
            f"{type(module).__name__} must be hashable, its fields and the keywords of the call "
            f"too: tuples for lists, no arrays ({error}); {str(fields)[:80]}"
        ) from error
    given["name"] = given.get("name") or type(module).__name__
    return Model(apply, variables, **given)


def channels_last(outputs: PyTree) -> PyTree:
    """Returns outputs with maps `[B, C, *size]` as `[B, *size, C]`, in whatever container."""
    # [B, classes] has no places to be moved.
    return jax.tree.map(lambda y: jnp.moveaxis(y, 1, -1) if y.ndim > 2 else y, outputs)


def require(name: str, install: str) -> PyTree:
    """Imports a framework.

    Raises:
      ImportError: saying what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this adapter needs {name}: pip install {install}") from error


Path = TypeVar("Path", bound=tuple[object, ...])


def scopes(called: Iterable[Path]) -> dict[Path, str]:
    """Names modules for `perturb.taps`: relative to the nearest module they are called in.

    >>> scopes([(), ("stem",), ("layers", 0), ("stem", "conv")])
    {(): '', ('stem',): 'stem', ('layers', 0): 'layers.0', ('stem', 'conv'): 'conv'}
    """
    paths = dict.fromkeys(called)
    names = {}
    for path in sorted(paths, key=len):
        above = max(
            i for i in range(len(path) + 1) if (i < len(path) and path[:i] in paths) or not i
        )
        names[path] = ".".join(map(str, path[above:]))
    return names


def _per_channel(value: float | Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    values = tuple(float(v) for v in np.ravel(value))
    if len(values) not in (1, channels) or not np.isfinite(values).all():
        raise ValueError(
            f"{name} must be one number, or one for each of {channels} channels, got {value}"
        )
    return values
