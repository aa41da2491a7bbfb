"""Other regions that keep the answer about as well: "the face, or the two paws".

Where several regions do, which of them is found hangs on rounding. So the core of the region found
is closed off and the search runs again; what it finds is another reason if the class still comes
first and its probability, the mean under the fills, is within a tenth. Then its core is closed off
too, and so on.

The core is the better part of a region by its own scores: large enough that another region of the
same area overlaps it by less than `OVERLAP`, and small enough that two reasons may share pixels at
their edges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import masks, scores, solver
from perturb.evidence import fills
from perturb.methods import _run
from perturb.model import Model
from perturb.solver import entry
from perturb.types import PyTree

__all__ = ["Alternative", "find"]

# Intersection over union from which two regions are the same reason.
OVERLAP = 0.3
# Share of a region that is closed off. The rest, 0.4 of it, is at most 1/4 of the union with
# another region of its size, so below `OVERLAP`.
CORE = 0.6
# How far a probability, or a share of the score, may lie below that of the best region.
TENTH = 0.1


class Alternative(NamedTuple):
    """A region found besides the best one.

    Attributes:
      mask: `[*size]` bool.
      score: mean reward under the fills it was found with.
      probability: the target's mean probability under them; NaN where the model gives no classes.
      overlap: largest intersection over union with the best region and the alternatives before.
    """

    mask: np.ndarray
    score: float
    probability: float
    overlap: float


class _Kept(NamedTuple):
    """What regions `[N]` keep: mean reward and probability under the fills, whether the class is
    first.
    """

    score: np.ndarray
    chance: np.ndarray
    first: np.ndarray


def find(
    model: Model,
    given: entry.Given,
    result: _run.Result,
    areas: np.ndarray,
    recipe: solver.Recipe,
    number: int,
    seek: Callable[..., _run.Result],
) -> list[list[list[Alternative]]]:
    """Returns `[B][A]` lists of at most `number` alternatives to the regions of `result`.

    Args:
      areas: `[B, A]` as asked.
      recipe: with which they were found.
      seek: `(images, targets, areas [N, 1], within [N, *size], keys) -> Result`.
    """
    found: list[list[list[Alternative]]] = [[[] for _ in row] for row in areas]
    keep = functools.partial(_keep, model, recipe, given)
    places = [(i, a) for i in range(len(areas)) for a in range(areas.shape[1])]
    best = dict(
        zip(places, _rows(keep(places, [result.masks[p] > 0.5 for p in places])), strict=True)
    )
    scores_of = result.scores
    closed = {p: _core(result.masks[p] > 0.5, scores_of[p]) for p in places}  # type: ignore[index]
    # Where the region itself does not keep the answer there is nothing that another could keep as
    # well.
    places = [p for p in places if best[p].first and _room(closed[p], areas[p])]
    for _ in range(number):
        if not places:
            break
        rows = np.array([i for i, _ in places])
        again = seek(
            given.images[rows],
            jax.tree.map(lambda t, rows=rows: t[rows], given.targets),
            np.array([[areas[p]] for p in places]),
            np.stack([~closed[p] for p in places]),
            given.keys[rows],
        )
        regions = [m > 0.5 for m in again.masks[:, 0]]
        left = []
        for n, (p, one) in enumerate(zip(places, _rows(keep(places, regions)), strict=True)):
            if not _as_good(one, best[p]):
                continue
            i, a = p
            known = [result.masks[p] > 0.5, *(other.mask for other in found[i][a])]
            overlap = max(_iou(regions[n], other) for other in known)
            if overlap >= OVERLAP:
                continue
            chance = float(one.chance)
            found[i][a].append(Alternative(regions[n], float(one.score), chance, overlap))
            closed[p] = closed[p] | _core(regions[n], again.scores[n, 0])  # type: ignore[index]
            if _room(closed[p], areas[p]):
                left.append(p)
        places = left
    return found


def _as_good(one: _Kept, best: _Kept) -> bool:
    if not np.isnan(best.chance):
        return bool(one.first) and bool(one.chance >= best.chance - TENTH)
    return bool(one.score >= best.score - TENTH * abs(best.score))


def _rows(kept: _Kept) -> list[_Kept]:
    return [_Kept(*row) for row in zip(*kept, strict=True)]


def _core(region: np.ndarray, values: np.ndarray) -> np.ndarray:
    # Everything outside is lower than anything inside, so the best pixels are those of the region.
    inside = np.where(region, values, values.min() - 1)
    return np.asarray(masks.binarise(jnp.asarray(inside), round(CORE * region.sum()))) > 0.5


def _room(closed: np.ndarray, area: float) -> bool:
    # A few pixels to spare, or the search would have nothing to choose.
    return bool((~closed).mean() > area + 8 / closed.size)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _keep(
    model: Model, recipe: solver.Recipe, given: entry.Given, places: PyTree, regions: PyTree
) -> _Kept:

    classes = recipe.reward.indexes_class and scores.has_probability(model.output)
    drawn, rows = fills.another_draw(), []
    for (i, _), region in zip(places, regions, strict=True):
        target = jax.tree.map(lambda t, i=i: jnp.asarray(t[i]), given.targets)
        shown = np.concatenate(
            [
                np.asarray(fills.views(fills.sharp(fill), given.images[i], drawn, masked))
                for n, fill in enumerate(fills.sought(recipe.operator))
                for masked in [
                    np.stack([region, *[np.ones_like(region)] * (n == 0)]).astype(np.float32)
                ]
            ]
        )
        outputs = fills.outputs_of(model, shown)
        # Row 1 is the whole picture, shown once, beside the region under the first fill.
        whole = jax.tree.map(lambda y: jnp.asarray(y[1]), outputs)
        kept = jax.tree.map(lambda y: jnp.asarray(np.delete(y, 1, 0)), outputs)
        score = jax.vmap(lambda row, w=whole, t=target: recipe.reward(row, t, w))(kept).mean()
        if not classes:
            rows.append((float(score), np.nan, True))
            continue
        chance = jax.vmap(lambda row, t=target: scores.probability(model.output, row, t))(kept)
        first = scores.predicted(model.output, jax.tree.map(lambda y: y[0], kept), target)
        rows.append((float(score), float(chance.mean()), bool(first > 0.5)))
    return _Kept(*(np.array(column) for column in zip(*rows, strict=True)))
