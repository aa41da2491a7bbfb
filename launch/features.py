r"""Makes pictures of what the units, or the classes, of a network look for.

  python -m launch.features                                  # both embedded classifiers, offline
  python -m launch.features --model=squeezenet1_1 --weights=FILE.safetensors --layer=features.11 \
      --units=3,17 --images=photos --out=out/units
  python -m launch.features --model=my.nets:load --layer=block4 --units=top --images=photos

Leaves in --out: run.json, manifest.jsonl, results.jsonl (a row a unit), errors.jsonl, pictures/ (a
PNG a unit), shards/ and report/index.html. The same command again continues where a run was
stopped.
"""

from __future__ import annotations

from absl import flags as absl_flags

from launch import flags
from launch.jobs.features import page, work
from perturb.internals.features import PRESETS
from perturb.types import Record

_IMAGES, _MODEL, _WEIGHTS, _NAMES = flags.shared("images", "model", "weights", "class_names")
_LAYER, _SEED, _BATCH_SIZE, _OUT = flags.shared("layer", "seed", "batch_size", "out")
_RENAME, _INPUT_SIZE = flags.shared("rename", "input_size")
flags.shared("weights_sha256", *flags.JOB)
# Of this launcher alone: others give these names another meaning.
OWN = absl_flags.FlagValues()
_UNITS = absl_flags.DEFINE_string(
    "units",
    "all",
    "Units of --layer, or classes where no layer is given: all, top (the 16 that answer most to "
    "--images on average), or numbers like 3,17.",
    flag_values=OWN,
)
_PRESET = absl_flags.DEFINE_enum(
    "preset",
    None,
    sorted(PRESETS),
    "How pictures are made. Default: maco, and jitter for the embedded classifiers side by side.",
    flag_values=OWN,
)
_STEPS = absl_flags.DEFINE_integer(
    "steps", None, "Steps of a picture. Default: the preset's.", lower_bound=1, flag_values=OWN
)
_SIZE = absl_flags.DEFINE_integer(
    "size",
    None,
    "Side of the pictures in px. Default: the network's own.",
    lower_bound=8,
    flag_values=OWN,
)


def main() -> int:
    """Runs the job that the flags describe; returns the exit code."""
    return flags.run_job(_settings(), work.run, page.write)


def _settings() -> Record:
    # Without a model the embedded pair is shown, with the preset that suits its glyphs.
    both = _MODEL.value is None
    for name, holder in (
        *(("weights", _WEIGHTS), ("layer", _LAYER), ("class_names", _NAMES)),
        *(("rename", _RENAME), ("input_size", _INPUT_SIZE)),
    ):
        if both and holder.value:
            raise ValueError(
                f"--{name} needs --model: without it both embedded classifiers are shown"
            )
    return {
        "model": _MODEL.value,
        "weights": _WEIGHTS.value,
        "class_names": _NAMES.value,
        **flags.given("rename", "input_size"),
        "images": _IMAGES.value,
        "layer": _LAYER.value,
        "units": _UNITS.value,
        "preset": _PRESET.value or ("jitter" if both else "maco"),
        "steps": _STEPS.value or (384 if both else None),
        "size": _SIZE.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "out": _OUT.value or "out/features",
    }


if __name__ == "__main__":
    flags.run(main, own=OWN)
