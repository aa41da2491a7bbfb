"""And-Or graph: a part is found from one to three annotations, by votes of an explanatory graph's
nodes.

After Zhang et al., Growing Interpretable Part Graphs on ConvNets, 2017, on nodes instead of raw
units: a part (OR) has templates, one an appearance (AND), each a set of nodes (terminals of one
filter and rest place) with the offset from the node to the part. Nodes whose offset varies least
over the annotations vote; the densest point of the votes is the part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perturb import display
from perturb.types import ArrayLike, PyTree

__all__ = ["Template", "fit_template", "locate", "normalised_distance"]


class Template(NamedTuple):
    """Nodes that tell where a part is.

    Attributes:
      nodes: `[K]` indices of flattened nodes.
      offset: `[K, 2]` px from node to part.
      weight: `[K]` how much each one's vote counts.
      typical: `[K]` mean score over the annotated images.
    """

    nodes: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    typical: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def fit_template(
    places: ArrayLike,
    scores: ArrayLike,
    centres: ArrayLike,
    *,
    keep: int = 40,
    prior: float = 6.0,
    reach: float = 60.0,
) -> Template:
    """Returns the template of a part from annotated images.

    Args:
      places: `[A, V, 2]` px, of the graph's nodes in the annotated images.
      scores: `[A, V]`.
      centres: `[A, 2]` px, of the part.
      keep: number of nodes that vote.
      prior: px, deviation of an offset before any annotation: one annotation shows none.
      reach: in pixels; nodes further from the part than this do not vote.
    Raises:
      ValueError: if there is no annotation.
    """
    places, scores, centres = (np.asarray(v, np.float64) for v in (places, scores, centres))
    if not len(centres) or len(centres) != len(places):
        raise ValueError(f"centres must be one an annotated image, got {len(centres)}")
    offsets = centres[:, None] - places
    offset = offsets.mean(0)
    squares = ((offsets - offset) ** 2).sum((0, 2))
    # As if two further annotations had shown the prior's deviation.
    variance = (squares + 2 * prior**2) / (len(centres) + 1)
    typical = scores.mean(0)
    strength = typical / max(typical.max(), 1e-12)
    near = np.exp(-(offset**2).sum(-1) / (2 * reach**2))
    weight = np.sqrt(strength) * near / variance
    nodes = np.argsort(-weight, kind="stable")[:keep]
    return Template(nodes, offset[nodes], weight[nodes], np.maximum(typical[nodes], 1e-12))


def locate(
    template: Template, places: ArrayLike, scores: ArrayLike, *, width: float = 8.0
) -> np.ndarray:
    """Returns `[I, 2]` px: where the votes of the template's nodes are densest.

    Args:
      template: see `fit_template`.
      places, scores: `[I, V, 2]` px and `[I, V]`, of all nodes in the images.
      width: standard deviation in pixels of the kernel that votes are counted with.
    """
    t = template
    votes = np.asarray(places, np.float64)[:, t.nodes] + t.offset
    # Capped: one node that is very strong in this image must not outvote the others.
    weight = t.weight * np.minimum(np.asarray(scores, np.float64)[:, t.nodes] / t.typical, 2)
    found = np.empty((len(votes), 2))
    for i, (v, w) in enumerate(zip(votes, weight, strict=True)):
        near = np.exp(-((v[:, None] - v) ** 2).sum(-1) / (2 * width**2)) * w
        # The densest vote starts the mean shift, which ends between the votes.
        point = v[near.sum(1).argmax()]
        for _ in range(10):
            kernel = np.exp(-((v - point) ** 2).sum(-1) / (2 * width**2)) * w
            point = (kernel[:, None] * v).sum(0) / max(kernel.sum(), 1e-300)
        found[i] = point
    return found


def normalised_distance(found: PyTree, centres: ArrayLike, diagonal: float) -> np.ndarray:
    """Returns `[I]` distances as shares of the picture's diagonal.

    Args:
      found: `[I, 2]` px.
      centres: `[I, 2]` px, the annotated ones.
      diagonal: of the picture, px.
    """
    result: np.ndarray = np.hypot(*(np.asarray(found) - np.asarray(centres)).T) / diagonal
    return result
