"""Classifiers by name, with their published preprocessing and strict import of their weights.

>>> import jax
>>> model = load_model("cifar_resnet20", key=jax.random.key(0))
>>> model(jax.numpy.ones((2, 32, 32, 3))).shape
(2, 10)
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence

import jax

from perturb.messages import did_you_mean, listed, short
from perturb.model import Model
from perturb.types import PyTree, Weights

__all__ = ["NAMES", "load_model", "recognise"]

# Name -> "module:attribute", a callable `(*, weights, key, class_names, rename, size) -> Model`.
# Written as text because importing a net imports Flax, and most of this library works without.
_BUILDERS = {
    f"{name}": f"perturb.nets.{module}:{name}"
    for module, names in {
        "squeezenet": ("squeezenet1_0", "squeezenet1_1"),
        "mobilenet": ("mobilenet_v2", "mobilenet_v1_tf", "mobilenet_v2_tf"),
        "vgg": ("vgg16", "vgg19"),
        "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        "vit": ("vit_b_16", "demo_vit"),
        "demo": ("demo", "demo_cheat"),
        "cifar_resnet": ("cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56"),
    }.items()
    for name in names
}

NAMES = tuple(_BUILDERS)

# How the names of a net begin, and what its files have in the name of a layer whoever wrote them.
_MARKS = {
    "squeezenet": ("squeeze",),
    "mobilenet_v2_tf": ("expanded_conv",),
    "mobilenet_v1_tf": ("Conv2d_13",),
    "mobilenet_v2": ("features.18",),
    "vgg": ("features.28",),
    "resnet": ("layer4",),
    "vit": ("encoder_layer_11", "blocks.11"),
    "demo_vit": ("encoder_layer_3",),
    "demo": ("conv6",),
    "cifar_resnet": ("layer3",),
}


def load_model(
    name: str,
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    class_names: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    size: int | None = None,
) -> Model:
    """Returns a classifier under its published recipe: geometry, normalisation, `[B, H, W, 3]` in
    [0, 1].

    Args:
      name: one of `NAMES`. `squeezenet1_0`, `squeezenet1_1`, `mobilenet_v2`, `vgg16`, `resnet18`,
        `vit_b_16` and their like take torchvision's layer names, the last three families timm's
        too; `mobilenet_v1_tf` and `mobilenet_v2_tf` TensorFlow's with batch norm folded,
        in any width; `cifar_resnet20` to `56` those of the public PyTorch checkpoints. `demo`,
        `demo_cheat` and `demo_vit` are small nets whose weights `perturb.demo` brings: this
        function reads no file that it is not given.
      weights: a safetensors file, or its tensors `{name: array}` already loaded. Every leaf is
        filled exactly once. The number of classes is read from the shapes. What a wrapper has put
        before the names (`module.`, `_orig_mod.`, `model.`, `encoder.`) is taken away where the
        rest fits.
      key: instead of weights, for random ones (timing, sanity checks); consumed.
      class_names: one a class, or none.
      rename: `{pattern: text}` for names that are otherwise different, as in `re.sub`, one after
        the other; a tensor whose name becomes empty is left out.
      size: side of the pictures in px, of nets that take any (MobileNets, ResNets, SqueezeNets);
        None is the published one.
    Returns:
      a `Model` whose outputs are logits `[B, classes]` in float32.
    Raises:
      ValueError: if the name is unknown, if weights and key are both given or both absent, if the
        weights do not fit (one error names everything that is missing, extra, mis-shaped or not
        finite), or if class_names are not one a class.
      FileNotFoundError: if there is no such file.
    """
    found: Model = _builder(name)(
        weights=weights, key=key, class_names=class_names, rename=rename, size=size
    )
    return found


def recognise(tensors: Mapping[str, PyTree]) -> tuple[str, ...]:
    """Returns the nets that these tensors fill exactly: those that `load_model` takes them for.

    Args:
      tensors: `{name: array}` of a weight file.

    >>> import numpy as np
    >>> recognise({"classifier.1.weight": np.zeros((5, 512, 1, 1))})
    ()
    """
    found = []
    for name in NAMES:
        marks = next(marks for family, marks in _MARKS.items() if name.startswith(family))
        # Building a net to ask it takes a second: first whether a layer of its own is there.
        if not any(mark in layer for layer in tensors for mark in marks):
            continue
        # A net that is made for other shapes stumbles over these in its own way.
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
            load_model(name, weights=tensors)
            found.append(name)
    return tuple(found)


def _builder(name: str) -> PyTree:
    if name not in _BUILDERS:
        hint = did_you_mean(name, NAMES)
        raise ValueError(f"no net is called {short(name, 40)}{hint}; known: {listed(NAMES, 180)}")
    module, attribute = _BUILDERS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
