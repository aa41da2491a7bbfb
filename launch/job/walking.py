"""From latents to walks: every latent goes the same way, its frames are drawn, scored and committed.

The direction is found once and kept beside the shards; random directions of the same length show what
any way through latent space would do to the scores.
"""

from __future__ import annotations

import functools
import io
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

import gan_dissect
from gan_dissect import directions
from launch.job import commit
from launch.job.progress import Progress
from launch.job.run import Run
from launch.report import pictures
from perturb import taps

__all__ = ["Found", "Worker", "keep", "read_samples", "score_samples"]


class Found(NamedTuple):
    """A direction and what is known about it.

    Attributes:
      normal: `[D]`, of length 1.
      intercept: of the boundary, 0 where there is none.
      facts: words and numbers for records and pages.
    """

    normal: np.ndarray
    intercept: float
    facts: dict[str, Any]


def keep(path: pathlib.Path, found: Found) -> None:
    """Writes the direction as the boundary files of InterFaceGAN are: `[1, D]` in a `.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, found.normal[None].astype(np.float64))
    commit.write(path, buffer.getvalue())


def score_samples(
    generator: gan_dissect.Generator,
    scores: gan_dissect.Concepts,
    key: jax.Array,
    count: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents `[count, D]` of a key and their scores `[count, concepts]`; masks score their area."""
    return _samples(functools.partial(_scored, scores), generator, key, count, batch_size)


def read_samples(
    generator: gan_dissect.Generator, layer: str, key: jax.Array, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents `[count, D]` of a key and what a layer makes of them, flattened.

    Raises:
      ValueError: if there is no such layer.
    """
    known = gan_dissect.layers(generator)
    if layer not in known:
        raise ValueError(
            f"--layer={layer}: {generator.name} has no such layer; its layers: {', '.join(known)}"
        )
    return _samples(functools.partial(_read, layer=layer), generator, key, count, batch_size)


def _samples(
    function: Any, generator: gan_dissect.Generator, key: jax.Array, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    latents, found = [], []
    for start in range(0, count, batch_size):
        z = gan_dissect.sample(generator, key, batch_size, start=start)
        latents.append(np.asarray(z))
        found.append(np.asarray(function(generator, z)))
    return np.concatenate(latents)[:count], np.concatenate(found)[:count]


@jax.jit
def _scored(scores: gan_dissect.Concepts, generator: gan_dissect.Generator, z: Any) -> jax.Array:
    return _area(scores, generator(z))


@functools.partial(jax.jit, static_argnames="layer")
def _read(generator: gan_dissect.Generator, z: Any, *, layer: str) -> jax.Array:
    _, values = taps.read(generator, layer)(z)
    return values[layer].reshape(len(values[layer]), -1)


class Worker:
    """Computes the shards of a run of walks.

    Args:
      generator: of latents `[D]`.
      scores: concepts of either kind that every frame is scored by; a mask scores its share of the
        picture. None for none.
      found: the direction.
      positions: `[frames]`, distances from each latent.
      controls: number of random directions.
      key: of the latents and of the random directions.
      out: folder of the run; strips and animations go to `out/walks`.
      animation: "webp" or "gif".
    """

    def __init__(
        self,
        generator: gan_dissect.Generator,
        scores: gan_dissect.Concepts | None,
        found: Found,
        positions: np.ndarray,
        *,
        controls: int,
        key: jax.Array,
        out: pathlib.Path,
        animation: str,
    ):
        self._generator, self._scores, self._found = generator, scores, found
        self._positions, self._key, self._out = positions, key, out
        self._animation = animation
        self._controls = np.zeros((0, len(found.normal)))
        if scores is not None and controls:
            drawn = jax.random.fold_in(key, 2**31 + 2)
            self._controls = np.asarray(
                directions.random_directions(drawn, controls, len(found.normal))
            )

    def run(self, job: Run, progress: Progress) -> None:
        """Computes and commits every pending latent."""
        folder = self._out / "walks"
        folder.mkdir(exist_ok=True)
        for shard, part in job.pending():
            index = part.start
            latent = np.asarray(gan_dissect.sample(self._generator, self._key, 2, start=index))[0]
            walked = gan_dissect.walk(
                self._generator, latent, self._found.normal, steps=self._positions.tolist()
            )
            frames = pictures.levels(np.asarray(walked.outputs["image"]))
            names = self._scores.names if self._scores else ()
            scores = self._score(walked.outputs)
            others = np.zeros((len(self._controls), *scores.shape))
            for i, normal in enumerate(self._controls):
                other = gan_dissect.walk(
                    self._generator, latent, normal, steps=self._positions.tolist()
                )
                others[i] = self._score(other.outputs)
            stem = f"{index:06d}"
            commit.write(folder / f"{stem}.png", pictures.png(pictures.beside(list(frames))))
            commit.write(
                folder / f"{stem}.{self._animation}",
                pictures.animation(list(frames), kind=self._animation),
            )
            rows = [
                {
                    "kind": "frame",
                    "latent": index,
                    "frame": i,
                    "position": float(f"{position:.9g}"),
                    "scores": {n: _number(v) for n, v in zip(names, scores[i], strict=True)},
                }
                for i, position in enumerate(self._positions)
            ]
            arrays = {
                "frames": frames,
                "latents": walked.latents,
                "scores": scores,
                "others": others,
            }
            job.commit(
                shard,
                arrays,
                {"items": [{"latent": index}], "names": list(names), "rows": rows, "errors": []},
            )
            progress.add(1)

    def _score(self, outputs: dict[str, jax.Array]) -> np.ndarray:
        if self._scores is None:
            return np.zeros((len(self._positions), 0))
        return np.asarray(_evaluate(self._scores, outputs), np.float64)


def _area(scores: gan_dissect.Concepts, outputs: dict[str, jax.Array]) -> jax.Array:
    found = scores(outputs)
    return found.mean((1, 2)) if scores.kind == "masks" else found


_evaluate = jax.jit(_area)


def _number(value: Any) -> float | None:
    return float(f"{float(value):.9g}") if np.isfinite(value) else None
