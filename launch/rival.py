"""torchray's own optimisation, timed where PyTorch and torchray are installed: what the bench
compares with.

Timing needs no trained weights: torchvision's networks with random ones take the same time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

from perturb.types import PyTree

__all__ = ["STEPS", "available", "iterations", "torchvision"]

# Iterations of a mask in the published setting.
STEPS = 800


def available() -> str | None:
    """Returns what is missing, or None if torchray can run here."""
    try:
        torchvision()
        import torchray.attribution.extremal_perturbation  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed (make oracles installs it)"
    return None


def torchvision() -> PyTree:
    """Returns torchvision, whose wheel declares two operators against CUDA code a CPU build
    lacks.
    """
    from torch import library

    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
        import torchvision
    return torchvision


def iterations(
    name: str, areas: Sequence[float], count: int, *, clock: str = "wall"
) -> Callable[[], float]:
    """Returns a function that runs `count` of torchray's iterations and returns seconds an
    iteration.

    Args:
      name: a torchvision network.
      areas: areas of one call, which share the forward passes as a batch.
      count: iterations a call; its first one, which builds the pyramid, is not counted.
      clock: "wall", or "cpu" for the time of this process's own threads.
    """
    import torch
    from torchray.attribution.extremal_perturbation import extremal_perturbation

    net = getattr(torchvision().models, name)(weights=None).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, image = net.to(device), torch.rand(1, 3, 224, 224, device=device)

    now = time.process_time if clock == "cpu" else time.perf_counter

    def seconds(iters: int) -> float:
        begin = now()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            extremal_perturbation(net, image, 0, areas=list(areas), max_iter=iters)
        return now() - begin

    # The difference of two runs: what happens once a call falls out.
    return lambda: (seconds(count + 1) - seconds(1)) / count
