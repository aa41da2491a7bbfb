"""Finds the smallest regions that keep, or kill, a network's answer, for a folder of photographs.

  python -m launch.masks                                      # embedded network and pictures, offline
  python -m launch.masks --images=photos --model=squeezenet1_1 --weights=FILE.safetensors --out=out/run
  python -m launch.masks --images='photos/*.jpg' --model=my.nets:load --areas=0.05,0.1 --target=207

Leaves in --out: run.json, manifest.jsonl, results.jsonl, errors.jsonl, shards/ (read them with
launch.results) and report/index.html. The same command again continues where a run was stopped.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags as absl_flags
from absl import logging

import perturb
from launch import flags, models
from launch.job import batches, commit, images, manifest, run
from launch.job.progress import Progress
from launch.report import page

_IMAGES, _MODEL, _WEIGHTS, _CLASS_NAMES, _PARITY = flags.shared(
    "images", "model", "weights", "class_names", "parity"
)
_LAYER, _SEED, _BATCH_SIZE, _PAGE_ITEMS, _OUT = flags.shared(
    "layer", "seed", "batch_size", "page_items", "out"
)
_METHOD = absl_flags.DEFINE_enum(
    "method",
    "extremal",
    ["extremal", "meaningful", "channels"],
    "extremal: the best region of a given area. meaningful: the smallest region, its area is a result. "
    "channels: the best channels of a layer.",
)
_GAME = absl_flags.DEFINE_enum(
    "game",
    None,
    ["preserve", "delete", "dual"],
    "preserve: the region alone keeps the answer. delete: without it the answer is gone. dual: both. "
    "Default: preserve; delete for meaningful.",
)
_AREAS = flags.numbers(
    "areas",
    "0.05,0.1,0.2",
    "Areas of the regions, shares of the visible picture in (0, 1).",
    kind=float,
    check=lambda a: 0 < a < 1,
    want="shares of the picture between 0 and 1, like 0.05,0.1",
)
_COUNTS = flags.numbers(
    "counts",
    "25,50",
    "Numbers of channels to keep (channels).",
    kind=int,
    check=lambda n: n > 0,
    want="whole numbers above 0, like 25,50",
)
_TARGET = absl_flags.DEFINE_string(
    "target",
    None,
    "Class to explain: top1 (the network's own answer), a class index, or csv (the column of the list). "
    "Default: csv where --images is a list with targets, else top1.",
)
_SOLVER = absl_flags.DEFINE_enum(
    "solver",
    "exact",
    ["exact", "torchray"],
    "exact: the area is met exactly. torchray: the published algorithm, number by number (extremal).",
)
_OPERATOR = absl_flags.DEFINE_enum(
    "operator",
    "blur",
    ["blur", "fade", "mean", "noise"],
    "What a removed pixel becomes (extremal, meaningful).",
)
_REWARD = absl_flags.DEFINE_string(
    "reward", "logit", "What a region is paid for: logit, log_probability, margin, ..."
)
_PRESET = absl_flags.DEFINE_string("preset", None, "A published setting, by name.")
_STEPS = absl_flags.DEFINE_integer(
    "steps", None, "Optimisation steps. Default: the method's.", lower_bound=1
)
_RESTARTS = absl_flags.DEFINE_integer(
    "restarts", None, "Starts, of which the best is kept. Default: the method's.", lower_bound=1
)
_EVIDENCE = absl_flags.DEFINE_enum(
    "evidence", "default", ["default", "full", "none"], "How much is checked about every mask."
)

# Which settings each method reads; setting another one is a mistake, not a wish.
_USES = {
    "extremal": {"game", "areas", "solver", "operator", "reward", "preset", "steps", "restarts"},
    "meaningful": {"game", "operator", "reward", "preset", "steps", "restarts"},
    "channels": {"game", "layer", "counts", "reward", "preset", "steps", "restarts"},
}
DEMO_PICTURES = 8


def main() -> int:
    """Runs the job that the flags describe; returns the exit code."""
    settings = _settings()
    out = pathlib.Path(settings["out"])
    run.writable(out)
    items = manifest.scan(settings["images"] or _demo_pictures(out, settings["model"]))
    settings["target"] = _target(items)
    model = models.load(settings["model"], weights=_WEIGHTS.value, names_file=_CLASS_NAMES.value)
    job = run.Run(out, settings, models.describe(model), items)
    left = len(items.items) - job.done()
    logging.info(
        "%s of %s for %d images, %d to do, into %s",
        settings["method"], model.name, len(items.items), left, out,
    )  # fmt: skip
    worker = batches.Worker(
        model,
        _method(settings),
        root=pathlib.Path(items.root),
        target=settings["target"],
        operator=settings.get("operator"),
        seed=settings["seed"],
        batch_size=min(settings["batch_size"], max(2, left)),
        parity=_PARITY.value,
    )
    progress = Progress(len(items.items), job.done())
    worker.run(job, progress)
    progress.close()
    rows, errors = job.finish()
    index = page.write(out, settings["page_items"])
    if not rows:
        raise ValueError(
            f"none of the {len(items.items)} images could be used, see {out / 'errors.jsonl'}; "
            f"the first: {job.first_error()}"
        )
    if errors:
        logging.warning(
            "%d of %d images failed: %s", errors, len(items.items), out / "errors.jsonl"
        )
    logging.info("done: %s", index)
    return 0


def _settings() -> dict[str, Any]:
    """Returns the resolved settings: every flag that the method reads, and no other."""
    method = _METHOD.value
    uses = _USES[method]
    for name in sorted(set.union(*_USES.values()) - uses):
        if absl_flags.FLAGS[name].present:
            raise ValueError(f"--{name} is not a setting of --method={method}")
    if method == "channels" and not _LAYER.value:
        raise ValueError("--method=channels needs --layer=NAME")
    if _IMAGES.value and not _MODEL.value:
        raise ValueError("--model is missing: a net's name, or package.module:function")
    values = {
        "method": method,
        "game": _GAME.value or ("delete" if method == "meaningful" else "preserve"),
        "areas": _AREAS.value,
        "counts": _COUNTS.value,
        "layer": _LAYER.value,
        "solver": _SOLVER.value,
        "operator": _OPERATOR.value,
        "reward": _REWARD.value,
        "preset": _PRESET.value,
        "steps": _STEPS.value,
        "restarts": _RESTARTS.value,
    }
    return {
        **{name: value for name, value in values.items() if name in uses or name == "method"},
        "images": _IMAGES.value,
        "model": _MODEL.value or "demo",
        "weights": _WEIGHTS.value,
        "class_names": _CLASS_NAMES.value,
        "parity": _PARITY.value,
        "evidence": _EVIDENCE.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "page_items": _PAGE_ITEMS.value,
        "out": _OUT.value or "out/masks",
    }


def _target(items: manifest.Manifest) -> str:
    listed = [item for item in items.items if item.target is not None]
    target = _TARGET.value or ("csv" if listed else "top1")
    if target == "csv" and not listed:
        raise ValueError("--target=csv: --images is not a list with a target column")
    if target not in ("csv", "top1") and not target.isdecimal():
        raise ValueError(f"--target={target}: expected top1, csv or a class index from 0")
    return target


def _method(settings: dict[str, Any]) -> Callable[..., Any]:
    """Returns the library call of the method with everything but model, images, targets and keys."""
    names = _USES[settings["method"]]
    given = {name: settings[name] for name in names if settings[name] is not None}
    return functools.partial(getattr(perturb, settings["method"]), **given)


def _demo_pictures(out: pathlib.Path, model: str) -> str:
    """Writes the embedded pictures next to the results and returns their folder."""
    from launch.demo import world

    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    for picture in world.pictures(
        DEMO_PICTURES, watermark="right" if model == "demo_cheat" else None
    ):
        path = folder / f"{picture.id}.png"
        if not path.is_file():
            commit.write(path, images.encode(picture.image).tobytes())
    return str(folder)


if __name__ == "__main__":
    flags.run(main)
