"""Extremal contours: a star-convex region with a smooth outline (arXiv 2511.01411).

The outline's log-radius is a short Fourier series of the angle around a centre that moves too: some
twenty numbers in place of a grid. The scores are log-radius minus log-distance, so every region cut
from them is the same star, larger or smaller, and the area is met exactly; the paper pays a penalty
instead. The optimisation is that of `perturb.extremal`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturb import masks
from perturb.attribution import _common
from perturb.methods.extremal import extremal
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["Star", "extremal_contours"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Star:
    """Parameters of a star-convex region: centre and Fourier coefficients of the log-radius.

    Attributes:
      order: highest frequency of the outline.
      rough: what frequency `n` is divided by, `n ** rough`: high ones move less.
      soft, sharp, shrink: see `perturb.masks.Blobs`.
    """

    order: int = dataclasses.field(default=8, metadata={"static": True})
    rough: float = dataclasses.field(default=1.0, metadata={"static": True})
    soft: jax.Array | float = 0.2
    sharp: jax.Array | float = 0.05
    shrink: jax.Array | float = 0.5

    def init(self, size: Sequence[int]) -> jax.Array:
        """Returns a disc in the middle: `[2 + 2 order]` zeros."""
        return jnp.zeros(2 + 2 * self.order, jnp.float32)

    def scores(self, params: jax.Array, size: Sequence[int], area: jax.Array) -> jax.Array:
        """Returns `[H, W]` log-radius minus log-distance: 0 on the outline of the unit star."""
        # The centre stays inside: moved by up to half a side, slower towards the border.
        centre = 0.5 * jnp.tanh(params[:2])
        side = min(size)
        y, x = ((jnp.arange(n) + 0.5 - n / 2) / side for n in size)
        dy = y[:, None] - centre[0] * size[0] / side
        dx = x[None, :] - centre[1] * size[1] / side
        # Half a pixel keeps the logarithm, and its slope, finite where a pixel lies on the centre.
        far = jnp.sqrt(dx**2 + dy**2 + (0.5 / side) ** 2)
        # On the centre itself there is no angle, and its slope would be 0 / 0.
        angle = jnp.arctan2(dy, dx + 1e-9)
        radius: jax.Array | float = 0.0
        for n in range(1, self.order + 1):
            a, b = params[2 * n], params[2 * n + 1]
            radius += (a * jnp.cos(n * angle) + b * jnp.sin(n * angle)) / n**self.rough
        return radius - jnp.log(far)

    def mask(
        self, params: jax.Array, size: Sequence[int], area: jax.Array, progress: jax.Array
    ) -> masks.Mask:
        """Returns the mask of exact soft area; `progress` in [0, 1] says how far it has come."""
        area, temperature = masks.course(self, area, progress)
        return masks.Mask(
            masks.exact_area(self.scores(params, size, area), area, temperature=temperature), params
        )

    def project(self, params: jax.Array) -> jax.Array:
        """Parameters are free: returns them as they are."""
        return params


def extremal_contours(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    area: float = 0.1,
    steps: int = 100,
    restarts: int = 1,
    order: int = 8,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`: the scores whose highest `area` is the star that keeps the answer best.

    Args:
      model, images, targets: as for `gradient`.
      area: share of the picture, in (0, 1).
      steps: number of steps of the search, as in `perturb.extremal`.
      restarts: number of further starts, as in `perturb.extremal`.
      order: highest frequency of the outline, in cycles a turn.
      key: random key of the starts, or `[B]` keys of the images.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    if pixels.ndim != 4:
        raise ValueError(
            f"extremal_contours draws stars on pictures [B, H, W, C], got images {pixels.shape}: "
            "take perturb.extremal for signals and volumes"
        )
    # Log-radius minus log-distance can be cut at any level, so the area is exact whatever
    # the outline.
    result = extremal(
        model,
        np.asarray(pixels[:number]),
        jax.tree.map(lambda t: np.asarray(t[:number]), classes),
        areas=area,
        reward="score",
        mask=Star(order=order),
        steps=steps,
        restarts=restarts,
        key=key,
    )
    return np.asarray(result.scores)[:, 0]
