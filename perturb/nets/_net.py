"""Named nets: a module, its published preprocessing, and how its weights are loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturb import adapters
from perturb import weights as weights_lib
from perturb.geometry import Geometry
from perturb.imagenet import MEAN as IMAGENET_MEAN
from perturb.imagenet import STD as IMAGENET_STD
from perturb.model import Model
from perturb.types import PyTree, Variables, Weights
from perturb.weights import prefixes

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Net"]

# px; these nets halve their maps five times.
_SMALLEST = 32


def _own_names(variables: Variables, separator: str) -> dict[str, weights_lib.Slot]:
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
      spell: maps the tensors of any known library to the names that `slots` gives.
      sizes: whether it takes pictures of other sizes than the published one.
    """

    name: str
    module: Callable[[weights_lib.Tensors], nn.Module]
    geometry: Geometry
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    separator: str = "."
    hint: str = ""
    slots: Callable[[PyTree, str], dict[str, weights_lib.Slot]] = _own_names
    spell: Callable[[weights_lib.Tensors], weights_lib.Tensors] = dict
    sizes: bool = False

    def __call__(
        self,
        *,
        weights: Weights = None,
        key: jax.Array | None = None,
        class_names: Sequence[str] = (),
        rename: Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> Model:
        """Returns the model with `weights`, or with random ones drawn from `key` (consumed)."""
        weights_lib.one_source(self.name, weights, key, hint=self.hint)
        geometry = self.geometry if size is None else self._sized(size)
        tensors = {} if weights is None else self._tensors(weights, rename or {})
        module, template, logits = self.shapes(tensors)
        if key is not None:
            variables = weights_lib.draw(template, key)
        else:
            slots = self.slots(template, self.separator)
            variables = weights_lib.fill(template, tensors, slots, net=self.name)
        classes = logits.shape[-1]
        if class_names and len(class_names) != classes:
            raise ValueError(
                f"class_names must name the {classes} classes of {self.name}, got "
                f"{len(class_names)}"
            )
        return adapters.from_linen(
            module,
            variables,
            mean=self.mean,
            std=self.std,
            geometry=geometry,
            class_names=class_names,
            name=self.name,
        )

    def _tensors(
        self, weights: str | os.PathLike[str] | Mapping[str, PyTree], rename: Mapping[str, str]
    ) -> weights_lib.Tensors:
        """The file's tensors under the net's names, without what a wrapper put before them."""
        found = prefixes.renamed(weights_lib.read_tensors(weights), rename)
        tensors = self.spell(found)
        template = self.shapes(tensors)[1]
        wanted = self.slots(template, self.separator)
        # All names are there: what else the file holds is for `fill` to name.
        if wanted.keys() <= tensors.keys():
            return tensors
        # Flax's own names too.
        own = {"/".join(slot.path) for slot in wanted.values()}
        return self.spell(
            prefixes.unwrapped(found, [wanted.keys(), own], net=self.name, spell=self.spell)
        )

    def _sized(self, size: int) -> Geometry:
        """The published geometry for pictures of `size` px: a short side is scaled along with the
        crop.
        """
        (side, _) = self.geometry.size or (0, 0)
        if not self.sizes:
            raise ValueError(f"size: {self.name} takes pictures of {side} px only, got {size}")
        if isinstance(size, bool) or not isinstance(size, int) or size < _SMALLEST:
            raise ValueError(f"size must be whole px, at least {_SMALLEST}, got {size!r}")
        # A crop of another size is to show the same part of the photograph.
        steps = [
            (name, round(value * size / side) if name == "short_side" else value)
            for name, value in self.geometry.steps[:-1]
        ]
        return Geometry((*steps, (self.geometry.steps[-1][0], (size, size))))

    def shapes(self, tensors: weights_lib.Tensors) -> tuple[nn.Module, PyTree, PyTree]:
        """Returns the module, and the shapes of its variables and logits; nothing is computed."""
        module = self.module(tensors)
        images = jax.ShapeDtypeStruct((2, *(self.geometry.size or ()), 3), jnp.float32)
        # Shapes of the weights come from the module itself: no second list of them can go stale.
        logits, template = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
        return module, template, logits
