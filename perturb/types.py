"""The types that signatures name, where JAX and NumPy have none of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "ArrayLike",
    "Function",
    "ImageSource",
    "Options",
    "PyTree",
    "Record",
    "Variables",
]

if TYPE_CHECKING:
    import jax

    # An array, wherever it lies.
    Array: TypeAlias = np.ndarray | jax.Array
    # What becomes one.
    ArrayLike: TypeAlias = npt.ArrayLike | jax.Array
else:
    # Annotations are never evaluated, and processes that only decode pictures load no JAX.
    Array, ArrayLike = np.ndarray, npt.ArrayLike
# Nested tuples, dicts and records of arrays. JAX has no static type for them: what a tree holds
# is said in the docstring.
PyTree: TypeAlias = Any
Variables: TypeAlias = PyTree
Function: TypeAlias = Callable[..., PyTree]
# A row of results, a JSON object, keyword arguments.
Record: TypeAlias = dict[str, Any]
# What a net is filled from: a file, or its arrays by name; None draws them.
Weights: TypeAlias = str | os.PathLike[str] | Mapping[str, PyTree] | None
Options: TypeAlias = Mapping[str, Any]


class ImageSource(Protocol):
    """Images read in blocks: an array, or anything with `len()` whose slices are arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice, /) -> PyTree: ...
