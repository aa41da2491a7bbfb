"""What attributions share: the door, the target's score, a layer's share, and maps of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb import masks, taps
from perturb.model import Model
from perturb.taps.swapping import swap

__all__ = ["enlarge", "image_keys", "last_layer", "open_door", "pull", "score"]


def open_door(model: Model, images: Any, targets: Any) -> tuple[jax.Array, jax.Array, int]:
    """Checks the arguments of an attribution; never hands on a batch of one.

    Returns:
      images `[max(B, 2), H, W, C]`, targets alike (the last repeated), and B.
    Raises:
      ValueError: if images are not `[B, H, W, C]`, or targets are not `[B]` classes of the model.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images) or images.shape[-1] != model.channels:
        raise ValueError(f"images must be [B, H, W, {model.channels}], got shape {images.shape}")
    targets = np.asarray(targets)
    if targets.shape != images.shape[:1] or targets.dtype.kind not in "iu":
        raise ValueError(f"targets must be [B] integers, one an image, got {targets!r}")
    if model.output not in ("logits", "probabilities"):
        raise ValueError(f"model {model.name} must return classes, it returns {model.output}")
    number = len(images)
    if number == 1:
        images, targets = np.repeat(images, 2, 0), np.repeat(targets, 2)
    shape = jax.eval_shape(model, jnp.asarray(images)).shape
    if targets.min() < 0 or targets.max() >= shape[-1]:
        raise ValueError(f"targets must be in 0 to {shape[-1] - 1}, got {targets}")
    return jnp.asarray(images), jnp.asarray(targets, jnp.int32), number


def score(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns `[B]` outputs of the targets."""
    return jnp.take_along_axis(outputs, targets[:, None], 1)[:, 0]


def pull(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    layer: str | None = None,
    swaps: dict[str, Callable[..., Any]] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns activation and gradient of the targets' scores at a layer, or at the pixels.

    Args:
      layer: name of an activation, see `perturb.taps.names`; None for the images themselves.
      swaps: inner functions to exchange on the way, see `perturb.taps.swapping`.
    """
    if layer is None:
        activation, suffix = images, lambda x: model(x)
    else:
        prefix, rest = taps.split(model, layer)
        activation, live = prefix(images)

        def suffix(a: jax.Array) -> jax.Array:
            return rest(a, live)

    after = swap(suffix, swaps) if swaps else suffix
    return activation, jax.grad(lambda a: score(after(a), targets).sum())(activation)


def last_layer(model: Model, images: Any) -> str:
    """Returns the name of the last activation `[B, h, w, K]` with places left.

    Raises:
      ValueError: if the model has none.
    """
    found = taps.names(model, jnp.asarray(images))
    wide = [n for n, s in found.items() if s.ndim == 4 and min(s.shape[1:3]) > 1]
    if not wide:
        raise ValueError(f"model {model.name} has no activation [B, h, w, K]: give layer=NAME")
    return wide[-1]


def enlarge(maps: jax.Array, size: tuple[int, ...]) -> np.ndarray:
    """Returns maps `[B, h, w]` at `size`, bilinear with half-pixel centres."""
    if maps.shape[1:] != tuple(size):
        maps = jax.vmap(lambda m: masks.upsample(m, size))(maps)
    return np.asarray(maps, np.float32)


def image_keys(key: jax.Array | None, number: int) -> jax.Array:
    """Returns `[number]` keys: `key` folded with the image's place, or `[B]` keys as they are.

    Keys of the images themselves make a map independent of its place in a batch.
    """
    key = jax.random.key(0) if key is None else key
    if key.ndim == 0:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(number))
    return jnp.concatenate([key, key[-1:].repeat(number - len(key))]) if len(key) < number else key
