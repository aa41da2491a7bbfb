"""The documented import path of `perturb.evidence.stability`."""

from perturb.evidence.stability import Full, full, iou

__all__ = ["Full", "full", "iou"]
