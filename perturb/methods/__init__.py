"""The published methods: each is a choice of masks, fills, rewards and a step rule."""

from perturb.methods._run import Result, stream
from perturb.methods.channels import ChannelResult, channels, class_statistics
from perturb.methods.extremal import extremal
from perturb.methods.meaningful import MinimalRegion, Smoothness, meaningful, minimal_region

__all__ = [
    "ChannelResult",
    "MinimalRegion",
    "Result",
    "Smoothness",
    "channels",
    "class_statistics",
    "extremal",
    "meaningful",
    "minimal_region",
    "stream",
]
