"""From latents to units and effects, pass by pass, in shards of latents that are committed one by
one.

The passes are those of `gan_dissect.dissect`: two histograms find the exact thresholds, one count
compares units with concepts; then the best units of every concept are switched off and on. What is
counted adds up, so a run that was stopped gives the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import gan_dissect
from gan_dissect import counts, quantiles
from launch import generators
from launch.job import store
from launch.job.manifest import Manifest, Part, parts
from launch.job.progress import Progress
from launch.job.run import ALONE, FREE, Place, Run
from launch.report import pictures
from perturb import messages, statistics, taps
from perturb.types import PyTree, Record

__all__ = ["SHARD", "Plan", "Worker", "plan", "run"]

SHARD = 512  # latents in a shard
DEFAULT_UNITS = 8  # of a concept, switched together
PASSES = ("coarse", "fine", "count")
DEMO_LAYER = "layer1"
# Settings that may differ when a run is continued; other batches would be other blocks of latents.
UNBOUND = FREE - {"batch_size"} | {"concepts", "generator"}
SHOWN_UNITS, SHOWN_TOP, SHOWN_EDITS = 6, 5, 8  # pictures kept for the page
LOOKED = 64  # latents among which those of the edits shown are searched
SEEN = 0.05  # share of a picture from which a concept is easily seen


class Plan(NamedTuple):
    """What a run of dissection does.

    Attributes:
      layer: name of the layer.
      samples: latents that are compared; effect_samples: those that edits are measured on.
      quantile: a unit is active on its top `1 - quantile`.
      units: units in the set of a concept.
      controls: random sets of the same size.
      batch_size: latents run at once.
      on_level: what units are switched on at, in times their thresholds.
    """

    layer: str
    samples: int
    effect_samples: int
    quantile: float
    units: int
    controls: int
    batch_size: int
    on_level: float = 1.0


def plan(settings: Plan) -> Manifest:
    """Returns the manifest: the passes over all latents, then the effects in one part."""
    passes = parts([(stage, settings.samples) for stage in PASSES], SHARD)
    effects = Part("effects", 0, settings.effect_samples)
    return Manifest("", (*passes.items, effects))


def run(
    out: store.Path,
    settings: Record,
    *,
    place: Place = ALONE,
    weights_sha256: str | None = None,
) -> tuple[int, int] | None:
    """Runs a job of dissection from its resolved settings, or continues it.

    Args:
      out: folder of the run.
      settings: the fields of `Plan`, and `generator`, `weights`, `concepts` and `seed` as on the
        command line.
      place: this process among those of the job.
      weights_sha256: that the weight file must have.
    Returns:
      how many of how many items failed; None where others have not finished their share.
    Raises:
      ValueError: if anything named does not exist or does not fit.
    """
    generator = generators.of(settings, weights_sha256)
    layer, count = _layer(settings["layer"], generator)
    units = settings["units"] or min(DEFAULT_UNITS, count)
    if units > count:
        raise ValueError(
            f"--units={units}: layer {layer} has units 0 to {count - 1}, {count} in all"
        )
    # Recorded as resolved: a default that changes later must not continue this run.
    settings = {**settings, "layer": layer, "units": units}
    key = jax.random.key(settings["seed"])
    concepts = generators.concepts(settings["concepts"], generator)
    latents, described = None, generators.describe(generator, concepts, settings["weights"])
    if concepts is None:
        names, masks = generators.folder(settings["concepts"], generator, settings["samples"])
        latents = {
            "latent": gan_dissect.sample(generator, key, settings["samples"]),
            "masks": jnp.asarray(masks),
        }
        generator, concepts = generators.with_masks(generator, names, masks.shape[1:3])
        described |= generators.describe_masks(names, masks)
    elif concepts.kind != "masks":
        raise ValueError(
            f"--concepts: {', '.join(concepts.names[:3])} are scores of whole pictures; units are "
            "compared with masks"
        )
    todo = Plan(**{name: settings[name] for name in Plan._fields if name in settings})
    manifest = plan(todo)
    job = Run(
        out,
        settings,
        described,
        manifest,
        shard_rows=1,
        free=UNBOUND,
        place=place,
    )
    # Effects are measured twice, off and on.
    total = sum(p.stop - p.start for p in manifest.items) + todo.effect_samples
    left = [p for _, p in job.pending()]
    ahead = sum(p.stop - p.start for p in left) + (todo.effect_samples if left else 0)
    logging.info(
        "%s of %s, %d latents, %d concepts, into %s",
        *(todo.layer, generator.name, todo.samples, len(concepts.names), out),
    )
    worker = Worker(generator, concepts, todo, key, latents=latents, effects=latents is None)
    progress = Progress(total, total - ahead, unit="latents")
    worker.run(job, progress)
    progress.close()
    return job.ended(len(manifest.items))


def _layer(asked: str | None, generator: gan_dissect.Generator) -> tuple[str, int]:
    """Returns the layer and its number of units."""
    known = gan_dissect.layers(generator)
    asked = asked or (DEMO_LAYER if generator.name == "demo" else None)
    if asked is None:
        raise ValueError(
            f"--layer is missing; layers of {generator.name}: {messages.listed(known)}"
        )
    if asked not in known:
        raise generators.no_such_layer(generator, asked)
    return asked, known[asked][-1]


class Worker:
    """Computes the shards of a run.

    Args:
      generator: whose units are dissected.
      concepts: what they are compared with.
      settings: the plan.
      key: of the latents.
      latents: all `samples` latents, where they are not drawn from the key.
      effects: whether concepts can be found in edited pictures too.
    """

    def __init__(
        self,
        generator: gan_dissect.Generator,
        concepts: gan_dissect.Concepts,
        settings: Plan,
        key: jax.Array,
        *,
        latents: PyTree = None,
        effects: bool = True,
    ):
        self._generator, self._concepts, self._plan, self._key = generator, concepts, settings, key
        self._effects = effects
        self._people: Record = {"key": key} if latents is None else {"latents": latents}
        self._merged: dict[str, Record] = {}

    def run(self, job: Run, progress: Progress) -> None:
        """Computes and commits every pending shard."""
        for stage in PASSES:
            # A pass needs all of the one before: what others have left of it is done here.
            for shard, part in job.pending(self._parts(job, stage), help_others=True):
                arrays = self._pass(job, part)
                progress.add(part.stop - part.start)
                job.commit(shard, arrays, {"items": [], "rows": [], "errors": []})
        # Only once all counts are there, which the passes above see to.
        for shard, _ in job.pending(self._parts(job, "effects")):
            arrays, record = self._last(job, progress)
            job.commit(shard, arrays, {**record, "errors": []})

    def _pass(self, job: Run, part: Part) -> dict[str, np.ndarray]:
        where = {
            "layer": self._plan.layer,
            "samples": (part.start, part.stop),
            "batch_size": self._plan.batch_size,
            **self._people,
        }
        name = self._plan.layer
        if part.stage == "count":
            found = counts.count(
                self._generator,
                **where,
                concepts=self._concepts,
                thresholds={name: self._thresholds(job)},
            )
            return {k: np.asarray(v) for k, v in found[name]._asdict().items()}
        within = self._histogram(job, "coarse") if part.stage == "fine" else None
        seen = quantiles.histogram(
            self._generator, **where, within=within, quantile=self._plan.quantile
        )[name]
        # Nearly all of the 65,536 bins of a unit are empty.
        at = np.flatnonzero(seen.counts)
        return {
            "at": at,
            "counts": seen.counts.reshape(-1)[at],
            "above": seen.above,
            "shape": np.array(seen.counts.shape),
        }

    def _parts(self, job: Run, stage: str) -> list[int]:
        # A shard is one row of the manifest.
        return [i for i, part in enumerate(job.manifest.items) if part.stage == stage]

    def _histogram(self, job: Run, stage: str) -> dict[str, quantiles.Histogram]:
        """Returns the merged histogram of all committed shards of a pass."""
        if stage not in self._merged:
            total: dict[str, quantiles.Histogram] | None = None
            for shard in self._parts(job, stage):
                data = job.read(shard)[1]
                dense = np.zeros(tuple(data["shape"]), np.uint32)
                dense.reshape(-1)[data["at"]] = data["counts"]
                part = {self._plan.layer: quantiles.Histogram(dense, data["above"])}
                total = part if total is None else quantiles.merge_histograms(total, part)
            self._merged[stage] = total or {}
        return self._merged[stage]

    def _thresholds(self, job: Run) -> np.ndarray:
        name = self._plan.layer
        coarse, fine = (self._histogram(job, stage)[name] for stage in ("coarse", "fine"))
        return quantiles.quantiles(coarse, fine, self._plan.quantile)

    def _table(self, job: Run) -> gan_dissect.Dissection:
        name = self._plan.layer

        def part(shard: int) -> dict[str, counts.Counts]:
            data: Record = job.read(shard)[1]
            return {name: counts.Counts(**{**data, "top": int(data["top"])})}

        # Shard by shard: never more than two parts are held.
        total = functools.reduce(counts.merge_counts, map(part, self._parts(job, "count")))
        return gan_dissect.table(name, self._concepts.names, self._thresholds(job), total[name])

    def _last(self, job: Run, progress: Progress) -> tuple[dict[str, np.ndarray], Record]:
        """Returns the table, the effects and the pictures for the page."""
        table = self._table(job)
        chosen = [
            c
            for c in range(len(table.concepts))
            # A concept that no sample shows, or no unit overlaps, has no units to switch.
            if table.concept_images[c] and table.iou[:, c].any()
        ]
        sets = [gan_dissect.ranked(table, c, self._plan.units).tolist() for c in chosen]
        rows = [_unit_row(table, unit) for unit in range(len(table.best))]
        arrays = _table_arrays(table)
        values = (self._plan.on_level * table.on_levels).astype(np.float32)
        for state, value in (("off", 0.0), ("on", values)) if self._effects and sets else ():
            effects = gan_dissect.unit_effects(
                self._generator,
                layer=self._plan.layer,
                units=sets,
                concepts=self._concepts,
                samples=self._plan.effect_samples,
                value=value,
                controls=self._plan.controls,
                batch_size=self._plan.batch_size,
                **self._people,
            )
            progress.add(self._plan.effect_samples)
            rows += [_effect_row(effects, s, chosen[s], sets[s], state) for s in range(len(sets))]
            arrays |= {f"{state}.{k}": v for k, v in effects._asdict().items() if np.ndim(v)}
        arrays |= self._pictures(table, chosen, sets, values)
        items = [
            {"concept": table.concepts[c], "units": s} for c, s in zip(chosen, sets, strict=True)
        ]
        return arrays, {"concepts": list(table.concepts), "items": items, "rows": rows}

    def _pictures(
        self,
        table: gan_dissect.Dissection,
        chosen: Sequence[int],
        sets: Sequence[Sequence[int]],
        values: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Returns the pictures in which the best units are most active, and some with a set off and
        on.
        """
        name = self._plan.layer
        shown = sorted({unit for s in sets for unit in s[:SHOWN_UNITS]})
        found: dict[str, np.ndarray] = {"shown": np.array(shown, np.int64)}
        tops = min(SHOWN_TOP, table.top_indices.shape[1])
        if not shown:
            return found
        images, active = [], []
        for unit in shown:
            # Never a batch of one.
            at = np.resize(table.top_indices[unit, :tops], max(tops, 2))
            image, activation = _look(self._generator, self._latents(at), layer=name)
            where = np.asarray(activation)[..., unit] > table.thresholds[unit]
            images.append(pictures.levels(np.asarray(image))[:tops])
            active.append(where.reshape(len(at), *(where.shape[1:] or (1, 1)))[:tops])
        found |= {"top.images": np.stack(images), "top.active": np.stack(active)}
        if not self._effects:
            return found
        before, edits = [], []
        for s, at in zip(sets, self._showing(chosen), strict=True):
            latents = self._latents(at)
            # One program for all sets of one size: every unit is named, most with strength 0.
            drawn = [
                gan_dissect.set_units(self._generator, latents, {name: dict.fromkeys(s, 0.0)}),
                gan_dissect.set_units(self._generator, latents, {name: {u: values[u] for u in s}}),
            ]
            edits.append(np.stack([pictures.levels(np.asarray(d["image"])) for d in drawn]))
            image, _ = _look(self._generator, latents, layer=name)
            before.append(pictures.levels(np.asarray(image)))
        return {**found, "before": np.stack(before), "edited": np.stack(edits)}

    def _showing(self, chosen: Sequence[int]) -> list[np.ndarray]:
        """Returns, for each concept, the first latents whose pictures show it, then the first of
        the others.
        """
        size = self._plan.batch_size
        areas = np.concatenate(
            [
                _areas(self._generator, self._concepts, self._latents(np.arange(at, at + size)))
                for at in range(0, LOOKED, size)
            ]
        )[:LOOKED]
        # False sorts before True: those that show it come first, each group in its order.
        return [np.argsort(areas[:, c] < SEEN, kind="stable")[:SHOWN_EDITS] for c in chosen]

    def _latents(self, indices: np.ndarray) -> object:
        if "latents" in self._people:
            return jax.tree.map(lambda x: x[indices], self._people["latents"])
        return _draw(self._generator, self._key, jnp.asarray(indices))


