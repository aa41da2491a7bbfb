"""A part found by what surrounds it, beside the votes of nodes.

After the templates of Zhang et al., Growing Interpretable Part Graphs on ConvNets, 2017: each
annotated image gives one appearance of the part (AND), and any of them will do (OR). Here an
appearance is the layer's activations around the part; how alike two are is the cosine between them
after the directions in which all images vary most are made less of. Images without annotations
give the mean and these directions.

Votes are blind to what a filter answers next to its best place, appearances to all that lies
further off, and the pose of the whole object (`pose`) to whatever bends: their errors differ, and
the middle between the places is steadier than any.
"""

from __future__ import annotations

import numpy as np

from perturb.internals.graphs.and_or import fit_template, locate
from perturb.internals.graphs.explanatory import Layer
from perturb.internals.graphs.pose import carry, find_poses
from perturb.types import ArrayLike

__all__ = ["find_appearance", "find_part", "settle_places"]

# Of the cosine, in the exponent; and the least variance of a direction, of the largest.
_SHARP, _FLOOR = 20.0, 0.02


def settle_places(
    maps: ArrayLike, places: ArrayLike, *, stride: float, width: float = 0.7, rounds: int = 3
) -> np.ndarray:
    """Returns `[I, C, N, 2]` px: places moved onto the middle of the activation that they lie on.

    A node's place is the best of 36 candidates; this finds it between them, by a mean shift.

    Args:
      maps: `[I, C, n, n]` of the layer, from 0 on.
      places: `[I, C, N, 2]` px, row before column.
      stride: px of the picture a cell.
      width: deviation in cells of the window whose middle is taken.
      rounds: of the mean shift.
    """
    maps = np.asarray(maps, np.float64)
    at, line = np.asarray(places, np.float64) / stride - 0.5, np.arange(maps.shape[-1])
    for _ in range(rounds):
        rows, columns = (
            np.exp(-((line - at[..., axis, None]) ** 2) / (2 * width**2)) for axis in (0, 1)
        )
        total = ((rows @ maps) * columns).sum(-1)
        down, across = (
            ((r @ maps) * c).sum(-1) for r, c in ((rows * line, columns), (rows, columns * line))
        )
        # Where all is silent there is nothing to move to.
        heard = total > 1e-6
        middle = np.stack([down, across], -1) / np.where(heard, total, 1)[..., None]
        at = np.where(heard[..., None], middle, at)
    found: np.ndarray = (at + 0.5) * stride
    return found


def _read(maps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`[I, R, S, C]`: maps read between cells, linearly; `rows` and `columns` in cells."""
    n = maps.shape[-1]
    cells = np.arange(n)
    # Beyond the border the last cell goes on.
    weights = [
        np.maximum(1 - np.abs(np.clip(v, 0, n - 1)[:, None] - cells), 0).astype(np.float32)
        for v in (rows, columns)
    ]
    found: np.ndarray = (weights[0] @ maps @ weights[1].T).transpose(0, 2, 3, 1)
    return found


def find_appearance(
    maps: ArrayLike,
    shown: ArrayLike,
    centres: ArrayLike,
    *,
    stride: float,
    spread: float | None = None,
) -> np.ndarray:
    """Returns `[I, 2]` px: where the surroundings look most as they do in an annotated image.

    Args:
      maps: `[I, C, n, n]` of all images, from 0 on, see `evidence_maps`.
      shown: `[A]` indices of the annotated images.
      centres: `[A, 2]` px, of the part in these.
      stride: px of the picture a cell.
      spread: px, deviation of the part around its mean annotated place; None is 3/4 of a cell.
    """
    # The root, since a texture that is twice as strong is the same texture.
    x = np.sqrt(np.asarray(maps, np.float32))
    shown, centres = np.asarray(shown), np.asarray(centres, np.float64)
    spread = 0.75 * stride if spread is None else spread
    step, middle = stride / 2, centres.mean(0)
    # Candidates half a cell apart, out to four deviations or the furthest annotation.
    far = max(4 * spread, np.abs(centres - middle).max())
    k = int(np.ceil(far / step))
    line = np.arange(-k - 2, k + 3) * step
    values = _read(x, *((middle + line[:, None]).T / stride - 0.5))
    # Three by three places, a cell apart, around each candidate.
    side = 2 * k + 1
    around = np.concatenate(
        [values[:, r : r + side, c : c + side] for r in (0, 2, 4) for c in (0, 2, 4)], -1
    ).reshape(len(x), side**2, -1)
    around -= around.mean((0, 1))
    flat = around.reshape(-1, around.shape[-1])
    variance, basis = np.linalg.eigh(flat.T @ flat / len(flat))
    # Halfway to equal variances: all of the way would raise what is noise.
    gain = np.maximum(variance, _FLOOR * variance[-1] + 1e-12) ** -0.25
    around = around @ (basis * gain).astype(np.float32)
    around /= np.linalg.norm(around, axis=-1, keepdims=True) + 1e-9
    inner = line[2:-2]
    places = np.stack(np.meshgrid(inner, inner, indexing="ij"), -1).reshape(-1, 2) + middle
    nearest = ((places[:, None] - centres) ** 2).sum(-1).argmin(0)
    alike = around @ around[shown, nearest].T
    # Any of the appearances will do: a sum of exponentials is nearly their maximum.
    score = np.log(np.exp(_SHARP * (alike - 1)).mean(-1))
    score = score - ((places - middle) ** 2).sum(-1) / (2 * spread**2)
    share = np.exp(score - score.max(1, keepdims=True))
    found: np.ndarray = share / share.sum(1, keepdims=True) @ places
    return found


def find_part(
    graph: Layer, maps: ArrayLike, shown: ArrayLike, centres: ArrayLike, *, keep: int = 40
) -> np.ndarray:
    """Returns `[I, 2]` px: where a part is in every image, from its place in one to three.

    Args:
      graph: fitted to the maps, see `fit_layer`.
      maps: `[I, C, n, n]`, the same.
      shown: `[A]` indices of the annotated images.
      centres: `[A, 2]` px, of the part in these.
      keep: number of nodes that vote.
    Raises:
      ValueError: if there is no annotation, or the maps are not those of the graph.
    """
    shown, centres = np.asarray(shown), np.asarray(centres, np.float64)
    number = len(graph.places)
    if len(np.asarray(maps)) != number:
        raise ValueError(
            f"maps must be of the {number} images that the graph was fitted on, got "
            f"{len(np.asarray(maps))}"
        )
    if not len(shown) or centres.shape != (len(shown), 2):
        raise ValueError(
            f"centres must be [A, 2] px for the {len(shown)} images in shown, at least one, got "
            f"shape {centres.shape}"
        )
    places = settle_places(maps, graph.places, stride=graph.stride).reshape(number, -1, 2)
    scores = graph.scores.reshape(number, -1)
    cell = graph.stride
    template = fit_template(
        places[shown], scores[shown], centres, keep=keep, prior=cell / 4, reach=2 * cell
    )
    votes = locate(template, places, scores, width=0.75 * cell)
    near = (votes + find_appearance(maps, shown, centres, stride=cell)) / 2
    # Half from what surrounds the part, half from the object as a whole.
    whole = carry(find_poses(maps, stride=cell), shown, centres)
    found: np.ndarray = (near + whole) / 2
    return found
