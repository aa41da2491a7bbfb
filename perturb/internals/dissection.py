"""Which of a classifier's units answer to a concept, and is that more than chance?

Network dissection (`Bau et al. 2017 <https://arxiv.org/abs/1704.05796>`_, `2020
<https://arxiv.org/abs/2009.05041>`_) calls a unit a detector where its IoU with a concept exceeds
.04. By that rule, half of the units of a *random* network's first two layers are detectors of
whatever has contrast. So every unit is held against the same layer of the same architecture with
random weights: its p-value is the share of random units that stand out as far for their own best
concept, and of the units that are believed at most a share `rate` may be chance (Benjamini and
Hochberg).

Units of one network are not independent: now and then a random network has a handful that stand out
further than those of all others. So from six random networks on, the networks themselves are the
sample, and a unit also has to exceed what a further one of them would show: either by its own
score, against the scores that a share `rate` of each random network's units exceed, or because its
layer as a whole holds more of the concept than any random layer would.

Rotations answer another question. What a trained layer encodes, a random rotation of its units
encodes too: in the embedded cheat every direction of the last layer responds to the stamp. So a
rotation is no null for "the layer encodes the concept"; it tests whether the concept is aligned
with single units, which is reported beside the verdict: `p_rotation`, and `aligned` for the layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from perturb import display, statistics
from perturb.inputs import random_key
from perturb.internals._given import checked_masks, checked_pictures
from perturb.messages import short
from perturb.metrics import sanity
from perturb.model import Model
from perturb.types import ImageSource, PyTree, Record
from perturb.units import (
    Concepts,
    Dissection,
    Pictures,
    discoveries,
    dissect,
    random_rotations,
    rotated_name,
    units_of,
)
from perturb.units import layers as known_layers

__all__ = [
    "Verdicts",
    "dissect_pictures",
    "layer_tables",
    "random_network",
    "summary",
    "verdicts",
]

ENOUGH = 6  # random networks, from which on their spread can be estimated


class Verdicts(NamedTuple):
    """The units of a layer, with their evidence against chance. U units, K concepts.

    Attributes:
      table: the `Dissection`: IoU with intervals, chance, halves, top pictures.
      score: `[U]`, by how many standard deviations of random units the best concept's adjusted IoU
        exceeds their mean.
      p_value: `[U]`, share of random units whose own best concept scores as high.
      passes: `[U]`: the published rule (IoU and adjusted IoU above .04), the p-value is a
        discovery, and the score exceeds `limit` or the concept is one of `shared`.
      null_share: share of random units that the published rule alone lets through.
      null_low: `[K]`, 2.5th percentile of the adjusted IoU of random units.
      null_high: `[K]`, 97.5th percentile of the same.
      p_rotation: `[U]`, share of the units of random rotations that score as high; NaN without.
      aligned: one-sided p-value, by rank among the rotations, of the mean adjusted IoU of the
        layer's units with their best concepts: low where concepts lie along units. NaN without.
      limit: the score that more than a share `rate` of the units of a further random network exceed
        with probability `risk`; minus infinity with fewer than six networks.
      shared: `[K]`, whether the layer as a whole holds more of the concept than that of a further
        random network would, at `risk` for all concepts together; None with fewer than six.
    """

    table: Dissection
    score: np.ndarray
    p_value: np.ndarray
    passes: np.ndarray
    null_share: float
    null_low: np.ndarray
    null_high: np.ndarray
    p_rotation: np.ndarray
    aligned: float
    limit: float = -np.inf
    shared: np.ndarray | None = None

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        if not isinstance(self.table, Dissection):
            return display.plain(self)
        t = self.table
        rows = [
            (
                u,
                t.concepts[c],
                display.interval(t.iou[u, c], t.iou_low[u, c], t.iou_high[u, c]),
                f"{t.chance[u, c]:.3f}",
                f"{self.p_value[u]:.2g}",
                "passes" if self.passes[u] else "fails",
            )
            for u, c in ((u, t.best[u]) for u in np.lexsort((-self.score, ~self.passes)))
        ]
        said = (
            f"{t.layer}: {self.passes.sum()} of {len(rows)} units pass; the published rule takes "
            f"{t.interpretable.sum()} for detectors, and {self.null_share:.0%} of random units"
        )
        return display.table(said, ("unit", "concept", "IoU", "by chance", "p", ""), rows)


def dissect_pictures(
    model: Model,
    images: ImageSource,
    *,
    layers: str | Sequence[str],
    masks: PyTree = None,
    concepts: Sequence[str] | Concepts,
    labelled: PyTree = None,
    networks: int = 10,
    rotations: int = 2,
    key: jax.Array,
    rate: float = 0.05,
    risk: float = 0.002,
    **options: object,
) -> dict[str, Verdicts]:
    """Compares the units of layers with concepts, and with networks of random weights.

    Args:
      model: the classifier, a `perturb.Model`.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      layers: names of `perturb.taps.names(model, images)`, or one: maps, tokens of a transformer
        (its square of places), or one number a unit.
      masks: `[N, H, W, K]` booleans, likewise; None if `concepts` are read off the pictures.
      concepts: `[K]` names of the masks; or `perturb.units.Concepts` (colours, edges, a
        segmenter).
      labelled: `[N, H, W, K]` or `[N, H, W, 1]`: where each concept is known; IoU is over those
        pixels, of which there must be some.
      networks: of random weights, at least 1. From six on the verdicts hold for each network, not
        only on the mean over networks.
      rotations: of the units of each layer, or 0.
      key: of weights and rotations; not consumed.
      rate: of false discoveries among the units of a layer, in (0, 1).
      risk: that more than a share `rate` of a random layer's units would pass, in (0, 1).
      **options: of `perturb.units.dissect`: quantile, enlarge, replicates, batch_size, ....
    Returns:
      `{layer: Verdicts}`.
    """
    if networks < 1:
        raise ValueError(
            f"networks must be at least 1, got {networks}: without them there is no null"
        )
    layers = _several(layers)
    common: Record = {
        "layers": layers,
        "masks": masks,
        "concepts": concepts,
        "labelled": labelled,
        **options,
    }
    # Only the trained network is rotated: the random ones are the null already.
    trained = layer_tables(model, images, rotations=rotations, key=key, **common)
    others = [
        layer_tables(random_network(model, jax.random.fold_in(key, n + 1)), images, **common)
        for n in range(networks)
    ]
    return {
        layer: verdicts(
            trained[layer],
            [other[layer] for other in others],
            [trained[rotated_name(layer, r)] for r in range(rotations)],
            rate=rate,
            risk=risk,
        )
        for layer in layers
    }


def layer_tables(
    model: Model,
    images: PyTree,
    *,
    layers: str | Sequence[str],
    masks: PyTree = None,
    concepts: Sequence[str] | Concepts,
    labelled: PyTree = None,
    rotations: int = 0,
    key: jax.Array | None = None,
    **options: Any,
) -> dict[str, Dissection]:
    """Returns the tables of layers, and of rotations of them under `rotated_name`; see
    `dissect_pictures`.

    Args:
      model: the classifier, a `perturb.Model`.
      images: `[N, H, W, C]` in [0, 1].
      layers: names of layers, or one.
      masks: `[N, H, W, K]` booleans; None reads the concepts off the pictures.
      concepts: `[K]` names, or `perturb.units.Concepts`.
      labelled: `[N, H, W, K]` or `[N, H, W, 1]` booleans: where each concept is known; None is
        everywhere.
      rotations: number of random rotations of each layer.
      key: random key of the rotations; None is `jax.random.key(0)`.
      options: dict of options of `perturb.units.dissect`.
    """
    images = checked_pictures(model, images)
    layers = _several(layers)
    inputs = {"image": images}
    # Concepts that are read off the pictures bring their names.
    names = () if isinstance(concepts, Concepts) else tuple(concepts)
    if masks is None and names:
        raise ValueError(f"masks must be given for concepts {short(names, 40)}, got None")
    if masks is not None and names:
        inputs["masks"] = checked_masks("masks", masks, images, len(names), names)
    if labelled is not None:
        inputs["labelled"] = checked_masks("labelled", labelled, images, None, names or [""])
    first = images[0:2]
    subject = Pictures(
        model=model,
        size=first.shape[1:3],
        layers=tuple(layers),
        concepts=names,
        partial=0 if labelled is None else labelled[0:1].shape[-1],
    )
    if rotations:
        shapes = known_layers(subject)
        # A key for each layer: rotations of layers of one width must differ.
        turn = random_key(key)
        # Rotated units are further layers of the same pass: the pictures run once.
        subject = dataclasses.replace(
            subject,
            rotations={
                layer: random_rotations(
                    shapes[units_of(layer)][-1], rotations, jax.random.fold_in(turn, i)
                )
                for i, layer in enumerate(layers)
            },
        )
    asked = [units_of(layer) for layer in layers]
    asked += [rotated_name(layer, r) for layer in layers for r in range(rotations)]
    found = dissect(
        subject,
        layer=asked,
        concepts=concepts if isinstance(concepts, Concepts) else subject.masks(),
        latents=inputs,
        partial=labelled is not None,
        **options,
    )
    # Layers come back under the names that were asked for.
    plain = {units_of(layer): layer for layer in layers}
    return {plain.get(n, n): t._replace(layer=plain.get(n, n)) for n, t in found.items()}


def _several(layers: str | Sequence[str]) -> list[str]:
    """The layers asked for, where a single one may be given by its name alone."""
    return [layers] if isinstance(layers, str) else list(layers)


def random_network(model: Model, key: jax.Array) -> Model:
    """Returns the same architecture with random weights of the same size, see
    `metrics.sanity.randomised`.

    Args:
      model: the network, a `perturb.Model`.
      key: random key of the weights.
    """
    names = list(sanity.layers(model.variables))
    drawn = sanity.randomised(model.variables, names, key)
    return dataclasses.replace(model, variables=drawn)


def verdicts(
    table: Dissection,
    random: Sequence[Dissection],
    rotated: Sequence[Dissection] = (),
    *,
    rate: float = 0.05,
    risk: float = 0.002,
) -> Verdicts:
    """Holds a layer against the same layer of networks of random weights, and against its
    rotations.

    Args:
      table: of the layer.
      random: of networks of random weights, at least one; see `dissect_pictures`.
      rotated: of rotations of the layer.
      rate: of false discoveries.
      risk: that more than a share `rate` of a random layer's units would pass.
    """
    if not (0 < rate < 1 and 0 < risk < 1):
        raise ValueError(f"rate and risk must be in (0, 1), got {rate} and {risk}")
    # All random units of all networks, concept by concept: the null of a single unit's IoU.
    null = np.concatenate([t.adjusted for t in random])
    scores = _scores(table, null)

    def exceed(against: np.ndarray, scores: np.ndarray) -> np.ndarray:
        at = np.searchsorted(np.sort(against), scores, side="left")
        # The unit counts as one of them: a p-value is never 0.
        return (1 + len(against) - at) / (1 + len(against))

    p = exceed(np.concatenate([_scores(t, null) for t in random]), scores)
    turned, aligned = np.full(len(p), np.nan), float("nan")
    if rotated:
        turned = exceed(np.concatenate([_scores(t, null) for t in rotated]), scores)
        means = [_mean_best(t) for t in rotated]
        aligned = (1 + sum(m >= _mean_best(table) for m in means)) / (1 + len(means))
    low, high = statistics.percentiles(null, axis=0)
    # Both: an effect of some size, and one that chance does not explain.
    passes = table.interpretable & discoveries(p, rate=rate)
    limit, shared = -np.inf, None
    if len(random) >= ENOUGH:
        limit = _limit([t.adjusted for t in random], rate, risk)
        held = np.stack([t.adjusted.mean(0) for t in random])
        shared = table.adjusted.mean(0) > _next(held, risk / held.shape[1])
        passes &= (scores > limit) | shared[table.best]
    return Verdicts(
        table=table,
        score=scores,
        p_value=p,
        passes=passes,
        null_share=float(np.mean([t.interpretable.mean() for t in random])),
        null_low=low,
        null_high=high,
        p_rotation=turned,
        aligned=aligned,
        limit=limit,
        shared=shared,
    )


def _scores(table: Dissection, null: np.ndarray) -> np.ndarray:
    """By how many deviations of random units each unit's best concept stands out, `[units]`."""
    # In the null's own spread, so that best concepts of different difficulty can be ranked
    # together. Random units are scored by their own best concept too: both are the best of many.
    return _best((table.adjusted - null.mean(0)) / _deviation(null), table.best)


