"""A classifier over pictures, as what is dissected: its inputs are given pictures and what is known
of them.

Layers are read as maps of units whatever their own order: channels first, tokens, or one number a
unit. The same layer in a random rotation of its units is a layer too: what a concept owes to the
layer as a whole, and not to single units, a rotation keeps.

>>> import numpy as np
>>> from perturb import Model, taps, units
>>> model = Model(lambda w, x: taps.tag(x * w, "double").mean((1, 2)), jnp.float32(2), channels=1)
>>> images = np.random.default_rng(0).random((40, 4, 4, 1), np.float32)
>>> subject = Pictures(model=model, size=(4, 4), layers=("double",), concepts=("bright",))
>>> latents = {"image": images, "masks": images > np.quantile(images, 0.75)}
>>> table = units.dissect(subject, layer=units_of("double"), concepts=subject.masks(),
...     quantile=0.75, latents=latents, replicates=10)
>>> table.concepts, float(table.iou[0, 0])
(('bright',), 1.0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, taps
from perturb.layouts import layer_layout
from perturb.model import Model, check_model
from perturb.types import ArrayLike, PyTree, Variables
from perturb.units.concepts import Concepts
from perturb.units.subject import Canvas

__all__ = ["Pictures", "maps", "random_rotations", "rotated_name", "units_of"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """A classifier and the layers of it that are looked at: a `Subject` whose inputs are pictures.

    Inputs are a dict: `image` `[N, H, W, C]` in [0, 1], and `masks` `[N, H, W, concepts]`,
    booleans; for concepts that are known in some places only, `labelled`, the same shape or
    `[N, H, W, 1]`.

    Attributes:
      model: the classifier, a `perturb.Model`.
      rotations: `{layer: [R, units, units]}`, each a layer of its own, called
        `rotated_name(layer, r)`.
      size: `(H, W)` of the pictures.
      layers: names of `perturb.taps.names(model, images)`; as maps of units they are called
        `units_of(layer)`.
      concepts: names of the masks; empty where concepts are read off the picture itself.
      partial: 0, or how many channels `labelled` has.
    """

    model: Model
    rotations: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    layers: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    concepts: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    partial: int = dataclasses.field(default=0, metadata={"static": True})

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def name(self) -> str:
        """That of the model."""
        return self.model.name

    @property
    def label_names(self) -> tuple[str, ...]:
        """None: what is known of pictures are masks."""
        return ()

    @property
    def canvas(self) -> Canvas | None:
        """None: layers cover the picture."""
        return None

    def __call__(self, inputs: PyTree, /) -> dict[str, jax.Array]:
        """Returns the inputs, and each layer as a map `[B, h, w, units]`, under its name and
        rotated.
        """
        outputs = dict(inputs)
        _, values = taps.read(self.model, self.layers)(inputs["image"])
        for name, value in values.items():
            found = maps(self.model, inputs["image"], name, value)
            # Tagged under another name, because the layer itself may have its axes in another
            # order.
            outputs[units_of(name)] = taps.tag(found, units_of(name))
            for r, rotation in enumerate(self.rotations.get(name, ())):
                turned = jnp.einsum("bhwu,uv->bhwv", found, rotation)
                outputs[rotated_name(name, r)] = taps.tag(turned, rotated_name(name, r))
        return outputs

    def draw(self, key: jax.Array) -> PyTree:
        """Returns noise of the right shapes.

        Args:
          key: random key of the noise.
        """
        one = {"image": jax.random.uniform(key, (*self.size, self.model.channels))}
        if self.concepts:
            one["masks"] = jnp.zeros((*self.size, len(self.concepts)), bool)
        if self.partial:
            one["labelled"] = jnp.zeros((*self.size, self.partial), bool)
        return one

    def check(self) -> dict[str, tuple[int, ...]]:
        """Refuses a model that mixes the pictures of a batch or gives no finite numbers."""
        keys = jax.random.split(jax.random.key(0), 4)
        # Noise will do: what is checked is that pictures do not mix and numbers are finite.
        batch = jax.vmap(self.draw)(keys)
        check_model(self.model, batch["image"])
        return {k: v.shape[1:] for k, v in jax.eval_shape(self, batch).items()}

    def masks(self) -> Concepts:
        """Returns the masks that come with the pictures as concepts.

        Of partial ones, the concepts within what is labelled, then what is labelled for each of
        them, which `table(partial=True)` takes apart.
        """
        if not self.concepts:
            raise ValueError("concepts must name the masks of the pictures, got none")
        names = self.concepts
        if self.partial:
            names = (*names, *(f"labelled for {n}" for n in names))
        return Concepts(_carried, names)


def maps(model: Model, images: ArrayLike, layer: str, activation: jax.Array) -> jax.Array:
    """Returns a layer as `[B, h, w, units]`, tokens without a place (a class token) aside.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      layer: a name of `perturb.taps.names(model, images)`.
      activation: `[B, ...]`, the layer's values.
    Raises:
      ValueError: if the layer's places are no map, or its axes cannot be known.
    """
    found = layer_layout(model, images, layer, places=False).to_places(activation)
    if found.ndim == 2:
        return found[:, None, None, :]
    if found.ndim != 4:
        raise ValueError(f"layer {layer!r} must be a map of places, got {found.shape[1:-1]} places")
    return found


def units_of(layer: str) -> str:
    """Returns the name of a layer of the model as a map of units, apart from the layer itself.

    Args:
      layer: name of the layer.

    >>> units_of("relu"), rotated_name("relu", 2)
    ('@relu', '@relu~2')
    """
    return f"@{layer}"


def rotated_name(layer: str, number: int) -> str:
    """Returns the name under which a rotation of a layer is a layer.

    Args:
      layer: name of the layer.
      number: index of the rotation, from 0.
    """
    return f"@{layer}~{number}"


def random_rotations(units: int, count: int, key: jax.Array) -> np.ndarray:
    """Returns `count` orthogonal matrices `[units, units]`, uniform (Haar), for
    `Pictures.rotations`.

    Args:
      units: number of units of the layer.
      count: number of matrices.
      key: random key.
    """
    # In float64, so that lengths are kept to the last bit of float32.
    normal = np.asarray(jax.random.normal(key, (count, units, units)), np.float64)
    q, r = np.linalg.qr(normal)
    # The signs of the diagonal make it uniform (Mezzadri 2007).
    found: np.ndarray = (q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]).astype(
        np.float32
    )
    return found


def _carried(variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
    masks = outputs["masks"]
    if "labelled" not in outputs:
        return masks
    labelled = jnp.broadcast_to(outputs["labelled"], masks.shape)
    # Outside of what is labelled a mask says nothing, whatever it holds there.
    return jnp.concatenate([masks & labelled, labelled], -1)
