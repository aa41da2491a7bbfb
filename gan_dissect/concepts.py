"""The documented import path of `perturb.units.concepts`."""

from perturb.units.concepts import Concepts, attributes, colours, edges, labels, segmenter

__all__ = ["Concepts", "attributes", "colours", "edges", "labels", "segmenter"]