def _deviation(null: np.ndarray) -> np.ndarray:
    # A concept that no random unit ever overlaps has a deviation of 0; a floor keeps its scores
    # finite.
    found: np.ndarray = np.maximum(null.std(0), 1e-3)
    return found


def _best(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    found: np.ndarray = values[np.arange(len(best)), best]
    return found


def _limit(adjusted: Sequence[np.ndarray], rate: float, risk: float) -> float:
    """The score that more than a share `rate` of a further network's units exceed at `risk`."""
    most = []
    for i, own in enumerate(adjusted):
        # Each against the others, as the network in question is: its own units would hide it.
        others = np.concatenate([a for j, a in enumerate(adjusted) if j != i])
        scores = _best((own - others.mean(0)) / _deviation(others), own.argmax(1))
        most.append(np.sort(scores)[::-1][int(rate * len(scores))])
    # Their logarithms are about normal; the floor is for a network that answers to nothing.
    floored = np.maximum(most, max(0.05 * float(np.median(most)), 1e-3))
    return float(np.exp(_next(np.log(floored), risk)))


def _next(values: np.ndarray, risk: float) -> np.ndarray:
    """The upper end of the prediction interval of one more normal value, along the first axis."""
    from scipy.special import stdtrit

    n = len(values)
    away = stdtrit(n - 1, 1 - risk) * np.sqrt(1 + 1 / n)
    # The widest spread for all columns: of ten networks, most concepts have not yet met the one
    # that answers to them.
    return np.asarray(values.mean(0) + away * values.std(0, ddof=1).max())


def _mean_best(table: Dissection) -> float:
    return float(table.adjusted.max(1).mean())


def summary(found: Mapping[str, Verdicts]) -> list[Record]:
    """Returns a row a unit of all layers: what a page or a file shows.

    Args:
      found: `{layer: Verdicts}`, what `dissect_pictures` returned.
    """
    rows = []
    for layer, v in found.items():
        t = v.table
        for unit, c in enumerate(t.best):
            rows.append(
                {
                    "layer": layer,
                    "unit": unit,
                    "concept": t.concepts[c],
                    "iou": float(t.iou[unit, c]),
                    "iou_low": _finite(t.iou_low[unit, c]),
                    "iou_high": _finite(t.iou_high[unit, c]),
                    "chance": float(t.chance[unit, c]),
                    "stable": bool(t.stable[unit]),
                    "p_value": float(v.p_value[unit]),
                    "p_rotation": _finite(v.p_rotation[unit]),
                    "verdict": "passes" if v.passes[unit] else "fails",
                }
            )
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
