"""What the page of a unit shows: patches at the top and along its range, its ties, and whether
these agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import perturb
from launch.jobs.dissect_model.material import Material
from launch.report import pictures
from perturb import internals
from perturb.internals import Verdicts
from perturb.types import Record
from perturb.units import Concepts

__all__ = ["LEVELS", "draw"]

TOP, PAGES, SIDE = (
    5,
    24,
    96,
)  # patches at the top, units of a layer with a page, side of a patch, px
LEVELS = (0.99, 0.9, 0.5, 0.1)  # of a unit's range, as shares of the pictures below


def draw(
    model: perturb.Model,
    material: Material,
    found: Mapping[str, Verdicts],
    costs: Mapping[str, list[Record] | None],
    batch_size: int,
) -> tuple[dict[str, np.ndarray], list[list[Record]]]:
    """Draws the units of every layer that stand out most.

    Args:
      model: the classifier.
      material: its pictures and concepts.
      found: `{layer: Verdicts}`.
      costs: for each layer a dict a unit with `cost_low`, or None.
      batch_size: pictures run at once.
    Returns:
      patches `{"page|layer number|unit": [9, side, side, 3]}`, and for each layer a dict a unit.
    """
    layers, images = list(found), material.images
    codes = {
        n: internals.layer_codes(model, images, layer=n, batch_size=batch_size) for n in layers
    }
    arrays: dict[str, np.ndarray] = {}
    portraits: list[list[Record]] = []
    for at, layer in enumerate(layers):
        v = found[layer]
        examples = internals.top_examples(
            model, images, layer=layer, k=min(TOP, len(images)), sample=256, batch_size=batch_size
        )
        present, known = _present(material, examples.sample)
        ties = internals.strongest_ties(codes, layer)
        # The last key counts first: units that pass, then by how far they stand out.
        order = np.lexsort((-v.score, ~v.passes))[:PAGES]
        rows: list[Record] = []
        indices, places = [], []
        for unit in order:
            ranged = internals.along_range(examples, int(unit), LEVELS)
            indices += [*examples.indices[unit], *ranged[0]]
            places += [*examples.places[unit], *ranged[2]]
            concept = int(v.table.best[unit])
            tied = [
                {
                    "layer": name,
                    "unit": int(best[unit]),
                    "correlation": float(r[unit]),
                    "concept": v.table.concepts[int(found[name].table.best[best[unit]])],
                }
                for name, (best, r) in ties.items()
            ]
            own = costs[layer]
            # The strongest of the pictures kept at random stand for the top, so that labels are of
            # the same ones.
            told_of = known[:, concept]
            values = examples.sample_values[told_of, unit]
            strongest = np.argsort(-values, kind="stable")[:TOP]
            fits = internals.agreement(
                present[told_of, concept],
                values,
                top=strongest.tolist(),
                cost_low=None if own is None else own[unit]["cost_low"],
                ties=[t["concept"] == v.table.concepts[concept] for t in tied],
            )
            rows.append(
                {
                    "unit": int(unit),
                    "top": examples.values[unit].tolist(),
                    "range": ranged[1].tolist(),
                    "ties": tied,
                    "checks": fits.checks,
                    "agreement": fits.verdict,
                }
            )
        cut, _ = internals.patches(
            model, images, layer=layer, indices=indices, places=np.asarray(places)
        )
        tiles = np.stack([pictures.framed(patch, SIDE) for patch in cut])
        tiles = tiles.reshape(len(order), -1, SIDE, SIDE, 3)
        arrays |= {f"page|{at}|{u}": t for u, t in zip(order, tiles, strict=True)}
        portraits.append(rows)
    return arrays, portraits


def _present(material: Material, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which concepts are in some pictures at all, and of which that is known,
    `[len(chosen), K]` each.
    """
    present, known = [], []
    for i in chosen:
        one = slice(int(i), int(i) + 1)
        masks: Any
        if isinstance(material.concepts, Concepts):
            masks = material.concepts({"image": jnp.asarray(material.images[one])})
        else:
            masks = material.masks[one]
        masks = np.asarray(masks)
        labelled = np.ones_like(masks)
        if material.labelled is not None:
            labelled = np.broadcast_to(material.labelled[one], masks.shape)
        present.append((masks & labelled).any((0, 1, 2)))
        known.append(labelled.any((0, 1, 2)))
    return np.stack(present), np.stack(known)
