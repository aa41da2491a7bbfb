"""How far any map could get: the order of patches that the metric itself scores best, patch by
patch.

At each step every patch that is left is tried, and the one taken that lowers the answer most
("deletion") or raises it most ("insertion"). Such a map is circular: it was made by what it is
measured with, and explains nothing. It is there to be read beside the others, which cannot be
expected to do better. Greedy, so that a cleverer order of patches may exist, and one of pixels
certainly does. Cf. Benchmarking Deletion Metrics with the Principled Explanations, 2024 (TRACE).
"""

from __future__ import annotations

import numpy as np

from perturb import messages, progress
from perturb.metrics import _common
from perturb.metrics.insertion_deletion import PRESETS, Preset, _other
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["ORDERS", "greedy_ceiling"]

ORDERS = ("deletion", "insertion")


def greedy_ceiling(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    order: str = "deletion",
    cells: int = 14,
    preset: str | Preset = "rise",
) -> np.ndarray:
    """Returns maps `[B, H, W]`: the number of steps at which a patch is still to come, highest
    first.

    Takes `n (n + 1) / 2` forward passes for `n = cells ** 2` patches, 19,306 of each picture by
    default.

    Args:
      model, images, targets: as for an attribution.
      order: of `ORDERS`, the metric that is optimised.
      cells: patches along each side.
      preset: of `perturb.metrics.deletion`: its fill, or its start, and what is measured.
    Raises:
      ValueError: if the order is unknown, or there are more cells than pixels along a side.

    >>> seen = Model(lambda w, x: x[:, [0, 1], [0, 1], 0], ())  # two pixels, a class each
    >>> int(greedy_ceiling(seen, np.ones((1, 2, 2, 3)), [1], cells=2)[0].argmax())
    3
    """
    if order not in ORDERS:
        raise messages.one_of("order", order, ORDERS)
    pictures = np.asarray(images, np.float32)
    height, width = pictures.shape[1:-1]
    if not 1 <= cells <= min(height, width):
        raise ValueError(f"cells must be from 1 to {min(height, width)}, got {cells}")
    chosen = PRESETS[preset] if isinstance(preset, str) else preset
    # Where the cells do not share the sides out evenly, patches differ by a pixel.
    rows, columns = (np.arange(n) * cells // n for n in (height, width))
    patch = rows[:, None] * cells + columns
    insert = order == "insertion"
    found = []
    for image, target in progress.each(list(zip(pictures, targets, strict=True)), "pictures"):
        other = _other(image, chosen.start if insert else chosen.removed, chosen)
        first, second = (other, image) if insert else (image, other)
        left = list(range(cells**2))
        value = np.zeros(cells**2)
        done = np.zeros(cells**2, bool)
        while left:
            # Everything done so far and one patch more, for each patch that is left.
            trial = np.repeat(done[None], len(left), 0)
            trial[np.arange(len(left)), left] = True
            views = np.where(trial[:, patch][..., None], second, first)
            scores = _common.target_scores(model, views, target, chosen.output)
            best = left.pop(int(scores.argmax() if insert else scores.argmin()))
            # What is taken first is worth most; the patch is out of `left` already.
            value[best] = len(left) + 1
            done[best] = True
        found.append(value[patch])
    return np.stack(found).astype(np.float32)
