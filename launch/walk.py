"""Walks through a generator's latent space along a direction, and says what changes on the way.

  python -m launch.walk                                              # embedded generator, offline
  python -m launch.walk --generator=demo --direction="attribute:grass" --from=-4 --to=4 --frames=13
  python -m launch.walk --generator=tile_dcgan --weights=FILE.safetensors --direction=ganspace:1
  python -m launch.walk --generator=my.nets:load --direction=boundary.npy --concepts=my.nets:attributes

Leaves in --out: run.json, manifest.jsonl, results.jsonl (a row a frame), direction.npy, walks/ (a PNG strip
and an animation for every latent), shards/ and report/index.html. The same command again continues.
"""

from __future__ import annotations

import difflib
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags
from absl import logging

import gan_dissect
from gan_dissect import factors
from gan_dissect.nets import boundaries
from launch import flags, generators
from launch.job import manifest, run, walking
from launch.job.progress import Progress
from launch.report import walks as page

_GENERATOR, _WEIGHTS, _LAYER, _CONCEPTS = flags.shared("generator", "weights", "layer", "concepts")
_SEED, _BATCH_SIZE, _OUT = flags.shared("seed", "batch_size", "out")
_DIRECTION = absl_flags.DEFINE_string(
    "direction",
    None,
    "Where to walk: a boundary file (.npy, .npz), attribute:NAME (the boundary of one of --concepts, found on "
    "--fit_samples), sefa:K or ganspace:K (the K-th strongest direction of --layer, from 1). Default: "
    "attribute:background lightness, for the embedded generator.",
)
_FROM = absl_flags.DEFINE_float(
    "from",
    -3.0,
    "Distance from the latent of the first frame; latents of D numbers are about √D long.",
)
_TO = absl_flags.DEFINE_float("to", 3.0, "Distance from the latent of the last frame.")
_FRAMES = absl_flags.DEFINE_integer("frames", 11, "Frames of a walk.", lower_bound=2)
_WALKS = absl_flags.DEFINE_integer("walks", 8, "Latents that walk.", lower_bound=1)
_FIT = absl_flags.DEFINE_integer(
    "fit_samples",
    2000,
    "Latents that a direction is found on (attribute, ganspace).",
    lower_bound=50,
)
_CONTROLS = absl_flags.DEFINE_integer(
    "controls", 8, "Random directions that each latent walks too, for comparison.", lower_bound=0
)
_ANIMATION = absl_flags.DEFINE_enum(
    "animation", "webp", ["webp", "gif"], "Format of the animations."
)

FREE = run.FREE | {"concepts", "generator"}


def main() -> int:
    """Runs the job that the flags describe; returns the exit code."""
    settings = _settings()
    out = pathlib.Path(settings["out"])
    run.writable(out)
    generator = generators.load(settings["generator"], weights=_WEIGHTS.value)
    size = generators.vector_size(generator)
    concepts = _concepts(generator)
    key = jax.random.key(settings["seed"])
    logging.info("looking for the direction %s of %s", settings["direction"], generator.name)
    found = _direction(settings, generator, concepts, size, key)
    plan = manifest.parts([("walk", settings["walks"])], 1)
    described = generators.describe(generator, concepts) | {"direction": found.facts}
    job = run.Run(out, settings, described, plan, shard_rows=1, free=FREE)
    walking.keep(out / "direction.npy", found)
    worker = walking.Worker(
        generator,
        concepts,
        found,
        np.linspace(settings["from"], settings["to"], settings["frames"]),
        controls=settings["controls"],
        key=key,
        out=out,
        animation=settings["animation"],
    )
    progress = Progress(settings["walks"], job.done(), unit="walks")
    worker.run(job, progress)
    progress.close()
    job.finish()
    logging.info("done: %s", page.write(out))
    return 0


