"""Concepts: what is looked for in what a generator draws. They read its dict of outputs.

A concept is a mask over the pixels of each image (`kind` "masks") or one number an image (`kind`
"scores": attributes that a predictor sees). Units are compared with masks; effects are measured on
both.

>>> import jax.numpy as jnp
>>> red = colours({"red": (1.0, 0.0, 0.0)}, tolerance=0.3)
>>> red({"image": jnp.asarray([[[[0.9, 0.1, 0.2], [0.1, 0.1, 0.1]]]])}).tolist()
[[[[True], [False]]]]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.model import Model
from perturb.types import PyTree, Variables
from perturb.units.subject import Subject

__all__ = ["Concepts", "attributes", "colours", "edges", "labels", "segmenter"]

# Rec. 601, as in JPEG and Pillow.
_LUMA = (0.299, 0.587, 0.114)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Concepts:
    """Named concepts: a pure function of a generator's outputs, and its weights if it has any.

    Attributes:
      apply: `(variables, outputs) -> [B, H, W, concepts]` booleans of the image's size, or
        `[B, concepts]` floats; `outputs` is the generator's dict. Static and hashable.
      names: `[concepts]` names, one a concept.
      variables: pytree of arrays, of a segmenter or predictor.
      kind: "masks" or "scores".
      soft: the same as probabilities `[B, H, W, concepts]`, to be differentiated, or None;
        static.
    """

    apply: Callable[[PyTree, dict[str, jax.Array]], jax.Array] = dataclasses.field(
        metadata={"static": True}
    )
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    variables: Variables = ()
    kind: str = dataclasses.field(default="masks", metadata={"static": True})
    soft: Callable[[PyTree, dict[str, jax.Array]], jax.Array] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def __repr__(self) -> str:
        return display.summary(self)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.kind not in ("masks", "scores"):
            raise ValueError(f"kind must be 'masks' or 'scores', got {self.kind!r}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be one for each concept and differ, got {self.names}")

    def __call__(self, outputs: dict[str, jax.Array]) -> jax.Array:
        """Returns the masks `[B, H, W, concepts]`, or the scores `[B, concepts]`.

        Raises:
          ValueError: if `apply` gives another shape or type: a segmenter and a generator of other
            sizes do not fit together.
        """
        found = self.apply(self.variables, outputs)
        image = outputs["image"]
        masks = self.kind == "masks"
        shape = (*image.shape[: 3 if masks else 1], len(self.names))
        # Booleans: pixels are counted, and half a pixel has no place among whole numbers.
        if found.shape != shape or (masks and found.dtype != bool):
            raise ValueError(
                f"concepts {', '.join(self.names[:3])}, ... must be {'bool' if masks else 'float'}"
                f"{list(shape)} for images {list(image.shape)}, got "
                f"{found.dtype}{list(found.shape)}; resize inside the concept"
            )
        return found

    def probabilities(self, outputs: dict[str, jax.Array]) -> jax.Array:
        """Returns `soft` of the outputs, `[B, H, W, concepts]`.

        Args:
          outputs: the generator's dict of arrays, `image` `[B, H, W, C]` among them.
        Raises:
          ValueError: if these concepts have no soft form.
        """
        if self.soft is None:
            raise ValueError(
                f"concepts {', '.join(self.names[:3])}, ... have no soft form to differentiate: "
                "give Concepts(..., soft=function) that returns probabilities [B, H, W, concepts]"
            )
        return self.soft(self.variables, outputs)


def labels(
    names: Sequence[str] | Subject, *, none: int | None = None, temperature: float = 1.0
) -> Concepts:
    """Returns the values of the generator's own `labels` as concepts.

    Their soft form is the softmax of the outputs' `scores / temperature`, `[B, H, W, values]`, if
    there are any.

    Args:
      names: one a value, in their order; or a generator, for its `label_names`.
      none: the value that means "none of these" (0 in most segmentations), left out; None for none.
      temperature: of the soft form, above 0: 1 for logits; about .1 for scores that were trained to
        be 0 and 1, as those of tile generators, or the soft form hardly tells the labels apart.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not isinstance(names, Sequence):
        if not names.label_names:
            raise ValueError(
                f"generator {names.name} has no label_names: give it some, or concepts of another "
                "kind"
            )
        names = names.label_names
    # Left out, not renumbered: values keep the meaning that the generator gives them.
    kept = tuple(k for k in range(len(names)) if k != none)
    return Concepts(
        _Labels(kept), tuple(names[k] for k in kept), soft=_SoftLabels(kept, temperature)
    )


def colours(colours: Mapping[str, Sequence[float]], *, tolerance: float = 0.15) -> Concepts:
    """Returns colours as concepts: a pixel is the nearest of them, if it is near enough.

    Args:
      colours: `{name: (r, g, b)}` in [0, 1]; `(v,)` for images of one channel.
      tolerance: largest difference in any channel.
    """
    # As a tuple below: static fields are compared and hashed.
    palette = np.asarray([tuple(c) for c in colours.values()], np.float64)
    if palette.ndim != 2 or not np.isfinite(palette).all():
        raise ValueError(f"colours must be {{name: (r, g, b)}} in [0, 1], got {dict(colours)}")
    if palette.min() < 0 or palette.max() > 1:
        raise ValueError(f"colours must be in [0, 1], got {dict(colours)}; divide by 255")
    return Concepts(_Colours(tuple(map(tuple, palette.tolist())), tolerance), tuple(colours))