@jax.jit
def _draw(generator: gan_dissect.Generator, key: jax.Array, indices: jax.Array) -> object:
    one = jax.vmap(lambda i: gan_dissect.sample(generator, key, 1, start=i))(indices)
    # A sample at a time under `vmap`, each with its own start: indices need not be in a row.
    return jax.tree.map(lambda x: x[:, 0], one)


def _look_impl(generator: gan_dissect.Generator, latents: PyTree, *, layer: str) -> object:
    outputs, values = taps.read(generator, layer)(latents)
    return outputs["image"], values[layer]


_look = jax.jit(_look_impl, static_argnames="layer")


@jax.jit
def _areas(
    generator: gan_dissect.Generator, concepts: gan_dissect.Concepts, latents: PyTree
) -> jax.Array:
    return concepts(generator(latents)).astype(jnp.float32).mean((1, 2))


def _number(value: Any) -> float | None:
    return float(f"{float(value):.9g}") if np.isfinite(value) else None


def _unit_row(table: gan_dissect.Dissection, unit: int) -> Record:
    best = int(table.best[unit])
    row: Record = {"kind": "unit", "unit": unit, "concept": table.concepts[best]}
    for field in ("iou", "iou_low", "iou_high", "chance", "adjusted"):
        row[field] = _number(getattr(table, field)[unit, best])
    return {
        **row,
        "threshold": _number(table.thresholds[unit]),
        "interpretable": bool(table.interpretable[unit]),
        "stable": bool(table.stable[unit]),
        "concept_images": int(table.concept_images[best]),
        "top": table.top_indices[unit].tolist(),
    }


