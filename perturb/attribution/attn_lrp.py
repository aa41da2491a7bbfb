"""AttnLRP: relevance propagation through attention (Achtibat et al. 2024), on the rules of `lrp`.

Convolutions and products with a kernel follow a rule of `perturb.attribution.lrp`; a product of two
values that depend on the image shares its relevance equally; the softmax is decomposed by its own
derivative; gates and denominators of norms hand everything on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perturb import messages
from perturb.attribution import _transformers
from perturb.attribution.lrp import Rule, propagate
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["ATTENTION", "attn_lrp"]

# What holds of the attention weights: their own derivative, or that they are constants (CP-LRP, Ali
# et al. 2022).
ATTENTION = ("softmax", "constant")


def attn_lrp(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    rule: str | Rule | Sequence[str | Rule] = "gamma",
    first: str | Rule | None = None,
    attention: str = "softmax",
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: the relevance of the pixels for the target's score.

    Args:
      model, images, targets, rule, first: as for `lrp`; "gamma" is the paper's choice for pictures.
      attention: one of `ATTENTION`.
    Raises:
      ValueError: as `lrp`, or if `attention` is none of these.
    """
    if attention not in ATTENTION:
        raise messages.one_of("attention", attention, ATTENTION)
    # With `exp` held constant the whole softmax is; without it the softmax keeps its derivative.
    own = tuple(n for n in _transformers.CURVED if n != "exp")
    held = own if attention == "softmax" else _transformers.CURVED
    rules = _transformers.balanced(held)
    return propagate(model, images, targets, rule=rule, first=first, rules=tuple(rules.items()))
