"""Occlusion: how far the score falls when a window is covered (Zeiler and Fergus 2014)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, operators
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["occlusion"]


def occlusion(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    window: int | None = None,
    stride: int | None = None,
    operator: str | operators.Operator = "fade",
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: the mean fall of the score over the windows that cover a pixel.

    Args:
      model, images, targets: as for `gradient`.
      window: side in px; None is an eighth of the shorter side.
      stride: px between windows; None is half a window. The last windows may reach over the edge.
      operator: what a covered pixel becomes, grey by default.

    >>> seen = Model(lambda w, x: x[:, 2:4, 2:4].sum((1, 2)), ())
    >>> found = occlusion(seen, np.ones((1, 8, 8, 3)), [0], window=2, stride=2)
    >>> float(found[0, 2, 2]), float(found[0, 0, 0])
    (2.0, 0.0)
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    size = pixels.shape[1:-1]
    # A side of one pixel, as of a strip, is covered whole and says nothing of what a window should
    # be.
    short = min((n for n in size if n > 1), default=1)
    side = max(1, short // 8) if window is None else window
    by = max(1, side // 2) if stride is None else stride
    if not (1 <= side <= short and 1 <= by <= side):
        raise ValueError(
            f"window and stride must satisfy 1 <= stride <= window <= {short}, got {side}, {by}"
        )
    counts = [1 + math.ceil(max(n - side, 0) / by) for n in size]
    grid = np.stack(np.meshgrid(*(by * np.arange(c) for c in counts), indexing="ij"), -1)
    corners = jnp.asarray(grid.reshape(-1, len(size)), jnp.int32)
    operator = operators.get(operator)
    found: np.ndarray = arrays.finished(
        _map(model, operator, pixels, classes, corners, side)[:number]
    )
    return found


@functools.partial(jax.jit, static_argnames="side")
def _map(
    model: Model,
    operator: PyTree,
    images: jax.Array,
    targets: jax.Array,
    corners: jax.Array,
    side: int,
) -> jax.Array:
    size = images.shape[1:-1]
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, size), indexing="ij"), -1)
    reference = jax.vmap(lambda x: operator.prepare(x, None))(images)
    whole = _common.score(model, model(images), targets)

    def covered(total: PyTree, corner: jax.Array) -> tuple[PyTree, None]:
        # By comparison and not by slicing: windows that reach over the edge need no other shape.
        inside = ((places >= corner) & (places < corner + side)).all(-1)
        mask = 1.0 - inside
        views = jax.vmap(lambda r: operator.apply(r, mask))(reference)
        fall = whole - _common.score(model, model(views), targets)
        return (total[0] + _common.beside(fall, images[..., 0]) * inside, total[1] + inside), None

    zeros = jnp.zeros(images.shape[:-1]), jnp.zeros(size)
    (falls, times), _ = jax.lax.scan(covered, zeros, corners)
    # Every pixel is covered at least once; the maximum only guards the division.
    return falls / jnp.maximum(times, 1)
