"""A node of the graph switched off: whether the part that it stands for matters to the answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perturb import taps
from perturb.internals.graphs.explanatory import Layer
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["node_effects"]


@jax.jit
def _without(suffix: PyTree, activation: jax.Array, live: PyTree, hole: PyTree) -> jax.Array:
    filters, gain = hole
    found: jax.Array = suffix(activation.at[..., filters].multiply(gain), live)
    return found


def node_effects(
    model: Model,
    images: ArrayLike,
    targets: ArrayLike,
    layer: str,
    graph: Layer,
    nodes: ArrayLike,
) -> np.ndarray:
    """Returns `[B, K]`: how much the target's score falls when a node is switched off.

    The activation of the node's filter is taken away around the node's place in each image, by
    1 less a Gaussian of the node's deviation; the filter's other parts stay as they are.

    Args:
      model: of class scores, the one whose maps the graph was fitted to.
      images: `[B, H, W, C]`, the images of the graph.
      targets: `[B]` class indices.
      layer: name of the activation `[B, n, n, C]`.
      graph: what `fit_layer` returned for these images.
      nodes: `[K]` indices of flattened nodes.
    Raises:
      ValueError: if there are not as many images as the graph has.
    """
    shown, classes = jnp.asarray(images), jnp.asarray(targets)
    if len(shown) != len(graph.places):
        raise ValueError(
            f"images must be the {len(graph.places)} that the graph was fitted on, got {len(shown)}"
        )
    prefix, suffix = taps.split(model, layer)
    activation, live = prefix(shown)
    program = jax.tree_util.Partial(suffix)
    number = graph.places.shape[2]
    line = (np.arange(activation.shape[1]) + 0.5) * graph.stride
    sigma = np.asarray(graph.nodes.sigma) * graph.stride

    def scores(filters: int, gain: ArrayLike) -> np.ndarray:
        hole = jnp.int32(filters), jnp.asarray(gain, activation.dtype)
        outputs = np.asarray(_without(program, activation, live, hole))
        found: np.ndarray = outputs[np.arange(len(shown)), np.asarray(classes)]
        return found

    whole = scores(0, np.ones(activation.shape[:3]))
    found = np.empty((len(shown), len(np.asarray(nodes))))
    for k, node in enumerate(np.asarray(nodes)):
        c, i = divmod(int(node), number)
        y, x = graph.places[:, c, i].T
        away = (line[:, None] - y[:, None, None]) ** 2 + (line - x[:, None, None]) ** 2
        found[:, k] = whole - scores(c, 1 - np.exp(-away / (2 * sigma[c, i] ** 2)))
    return found
