"""From units to pictures: what each looks for is optimised, compared with natural pictures, and
committed.

A row of the manifest is a range of the units of one network. A unit's picture follows from the seed
and the unit alone, so that a run that was stopped, or was spread over machines, gives the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import perturb
from launch import models
from launch.inputs import images as images_lib
from launch.inputs import listing
from launch.job import manifest, store
from launch.job.progress import Progress
from launch.job.run import ALONE, FREE, Place, Run
from launch.jobs.features import natural as natural_lib
from launch.report import pictures
from perturb import devices, taps
from perturb.internals import features
from perturb.types import PyTree, Record

__all__ = ["DEMO", "LOGITS", "Subject", "Worker", "run"]

SHARD = 16  # units
TOP = 16  # units of --units=top
ALIKE = 16  # natural pictures that a unit answers most to
NATURAL = 128  # pictures that the optimised ones are compared with
DEMO = ("demo", "demo_cheat")
LOGITS = "logits"  # stands for the network's answers in place of a layer
UNBOUND = FREE | {"model"}


class Subject(NamedTuple):
    """One network whose units are visualised.

    Attributes:
      name: as the command line gives it.      model: the network.
      layer: name of the layer, or `LOGITS`.      units: their numbers.
      natural: `[B, H, W, C]` natural pictures, or None.
      spectrum: learnt from them, or None for the embedded one.
      before: layers before this one, in which the way of a picture is looked at.
    """

    name: str
    model: perturb.Model
    layer: str
    units: np.ndarray
    natural: np.ndarray | None
    spectrum: features.Spectrum | None
    before: tuple[str, ...]


def run(
    out: store.Path,
    settings: Record,
    *,
    place: Place = ALONE,
    weights_sha256: str | None = None,
) -> tuple[int, int] | None:
    """Runs a job from its resolved settings, or continues it.

    Args:
      out: folder of the run.
      settings: as `launch.features` resolves them.
      place: this process among those of the job.
      weights_sha256: that the weight file must have.
    Returns:
      how many of how many items failed; None where others have not finished their share.
    Raises:
      ValueError: if anything named does not exist or does not fit.
    """
    subjects = _subjects(settings, weights_sha256)
    first = subjects[0]
    described = models.describe(first.model, settings["weights"])
    described |= {
        "networks": [s.name for s in subjects],
        "units": [s.units.tolist() for s in subjects],
    }
    # All of them: a run of two networks must not be continued with another second one.
    described["fingerprints"] = [models.fingerprint(s.model) for s in subjects]
    plan = manifest.parts([(s.name, len(s.units)) for s in subjects], SHARD)
    # A row is a range of units already: one of them makes a shard.
    job = Run(out, settings, described, plan, shard_rows=1, free=UNBOUND, place=place)
    total = sum(len(s.units) for s in subjects)
    left = sum(part.stop - part.start for _, part in job.pending())
    logging.info(
        "%s of %s, %d pictures by %s, into %s",
        *(first.layer, " and ".join(s.name for s in subjects), total, settings["preset"], out),
    )
    progress = Progress(total, total - left, unit="units")
    Worker(subjects, settings, out).run(job, progress)
    progress.close()
    return job.ended(total)


def _subjects(settings: Record, sha256: str | None) -> list[Subject]:
    found = []
    for name in [settings["model"]] if settings["model"] else DEMO:
        model = models.load(
            name,
            weights=settings["weights"],
            names_file=settings["class_names"],
            sha256=sha256,
            rename=settings.get("rename"),
            input_size=settings.get("input_size"),
        )
        # Of names that are too few the last classes would have none, found when they are drawn.
        models.check_settings(model)
        size = settings["size"]
        if size is not None:
            model = dataclasses.replace(model, geometry=perturb.squash(size))
        sides = model.geometry.size if model.geometry else None
        if sides is None:
            raise ValueError(f"--size is missing: {name} does not say how large its pictures are")
        natural = _natural(settings["images"], name, model)
        layer = settings["layer"] or LOGITS
        units = _units(settings["units"], model, layer, natural, sides)
        spectrum = None if natural is None else features.learn(natural)
        before = _before(model, layer, natural, sides)
        found.append(Subject(name, model, layer, units, natural, spectrum, before))
    return found


def _before(
    model: perturb.Model, layer: str, natural: np.ndarray | None, sides: tuple[int, int]
) -> tuple[str, ...]:
    """The four layers with places before the units', where there are pictures to compare with."""
    # Of a class the way is that of its units, and those have pages of their own.
    if layer == LOGITS or natural is None or len(natural) <= ALIKE:
        return ()
    known = taps.names(model, jax.ShapeDtypeStruct((2, *sides, model.channels), jnp.float32))
    names = list(known)
    return tuple(n for n in names[: names.index(layer)] if len(known[n].shape) > 2)[-4:]


