"""The picture world, which lies in `perturb.embedded.world`; this path keeps working."""

from perturb.embedded.world import (
    DISTRACTORS,
    WATERMARK,
    Distractor,
    Factors,
    Picture,
    Pictures,
    class_names,
    draw,
    factors,
    label_names,
    pictures,
    render,
    render_batch,
    stamp,
)

__all__ = [
    "DISTRACTORS",
    "WATERMARK",
    "Distractor",
    "Factors",
    "Picture",
    "Pictures",
    "class_names",
    "draw",
    "factors",
    "label_names",
    "pictures",
    "render",
    "render_batch",
    "stamp",
]
