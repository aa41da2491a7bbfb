"""From latents to walks: every latent goes the same way, its frames are drawn, scored and
committed.

The direction is found once and kept beside the shards; random directions of the same length show
what any way through latent space would do to the scores.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

import gan_dissect
from gan_dissect.directions import random_directions
from launch import directions, generators
from launch.job import manifest, store
from launch.job.progress import Progress
from launch.job.run import ALONE, FREE, Place, Run
from launch.report import pictures
from perturb import devices
from perturb.types import PyTree, Record

__all__ = ["Worker", "keep", "run"]


# Settings that may differ when a run is continued.
UNBOUND = FREE | {"concepts", "generator"}


def run(
    out: store.Path,
    settings: Record,
    *,
    place: Place = ALONE,
    weights_sha256: str | None = None,
) -> tuple[int, int] | None:
    """Runs a job of walks from its resolved settings, or continues it.

    Args:
      out: folder of the run.
      settings: as `launch.walk` resolves them.
      place: this process among those of the job.
      weights_sha256: that the weight file must have.
    Returns:
      how many of how many items failed; None where others have not finished their share.
    Raises:
      ValueError: if anything named does not exist or does not fit.
    """
    generator = generators.of(settings, weights_sha256)
    concepts = directions.scorers(settings["concepts"], generator)
    key = jax.random.key(settings["seed"])
    logging.info("looking for the direction %s of %s", settings["direction"], generator.name)
    way = None
    if settings["direction"].startswith(directions.THROUGH):
        way = directions.waypoints(settings, generator, key)
        found = directions.Found(np.zeros(0), 0.0, _passed(len(way(0)), generator))
    else:
        found = directions.find(settings, generator, concepts, key)
    # A shard a walk: each has its strip and its animation.
    plan = manifest.parts([("walk", settings["walks"])], 1)
    described = generators.describe(generator, concepts, settings["weights"]) | {
        "direction": found.facts
    }
    job = Run(
        out,
        settings,
        described,
        plan,
        shard_rows=1,
        free=UNBOUND,
        place=place,
    )
    if way is None:
        # Written by every process, always the same bytes: the direction follows from the settings.
        keep(out / "direction.npy", found)
    worker = Worker(
        generator,
        concepts,
        found,
        np.linspace(settings["from"], settings["to"], settings["frames"]),
        controls=0 if way else settings["controls"],
        key=key,
        out=out,
        animation=settings["animation"],
        layers=None if way else _moved(settings, generator, found),
        way=way,
    )
    progress = Progress(settings["walks"], job.done(), unit="walks")
    worker.run(job, progress)
    progress.close()
    return job.ended(settings["walks"])


def _passed(count: int, generator: gan_dissect.Generator) -> Record:
    # The straight line between normal latents leaves where they lie; styles have no such place.
    around = isinstance(generator.latent, gan_dissect.Normal)
    return {
        "kind": "through",
        "name": f"{count} latents",
        "latents": count,
        "between": "spherical" if around else "linear",
    }


def _moved(
    settings: Record, generator: gan_dissect.Generator, found: directions.Found
) -> list[int] | None:
    """Returns the layers that are moved: asked for, or as the direction's file says; None for
    all.
    """
    asked, latent = settings.get("layers"), jax.eval_shape(generator.draw, jax.random.key(0))
    if len(latent.shape) == 2:
        return asked or found.facts.get("layers")
    # SeFa reads its layers from the weights; a direction of one latent moves all layers alike.
    if asked and found.facts["kind"] != "sefa":
        raise ValueError(
            f"--layers: latents of {generator.name} are one for all layers; load it with "
            '--generator_options=\'{"space": "w+"}\''
        )
    return None


def keep(path: store.Path, found: directions.Found) -> None:
    """Writes the direction as the boundary files of InterFaceGAN are: `[1, D]` in a `.npy`."""
    buffer = io.BytesIO()
    np.save(
        buffer, found.normal[None].astype(np.float64)
    )  # [1, D], or [1, layers, D] as idinvert's
    store.put(path, buffer.getvalue())


class Worker:
    """Computes the shards of a run of walks.

    Args:
      generator: of latents `[D]` or `[layers, D]`.
      scores: concepts of either kind that every frame is scored by; a mask scores its share of the
        picture. None for none.
      found: the direction.
      positions: `[frames]`, distances from each latent.
      controls: number of random directions.
      key: of the latents and of the random directions.
      out: folder of the run; strips and animations go to `out/walks`.
      animation: "webp", "gif" or "mp4".
      layers: numbers of the layers that are moved, of latents `[layers, D]`; None is all.
      way: instead of a direction, the latents `[P, ...]` that a walk passes, by its number.
    """

    def __init__(
        self,
        generator: gan_dissect.Generator,
        scores: gan_dissect.Concepts | None,
        found: directions.Found,
        positions: np.ndarray,
        *,
        controls: int,
        key: jax.Array,
        out: store.Path,
        animation: str,
        layers: list[int] | None = None,
        way: Callable[[int], np.ndarray] | None = None,
    ):
        self._generator, self._scores, self._found = generator, scores, found
        self._positions, self._key, self._out = positions, key, out
        self._animation, self._layers, self._way = animation, layers, way
        size = found.normal.shape[-1]
        self._controls = np.zeros((0, size))
        if scores is not None and controls:
            # No latent's number reaches 2**31: the controls share a key with none.
            drawn = jax.random.fold_in(key, 2**31 + 2)
            self._controls = np.asarray(random_directions(drawn, controls, size))

    def run(self, job: Run, progress: Progress) -> None:
        """Computes and commits every pending latent."""
        folder = self._out / "walks"
        folder.mkdir(exist_ok=True)
        tree = self._generator, self._scores
        for shard, files, arrays, record in devices.each(self._walked, tree, job.pending()):
            for name, data in files.items():
                store.put(folder / name, data)
            job.commit(shard, arrays, record)
            progress.add(1)

    def _walked(
        self, there: PyTree, _: int, asked: tuple[int, Any]
    ) -> tuple[int, dict[str, bytes], dict[str, np.ndarray], Record]:
        """Returns what one latent's walk leaves: pictures by name, and what is committed."""
        (generator, concepts), (shard, part) = there, asked
        index = part.start
        # Two are drawn and one is used: a batch of one is another program.
        latent = np.asarray(gan_dissect.sample(generator, self._key, 2, start=index))[0]
        walked = self._drawn(generator, index, latent)
        frames = pictures.levels(np.asarray(walked.outputs["image"]))
        names = concepts.names if concepts else ()
        scores = self._score(concepts, walked.outputs)
        # The controls walk from the same latent, so that only the direction differs.
        others = np.zeros((len(self._controls), *scores.shape))
        for i, normal in enumerate(self._controls):
            other = gan_dissect.walk(
                generator,
                latent,
                normal,
                steps=self._positions.tolist(),
                layers=self._layers,
            )
            others[i] = self._score(concepts, other.outputs)
        stem = f"{index:06d}"
        files = {
            f"{stem}.png": pictures.png(pictures.beside(list(frames))),
            f"{stem}.{self._animation}": pictures.animation(list(frames), kind=self._animation),
        }
        rows = [
            {
                "kind": "frame",
                "latent": index,
                "frame": i,
                # Nine digits give a float32 back exactly.
                "position": float(f"{position:.9g}"),
                "scores": {n: _number(v) for n, v in zip(names, scores[i], strict=True)},
            }
            for i, position in enumerate(walked.positions)
        ]
        arrays = {
            "frames": frames,
            "latents": walked.latents,
            "scores": scores,
            "others": others,
        }
        record = {"items": [{"latent": index}], "names": list(names), "rows": rows, "errors": []}
        return shard, files, arrays, record

    def _drawn(
        self, generator: gan_dissect.Generator, index: int, latent: np.ndarray
    ) -> gan_dissect.walks.Walk:
        if self._way is not None:
            return gan_dissect.walks.through(
                generator,
                self._way(index),
                frames=len(self._positions),
                between=self._found.facts["between"],
            )
        return gan_dissect.walk(
            generator,
            latent,
            self._found.normal,
            steps=self._positions.tolist(),
            layers=self._layers,
        )

    def _score(
        self, concepts: gan_dissect.Concepts | None, outputs: dict[str, jax.Array]
    ) -> np.ndarray:
        if concepts is None:
            return np.zeros((len(self._positions), 0))
        return np.asarray(_evaluate(concepts, outputs), np.float64)


_evaluate = jax.jit(directions.area)


def _number(value: Any) -> float | None:
    return float(f"{float(value):.9g}") if np.isfinite(value) else None
