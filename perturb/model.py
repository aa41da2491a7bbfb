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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb._numerics import xla
from perturb.geometry import Geometry
from perturb.scores import OUTPUTS

__all__ = ["Model", "check_model", "check_parity"]


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
      channels_first: whether maps inside the network are `[B, C, H, W]`, as in torch and Equinox.
    """

    apply: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    variables: Any
    geometry: Geometry | None = dataclasses.field(default=None, metadata={"static": True})
    class_names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    output: str = dataclasses.field(default="logits", metadata={"static": True})
    channels: int = dataclasses.field(default=3, metadata={"static": True})
    name: str = dataclasses.field(default="model", metadata={"static": True})
    channels_first: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        # Static fields are keys of compiled programs: a list of names would fail there, far from here.
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {self.output!r}")

    def channel_axis(self, activation: Any) -> int:
        """Returns the axis of the channels of an activation, or of its shape, inside the network."""
        return 1 if self.channels_first and len(activation.shape) > 3 else len(activation.shape) - 1

    def __call__(self, images: jax.Array) -> Any:
        """Returns the outputs for `images` `[B, H, W, C]` in [0, 1]."""
        return self.apply(self.variables, images)


# One jitted function for the life of the process: a new lambda a call would compile the net each time.
_run = jax.jit(lambda model, images: model(images))


def check_model(model: Model, images: jax.Array | np.ndarray) -> Any:
    """Runs the model on `images` and refuses one that the methods cannot trust.

    Returns:
      the outputs for `images` `[B, ...]`.
    Raises:
      ValueError: if images are not floats `[B, H, W, C]` (signals: `[B, T, C]`), if the outputs lose
        the batch or are not finite, or if the outputs of an image change with its neighbours (batch
        normalisation in training mode).
      RuntimeError: if this CPU's gradients are wrong under jit (jaxlib 0.10 and 0.11, see BUILD.md).
    """
    xla.check_gradients()
    images = jnp.asarray(images)
    if images.ndim < 3 or not len(images) or images.shape[-1] != model.channels:
        raise ValueError(
            f"images must be [B, H, W, {model.channels}] with B at least 1, got shape {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}; divide by 255")
    # Never a batch of one: XLA compiles it to different arithmetic than every larger batch.
    batch = images if len(images) > 1 else jnp.concatenate([images, images])
    outputs = _run(model, batch)
    for leaf in jax.tree.leaves(outputs):
        if not leaf.shape or leaf.shape[0] != len(batch):
            raise ValueError(
                f"model {model.name} must return one row an image, [B, ...]: "
                f"got shape {leaf.shape} for {len(batch)} images"
            )
        if not bool(jnp.isfinite(leaf).all()):
            raise ValueError(
                f"model {model.name} returned NaN or infinite outputs for finite images: "
                "check its weights and its preprocessing"
            )
    # Noise of the widest range: no image looks like it, so every statistic of the batch moves.
    noise = np.random.default_rng(0).integers(0, 2, batch.shape)
    mixed = _run(model, jnp.asarray(noise, batch.dtype).at[0].set(batch[0]))
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(mixed), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # NaN counts as coupled: alone, the image gave finite outputs.
        if not np.abs(a[0] - b[0]).max(initial=0.0) <= 1e-3 * (np.abs(a).max(initial=0.0) or 1.0):
            raise ValueError(
                f"model {model.name} couples the images of a batch: the output of an image changes "
                "with its neighbours. Put batch normalisation in inference mode (stored statistics)"
            )
    return jax.tree.map(lambda leaf: leaf[: len(images)], outputs)


def check_parity(model: Model, x: np.ndarray, y: np.ndarray, *, tolerance: float = 1e-3) -> float:
    """Compares the model with outputs recorded from its source framework.

    One check that catches transposed weights, another layout, wrong mean and standard deviation, and
    normalisation left in training mode.

    Args:
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
    if not error <= tolerance:
        raise ValueError(
            f"parity: model {model.name} differs from its source by {error:.2g} of the largest output "
            f"(allowed {tolerance:g}); check channel order, mean and std, padding and layout"
        )
    return error
