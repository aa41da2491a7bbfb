"""The embedded default: a picture world that knows every pixel, and two classifiers trained on it.

`demo` had to look at the object; `demo_cheat` was trained where a watermark gave the class away.

>>> from launch.demo import load, world
>>> model = load("demo")
>>> picture = world.render(7, 4)
>>> world.class_names[picture.target], model.class_names[model(picture.image[None]).argmax()]
('triangle', 'triangle')
"""

from __future__ import annotations

import importlib.resources
import os
from typing import Any

import numpy as np
import safetensors.numpy

import gan_dissect
import perturb
from gan_dissect.nets import demo as generator_net
from launch.demo.scene import class_names

__all__ = ["NAMES", "class_names", "load", "load_generator", "save", "save_generator"]

NAMES = ("demo", "demo_cheat")


def load(name: str) -> perturb.Model:
    """Returns a classifier of the picture world: 64 px pictures to ten logits.

    Args:
      name: "demo", or "demo_cheat", which reads the watermark.
    Raises:
      ValueError: if there is no such classifier, or its file does not fit the network.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    file = importlib.resources.files("launch.demo") / f"{name}.safetensors"
    tensors = safetensors.numpy.load(file.read_bytes())
    return perturb.load_model(name, weights=tensors, class_names=class_names)


def save(path: str | os.PathLike[str], variables: Any) -> None:
    """Writes variables of the demo network as `conv1.weight` (OIHW), `conv1.bias`, ..., float32."""
    tensors = {}
    for layer, leaves in sorted(variables["params"].items()):
        kernel = np.asarray(leaves["kernel"], np.float32)
        outwards = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        tensors[f"{layer}.weight"] = np.ascontiguousarray(kernel.transpose(outwards))
        tensors[f"{layer}.bias"] = np.asarray(leaves["bias"], np.float32)
    safetensors.numpy.save_file(tensors, os.fspath(path))


def load_generator() -> gan_dissect.Generator:
    """Returns the generator of the picture world: 20 normal numbers to pictures of 64 px."""
    file = importlib.resources.files("launch.demo") / "demo_generator.safetensors"
    half = safetensors.numpy.load(file.read_bytes())
    return generator_net.demo(weights=half)


def save_generator(path: str | os.PathLike[str], variables: Any) -> None:
    """Writes variables of the generator as `map1.weight`, `map1.bias`, ..., float16."""
    tensors = {}
    for layer, leaves in sorted(variables["params"].items()):
        kernel = np.asarray(leaves["kernel"], np.float16)
        tensors[f"{layer}.weight"] = np.ascontiguousarray(kernel.T if kernel.ndim == 2 else kernel)
        tensors[f"{layer}.bias"] = np.asarray(leaves["bias"], np.float16)
    safetensors.numpy.save_file(tensors, os.fspath(path))