def _effect_row(
    effects: gan_dissect.Effects, s: int, concept: int, units: Sequence[int], state: str
) -> Record:
    # The controls of a set's own size.
    size = int(np.flatnonzero(effects.control_sizes == effects.sets[s].sum())[0])
    spread = effects.control_change[size]
    leakage = {}
    for c, name in enumerate(effects.concepts):
        band = statistics.percentiles(spread[:, c])
        leakage[name] = {
            "before": _number(effects.before[c]),
            "after": _number(effects.after[s, c]),
            "change": _number(effects.change[s, c]),
            "change_low": _number(effects.change_low[s, c]),
            "change_high": _number(effects.change_high[s, c]),
            "ratio": _number(effects.ratio[s, c]),
            "ratio_low": _number(effects.ratio_low[s, c]),
            "ratio_high": _number(effects.ratio_high[s, c]),
            "random_low": _number(band[0]),
            "random_high": _number(band[1]),
            "p_value": _number(effects.p_value[s, c]),
        }
    name = effects.concepts[concept]
    return {
        "kind": "effect",
        "state": state,
        "concept": name,
        "units": list(map(int, units)),
        "images": int(effects.images[concept]),
        "effect": leakage[name],
        "leakage": {n: v for n, v in leakage.items() if n != name},
    }


def _table_arrays(table: gan_dissect.Dissection) -> dict[str, np.ndarray]:
    """Returns the arrays of a table; its names stand in the record."""
    fields = {k: v for k, v in table._asdict().items() if isinstance(v, np.ndarray)}
    return {f"table.{k}": v for k, v in fields.items()}
