"""The tab of the generator: samples, concepts brushed in or out by units, directions, effects with
their control.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gan_dissect
from gan_dissect import interventions
from launch import directions, generators
from launch.report import pictures
from launch.studio.masks import bits, number
from launch.studio.work import Report
from launch.studio.world import World
from perturb import taps
from perturb.types import ArrayLike, Options, PyTree, Record

__all__ = ["Painting"]

WALL = 16  # samples at once, at most
STEPS = 40  # of a painting, at most
SHARES = 200  # samples whose shares without strokes are kept
# A unit is active on its strongest tenth; switched on it is set to that level.
QUANTILE, DISSECTED, FITTED = 0.9, 512, 1500
CONTROLS, MEASURED = 12, 64
BATCH = 32


class Step(NamedTuple):
    """One stroke: units of a layer set where a brush was.

    Attributes:
      layer: its name.     units: numbers.     level: 0 is off; else times each unit's threshold.
      place: `[h, w]` of 0 and 1 on the layer's grid.
    """

    layer: str
    units: tuple[int, ...]
    level: float
    place: np.ndarray


class Painting:
    """Answers the questions of the tab. Tables and directions are made once and kept."""

    def __init__(self, world: World):
        if world.generator is None or world.concepts is None:
            raise ValueError("there is no generator: start the studio with --generator")
        self.generator, self.concepts, self._scorers = (
            world.generator,
            world.concepts,
            world.attributes,
        )
        shapes = gan_dissect.layers(self.generator)
        size = jax.eval_shape(self.generator, jax.eval_shape(self._sampled, 0))["image"].shape[1:3]
        # A layer that is the picture itself has colours for units.
        self.layers = {
            name: shape
            for name, shape in shapes.items()
            if len(shape) == 3 and shape[-1] > 4 and name.startswith("layer")
        } or {n: s for n, s in shapes.items() if len(s) == 3 and s[-1] > 4}
        if not self.layers:
            raise ValueError("the generator has no layer with a map a unit")
        self.size = size
        self._key = jax.random.key(0)
        self._tables: dict[str, gan_dissect.Dissection] = {}
        self._found: Record | None = None
        self._shares: dict[tuple[object, ...], np.ndarray] = {}
        self._lock = threading.Lock()

    def about(self) -> Record:
        """What there is: layers with their grids, concepts, the size of a picture."""
        return {
            "layers": {name: list(shape) for name, shape in self.layers.items()},
            "concepts": list(self.concepts.names),
            "size": list(self.size),
            "directions": self._scorers is not None and self._is_vector(),
            "name": self.generator.name,
        }

    def wall(self, asked: Options) -> Record:
        """Samples as they are: `{first, count}`; one sheet of pictures."""
        first, count = self._which(asked)
        images, share = _plain(self.generator, self.concepts, self._latents(first, count))
        return {"sheet": _sheet(images), "count": count, "shares": np.asarray(share)}

    def paint(self, asked: Options) -> Record:
        """The same samples with strokes and moves: `{first, count, steps, moves}`, and what the
        strokes did.
        """
        first, count = self._which(asked)
        latents = self._moved(asked, self._latents(first, count))
        edits = self._edits(self.steps(asked))
        images, share = _painted(self.generator, self.concepts, latents, edits)
        # From the moved latents: what the strokes did must not count what the moves did.
        at = first, count, _written(asked.get("moves")), _written(asked.get("held"))
        return {
            "sheet": _sheet(images),
            "count": count,
            "before": self._before(at, latents),
            "after": np.asarray(share),
        }

    def _before(self, at: tuple[object, ...], latents: PyTree) -> np.ndarray:
        """Shares of the samples without strokes: the same for every stroke of a brush."""
        with self._lock:
            found = self._shares.get(at)
        if found is None:
            found = np.asarray(_plain(self.generator, self.concepts, latents)[1])
            with self._lock:
                self._shares[at] = found
                while len(self._shares) > SHARES:
                    self._shares.pop(next(iter(self._shares)))
        return found

    def units(self, asked: Options, report: Report) -> Record:
        """Units of a layer for every concept, best first: `{layer}`."""
        layer = self._layer(asked.get("layer"))
        table = self.table(layer, report)
        return {
            "layer": layer,
            "ranked": {
                name: gan_dissect.ranked(table, name, 32).tolist() for name in table.concepts
            },
            "iou": {
                name: table.iou[gan_dissect.ranked(table, name, 32), c]
                for c, name in enumerate(table.concepts)
            },
            "names": [table.concepts[b] for b in table.best],
        }

    def table(self, layer: str, report: Report) -> gan_dissect.Dissection:
        """Returns the table of a layer, made once."""
        with self._lock:
            if layer in self._tables:
                return self._tables[layer]
        report(0, 1, f"which unit of {layer} draws what")
        table = gan_dissect.dissect(
            self.generator,
            layer=layer,
            concepts=self.concepts,
            samples=DISSECTED,
            # Other samples than those on the wall: units are not chosen on the pictures
            # that are painted.
            key=jax.random.fold_in(self._key, 1),
            quantile=QUANTILE,
            batch_size=BATCH,
        )
        with self._lock:
            self._tables[layer] = table
        found: gan_dissect.Dissection = table
        return found

    def effects(self, asked: Options, report: Report) -> Record:
        """What one stroke does to every concept, beside random units at the same place:
        `{step}`.
        """
        steps = self.steps({"steps": [asked.get("step")]})
        step = steps[0]
        report(0, 1, "the same with random units")
        effects = gan_dissect.unit_effects(
            self.generator,
            layer=step.layer,
            units=[list(step.units)],
            concepts=self.concepts,
            samples=MEASURED,
            # Other samples than those that the units were chosen on.
            key=jax.random.fold_in(self._key, 2),
            value=self._levels(step.layer) * step.level,
            # Random units at the same place: the place alone may do what looks like the
            # units' doing.
            where=step.place,
            controls=CONTROLS,
            batch_size=BATCH,
        )
        return {
            "concepts": list(effects.concepts),
            "before": effects.before,
            "change": effects.change[0],
            "low": effects.change_low[0],
            "high": effects.change_high[0],
            "random_low": effects.control_change[0].min(0),
            "random_high": effects.control_change[0].max(0),
            "p": effects.p_value[0],
            "samples": MEASURED,
            "controls": CONTROLS,
        }

    def directions(self, report: Report) -> Record:
        """The attributes that a latent can be moved along, and how well each is told."""
        found = self._directions(report)
        return {
            "names": list(found),
            "auc": [found[name].auc_test for name in found],
        }

    def _directions(self, report: Report) -> Record:
        with self._lock:
            if self._found is not None:
                return self._found
        if self._scorers is None or not self._is_vector():
            raise ValueError("this generator has no directions: nothing scores its pictures")
        latents, scores = [], []
        for start in range(0, FITTED, BATCH * 4):
            # About a third more goes into fitting.
            report(start, 1.3 * FITTED, "scoring samples")
            # A key a part: `score_samples` counts its samples from 0 each time.
            key = jax.random.fold_in(self._key, 3 + start)
            part = directions.score_samples(
                self.generator, self._scorers, key, min(BATCH * 4, FITTED - start), BATCH
            )
            latents.append(part[0])
            scores.append(part[1])
        z, s = directions.one_a_sample(np.concatenate(latents)), np.concatenate(scores)
        report(FITTED, 1.3 * FITTED, "fitting directions")
        found: Record = {}
        for name, column in zip(self._scorers.names, s.T, strict=True):
            try:
                found[name] = gan_dissect.attribute_direction(z, column)
            except ValueError:  # one that never differs has no direction
                continue
        with self._lock:
            self._found = found
        return found

    def _is_vector(self) -> bool:
        try:
            generators.vector_size(self.generator)
        except ValueError:
            return False
        return True

    def _sampled(self, first: int, count: int = 2) -> object:
        return gan_dissect.sample(self.generator, jax.random.key(0), count, start=first)

    def _latents(self, first: int, count: int) -> object:
        # Never a batch of one: XLA compiles it to other arithmetic.
        return self._sampled(first, max(2, count))

    def _which(self, asked: Options) -> tuple[int, int]:
        first, count = number(asked, "first", 0, 2**31 - 1), number(asked, "count", 1, WALL)
        return int(first), int(count)

    def _layer(self, given: PyTree) -> str:
        if not isinstance(given, str) or given not in self.layers:
            raise ValueError(f"layer must be one of {', '.join(self.layers)}, got {given!r:.40}")
        return given

    def steps(self, asked: Options) -> list[Step]:
        """Returns the strokes of a question, checked."""
        given = asked.get("steps") or []
        # Bounded: a question from a page must not be able to ask for any amount of work.
        if not isinstance(given, list) or len(given) > STEPS:
            raise ValueError(f"steps must be a list of at most {STEPS} strokes")
        found = []
        for one in given:
            if not isinstance(one, dict):
                raise ValueError("a step must have layer, units, level and mask")
            layer = self._layer(one.get("layer"))
            h, w, most = self.layers[layer]
            units = one.get("units")
            if (
                not isinstance(units, list)
                or not units
                or not all(type(u) is int and 0 <= u < most for u in units)
            ):
                raise ValueError(f"units of {layer} must be numbers from 0 to {most - 1}")
            level = number(one, "level", 0.0, 10.0)
            place = bits(one.get("mask"), h, w)
            # Each unit once, in the order given.
            found.append(Step(layer, tuple(dict.fromkeys(units)), level, place))
        return found

    def _levels(self, layer: str) -> np.ndarray:
        """What units are set to where they are switched on, `[units]`: the thresholds of their
        tables.
        """
        with self._lock:
            table = self._tables.get(layer)
        if table is None:
            raise ValueError(f"the units of {layer} are not known yet: ask for them first")
        return table.on_levels.astype(np.float32)

    def _edits(self, steps: Sequence[Step]) -> dict[str, interventions.Edit]:
        """One edit a layer; where strokes meet, the later one counts."""
        found = {}
        for layer in dict.fromkeys(step.layer for step in steps):
            strength = np.zeros(self.layers[layer], np.float32)
            value = np.zeros(self.layers[layer], np.float32)
            for step in steps:
                if step.layer != layer:
                    continue
                at = list(step.units)
                level = self._levels(layer)[at] * step.level
                here = step.place[..., None] > 0
                # Where this stroke did not go, what earlier ones left stays.
                strength[..., at] = np.where(here, 1, strength[..., at])
                value[..., at] = np.where(here, level, value[..., at])
            found[layer] = interventions.Edit(strength, value)
        return found

    def _moved(self, asked: Options, latents: PyTree) -> object:
        given = asked.get("moves") or {}
        held = asked.get("held") or []
        if not isinstance(given, dict) or not isinstance(held, list):
            raise ValueError("moves must be an object of directions and distances, held a list")
        moves = {str(n): number(given, n, -8.0, 8.0) for n in given if given[n]}
        if not moves:
            return latents
        with self._lock:
            known = self._found
        if known is None or set(moves) - set(known) or set(map(str, held)) - set(known):
            raise ValueError("these directions are not known yet: ask for them first")
        shift: Any = 0.0
        for name, distance in moves.items():
            normal = known[name].normal
            # A direction that is moved cannot hold itself.
            others = [known[h].normal for h in held if h != name]
            if others:
                normal = gan_dissect.project(normal, others).normal
            shift = shift + distance * normal
        return latents + jnp.asarray(shift, jnp.float32)


def _written(given: PyTree) -> str:
    """What moves the samples, as a name for it."""
    return json.dumps(given or None, sort_keys=True)


def _shares(concepts: gan_dissect.Concepts, outputs: dict[str, jax.Array]) -> jax.Array:
    return directions.area(concepts, outputs)


@jax.jit
def _plain(generator: Any, concepts: Any, latents: PyTree) -> tuple[jax.Array, jax.Array]:
    outputs = generator(latents)
    return outputs["image"], _shares(concepts, outputs)


@jax.jit
def _painted(
    generator: Any, concepts: Any, latents: PyTree, edits: dict[str, interventions.Edit]
) -> tuple[jax.Array, jax.Array]:
    changes = {
        n: functools.partial(interventions.edit_units, edit=edit) for n, edit in edits.items()
    }
    outputs = taps.edit(generator, changes)(latents)
    return outputs["image"], _shares(concepts, outputs)


def _sheet(images: ArrayLike) -> str:
    """Pictures `[B, H, W, C]` in rows of four, as a data URI."""
    shown = pictures.levels(np.asarray(images))
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    shown = np.concatenate(
        # The last row of the sheet is filled up with black.
        [shown, np.zeros((rows * columns - len(shown), *shown.shape[1:]), np.uint8)]
    )
    height, width = shown.shape[1:3]
    sheet = shown.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    data = pictures.png(sheet.reshape(rows * height, columns * width, 3))
    return "data:image/png;base64," + base64.b64encode(data).decode()