def _natural(asked: str | None, name: str, model: perturb.Model) -> np.ndarray | None:
    """The natural pictures: of --images, or of the embedded world for the embedded networks."""
    if asked:
        listed = listing.scan(asked)
        # Evenly from the whole list: files that lie side by side are often alike.
        items = listed.items[:: max(1, len(listed.items) // NATURAL)][:NATURAL]
        read = []
        for item in items:
            path = store.path(listed.root) / item.path
            read.append(
                images_lib.picture(images_lib.fetch(path), model.geometry, model.channels).pixels
            )
        return np.stack(read)
    if name not in DEMO:
        return None
    from launch.demo import world

    # Pictures of the kind that each network was trained on.
    mark = "right" if name == "demo_cheat" else None
    batch = world.render_batch(2_000, range(NATURAL), watermark=mark)
    return np.asarray(batch.image)


def _units(
    asked: str,
    model: perturb.Model,
    layer: str,
    natural: np.ndarray | None,
    sides: tuple[int, int],
) -> np.ndarray:
    example = jax.ShapeDtypeStruct((2, *sides, model.channels), jnp.float32)
    if layer == LOGITS:
        shape: tuple[int, ...] = jax.eval_shape(model, example).shape
        count, axis = shape[-1], -1
    else:
        known = taps.names(model, example)
        if layer not in known:
            some = ", ".join(list(known)[:12])
            raise ValueError(f"--layer={layer}: {model.name} has no such layer; layers: {some}")
        axis = model.channel_axis(known[layer])
        count = known[layer].shape[axis]
    if asked == "all":
        return np.arange(count)
    if asked == "top":
        if natural is None:
            raise ValueError("--units=top needs --images: units are ranked by natural pictures")
        objective = _objective(layer, np.arange(count))
        best = features.evaluate(model, objective, natural).mean(1)
        # In their own order: the ranking chose them, the page is read by number.
        # Units that are equal are taken by number.
        return np.sort(np.argsort(-best, kind="stable")[:TOP])
    try:
        units = [int(part) for part in asked.split(",")]
    except ValueError:
        raise ValueError(f"--units must be all, top or numbers like 3,17, got {asked}") from None
    wrong = [u for u in units if not 0 <= u < count]
    if wrong:
        raise ValueError(
            f"--units={asked}: unit {wrong[0]} does not exist: {layer} has 0 to {count - 1}"
        )
    if len(set(units)) < len(units):
        raise ValueError(f"--units={asked}: a unit is given twice")
    return np.array(units)


def _objective(layer: str, units: np.ndarray) -> PyTree:
    # Against the mean of all classes: what all of them answer to says nothing of one.
    return features.contrast(units) if layer == LOGITS else features.channel(layer, units)


class _Made(NamedTuple):
    """A shard's pictures and natural patches as arrays, files by name, its items and its rows."""

    arrays: dict[str, np.ndarray]
    files: dict[str, bytes]
    items: list[Record]
    rows: list[Record]


class Worker:
    """Computes the shards of a run.

    Args:
      subjects: the networks.
      settings: as `run` takes them.
      out: folder of the run; pictures go to `out/pictures`.
    """

    def __init__(self, subjects: list[Subject], settings: Record, out: store.Path):
        self._subjects = {s.name: s for s in subjects}
        self._settings, self._out = settings, out
        recipe = features.preset(settings["preset"])
        self._recipe = dataclasses.replace(recipe, steps=settings["steps"] or recipe.steps)

    def run(self, job: Run, progress: Progress) -> None:
        """Computes and commits every pending shard, one on each device of this process."""
        folder = self._out / "pictures"
        folder.mkdir(exist_ok=True)
        networks = {name: subject.model for name, subject in self._subjects.items()}

        def on(there: PyTree, _: int, asked: tuple[int, manifest.Part]) -> tuple[int, _Made]:
            shard, part = asked
            subject = self._subjects[part.stage]._replace(model=there[part.stage])
            return shard, self._part(subject, subject.units[part.start : part.stop], progress)

        for shard, made in devices.each(on, networks, job.pending()):
            # Before the commit: a row that is there has its picture. A shard that is computed
            # again writes it anew.
            for name, data in made.files.items():
                store.put(folder / name, data)
            record = {"items": made.items, "rows": made.rows, "errors": []}
            job.commit(shard, made.arrays, record)
            progress.add(len(made.items))

    def _part(self, subject: Subject, units: np.ndarray, progress: Progress) -> _Made:
        recipe = self._recipe
        if isinstance(recipe.parametrisation, features.Maco) and subject.spectrum is not None:
            recipe = dataclasses.replace(
                recipe, parametrisation=features.Maco(spectrum=subject.spectrum)
            )
        objective = _objective(subject.layer, units)
        found = features.visualise(
            subject.model,
            objective,
            preset=recipe,
            batch_size=self._settings["batch_size"],
            key=jax.random.key(self._settings["seed"]),
            progress=lambda done, total: progress.show(done),
        )
        drawn = pictures.levels(found.images)
        known = None
        arrays = {"images": drawn}
        if subject.natural is not None:
            known = features.quality(
                *(subject.model, objective, found, subject.natural),
                layers=subject.before,
                alike=ALIKE,
            )
            # One or two pictures tell nothing of what a unit prefers.
            if len(subject.natural) >= natural_lib.TOP:
                layer = None if subject.layer == LOGITS else subject.layer
                arrays["natural"] = natural_lib.patches(
                    subject.model, layer, units, subject.natural, known.strongest
                )
        glyphs = _glyphs(subject, found.images)
        files: dict[str, bytes] = {}
        rows = []
        for i, unit in enumerate(units):
            # A colon, as in package.module:function, is not allowed in every file system's names.
            stem = f"{subject.name.replace(':', '.')}-{unit:05d}.png"
            files[stem] = pictures.png(drawn[i])
            row = {
                "network": subject.name,
                "layer": subject.layer,
                "unit": int(unit),
                "name": _name(subject, int(unit)),
                "started": bool(found.started[i]),
                "value": _number(found.values[i]),
                "reach": None if known is None else _number(known.reach[i]),
                "ratio": None if known is None else _number(known.ratio[i]),
                "high_share": _number(features.high_share(found.images[i : i + 1])[0]),
                "high_ratio": None if known is None else _number(known.high_ratio[i]),
                "route": None if known is None else _number(known.lowest[i]),
                "verdict": known.verdict[i] if known else _unknown(found, i),
                "reasons": list(known.reasons[i]) if known else [],
                "image": f"pictures/{stem}",
            }
            rows.append(row | (glyphs[i] if glyphs else {}))
        items = [{"network": subject.name, "unit": int(u)} for u in units]
        return _Made(arrays, files, items, rows)


def _glyphs(subject: Subject, images: np.ndarray) -> list[Record]:
    """For the classes of the embedded networks: which stamp the picture shows."""
    if subject.name not in DEMO or subject.layer != LOGITS:
        return []
    from launch.demo import glyphs

    found = [glyphs.find(image) for image in images]
    return [{"stamp": subject.model.class_names[c], "stamp_match": _number(s)} for c, s in found]


def _unknown(found: features.Features, i: int) -> str:
    if not found.finite[i]:
        return "not finite"
    return "started; no natural pictures to compare with" if found.started[i] else "did not start"


def _name(subject: Subject, unit: int) -> str:
    names = subject.model.class_names
    return names[unit] if subject.layer == LOGITS and names else f"unit {unit}"


def _number(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if np.isfinite(value) else None
