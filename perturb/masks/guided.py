"""Masks that know something of each image: where they may lie, or which pixels belong together.

What they know is the `guide` of an item (`perturb.solver.Items`), one an image.

>>> import jax.numpy as jnp
>>> left = jnp.zeros((8, 8)).at[:, :4].set(1.0)
>>> way = Inside(shapes.Pixels())
>>> mask = way.mask(jnp.zeros((8, 8)), (8, 8), jnp.float32(0.25), jnp.float32(1), left).visible
>>> round(float(mask[:, :4].mean()), 3), float(mask[:, 4:].mean())
(0.5, 0.0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturb.masks import areas, shapes
from perturb.types import ArrayLike, PyTree

__all__ = ["Groups", "Inside", "check_groups", "check_within"]

# Below all scores, which have deviation 1, by more than any edge is wide.
_FAR = 10.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inside:
    """Another parametrisation that keeps to a region; the guide is `[*size]`, 1 where it may lie.

    Attributes:
      base: `perturb.masks.Blobs` or `perturb.masks.Pixels`.
    """

    base: PyTree = dataclasses.field(default_factory=shapes.Blobs)

    def begun_with(self, whole: jax.Array | float) -> Inside:
        """Returns the same, whose area falls, or grows, from `whole` of the region."""
        return dataclasses.replace(self, base=self.base.begun_with(whole))

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns the first parameters of `base`."""
        found: jax.Array = self.base.init(size)
        return found

    def scores(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, guide: jax.Array
    ) -> jax.Array:
        """Returns the scores of `base` in the region, and lower ones outside."""
        u = self.base.scores(params, size, area)
        # The level outside moves with the scores. Without stop_gradient the lowest pixel would
        # receive the gradient of every pixel outside the region.
        return jnp.where(guide > 0, u, jax.lax.stop_gradient(u.min()) - _FAR)

    def mask(
        self,
        params: jax.Array,
        size: Sequence[int],
        area: jax.Array,
        progress: jax.Array,
        guide: jax.Array,
    ) -> shapes.Mask:
        """Returns the mask of exact soft area, which shrinks from all but the whole region."""
        # 95 % of the picture may be more than the region holds, so the mask shrinks from 95 % of
        # the region; and it must never have to grow where the region is hardly larger than the area
        # asked.
        share = getattr(self.base, "whole", areas.WHOLE) * jnp.mean(guide > 0)
        area, temperature = shapes.course(self.base, area, progress, jnp.maximum(share, area))
        u = self.scores(params, size, area, guide)
        return shapes.Mask(shapes.exact_area(u, area, temperature=temperature), params)

    def project(self, params: jax.Array) -> jax.Array:
        """Returns what `base` makes of the parameters."""
        found: jax.Array = self.base.project(params)
        return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """One score a group of pixels (superpixels, tiles); the guide is `[*size]` int32, from 0.

    Groups are kept whole but for the last, which is cut in reading order so that the area is exact.

    Attributes:
      number: how many groups there are.
      base: `perturb.masks.Pixels`, for its temperatures and the course of its area.
    """

    number: int = dataclasses.field(metadata={"static": True})
    base: shapes.Pixels = dataclasses.field(default_factory=shapes.Pixels)

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns flat scores `[number]`."""
        return jnp.zeros(self.number, jnp.float32)

    def scores(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, guide: jax.Array
    ) -> jax.Array:
        """Returns every pixel's score, that of its group, with mean 0 and deviation at most 1."""
        # Over pixels, not groups: the area is counted in pixels, so large groups weigh more.
        return areas.standard(params[guide])

    def mask(
        self,
        params: jax.Array,
        size: Sequence[int],
        area: jax.Array,
        progress: jax.Array,
        guide: jax.Array,
    ) -> shapes.Mask:
        """Returns the mask of exact soft area; `progress` in [0, 1] says how far it has come."""
        area, temperature = shapes.course(self.base, area, progress)
        u = self.scores(params, size, area, guide)
        return shapes.Mask(shapes.exact_area(u, area, temperature=temperature), params)

    def project(self, params: jax.Array) -> jax.Array:
        """Scores are free: returns them as they are."""
        return params


def check_within(within: ArrayLike, images: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns where masks may lie, `[B, *size]` float32 of 0 and 1.

    Args:
      within: `[*size]` or `[B, *size]`, 1 (or True) where masks may lie.
      images: `[B, *size, C]`.
      counts: `[B, A]` pixels of the masks.
    Raises:
      ValueError: if it has another shape, or has no room for an area.
    """
    where = _per_image(within, images, "within") > 0
    room = where.reshape(len(images), -1).sum(1)
    # A mask that fills its region leaves nothing to choose, so one pixel must be spare.
    if (counts.max(1) >= room).any():
        i = int((counts.max(1) >= room).argmax())
        raise ValueError(
            f"within has {room[i]} px for image {i}, too few for a mask of {counts[i].max()} px"
        )
    return where.astype(np.float32)


def check_groups(groups: ArrayLike, images: np.ndarray) -> np.ndarray:
    """Returns the group of every pixel, `[B, *size]` int32.

    Args:
      groups: `[*size]` or `[B, *size]` whole numbers from 0.
      images: `[B, *size, C]`.
    Raises:
      ValueError: if it has another shape, or is not of whole numbers from 0.
    """
    labels = _per_image(groups, images, "groups")
    # A negative label would index from the end and silently join two groups.
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"groups must be whole numbers from 0, got {labels.dtype} from {labels.min()}"
        )
    return labels.astype(np.int32)


def _per_image(value: ArrayLike, images: np.ndarray, name: str) -> np.ndarray:
    value = np.asarray(value)
    shape = images.shape[:-1]
    if value.shape not in (shape, shape[1:]):
        raise ValueError(f"{name} must be {list(shape[1:])} or {list(shape)}, got {value.shape}")
    # One region for all pictures is as common as one each.
    return np.broadcast_to(value, shape)
