"""What a named net is: a module, its published recipe, and the way its weights come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturb import adapters
from perturb import weights as weights_lib
from perturb.geometry import Geometry
from perturb.model import Model

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Net"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _own_names(variables: Any, separator: str) -> dict[str, weights_lib.Slot]:
    return weights_lib.slots(variables, separator=separator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Net:
    """A published architecture; calling it with weights gives a `Model`.

    Attributes:
      name: as `load_model` knows it.
      module: `{name: array}` of the file to the linen module, whose layers carry the file's names;
        sizes are read from the shapes, an empty dict gives the published ones.
      geometry: the published way from a photograph to an input; its size is known.
      mean, std: of the published normalisation, images in [0, 1].
      separator: joins the names of nested layers in the file.
      slots: `(variables, separator)` to where every tensor of the file goes.
      hint: where weights are to be had, for the error where none are given.
      spell: the file's tensors, whoever wrote it, under the names that `slots` gives.
    """

    name: str
    module: Callable[[weights_lib.Tensors], nn.Module]
    geometry: Geometry
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    separator: str = "."
    hint: str = ""
    slots: Callable[[Any, str], dict[str, weights_lib.Slot]] = _own_names
    spell: Callable[[weights_lib.Tensors], weights_lib.Tensors] = dict

    def __call__(
        self,
        *,
        weights: Any = None,
        key: jax.Array | None = None,
        class_names: Sequence[str] = (),
    ) -> Model:
        """Returns the model with `weights`, or with random ones drawn from `key` (consumed)."""
        if (weights is None) == (key is None):
            raise ValueError(
                f'{self.name} needs weights="FILE.safetensors", or key= for random weights; '
                f"got {'neither' if weights is None else 'both'}{self.hint}"
            )
        tensors = {} if weights is None else self.spell(weights_lib.read_tensors(weights))
        module, template, logits = self.shapes(tensors)
        if key is not None:
            variables = weights_lib.draw(template, key)
        else:
            slots = self.slots(template, self.separator)
            variables = weights_lib.fill(template, tensors, slots, net=self.name)
        classes = logits.shape[-1]
        if class_names and len(class_names) != classes:
            raise ValueError(
                f"class_names must name the {classes} classes of {self.name}, got {len(class_names)}"
            )
        return adapters.from_linen(
            module,
            variables,
            mean=self.mean,
            std=self.std,
            geometry=self.geometry,
            class_names=class_names,
            name=self.name,
        )

    def shapes(self, tensors: weights_lib.Tensors) -> tuple[nn.Module, Any, Any]:
        """Returns the module, and the shapes of its variables and logits; nothing is computed."""
        module = self.module(tensors)
        images = jax.ShapeDtypeStruct((2, *(self.geometry.size or ()), 3), jnp.float32)
        logits, template = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
        return module, template, logits
