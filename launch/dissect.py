r"""Finds what the units of a generator's layer draw, or what those of a classifier answer to.

  python -m launch.dissect  # embedded generator and concepts, offline
  python -m launch.dissect --generator=svhn_dcgan --weights=FILE.safetensors --layer=relu3 \
      --concepts=edges
  python -m launch.dissect --model=squeezenet1_1 --weights=FILE --images=DIR \
      --layer=features.9 --concepts=MASKS
  python -m launch.dissect --model=demo_cheat  # a classifier and the embedded pictures
  python -m launch.dissect --generator=my.nets:load --layer=layer4 --concepts=color:red,blue \
      --samples=5000

Leaves in --out: run.json, manifest.jsonl, results.jsonl (a row a unit, then a row an edit),
errors.jsonl, shards/ and report/index.html. The same command again continues where a run was
stopped.
"""

from __future__ import annotations

from absl import flags as absl_flags

from launch import flags, generators, models
from launch.jobs.dissect import page, work
from launch.jobs.dissect_model import page as model_page
from launch.jobs.dissect_model import work as model_work
from perturb.types import Record

_GENERATOR, _WEIGHTS, _LAYER, _CONCEPTS = flags.shared("generator", "weights", "layer", "concepts")
(_OPTIONS,) = flags.shared("generator_options")
_MODEL, _IMAGES = flags.shared("model", "images")
_SEED, _CONTROLS, _BATCH_SIZE, _OUT = flags.shared("seed", "controls", "batch_size", "out")
_WEIGHTS_SHA256, _LIST_LAYERS = flags.shared("weights_sha256", "list_layers")
_RENAME, _INPUT_SIZE = flags.shared("rename", "input_size")
flags.shared(*flags.JOB)
_SAMPLES = absl_flags.DEFINE_integer(
    "samples", 2000, "Latents that are drawn and compared with the concepts.", lower_bound=2
)
_EFFECT_SAMPLES = absl_flags.DEFINE_integer(
    "effect_samples", 200, "Latents that switching off and on is measured on.", lower_bound=2
)
_QUANTILE = absl_flags.DEFINE_float(
    "quantile",
    0.99,
    "A unit is active where it is above this quantile of its own values, in (0, 1).",
)
_UNITS = absl_flags.DEFINE_integer(
    "units",
    None,
    "Units of a concept, best first, that are switched together. Default: 8, or all where there "
    "are fewer.",
    lower_bound=1,
)
_ON_LEVEL = absl_flags.DEFINE_float(
    "on_level",
    None,
    "Of a generator: what units are switched on at, in times the value above which they count as "
    "active. Default: 1.",
    lower_bound=0.1,
    upper_bound=10.0,
)
_NETWORKS = absl_flags.DEFINE_integer(
    "networks",
    10,
    "Of a classifier: networks of random weights that its units are compared with.",
    lower_bound=1,
)
_ROTATIONS = absl_flags.DEFINE_integer(
    "rotations", 2, "Of a classifier: random rotations of the units of a layer.", lower_bound=0
)


def main() -> int:
    """Runs the job that the flags describe; returns the exit code."""
    # Pictures are given to classifiers; a generator draws its own.
    if _MODEL.value or _IMAGES.value:
        return _classifier()
    if _LIST_LAYERS.value:
        generator = generators.load(
            _GENERATOR.value or "demo",
            weights=_WEIGHTS.value,
            sha256=_WEIGHTS_SHA256.value,
            options=_OPTIONS.value,
            rename=_RENAME.value,
        )
        return generators.list_layers(generator)
    return flags.run_job(_settings(), work.run, page.write)


def _classifier() -> int:
    if _GENERATOR.value:
        raise ValueError(f"--generator={_GENERATOR.value}: give a generator or a --model, not both")
    if not 0 < _QUANTILE.value < 1:
        raise ValueError(f"--quantile must be between 0 and 1, got {_QUANTILE.value}")
    if _LIST_LAYERS.value:
        weights, sha256 = _WEIGHTS.value, _WEIGHTS_SHA256.value
        asked = flags.given("rename", "input_size")
        return models.list_layers(
            models.load(_MODEL.value or "demo", weights=weights, sha256=sha256, **asked)
        )
    settings = {
        "model": _MODEL.value or "demo",
        "weights": _WEIGHTS.value,
        **flags.given("rename", "input_size"),
        "images": _IMAGES.value,
        "layer": _LAYER.value,
        "concepts": _CONCEPTS.value,
        # Embedded pictures have to be drawn first: 600 keep the default run short.
        "samples": _SAMPLES.value if _IMAGES.value else min(_SAMPLES.value, 600),
        "quantile": _QUANTILE.value,
        "networks": _NETWORKS.value,
        "rotations": _ROTATIONS.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        # A folder of its own: a run of a generator in it would be refused.
        "out": _OUT.value or "out/dissect-model",
    }
    return flags.run_job(settings, model_work.run, model_page.write)


def _settings() -> Record:
    if _INPUT_SIZE.value is not None:
        raise ValueError("--input_size is for a --model: a generator's pictures are its own")
    if not 0 < _QUANTILE.value < 1:
        raise ValueError(f"--quantile must be between 0 and 1, got {_QUANTILE.value}")
    return {
        "generator": _GENERATOR.value or "demo",
        "weights": _WEIGHTS.value,
        "generator_options": _OPTIONS.value,
        **flags.given("rename"),
        "layer": _LAYER.value,
        "concepts": _CONCEPTS.value,
        "samples": _SAMPLES.value,
        # Only where it is given: runs of before it was a flag can be continued.
        **({} if _ON_LEVEL.value is None else {"on_level": _ON_LEVEL.value}),
        # Effects are measured on the first of the same samples.
        "effect_samples": min(_EFFECT_SAMPLES.value, _SAMPLES.value),
        "quantile": _QUANTILE.value,
        "units": _UNITS.value,
        "controls": _CONTROLS.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "out": _OUT.value or "out/dissect",
    }


if __name__ == "__main__":
    flags.run(main)
