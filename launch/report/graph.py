"""A page of an explanatory graph: what its best nodes see, and which nodes above they move with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launch.report import html, pictures
from perturb.internals.graphs import Layer

__all__ = ["best_nodes", "page", "window"]

_SHARPEST = 12


def best_nodes(layer: Layer, number: int) -> np.ndarray:
    """Returns `[number]` indices of flattened nodes, by their mean score over the images.

    Args:
      layer: of a fitted graph.
      number: of nodes.
    """
    scores = layer.scores.reshape(len(layer.scores), -1).mean(0)
    return np.argsort(-scores, kind="stable")[:number]


def window(images: np.ndarray, layer: Layer, node: int, side: int) -> np.ndarray:
    """Returns `[side, side, 3]` uint8: the mean of what lies around a node, over the images where
    it scores best.

    Args:
      images: `[N, H, W, 3]` uint8, the images of the graph.
      layer: of a fitted graph.
      node: index of a flattened node.
      side: of the window, px; what lies beyond an image is grey.
    """
    places = layer.places.reshape(len(images), -1, 2)[:, node]
    best = np.argsort(-layer.scores.reshape(len(images), -1)[:, node], kind="stable")[:_SHARPEST]
    padded = np.pad(images[best], ((0, 0), (side, side), (side, side), (0, 0)), constant_values=127)
    corner = np.clip(np.round(places[best] + side / 2), 0, np.array(images.shape[1:3]) + side)
    parts = [
        p[y : y + side, x : x + side] for p, (y, x) in zip(padded, corner.astype(int), strict=True)
    ]
    found: np.ndarray = np.mean(parts, 0).round().astype(np.uint8)
    return found


def page(
    images: np.ndarray, layers: Sequence[Layer], *, names: Sequence[str], number: int = 24
) -> bytes:
    """Returns the page, one HTML file without any other.

    Args:
      images: `[N, H, W, 3]` uint8, the images that the graph was fitted on.
      layers: of the graph, the top one first.
      names: one a layer.
      number: of nodes shown a layer, the best ones.
    Raises:
      ValueError: if there are not as many names as layers.
    """
    if len(names) != len(layers):
        raise ValueError(f"names must be one for each of {len(layers)} layers, got {len(names)}")
    side = images.shape[1] // 4
    shown = [best_nodes(layer, number) for layer in layers]
    sections = []
    for depth, (layer, name, nodes) in enumerate(zip(layers, names, shown, strict=True)):
        spread = layer.places.reshape(len(images), -1, 2).std(0).mean(-1)
        figures = []
        for node in nodes:
            c, i = divmod(int(node), layer.places.shape[2])
            picture = pictures.enlarge(window(images, layer, int(node), side), 96)
            above = ""
            if layer.parents is not None:
                # Only those that the page shows: a link to nowhere helps nobody.
                here = [p for p in layer.parents[c, i] if p in set(shown[depth - 1].tolist())]
                links = ", ".join(f'<a href="#n{depth - 1}-{p}">{p}</a>' for p in here)
                above = f"<br>moves with {links}" if links else ""
            figures.append(
                f'<figure id="n{depth}-{node}"><img src="{pictures.data_uri(picture)}" '
                f'alt="mean picture around node {node}" width="96" height="96"><figcaption>'
                f"node {node}, filter {c}<br>moves {spread[node]:.1f} px{above}"
                "</figcaption></figure>"
            )
        sections.append(
            f"<section><h2>{html.text(name)}</h2><p>The {len(nodes)} best of "
            f"{layer.places.shape[1] * layer.places.shape[2]} nodes: the mean picture around each "
            f"over the {min(_SHARPEST, len(images))} images where it scores best.</p>"
            f'<div class="nodes">{"".join(figures)}</div></section>'
        )
    style = ".nodes{display:flex;flex-wrap:wrap;gap:12px}.nodes figure{margin:0;width:132px}"
    body = f"<main><h1>Explanatory graph</h1>{''.join(sections)}</main>"
    return html.document("Explanatory graph", body, style=style)
