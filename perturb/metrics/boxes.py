"""Box localisation: the box around what is high in a map against the object's box (IoU of .5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perturb import arrays, messages
from perturb.metrics import _common
from perturb.types import Array, ArrayLike

__all__ = ["RULES", "box_hits", "box_iou", "tight_boxes"]

RULES = ("value", "mean", "energy", "area")


def tight_boxes(maps: ArrayLike, *, rule: str = "mean", alpha: float = 1.0) -> np.ndarray:
    """Returns `[B, 4]` boxes `(left, top, right, bottom)`, px, the right and bottom ones outside.

    Args:
      maps: `[B, H, W]`.
      rule: what lies in the box: "value", pixels above `alpha` of the way from lowest to highest;
        "mean", above `alpha` times the mean; "energy", the highest that hold `alpha` of the sum;
        "area", the highest share `alpha` of the pixels.
      alpha: number that goes with the rule, a share in [0, 1] except under "mean".

    NaN for a map with a NaN, where nothing is above the threshold, and under "mean" and "energy"
    for a map without a value above 0.
    """
    if rule not in RULES:
        raise messages.one_of("rule", rule, RULES)
    maps = _common.maps_of(maps)
    boxes = np.full((len(maps), 4), np.nan)
    # A map without a positive value has no box, though part of it is above its mean.
    wrong = _common.bad(maps) | ((maps.max((1, 2)) <= 0) & (rule in ("mean", "energy")))
    for i, m in enumerate(maps):
        if wrong[i]:
            continue
        kept = _kept(m, rule, alpha)
        if kept.any():
            rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
            boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _kept(m: np.ndarray, rule: str, alpha: float) -> np.ndarray:
    if rule == "value":
        found: np.ndarray = m > m.min() + alpha * (m.max() - m.min())
        return found
    if rule == "mean":
        found = m > alpha * m.mean()
        return found
    if rule == "area":
        found = _common.top(m[None], round(alpha * m.size))[0]
        return found
    positive = np.maximum(m, 0).reshape(-1)
    ordered = np.argsort(-positive, kind="stable")
    # The pixel that reaches the share is in the box too.
    count = int((np.cumsum(positive[ordered]) < alpha * positive.sum()).sum()) + 1
    kept = np.zeros(m.size, bool)
    kept[ordered[:count]] = positive.sum() > 0
    return kept.reshape(m.shape)


def box_iou(a: Array, b: Array) -> np.ndarray:
    """Returns `[...]` intersection over union of boxes `[..., 4]`; 0 where one is NaN.

    Args:
      a: `[..., 4]` boxes `(left, top, right, bottom)`, px.
      b: `[..., 4]`, likewise.
    """
    xp = arrays.namespace(a, b)
    a, b = arrays.as_float(a, b), arrays.as_float(b, a)
    low, high = xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])
    common = xp.prod(xp.maximum(high - low, 0), -1)
    areas = [xp.prod(xp.maximum(x[..., 2:] - x[..., :2], 0), -1) for x in (a, b)]
    # Boxes of NaN, or two empty ones, overlap nowhere: 0, without a warning.
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = xp.nan_to_num(common / (areas[0] + areas[1] - common))
        return found


def box_hits(
    maps: ArrayLike,
    boxes: Sequence[Array],
    *,
    rule: str = "mean",
    alpha: float = 1.0,
    iou: float = 0.5,
) -> np.ndarray:
    """Returns `[B]`: 1 where the box of a map fits one of the picture's boxes; NaN without boxes.

    Args:
      maps: `[B, H, W]`, higher where a pixel matters more.
      boxes: one `[n, 4]` array an image, px of the maps.
      rule: name of the threshold, see `tight_boxes`.
      alpha: number that goes with the rule, see `tight_boxes`.
      iou: least intersection over union, in (0, 1].
    """
    tight = tight_boxes(maps, rule=rule, alpha=alpha)
    if len(boxes) != len(tight):
        raise ValueError(f"boxes must be one array a map, {len(tight)}, got {len(boxes)}")
    for i, b in enumerate(boxes):
        if len(b) and np.shape(b)[1:] != (4,):
            raise ValueError(
                f"boxes must be [n, 4], left, top, right and bottom in px, got shape "
                f"{list(np.shape(b))} for map {i}"
            )
    return np.array(
        [
            float(box_iou(t, np.asarray(b)).max() >= iou) if len(b) else np.nan
            for t, b in zip(tight, boxes, strict=True)
        ]
    )
