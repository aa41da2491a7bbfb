"""The documented import path of `perturb.masks.guided`."""

from perturb.masks.guided import Groups, Inside, check_groups, check_within

__all__ = ["Groups", "Inside", "check_groups", "check_within"]
