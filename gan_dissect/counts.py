"""The documented import path of `perturb.units.counts`."""

from perturb.units.counts import Counts, count, joint_counts, merge_counts

__all__ = ["Counts", "count", "joint_counts", "merge_counts"]
