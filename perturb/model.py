"""The model is a pure function and a pytree: `apply(variables, images) -> outputs`.

Nothing else in this library knows a framework. Images are `[B, H, W, C]` in [0, 1]; whatever the
network wants beyond that (mean and standard deviation, channel order, an offset, a dropped class)
happens inside `apply`.

>>> import jax.numpy as jnp
>>> model = Model(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(3), class_names=("r", "g", "b"))
>>> model(jnp.ones((2, 8, 8, 3))).shape
(2, 3)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, inputs, messages
from perturb._numerics import xla
from perturb.geometry import Geometry
from perturb.scores import OUTPUTS
from perturb.types import Array, ArrayLike, Function, PyTree, Variables

__all__ = ["Inputs", "Model", "check_inputs", "check_model", "check_parity"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """An image model: a pure function, its weights, and what its input and output mean.

    A registered dataclass: `variables` are the leaves and so traced arguments of every compiled
    program (other weights never recompile); everything else is static and must be hashable.

    Attributes:
      apply: `(variables, images [B, H, W, C] in [0, 1]) -> outputs [B, ...]`, row by row: the
        outputs of one image must not depend on the others.
      variables: pytree of arrays.
      geometry: how a photograph becomes an input; None takes images as they are.
      class_names: one name a class, or empty.
      output: what `apply` returns, which decides what the score and the probability of a target are
        (`perturb.scores`): "logits" `[B, classes]` (the default; one number an image is read by its
        sigmoid), "probabilities" `[B, classes]` (the network ends in softmax or sigmoid, as most of
        Keras do), "binary" `[B]` or `[B, 1]` (one logit, target 1 is yes and 0 no), "multilabel"
        (logits `[B, labels]` of independent labels), "embedding" `[B, D]`, "regression" `[B]` or
        `[B, D]`, "segmentation" `[B, H, W, classes]`, "detection" (boxes `[B, N, 4]` and scores
        `[B, N, classes]`), or "any" (numbers of any meaning, read as they are).
      channels: number of image channels, 3 unless said otherwise.
      name: for records and pages.
      select: which part of what `apply` returns is the output, where it returns more than one
        array: a key, an attribute or an index, a tuple of them from the outside in, or a function;
        None takes all. `select="logits"`, `select=0`, `select=lambda y: y[0][:, 0]`.
      channels_first: whether maps inside the network are `[B, C, H, W]`, as in torch and Equinox.
      layouts: where the axes of a layer lie where tracing cannot know it, `{"blocks.3": "BNC"}`,
        see `perturb.layouts`.
    """

    apply: Function = dataclasses.field(metadata={"static": True})
    variables: Variables
    geometry: Geometry | None = dataclasses.field(default=None, metadata={"static": True})
    class_names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    output: str = dataclasses.field(default="logits", metadata={"static": True})
    channels: int = dataclasses.field(default=3, metadata={"static": True})
    name: str = dataclasses.field(default="model", metadata={"static": True})
    channels_first: bool = dataclasses.field(default=False, metadata={"static": True})
    select: str | int | tuple[str | int, ...] | Function | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    layouts: Mapping[str, str] | tuple[tuple[str, str], ...] = dataclasses.field(
        default=(), metadata={"static": True}
    )

    def __post_init__(self) -> None:
        # Static fields are keys of compiled programs: a list of names would fail there, far from
        # here.
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if isinstance(self.select, list):
            object.__setattr__(self, "select", tuple(self.select))
        object.__setattr__(self, "layouts", tuple(sorted(dict(self.layouts).items())))
        if self.output not in OUTPUTS:
            raise messages.one_of("output", self.output, OUTPUTS)

    def __repr__(self) -> str:
        return display.summary(self)

    def channel_axis(self, activation: PyTree) -> int:
        """Returns the axis of the channels of an activation, or of its shape, inside the network.

        Args:
          activation: an array inside the network, or its shape as a tuple of integers.
        """
        return 1 if self.channels_first and len(activation.shape) > 3 else len(activation.shape) - 1

    def __call__(self, images: jax.Array) -> PyTree:
        """Returns the outputs for `images` `[B, H, W, C]` in [0, 1]."""
        return _selected(self, self.apply(self.variables, images))


def _selected(model: Model, outputs: PyTree) -> PyTree:
    if callable(model.select):
        return model.select(outputs)
    steps = model.select if isinstance(model.select, tuple) else (model.select,)
    found = outputs
    for step in steps if model.select is not None else ():
        try:
            # A string is the key of a dict, and an attribute of any other record.
            if isinstance(step, str) and not isinstance(found, dict):
                found = getattr(found, step)
            else:
                found = found[step]
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(
                f"select={model.select!r} is not in what model {model.name} returns, "
                f"{inputs.describe(outputs)}"
            ) from error
    return found


# One jitted function for the life of the process: a new lambda a call would compile the net each
# time.
_run = jax.jit(lambda model, images: model(images))


class Inputs(NamedTuple):
    """What was given for a call, checked.

    Attributes:
      images: `[B, *size, C]` float32.
      targets: `[B]` int32, or a pytree of `[B, ...]` where the outputs have such targets.
      outputs: of the first one or two images; their shapes only, where images are traced.
    """

    images: Array
    targets: PyTree
    outputs: PyTree

    def __repr__(self) -> str:
        return display.summary(self)


def check_inputs(model: Model, images: ArrayLike, targets: PyTree) -> Inputs:
    """Checks a model, images and targets together: the one way into every method and metric.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, *size, C]` in [0, 1].
      targets: classes `[B]`, their names, or what else the outputs have, see
        `inputs.check_targets`.
    Raises:
      ValueError: naming the argument that cannot be served, and what to write instead.
      RuntimeError: if this CPU's gradients are wrong under jit (see `check_model`).
    """
    checked = inputs.pictures(model, images)
    outputs = check_model(model, checked[:2])
    wanted = inputs.check_targets(model, targets, outputs, len(checked), images=checked)
    return Inputs(checked, wanted, outputs)


def check_model(model: Model, images: jax.Array | np.ndarray) -> PyTree:
    """Runs the model on `images` and refuses one that the methods cannot trust.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1], or signals `[B, T, C]`.
    Returns:
      the outputs for `images` `[B, ...]`; their shapes only, where the images are traced.
    Raises:
      ValueError: if images are not floats `[B, H, W, C]` in [0, 1] (signals: `[B, T, C]`), if the
        outputs are not what `model.output` says, lose the batch or are not finite, or if the
        outputs of an image change with its neighbours (batch normalisation in training mode).
      RuntimeError: if this CPU's gradients are wrong under jit (jaxlib 0.10 and 0.11, see
        docs/results/speed.md).
    """
    xla.check_gradients()
    images = inputs.pictures(model, images)
    # Never a batch of one: XLA compiles it to different arithmetic than every larger batch.
    repeated = [images, images] if len(images) == 1 else [images]
    # Shapes first: a model that does not fit is refused before anything is computed.
    shapes = _shapes(
        model, jax.ShapeDtypeStruct((sum(map(len, repeated)), *images.shape[1:]), images.dtype)
    )
    # Outputs of several arrays are refused here, before their rows are counted: the message names
    # the parts to select.
    if not hasattr(shapes, "shape"):
        inputs.returned(model, shapes)
    for leaf in jax.tree.leaves(shapes):
        if not leaf.shape or leaf.shape[0] != len(images) * len(repeated):
            hint = "; for a single picture write images[None]" if images.ndim == 3 else ""
            raise ValueError(
                f"model {model.name} must return one row an image, [B, ...]: "
                f"got shape {leaf.shape} for {len(images) * len(repeated)} images{hint}"
            )
    inputs.returned(model, shapes)
    if isinstance(images, jax.core.Tracer):
        return shapes
    batch = np.concatenate(repeated)
    outputs = jax.tree.map(np.asarray, _run(model, batch))
    if not all(_is_finite(leaf) for leaf in jax.tree.leaves(outputs)):
        raise ValueError(
            f"model {model.name} returned NaN or infinite outputs for finite images: "
            "check its weights and its preprocessing"
        )
    if model.output == "probabilities" and not all(
        # `initial` for outputs without an entry, such as a detector's empty list of boxes.
        leaf.min(initial=0) >= -1e-3 and leaf.max(initial=0) <= 1 + 1e-3
        for leaf in jax.tree.leaves(outputs)
    ):
        raise ValueError(
            f"model {model.name}: output='probabilities' wants values in [0, 1], it returns "
            f"{float(outputs.min()):.3g} to {float(outputs.max()):.3g}: say output='logits'"
        )
    _check_looks_like_logits(model, outputs)
    # Noise of the widest range: no image looks like it, so every statistic of the batch moves.
    noise = np.random.default_rng(0).integers(0, 2, batch.shape).astype(batch.dtype)
    noise[0] = batch[0]
    mixed = _run(model, noise)
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(mixed), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # NaN counts as coupled: alone, the image gave finite outputs. XLA may round an image
        # differently beside others, by far less than this; statistics of a batch move it by more.
        if not np.abs(a[0] - b[0]).max(initial=0.0) <= 1e-3 * (np.abs(a).max(initial=0.0) or 1.0):
            raise ValueError(
                f"model {model.name} couples the images of a batch: the output of an image changes "
                "with its neighbours. Put batch normalisation in inference mode (stored statistics)"
            )
    return jax.tree.map(lambda leaf: leaf[: len(images)], outputs)


def _is_finite(leaf: np.ndarray) -> bool:
    return bool(jnp.isfinite(leaf).all())


def _shapes(model: Model, images: jax.ShapeDtypeStruct) -> PyTree:
    """Shapes of the outputs; what the network itself raises becomes a sentence."""
    try:
        # The jitted function remembers what it has traced: a network is not traced at every call.
        return _run.eval_shape(model, images)
    except Exception as error:
        if isinstance(error, TypeError) and "valid JAX type" in str(error):
            jax.eval_shape(_refuse_strange_outputs, model, images)
        if isinstance(error, ValueError) and images.ndim != 3:
            raise
        hint = "; for a single picture write images[None]" if images.ndim == 3 else ""
        raise ValueError(
            f"images must be what model {model.name} takes: it does not run on images of shape "
            f"{images.shape[1:]}{hint} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]})"
        ) from error


def _refuse_strange_outputs(model: Model, images: jax.Array) -> None:
    """Refuses outputs of a class that JAX cannot take apart, with what they hold."""
    outputs = model(images)
    if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(outputs)):
        inputs.returned(model, outputs)
        raise ValueError(
            f"model {model.name} returns {inputs.describe(outputs)}, which is no array: "
            "say select=NAME or a function that picks one"
        )


def _check_looks_like_logits(model: Model, outputs: PyTree) -> None:
    """Refuses logits that are probabilities: the softmax of a softmax is nearly flat."""
    if model.output != "logits" or outputs.ndim != 2 or outputs.shape[1] < 2:
        return
    rows = outputs.astype(np.float64)
    if (rows >= 0).all() and (np.abs(rows.sum(1) - 1) < 1e-5).all():
        raise ValueError(
            f"model {model.name}: output='logits', but its rows are shares that sum to 1: say "
            "output='probabilities' (or 'any', for numbers that are to be read as they are)"
        )


def check_parity(model: Model, x: np.ndarray, y: np.ndarray, *, tolerance: float = 1e-3) -> float:
    """Compares the model with outputs recorded from its source framework.

    One check that catches transposed weights, another layout, wrong mean and standard deviation,
    and normalisation left in training mode.

    Args:
      model: the network, a `perturb.Model`.
      x: images `[B, H, W, C]` in [0, 1], as the source saw them before its own normalisation.
      y: the source's outputs for `x`.
      tolerance: largest allowed difference as a share of the largest output.
    Returns:
      the largest difference as a share of the largest output.
    Raises:
      ValueError: if `x` is not such images, if the outputs have another shape than `y`, or if they
        differ by more than `tolerance`.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 3 or not len(x) or x.shape[-1] != model.channels:
        raise ValueError(
            f"parity: x must be [B, H, W, {model.channels}], got shape {x.shape}; "
            "NCHW arrays want x.transpose(0, 2, 3, 1)"
        )
    if x.min() < -1e-3 or x.max() > 1 + 1e-3:
        raise ValueError(
            f"parity: x must be in [0, 1], got [{x.min():.3g}, {x.max():.3g}]; "
            "undo the source's normalisation, the model applies its own"
        )
    got = _run(model, jnp.asarray(x, jnp.float32))
    shape = got.shape if isinstance(got, jax.Array) else f"a {type(got).__name__}"
    if shape != y.shape:
        raise ValueError(f"parity: model {model.name} gives {shape}, y has shape {y.shape}")
    got = np.asarray(got, np.float64)
    error = float(np.abs(got - y).max(initial=0.0) / (np.abs(y).max(initial=0.0) or 1.0))
    # Written so that NaN fails too.
    if not error <= tolerance:
        raise ValueError(
            f"parity: model {model.name} differs from its source by {error:.2g} of the largest "
            f"output (allowed {tolerance:g}); check channel order, mean and std, padding and layout"
        )
    return error
