r"""Walks through a generator's latent space along a direction, and says what changes on the way.

  python -m launch.walk                                              # embedded generator, offline
  python -m launch.walk --generator=demo --direction="attribute:grass" --from=-4 --to=4 --frames=13
  python -m launch.walk --generator=tile_dcgan --weights=FILE.safetensors --direction=ganspace:1
  python -m launch.walk --generator=my.nets:load --direction=boundary.npy \
      --concepts=my.nets:attributes
  python -m launch.walk --direction=through:4 --frames=31   # by four latents

Leaves in --out: run.json, manifest.jsonl, results.jsonl (a row a frame), direction.npy, walks/ (a
PNG strip and an animation for every latent), shards/ and report/index.html. The same command again
continues. A walk through latents has no direction.npy, and takes no --from, --to, --layer and
--layers.
"""

from __future__ import annotations

from absl import flags as absl_flags

from launch import directions, flags, generators
from launch.jobs.walk import page, work
from launch.report import pictures
from perturb.types import Record

_GENERATOR, _WEIGHTS, _LAYER, _CONCEPTS = flags.shared("generator", "weights", "layer", "concepts")
(_OPTIONS,) = flags.shared("generator_options")
_SEED, _CONTROLS, _BATCH_SIZE, _OUT = flags.shared("seed", "controls", "batch_size", "out")
_WEIGHTS_SHA256, _LIST_LAYERS = flags.shared("weights_sha256", "list_layers")
(_RENAME,) = flags.shared("rename")
flags.shared(*flags.JOB)
_DIRECTION = absl_flags.DEFINE_string(
    "direction",
    None,
    "Where to walk: a boundary file (.npy, .npz), attribute:NAME (the boundary of one of "
    "--concepts, found on --fit_samples), sefa:K or ganspace:K (the K-th strongest direction of "
    "--layer, from 1; without --layer, of a StyleGAN's styles and a progressive generator's first "
    "layer). Or not along a direction: through:K (by K latents, others for each walk) or "
    "through:FILE.npy (by those of the file, [P, D]). Default: attribute:background lightness, for "
    "the embedded generator.",
)
_LAYERS = absl_flags.DEFINE_string(
    "layers",
    None,
    "Numbers of a StyleGAN's layers, like 0-5,8, that sefa:K is taken of and, with latents of the "
    'space w+, that are moved (--generator_options=\'{"space": "w+"}\'). Default: all.',
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
_ANIMATION = absl_flags.DEFINE_enum(
    "animation", "webp", ["webp", "gif", "mp4"], "Format of the animations; mp4 needs ffmpeg."
)


def main() -> int:
    """Runs the job that the flags describe; returns the exit code."""
    # Before the settings of a walk are checked: layers are listed to choose a direction.
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


def _settings() -> Record:
    generator = _GENERATOR.value or "demo"
    # Only the embedded generator has a direction that is known to be there.
    direction = _DIRECTION.value or (
        "attribute:background lightness" if generator == "demo" else None
    )
    if direction is None:
        raise ValueError(
            "--direction is missing: a file, attribute:NAME, sefa:K, ganspace:K or through:K"
        )
    if _LAYER.value and direction.partition(":")[0] not in ("sefa", "ganspace"):
        raise ValueError(f"--layer is for --direction=sefa:K and ganspace:K, not for {direction}")
    if _ANIMATION.value == "mp4":
        # Asked for before the walk, and not when the first animation is to be written.
        pictures.ffmpeg()
    # A walk of no length has nothing to show, and one backwards is the other direction's.
    if not _FROM.value < _TO.value:
        raise ValueError(f"--from must be below --to, got {_FROM.value:g} and {_TO.value:g}")
    walks = _WALKS.value
    if direction.startswith(directions.THROUGH):
        _without_direction(direction)
        # A file holds the latents of one path.
        walks = walks if direction.removeprefix(directions.THROUGH).isdecimal() else 1
    return {
        "generator": generator,
        "weights": _WEIGHTS.value,
        "generator_options": _OPTIONS.value,
        **flags.given("rename"),
        "concepts": _CONCEPTS.value,
        "direction": direction,
        "layer": _LAYER.value,
        "layers": directions.numbers(_LAYERS.value),
        "from": _FROM.value,
        "to": _TO.value,
        "frames": _FRAMES.value,
        "walks": walks,
        "fit_samples": _FIT.value,
        "controls": _CONTROLS.value,
        "animation": _ANIMATION.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "out": _OUT.value or "out/walk",
    }


def _without_direction(direction: str) -> None:
    for flag in (_FROM, _TO, _LAYERS):
        # Of what cannot have an effect, whoever wrote it must hear.
        if flag.present:
            raise ValueError(
                f"--{flag.name} is for a direction, and --direction={direction} is none: leave it "
                "out"
            )


if __name__ == "__main__":
    flags.run(main)
