"""What metrics share: the check of maps, one order of pixels, and the model on stacks of views."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, scores
from perturb.evidence import outputs_of
from perturb.imagenet import MEAN as IMAGENET_MEAN
from perturb.inputs import random_key
from perturb.model import Model, check_inputs
from perturb.types import ArrayLike, PyTree

__all__ = [
    "IMAGENET_MEAN",
    "area_under",
    "bad",
    "checked_batch",
    "empty",
    "images_of",
    "keys_of",
    "maps_of",
    "order",
    "ranks",
    "target_scores",
    "top",
]


def maps_of(maps: PyTree, shape: tuple[int, ...] | None = None, name: str = "maps") -> np.ndarray:
    """Returns `[B, H, W]` float64, a copy: a caller's array is never written to.

    Raises:
      ValueError: if they are not `[B, H, W]`, or not of `shape`.
    """
    maps = maps if arrays.traced(maps) else np.array(maps, np.float64)
    if maps.ndim != 3 or (shape is not None and maps.shape != tuple(shape)):
        wanted = "[B, H, W]" if shape is None else list(shape)
        raise ValueError(f"{name} must be {wanted}, one map an image, got shape {maps.shape}")
    found: np.ndarray = maps
    return found


def bad(maps: np.ndarray) -> np.ndarray:
    """Returns `[B]` bool: maps with a value that is not finite. They count as misses."""
    found: np.ndarray = ~arrays.namespace(maps).isfinite(maps).all((1, 2))
    return found


def empty(maps: np.ndarray) -> np.ndarray:
    """Returns `[B]` bool: maps without a value above 0, and flat ones. They point nowhere."""
    low, high = maps.min((1, 2)), maps.max((1, 2))
    found: np.ndarray = ~(high > 0) | ~(high > low)
    return found


def order(maps: np.ndarray) -> np.ndarray:
    """Returns `[B, H * W]` pixel indices, highest value first; ties go to the lower index."""
    flat = maps.reshape(len(maps), -1)
    xp = arrays.namespace(maps)
    # NumPy has to be asked for a stable order, and by another word than jax.numpy.
    stable = {"kind": "stable"} if xp is np else {}
    found: np.ndarray = xp.argsort(-xp.nan_to_num(flat), axis=1, **stable)
    return found


def ranks(one: np.ndarray) -> np.ndarray:
    """Returns `[H, W]` int: the place of each pixel in `order`, 0 for the highest."""
    xp = arrays.namespace(one)
    if xp is jnp:
        # The order of the order: where each pixel ended up.
        result: np.ndarray = xp.argsort(order(one[None])[0]).reshape(one.shape)
        return result
    found = np.empty(one.size, np.int64)
    found[order(one[None])[0]] = np.arange(one.size)
    return found.reshape(one.shape)


def top(maps: np.ndarray, counts: PyTree) -> np.ndarray:
    """Returns `[B, H, W]` bool: the `counts` `[B]` (or one for all) highest pixels."""
    xp = arrays.namespace(maps, counts)
    counts = xp.broadcast_to(counts, len(maps))
    found: np.ndarray = xp.stack([ranks(m) < count for m, count in zip(maps, counts, strict=True)])
    return found


_READ = {
    "probability": scores.measure,
    "logit": scores.score,
    "top1": scores.predicted,
}


@functools.partial(jax.jit, static_argnames=("output", "kind"))
def _read(kind: str, output: str, rows: PyTree, target: PyTree) -> jax.Array:
    return jax.vmap(lambda row: _READ[output](kind, row, target))(rows)


def target_scores(
    model: Model, views: np.ndarray, target: PyTree, output: str = "probability"
) -> np.ndarray:
    """Returns `[N]` float64 scores of one target on `views` `[N, *size, C]`, see `perturb.scores`.

    Args:
      target: of one image, a class or what else the model's output has for targets.
      output: "probability" (the score where the model's targets have no probability), "logit" (the
        score) or "top1" (1 where the class wins, or the label is likelier than not).
    """
    if output not in _READ:
        raise ValueError(f"output must be probability, logit or top1, got {output!r}")
    # Under jit the model runs as it stands; else in batches of one size, which fit a CPU's cache.
    if arrays.traced(views, target):
        found: np.ndarray = _read(
            model.output, output, model(jnp.asarray(views, jnp.float32)), target
        )
        return found
    rows = outputs_of(model, np.asarray(views, np.float32))
    return np.asarray(_read(model.output, output, rows, target), np.float64)


def area_under(scores: np.ndarray) -> np.ndarray:
    """Returns the mean height of curves `[..., n + 1]` of even steps: 1 for a curve of ones."""
    # The trapezoid rule on even steps: both ends count half.
    inner = scores.sum(-1) - 0.5 * (scores[..., 0] + scores[..., -1])
    found: np.ndarray = inner / (scores.shape[-1] - 1)
    return found


def images_of(images: PyTree, maps: np.ndarray) -> np.ndarray:
    """Returns images `[B, H, W, C]` float32 that the maps fit.

    Raises:
      ValueError: if they do not.
    """
    images = arrays.namespace(images).asarray(images, np.float32)
    if images.ndim != 4 or images.shape[:3] != maps.shape:
        raise ValueError(f"images must be [B, H, W, C] for maps {maps.shape}, got {images.shape}")
    found: np.ndarray = images
    return found


def checked_batch(
    model: Model, images: ArrayLike, targets: PyTree, maps: ArrayLike
) -> tuple[np.ndarray, list[PyTree], np.ndarray]:
    """Checks what a metric of a model is given.

    Returns:
      images `[B, H, W, C]` float32, one target an image, maps `[B, H, W]` float64.
    Raises:
      ValueError: see `perturb.check_inputs`; and for maps that do not fit the images.
    """
    pictures, wanted, _ = check_inputs(model, images, targets)
    if pictures.ndim != 4:
        # An axis of one pixel makes a signal a picture; of a volume only slices are pictures.
        cure = "take slices"
        if pictures.ndim == 3:
            cure = "give signals one pixel high, as images[:, None], maps[:, None] and a model of "
            cure += "x[:, 0]"
        raise ValueError(
            f"metrics are of pictures [B, H, W, C], got images {list(pictures.shape)}: {cure}"
        )
    maps = maps_of(maps)
    rows = [jax.tree.map(lambda t, i=i: t[i], wanted) for i in range(len(pictures))]
    return images_of(pictures, maps), rows, maps


def keys_of(key: jax.Array | None, number: int) -> list[np.random.Generator]:
    """Returns one generator an image: `key` folded with its place, or `[number]` keys of the
    images.
    """
    key = random_key(key)
    own = [jax.random.fold_in(key, i) for i in range(number)] if key.ndim == 0 else list(key)
    # NumPy's generators, for these draws are made on the host.
    return [np.random.default_rng(np.asarray(jax.random.key_data(k))) for k in own]
