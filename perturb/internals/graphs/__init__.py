"""Graphs of parts: nodes that stay on a part of an object, and parts found from a few
annotations.
"""

from perturb.internals.graphs.and_or import Template, fit_template, locate, normalised_distance
from perturb.internals.graphs.appearance import find_appearance, find_part, settle_places
from perturb.internals.graphs.explanatory import Layer, Nodes, evidence_maps, fit_layer, infer
from perturb.internals.graphs.pose import Poses, carry, find_poses
from perturb.internals.graphs.switching import node_effects

__all__ = [
    "Layer",
    "Nodes",
    "Poses",
    "Template",
    "carry",
    "evidence_maps",
    "find_appearance",
    "find_part",
    "find_poses",
    "fit_layer",
    "fit_template",
    "infer",
    "locate",
    "node_effects",
    "normalised_distance",
    "settle_places",
]
