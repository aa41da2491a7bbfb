"""Our own map: nested regions from a sweep of areas, see `perturb.importance`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb import operators
from perturb.attribution import _common
from perturb.importance import importance_map
from perturb.model import Model

__all__ = ["AREAS", "nested"]

AREAS = (0.2, 0.1, 0.05, 0.025)


def nested(
    model: Model,
    images: Any,
    targets: Any,
    *,
    areas: Sequence[float] = AREAS,
    first_steps: int = 60,
    steps: int = 30,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`: one minus the smallest area at which a pixel is kept.

    Pixels of one area are ordered by how near they are to those of smaller ones, and so are those that
    no area keeps: whatever is cut from the map is a whole region.

    Args:
      model, images, targets: as for `gradient`.
      areas, first_steps, steps: see `perturb.importance_map`.
      key: as there, or `[B]` keys of the images.
    """
    pixels, classes, number = _common.open_door(model, images, targets)
    found = importance_map(
        model,
        np.asarray(pixels[:number]),
        np.asarray(classes[:number]),
        areas=areas,
        first_steps=first_steps,
        steps=steps,
        keys=_common.image_keys(key, len(pixels))[:number],
    )
    near = _near(jnp.asarray(found.heat))
    # A tenth of the smallest step between two areas: the order of areas stands.
    gap = float(np.diff(np.sort([0.0, *found.areas])).min())
    return found.heat + np.float32(0.1 * gap) * np.asarray(near)


@jax.jit
def _near(heat: jax.Array) -> jax.Array:
    """Smoothed maps in [0, 1], by two widths so that far pixels are still told apart."""
    short = min(heat.shape[1:])
    wide = [operators.pyramid(m[..., None], [0.05 * short, 0.3 * short]) for m in heat]
    both = jnp.stack(wide)[..., 0]
    return both[:, 0] * 0.9 + both[:, 1] * 0.1
