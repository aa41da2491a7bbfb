"""What the launchers run where nothing is given: the embedded world, its generator, its trainings.

The pictures and the classifiers lie in `perturb.embedded`; `load` and `world` are those of there.

>>> from launch.demo import load, world
>>> model = load("demo")
>>> picture = world.render(7, 4)
>>> world.class_names[picture.target], model.class_names[model(picture.image[None]).argmax()]
('triangle', 'triangle')
"""

from __future__ import annotations

import importlib
import importlib.resources
import os
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from perturb import embedded
from perturb.embedded import class_names, load
from perturb.types import Variables

__all__ = [
    "EMBEDDED",
    "NAMES",
    "attributes",
    "class_names",
    "load",
    "load_generator",
    "load_text",
    "save",
    "save_generator",
    "save_reader",
    "segments",
]

if TYPE_CHECKING:
    from launch.demo.generator import (
        attributes,
        load_generator,
        save_generator,
        save_reader,
        segments,
    )

NAMES = ("demo", "demo_cheat")
# All that `load` knows: besides the pair, which is shown side by side, a small transformer.
EMBEDDED = embedded.NAMES


def __getattr__(name: str) -> object:
    # What needs `gan_dissect` is imported when it is asked for: masks do without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("launch.demo.generator"), name)


def save(path: str | os.PathLike[str], variables: Variables) -> None:
    """Writes variables of the demo network as `conv1.weight` (OIHW), `conv1.bias`, ..., float32."""
    tensors = {}
    for layer, leaves in sorted(variables["params"].items()):
        # In PyTorch's layout, as the weight files of all nets here are.
        kernel = np.asarray(leaves["kernel"], np.float32)
        outwards = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        tensors[f"{layer}.weight"] = np.ascontiguousarray(kernel.transpose(outwards))
        tensors[f"{layer}.bias"] = np.asarray(leaves["bias"], np.float32)
    safetensors.numpy.save_file(tensors, os.fspath(path))


def load_text() -> dict[str, jax.Array]:
    """Returns the variables of the language model of characters, see `perturb.text.characters`."""
    return {name: jnp.asarray(w, jnp.float32) for name, w in tensors("demo_text").items()}


def tensors(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an embedded weight file."""
    if name in EMBEDDED:
        return embedded.tensors(name)
    file = importlib.resources.files("launch.demo") / f"{name}.safetensors"
    return safetensors.numpy.load(file.read_bytes())
