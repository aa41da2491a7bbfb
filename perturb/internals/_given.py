"""Checks of pictures, masks and targets before a network runs over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perturb import inputs
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["checked_masks", "checked_pictures", "one_each"]

_PART = 256  # pictures checked at once: a copy of a part is made


def checked_pictures(model: Model, images: PyTree) -> PyTree:
    """Returns the pictures, a list of them as one array.

    All of an array are checked; of a source that is read slice by slice, the first two.

    Raises:
      ValueError: if they are not pictures that the model takes, in [0, 1].
    """
    if isinstance(images, list | tuple):
        images = inputs.pictures(model, images)
    whole = hasattr(images, "dtype") and not isinstance(images, np.memmap)
    for first in range(0, len(images) if whole else 1, _PART):
        inputs.pictures(model, images[first : first + (_PART if whole else 2)])
    return images


def one_each(what: str, values: ArrayLike, images: PyTree) -> np.ndarray:
    """Returns a class or a unit for each picture, `[N]` integers.

    Args:
      what: the argument's name, "targets" or "units".
      values: `[N]`, what was given.
      images: `[N, H, W, C]`, or anything with `len()` whose slices are such arrays.
    Raises:
      ValueError: if the pictures are no batch, or there is not one integer for each.
    """
    found = np.asarray(values)
    # A source that is read slice by slice need not have a shape; its slices have one.
    shape = images.shape if hasattr(images, "shape") else np.shape(images[0:1])
    if len(shape) != 4:
        raise ValueError(f"images must be [N, H, W, C], got shape {list(shape)}")
    if found.shape != (len(images),) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"{what} must be one a picture, integers [{len(images)}], got "
            f"{found.dtype}{list(found.shape)}"
        )
    return found


def checked_masks(
    what: str, masks: PyTree, images: PyTree, channels: int | None, names: Sequence[str]
) -> PyTree:
    """Returns masks of the pictures as booleans.

    Args:
      what: the argument's name.
      masks: `[N, H, W, K]`.
      images: the pictures, checked.
      channels: K, or None where it may also be 1.
      names: of the concepts.
    Raises:
      ValueError: if they do not fit the pictures or the names, or are not masks.
    """
    if isinstance(masks, list | tuple):
        masks = np.asarray(masks)
    first, one = masks[0:1], images[0:1]
    count, size = len(images), one.shape[1:3]
    fits = first.ndim == 4 and len(masks) == count and first.shape[1:3] == size
    if not fits or first.shape[-1] not in ({channels} if channels else {1, len(names)}):
        last = len(names) if channels else f"{len(names)} or 1"
        cure = ""
        if first.ndim == 3 and first.shape[1:3] == size:
            cure = f"; of a label map write labels[..., None] == np.arange({len(names)})"
        raise ValueError(
            f"{what} must be [{count}, {size[0]}, {size[1]}, {last}], one for each picture and "
            f"concept, got [{', '.join(map(str, (len(masks), *first.shape[1:])))}]{cure}"
        )
    if first.dtype == bool:
        return masks
    # 0 and 1 are as good; other numbers are grey levels, whose threshold is the caller's choice.
    found = np.asarray(masks, bool) if hasattr(masks, "dtype") else None
    if found is None or not np.array_equal(found, masks):
        raise ValueError(
            f"{what} must be booleans, or 0 and 1, got {first.dtype}; write {what} > 0, or above "
            "half of their range"
        )
    return found
