"""Metrics of attributions: each in a file of its own, a number an image, NaN where it says nothing.

A map with a NaN fails and never hits; an empty ground truth counts for nothing; ties go to the
lower pixel index; inputs are not changed; a result does not depend on the batch.
"""

from perturb.metrics.average_drop import Drop, average_drop, drop_of
from perturb.metrics.boxes import box_hits, box_iou, tight_boxes
from perturb.metrics.ceiling import greedy_ceiling
from perturb.metrics.complexity import entropy, gini
from perturb.metrics.cp import conciseness_preciseness
from perturb.metrics.faithfulness import infidelity, max_sensitivity, sensitivity_n
from perturb.metrics.grid_pointing import Mosaics, cell_share, grid_pointing, mosaics
from perturb.metrics.information import Information, aggregate, information
from perturb.metrics.insertion_deletion import PRESETS, Curve, Preset, deletion, insertion
from perturb.metrics.localisation import (
    energy,
    energy_over_chance,
    rank_accuracy,
    roc_area,
    top_share,
)
from perturb.metrics.pointing import by_class, pointing, points
from perturb.metrics.road import Road, impute, road
from perturb.metrics.roar import degrade, roar
from perturb.metrics.sanity import Cascade, Likeness, cascade, compare, randomised
from perturb.metrics.similarity import overlap, pearson, spearman, ssim
from perturb.metrics.srg import RelevanceGain, relevance_gain
from perturb.metrics.sufficiency import destroying_area, sufficient_area
from perturb.statistics import Interval, mean_interval, paired

__all__ = [
    "PRESETS",
    "Cascade",
    "Curve",
    "Drop",
    "Information",
    "Interval",
    "Likeness",
    "Mosaics",
    "Preset",
    "RelevanceGain",
    "Road",
    "aggregate",
    "average_drop",
    "box_hits",
    "box_iou",
    "by_class",
    "cascade",
    "cell_share",
    "compare",
    "conciseness_preciseness",
    "degrade",
    "deletion",
    "destroying_area",
    "drop_of",
    "energy",
    "energy_over_chance",
    "entropy",
    "gini",
    "greedy_ceiling",
    "grid_pointing",
    "impute",
    "infidelity",
    "information",
    "insertion",
    "max_sensitivity",
    "mean_interval",
    "mosaics",
    "overlap",
    "paired",
    "pearson",
    "pointing",
    "points",
    "randomised",
    "rank_accuracy",
    "relevance_gain",
    "road",
    "roar",
    "roc_area",
    "sensitivity_n",
    "spearman",
    "ssim",
    "sufficient_area",
    "tight_boxes",
    "top_share",
]