def _settings() -> dict[str, Any]:
    generator = _GENERATOR.value or "demo"
    direction = _DIRECTION.value or (
        "attribute:background lightness" if generator == "demo" else None
    )
    if direction is None:
        raise ValueError("--direction is missing: a file, attribute:NAME, sefa:K or ganspace:K")
    if not _FROM.value < _TO.value:
        raise ValueError(f"--from must be below --to, got {_FROM.value:g} and {_TO.value:g}")
    return {
        "generator": generator,
        "weights": _WEIGHTS.value,
        "concepts": _CONCEPTS.value,
        "direction": direction,
        "layer": _LAYER.value,
        "from": _FROM.value,
        "to": _TO.value,
        "frames": _FRAMES.value,
        "walks": _WALKS.value,
        "fit_samples": _FIT.value,
        "controls": _CONTROLS.value,
        "animation": _ANIMATION.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "out": _OUT.value or "out/walk",
    }


def _concepts(generator: gan_dissect.Generator) -> gan_dissect.Concepts | None:
    """Returns what frames are scored by: asked for, the embedded predictors, own labels, or nothing."""
    asked = _CONCEPTS.value
    if asked is None and generator.name == "demo":
        asked = "launch.demo:attributes"
    if asked is None and not generator.label_names:
        return None
    found = generators.concepts(asked, generator)
    if found is None:
        raise ValueError(f"--concepts={asked}: masks of given samples cannot score a walk")
    return found


def _direction(
    settings: dict[str, Any],
    generator: gan_dissect.Generator,
    concepts: gan_dissect.Concepts | None,
    size: int,
    key: jax.Array,
) -> walking.Found:
    kind, _, rest = settings["direction"].partition(":")
    if kind == "attribute" and rest:
        return _attribute(rest, settings, generator, concepts, key)
    if kind in ("sefa", "ganspace") and rest.isdecimal():
        return _factor(kind, int(rest), settings, generator, key)
    path = settings["direction"]
    if not path.endswith((".npy", ".npz")):
        raise ValueError(
            f"--direction={path}: expected a .npy or .npz file, attribute:NAME, sefa:K or ganspace:K"
        )
    boundary = boundaries.read_boundary(path, size=size)
    if boundary.normal.ndim != 1:
        raise ValueError(
            f"--direction={path}: holds {len(boundary.normal)} directions, one a layer; a walk takes one"
        )
    return walking.Found(boundary.normal, 0.0, {"kind": "file", "name": pathlib.Path(path).name})


def _attribute(
    name: str,
    settings: dict[str, Any],
    generator: gan_dissect.Generator,
    concepts: gan_dissect.Concepts | None,
    key: jax.Array,
) -> walking.Found:
    if concepts is None:
        raise ValueError(
            f"--direction=attribute:{name}: --concepts is missing, which says what that is"
        )
    if name not in concepts.names:
        near = difflib.get_close_matches(name, concepts.names, n=1, cutoff=0.0)
        raise ValueError(
            f"--direction=attribute:{name}: no such concept, the nearest is {near[0]!r}; known: "
            f"{', '.join(concepts.names)}"
        )
    # Latents of another key: none of those that walk was fitted on.
    fit = jax.random.fold_in(key, 2**31 + 3)
    latents, scores = walking.score_samples(
        generator, concepts, fit, settings["fit_samples"], settings["batch_size"]
    )
    found = gan_dissect.attribute_direction(latents, scores[:, concepts.names.index(name)])
    facts = {
        field: float(f"{float(getattr(found, field)):.6g}")
        for field in ("auc_test", "auc_low", "auc_high", "accuracy_test")
    }
    return walking.Found(
        found.normal, float(found.intercept), {"kind": "attribute", "name": name, **facts}
    )


def _factor(
    kind: str, k: int, settings: dict[str, Any], generator: gan_dissect.Generator, key: jax.Array
) -> walking.Found:
    if k < 1:
        raise ValueError(f"--direction={kind}:{k}: directions are counted from 1")
    known = gan_dissect.layers(generator)
    layer = settings["layer"] or next(iter(known))
    if kind == "sefa":
        found = factors.sefa(factors.layer_weight(generator, layer), k=k)
    else:
        latents, values = walking.read_samples(
            generator, layer, key, settings["fit_samples"], settings["batch_size"]
        )
        found = factors.ganspace(values, k=k, latents=latents)
    facts = {
        "kind": kind,
        "name": f"{kind} {k}",
        "layer": layer,
        "share": float(found.share[k - 1]),
    }
    return walking.Found(found.directions[k - 1], 0.0, facts)


if __name__ == "__main__":
    flags.run(main)
