r"""Compares attributions on the same pictures: a league table with intervals and controls.

  python -m launch.evaluate  # embedded network and pictures, offline
  python -m launch.evaluate --images=list.csv --model=squeezenet1_1 --weights=FILE.safetensors \
                            --attributions=nested,grad_cam,integrated_gradients --out=out/league
  # maps of your own, STEM.npz or .npy
  python -m launch.evaluate ... --attributions=nested,maps:FOLDER

The three controls (random, centre, sobel) are always in the table. Leaves in --out: run.json,
manifest.jsonl, results.jsonl (a row an image and attribution), errors.jsonl, table.csv and
report/index.html. The same command again continues where a run was stopped.
"""

from __future__ import annotations

import importlib.util
import os

from absl import flags as absl_flags
from absl import logging

from launch import flags, models
from launch.inputs import listing
from launch.job import run, store
from launch.job.progress import Progress, duration
from launch.jobs import batches
from launch.jobs.evaluate import page, work
from perturb import attribution
from perturb.metrics import suite
from perturb.types import Record

_IMAGES, _MODEL, _WEIGHTS, _CLASS_NAMES = flags.shared("images", "model", "weights", "class_names")
_TARGET, _SEED, _BATCH_SIZE, _OUT = flags.shared("target", "seed", "batch_size", "out")
(_WEIGHTS_SHA256,) = flags.shared("weights_sha256")
flags.shared("rename", "input_size")
flags.shared(*flags.JOB)
_ATTRIBUTIONS = absl_flags.DEFINE_list(
    "attributions",
    ["nested", "gradient", "integrated_gradients", "grad_cam", "occlusion"],
    f"Attributions to compare: {', '.join(attribution.NAMES)}; nested:QUESTION for one map of what "
    "is enough, needed, or both; or maps:FOLDER for maps of your own.",
)
_METRICS = absl_flags.DEFINE_list(
    "metrics",
    ["insertion", "deletion", "grid_pointing", "sufficient_area"],
    f"Metrics: {', '.join(suite.SUITE)}.",
)
_BOXES = absl_flags.DEFINE_string(
    "boxes",
    None,
    "FILE.csv with file,xmin,ymin,xmax,ymax in px of the photographs, for the metrics boxes, "
    "pointing, energy and rank_accuracy.",
)
_SAMPLES = absl_flags.DEFINE_integer("rise_samples", 2000, "Random masks of rise.", lower_bound=1)

DEMO_PICTURES = 8


def main() -> int:
    """Runs the comparison that the flags describe; returns the exit code."""
    settings = _settings()
    place = flags.join()
    out = store.path(settings["out"])
    store.writable(out)
    # What is named has to be there before a file is written.
    boxes = work.read_boxes(settings["boxes"]) if settings["boxes"] else None
    model = models.load(
        settings["model"],
        weights=_WEIGHTS.value,
        names_file=_CLASS_NAMES.value,
        sha256=_WEIGHTS_SHA256.value,
        **flags.given("rename", "input_size"),
    )
    items = listing.scan(
        settings["images"] or batches.demo_pictures(out, settings["model"], DEMO_PICTURES)
    )
    settings["target"] = listing.target(items, _TARGET.value)
    models.check_settings(model, target=settings["target"])
    job = run.Run(
        out,
        settings,
        models.describe(model, _WEIGHTS.value),
        items,
        shard_rows=work.SHARD_ROWS,
        place=place,
    )
    worker = work.Worker(
        model,
        root=store.path(items.root),
        target=settings["target"],
        seed=settings["seed"],
        attributions=settings["attributions"],
        metrics=settings["metrics"],
        options={"rise": {"samples": settings["rise_samples"]}},
        boxes=boxes,
        size=settings["batch_size"],
    )
    # What is left is shared out among the processes; this one's part is estimated.
    left = -(-(len(items.items) - job.done()) // place.processes)
    if left:
        # A table of many methods may take hours: said before it begins, not after.
        seconds = left * worker.seconds_an_image(job)
        logging.info(
            "%d attributions x %d metrics on %d images of %s: about %s",
            *(len(settings["attributions"]), len(settings["metrics"]), left, model.name),
            duration(seconds),
        )
    progress = Progress(len(items.items), job.done())
    worker.run(job, progress)
    progress.close()
    if flags.left_to_others(job):
        return 0
    rows, errors = job.finish()
    if not rows:
        raise ValueError(f"none of the images could be used; the first: {job.first_error()}")
    table = page.table(out)
    store.put(out / "table.csv", page.as_csv(table))
    index = page.write(out, table)
    if errors:
        logging.warning("%d images failed: %s", errors, out / "errors.jsonl")
    logging.info("done: %s", index)
    return flags.verdict(errors, len(items.items))


def _settings() -> Record:
    """Returns the resolved settings; the controls are always among the attributions."""
    if _IMAGES.value and not _MODEL.value:
        raise ValueError("--model is missing: a net's name, or package.module:function")
    for name in _ATTRIBUTIONS.value:
        if name.startswith("maps:"):
            if not os.path.isdir(name.removeprefix("maps:")):
                raise ValueError(f"--attributions={name}: no such folder")
        else:
            # Refuses an unknown name here, and names the nearest.
            attribution.get(name)
        # Found out by looking for the package, without importing it.
        if name == "xrai" and importlib.util.find_spec("skimage") is None:
            raise ValueError("--attributions: xrai needs scikit-image: pip install scikit-image")
    for name in _METRICS.value:
        if suite.get(name).needs in ("boxes", "truth") and not _BOXES.value:
            raise ValueError(f"--metrics: {name} needs --boxes=FILE.csv")
    # In the order given, for the table compares with the first; the controls always come last.
    asked = list(dict.fromkeys([*_ATTRIBUTIONS.value, *attribution.CONTROLS]))
    return {
        "images": _IMAGES.value,
        "model": _MODEL.value or "demo",
        "weights": _WEIGHTS.value,
        "class_names": _CLASS_NAMES.value,
        **flags.given("rename", "input_size"),
        "attributions": asked,
        # A metric named twice is measured once.
        "metrics": list(dict.fromkeys(_METRICS.value)),
        "boxes": _BOXES.value,
        "rise_samples": _SAMPLES.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "out": _OUT.value or "out/league",
    }


if __name__ == "__main__":
    flags.run(main)
