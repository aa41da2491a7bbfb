"""Which concept does each unit draw? Dissection of a layer, as a table of units by concepts.

`Bau et al. 2018 <https://arxiv.org/abs/1811.10597>`_: a unit's activation, enlarged to the image
and cut at its threshold, is compared with the mask of each concept by the intersection over the
union of all pixels of all images. Both published ways to the threshold are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from perturb import display, statistics
from perturb.types import PyTree, Record
from perturb.units import sampling
from perturb.units.concepts import Concepts, labels
from perturb.units.counts import Counts, count, joint_counts
from perturb.units.pictures import Pictures
from perturb.units.quantiles import histogram, quantiles, rounded_quantiles
from perturb.units.subject import Subject

__all__ = ["Dissection", "dissect", "ranked", "table"]

# The candidates of the published search: 1 - logspace(-3, 0, 100), the last of which is the
# minimum.
_SHARES = 1 - np.logspace(-3, 0, 100)[:-1]


class Dissection(NamedTuple):
    """Units of one layer against concepts.

    Attributes:
      layer: its name.
      concepts: their names.
      thresholds: `[units]`; a unit is active above its own.
      iou: `[units, concepts]` in [0, 1].
      iou_low: `[units, concepts]`, lower end of the 95 % bootstrap interval over the samples,
        thresholds held.
      iou_high: `[units, concepts]`, upper end.
      iou_halves: `[2, units, concepts]`, of the even and of the odd samples.
      chance: `[units, concepts]`, the IoU of two masks of the same areas that know nothing of each
        other. A concept that covers nearly everything has a high IoU with every unit that does.
      adjusted: `(iou - chance) / (1 - chance)`: 0 at chance, 1 for equal masks.
      best: `[units]`, the concept of the highest adjusted IoU.
      interpretable: `[units]`: the best concept's IoU and adjusted IoU both exceed `min_iou`, under
        "iqr" its information quality ratio .01.
      stable: `[units]`, whether both halves of the samples give the same best concept.
      iqr: `[units, concepts]` information quality ratio on the train samples, or None.
      unit_pixels: `[units]`, number of pixels on which each unit was active.
      concept_pixels: `[concepts]`, number of pixels on which each concept was present.
      pixels: number of pixels looked at.
      concept_images: `[concepts]`, in how many samples a concept occurs: one of few means little.
      top_values: `[units, k]`, the highest activations anywhere in a sample, highest first.
      top_indices: `[units, k]`, the samples in which these are.
    """

    layer: str
    concepts: tuple[str, ...]
    thresholds: np.ndarray
    iou: np.ndarray
    iou_low: np.ndarray
    iou_high: np.ndarray
    iou_halves: np.ndarray
    chance: np.ndarray
    adjusted: np.ndarray
    best: np.ndarray
    interpretable: np.ndarray
    stable: np.ndarray
    iqr: np.ndarray | None
    unit_pixels: np.ndarray
    concept_pixels: np.ndarray
    pixels: int
    concept_images: np.ndarray
    top_values: np.ndarray
    top_indices: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def on_levels(self) -> np.ndarray:
        """`[units]`, what a unit is set to where it is switched on: its threshold, at least 0.

        A threshold below 0 would switch a rectified unit to what it can never be.
        """
        found: np.ndarray = np.maximum(self.thresholds, 0)
        return found

    def _repr_html_(self) -> str:
        if self.iou.ndim != 2:
            return display.plain(self)
        over = self.adjusted[np.arange(len(self.best)), self.best]
        rows = [
            (
                u,
                self.concepts[c],
                display.interval(self.iou[u, c], self.iou_low[u, c], self.iou_high[u, c]),
                f"{self.chance[u, c]:.3f}",
                "yes" if self.interpretable[u] else "no",
            )
            for u, c in ((u, self.best[u]) for u in np.argsort(-over, kind="stable"))
        ]
        said = f"{self.layer}: {self.interpretable.sum()} of {len(rows)} units are detectors"
        return display.table(said, ("unit", "concept", "IoU", "by chance", "detector"), rows)


def dissect(
    generator: Subject,
    *,
    layer: str | Sequence[str],
    concepts: Concepts | None = None,
    samples: int | tuple[int, int] | None = None,
    key: jax.Array | None = None,
    latents: PyTree = None,
    threshold: str = "quantile",
    quantile: float = 0.99,
    domain: str = "cells",
    train_samples: int = 1000,
    enlarge: str = "nearest",
    min_iou: float = 0.04,
    replicates: int = 200,
    top: int = 10,
    batch_size: int = 64,
    partial: bool = False,
) -> PyTree:
    """Compares every unit of a layer with every concept.

    The generator runs over the samples three times (two find the exact threshold, one counts);
    memory does not grow with their number. To share the samples out over hosts, call `histogram`,
    `quantiles` and `count` on parts, merge, and make the `table`: the result is equal to the last
    bit.

    Args:
      generator: checked first, by its own `check`.
      layer: a name of `layers(generator)`, or several for one pass over all.
      concepts: of kind "masks"; None takes the generator's own labels.
      samples: how many latents, or `(start, stop)`: a range of them.
      key: of the latents; not consumed.
      latents: instead of samples and key, a pytree of leading size N.
      threshold: "quantile": each unit is active on its top `1 - quantile` (`Bau et al. 2020
        <https://arxiv.org/abs/2009.05041>`_: .99 and IoU above .04). "iqr": the threshold of the
        highest information quality ratio, mutual information over joint entropy, with the concept
        for which that is highest, chosen on train samples of another key and scored on `samples`
        (Bau et al. 2018: IoU above .05 and ratio above .01); not for `Pictures`, which are not
        drawn.
      quantile: for "quantile", in (0, 1): `numpy.quantile` of all values, to the last bit.
      domain: the quantile is over the layer's own "cells", or over "visible" pixels of the image.
      train_samples: number of samples that "iqr" chooses thresholds on.
      enlarge: "nearest" or "bilinear"; see `count`. The originals enlarge bilinearly.
      min_iou: for `interpretable`.
      replicates: number of bootstrap copies.
      top: samples kept for each unit.
      batch_size: number of samples run at once; changes memory and time only.
      partial: the second half of the concepts says where each of the first is labelled (as
        `Pictures.masks` gives them): IoU, chance and areas are over those pixels only.
    Returns:
      a `Dissection`; for several layers `{name: Dissection}`.
    Raises:
      ValueError: if there is no such layer, if the generator cannot be trusted, if concepts are not
        masks of the image's size, or if an option is out of its range.
    """
    generator.check()
    concepts = labels(generator) if concepts is None else concepts
    if threshold not in ("quantile", "iqr"):
        raise ValueError(f"threshold must be 'quantile' or 'iqr', got {threshold!r}")
    # What `Pictures` draws is noise without a concept in it: thresholds would be chosen on that.
    if threshold == "iqr" and isinstance(generator, Pictures):
        raise ValueError(
            "threshold must be 'quantile' for given pictures, got 'iqr': it draws training samples "
            "of its own, and pictures are not drawn"
        )
    where: Record = {"samples": samples, "key": key, "latents": latents}
    common: Record = {"layer": layer, "batch_size": batch_size}
    # Only to refuse what does not fit before a long pass over training samples.
    sampling.population(samples, key, latents)
    ratios: Mapping[str, np.ndarray | None] = {}
    if threshold == "quantile":
        passes = {**common, **where, "quantile": quantile, "domain": domain}
        coarse = histogram(generator, **passes)
        fine = histogram(generator, **passes, within=coarse)
        levels = {n: quantiles(coarse[n], fine[n], quantile) for n in coarse}
    else:
        # Another key, so that no sample is both trained and tested on.
        train = jax.random.fold_in(jax.random.key(2) if key is None else key, 2**31)
        passes = {**common, "samples": train_samples, "key": train}
        coarse = histogram(generator, **passes)
        candidates = {n: rounded_quantiles(coarse[n], _SHARES) for n in coarse}
        joint = joint_counts(
            generator, **passes, concepts=concepts, candidates=candidates, enlarge=enlarge
        )
        chosen = {n: _best_threshold(candidates[n], joint[n]) for n in coarse}
        levels = {n: c[0] for n, c in chosen.items()}
        ratios = {n: c[1] for n, c in chosen.items()}
    counts = count(
        generator,
        **common,
        **where,
        concepts=concepts,
        thresholds=levels,
        enlarge=enlarge,
        replicates=replicates,
        top=top,
    )
    tables = {
        n: table(
            n,
            concepts.names,
            levels[n],
            counts[n],
            iqr=ratios.get(n),
            min_iou=min_iou,
            partial=partial,
        )
        for n in counts
    }
    return tables[layer] if isinstance(layer, str) else tables


def table(
    layer: str,
    concepts: Sequence[str],
    thresholds: np.ndarray,
    counts: Counts,
    *,
    iqr: np.ndarray | None = None,
    min_iou: float = 0.04,
    partial: bool = False,
) -> Dissection:
    """Returns the table of one layer from the merged counts of all samples; `partial` as in
    `dissect`.

    Args:
      layer: name of the layer.
      concepts: names of the concepts.
      thresholds: `[units]`; a unit is active above its own.
      counts: the merged `Counts` of all samples.
      iqr: `[units, concepts]` information quality ratios, or None.
      min_iou: least IoU and adjusted IoU of an interpretable unit, in [0, 1].
      partial: whether the second half of the concepts says where the first half is labelled, as
        in `dissect`.
    Raises:
      ValueError: if no pixel is labelled.
    """
    both, present = counts.both.astype(np.float64), counts.present
    active, pixels = counts.active[..., None], counts.pixels[:, None]
    images = counts.images
    if partial:
        # Each concept is compared where it is labelled: the masks of the second half take the place
        # of all pixels.
        half = len(concepts) // 2
        concepts, active, pixels = concepts[:half], both[..., half:], present[:, half:]
        both, present, images = both[..., :half], present[:, :half], images[:half]
        if not pixels[0].any():
            raise ValueError(
                "labelled must be True where a concept is known, got False at every pixel of every "
                "picture: no pixel is labelled; leave labelled out if all are known"
            )
    union = active + present[:, None] - both
    iou = _ratio(both, union)
    share = _ratio(active, pixels[:, None])
    area = _ratio(present, pixels)[:, None]
    # Two independent masks: they share the product of their areas.
    chance = _ratio(share * area, share + area - share * area)
    # Where both masks are everything there is nothing above chance.
    adjusted = _ratio(iou - chance, 1 - chance)
    # The rows before are all samples, the even and the odd ones.
    low, high = statistics.percentiles(iou[sampling.FIXED :], axis=0)
    best = adjusted[0].argmax(-1)
    units = np.arange(len(best))
    # The adjusted one decides: a concept that is nearly everywhere has a high IoU by chance.
    passes = (iou[0, units, best] > min_iou) & (adjusted[0, units, best] > min_iou)
    if iqr is not None:
        passes &= iqr[units, best] > 0.01
    return Dissection(
        layer=layer,
        concepts=tuple(concepts),
        thresholds=np.asarray(thresholds),
        iou=iou[0],
        iou_low=low,
        iou_high=high,
        iou_halves=iou[1:3],
        chance=chance[0],
        adjusted=adjusted[0],
        best=best,
        interpretable=passes,
        stable=adjusted[1].argmax(-1) == adjusted[2].argmax(-1),
        iqr=iqr,
        unit_pixels=counts.active[0],
        concept_pixels=present[0],
        pixels=int(counts.pixels[0]),
        concept_images=images,
        top_values=counts.top_values,
        top_indices=counts.top_indices,
    )


def ranked(table: Dissection, concept: str | int, n: int | None = None) -> np.ndarray:
    """Returns the units in order of their IoU with a concept, best first, lower number first on
    ties.

    Args:
      table: a `Dissection`.
      concept: its name or its index.
      n: how many units; None is all.
    Raises:
      ValueError: if the table has no such concept.
    """
    if isinstance(concept, str):
        if concept not in table.concepts:
            raise ValueError(f"concept must be one of {', '.join(table.concepts)}, got {concept!r}")
        concept = table.concepts.index(concept)
    elif not 0 <= concept < len(table.concepts):
        raise ValueError(f"concept must be under {len(table.concepts)}, got {concept}")
    return np.argsort(-table.iou[:, concept], kind="stable")[:n]


def _best_threshold(candidates: np.ndarray, joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the threshold of each unit `[units]` and the best ratio for each concept
    `[units, concepts]`.

    As published, a concept needs a share of .001 of the pixels, and a threshold must agree with it
    on more than .8 of them. Theirs must be above 0; here 0 is one too, for "active at all".
    """
    total = joint[-1, :, -1:].astype(np.float64)
    both = joint[:-1, :, :-1] / total
    # Plus 0 to spread them over all units and concepts, for the stack below.
    active = (joint[:-1, :, -1:] / total) + 0 * both
    present = (joint[-1:, :, :-1] / total) + 0 * both
    cells = np.stack([both, active - both, present - both, 1 - active - present + both])
    # Differences of shares may fall below 0 by rounding.
    cells = np.clip(cells, 0, 1)

    def entropy(*shares: np.ndarray) -> np.ndarray:
        p = np.stack(shares)
        # 0 log 0 counts as 0.
        found: np.ndarray = -np.sum(p * np.log(np.where(p > 0, p, 1)), 0)
        return found

    together = entropy(*cells)
    information = entropy(active, 1 - active) + entropy(present, 1 - present) - together
    ratio = _ratio(information, together)
    valid = (cells[0] + cells[3] > 0.8) & (present >= 1e-3) & (candidates[..., None] >= 0)
    ratio = np.where(valid, np.maximum(ratio, 0), 0)
    units = np.arange(ratio.shape[1])
    concept = ratio.max(0).argmax(-1)
    chosen = ratio[:, units, concept].argmax(0)
    return candidates[chosen, units], ratio.max(0)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # 0 and not NaN: a unit that is never active agrees with nothing.
    found: np.ndarray = np.divide(
        a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=b > 0
    )
    return found