def edges(*, threshold: float = 0.5) -> Concepts:
    """Returns "edge" as a concept: pixels where the Sobel gradient of the luma exceeds `threshold`.

    The gradient is in intensity a pixel, times 4 (Sobel's own scale): a step from 0 to 1 gives 4.

    Args:
      threshold: of the gradient, in units of intensity, 0 to about 4.
    """
    return Concepts(_Edges(threshold), ("edge",))


def segmenter(model: Model, *, none: int | None = 0) -> Concepts:
    """Returns the classes of a segmentation network as concepts: each pixel is its arg-max class.

    Their soft form is the softmax over the classes.

    Args:
      model: of output "segmentation", with class names; it sees the generator's images as they are.
      none: the class that means "none of these", left out; None for none.
    """
    if model.output != "segmentation":
        raise ValueError(f"model must have output 'segmentation', got {model.output!r}")
    if not model.class_names:
        raise ValueError(f"model {model.name} must have class_names: they name the concepts")
    kept = tuple(k for k in range(len(model.class_names)) if k != none)
    names = tuple(model.class_names[k] for k in kept)
    return Concepts(_Segmenter(kept), names, model, soft=_SoftSegmenter(kept))


def attributes(
    predict: Model | Callable[[dict[str, jax.Array]], jax.Array], names: Sequence[str] = ()
) -> Concepts:
    """Returns attributes of whole images as concepts of kind "scores".

    Args:
      predict: a classifier, whose logits become probabilities (softmax; of one logit its sigmoid)
        and whose other outputs stay;
        or a function of the outputs that returns `[B, concepts]`.
      names: one an attribute; a model's class names if empty.
    """
    if isinstance(predict, Model):
        names = tuple(names) or predict.class_names
        return Concepts(_predict, tuple(names), predict, kind="scores")
    return Concepts(_Function(predict), tuple(names), kind="scores")


# Records rather than closures: equal by value, so that the same concepts made twice share their
# compiled programs.
@dataclasses.dataclass(frozen=True)
class _Labels:
    values: tuple[int, ...]

    def __call__(self, variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
        if "labels" not in outputs:
            raise ValueError(
                f"the generator gives no labels, only {', '.join(sorted(outputs))}: use a "
                "segmenter or colours"
            )
        values = jnp.asarray(self.values).reshape(1, 1, 1, -1)
        return outputs["labels"][..., None] == values


@dataclasses.dataclass(frozen=True)
class _SoftLabels:
    values: tuple[int, ...]
    temperature: float

    def __call__(self, variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
        if "scores" not in outputs:
            raise ValueError(
                f"the generator gives no scores of its labels, only {', '.join(sorted(outputs))}: "
                "give concepts with a soft form of their own"
            )
        return jax.nn.softmax(outputs["scores"] / self.temperature)[..., np.asarray(self.values)]


@dataclasses.dataclass(frozen=True)
class _Colours:
    palette: tuple[tuple[float, ...], ...]
    tolerance: float

    def __call__(self, variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
        image = outputs["image"]
        palette = jnp.asarray(self.palette, image.dtype)
        if palette.shape[1] != image.shape[-1]:
            raise ValueError(
                f"colours must have the {image.shape[-1]} channels of the image, got "
                f"{palette.shape[1]}"
            )
        far = jnp.abs(image[..., None, :] - palette.reshape(1, 1, 1, *palette.shape)).max(-1)
        # The nearest alone, or a pixel between two colours would be both.
        nearest = jnp.argmin(far, -1)[..., None] == jnp.arange(len(palette)).reshape(1, 1, 1, -1)
        return nearest & (far <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class _Edges:
    threshold: float

    def __call__(self, variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
        image = outputs["image"]
        luma = image @ jnp.asarray(_LUMA, image.dtype) if image.shape[-1] == 3 else image.mean(-1)
        # The border repeats: zeros would make an edge all around.
        x = jnp.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="edge")
        across = x[:, :, 2:] - x[:, :, :-2]
        down = x[:, 2:] - x[:, :-2]
        gx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
        gy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
        return (jnp.hypot(gx, gy) > self.threshold)[..., None]


@dataclasses.dataclass(frozen=True)
class _Segmenter:
    values: tuple[int, ...]

    def __call__(self, variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
        found = jnp.argmax(variables(outputs["image"]), -1)
        return found[..., None] == jnp.asarray(self.values).reshape(1, 1, 1, -1)


@dataclasses.dataclass(frozen=True)
class _SoftSegmenter:
    values: tuple[int, ...]

    def __call__(self, variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
        return jax.nn.softmax(variables(outputs["image"]))[..., np.asarray(self.values)]


@dataclasses.dataclass(frozen=True)
class _Function:
    predict: Callable[[dict[str, jax.Array]], jax.Array]

    def __call__(self, variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
        return self.predict(outputs)


def _predict(model: Model, outputs: dict[str, jax.Array]) -> jax.Array:
    found = model(outputs["image"])
    if model.output not in ("logits", "binary"):
        result: jax.Array = found
        return result
    found = found.reshape(len(found), -1)
    # One logit says yes or no: the softmax of one number is always 1.
    return jax.nn.sigmoid(found) if found.shape[1] == 1 else jax.nn.softmax(found)
