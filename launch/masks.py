r"""Finds the smallest regions that keep, or kill, a network's answer, for a folder of photographs.

  python -m launch.masks  # embedded network and pictures, offline
  python -m launch.masks --images=photos --model=squeezenet1_1 --weights=FILE.safetensors \
      --out=out/run
  python -m launch.masks --images='photos/*.jpg' --model=my.nets:load --areas=0.05,0.1 --target=207

Leaves in --out: run.json, manifest.jsonl, results.jsonl, errors.jsonl, shards/ (read them with
launch.results) and report/index.html. The same command again continues where a run was stopped.
`python -m launch.masks compare A B` shows two runs, or two networks, side by side.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags as absl_flags
from absl import logging

import perturb
from launch import compare, flags, models
from launch.inputs import listing
from launch.job import machine, profile, run, store
from launch.job.progress import Progress
from launch.jobs import batches
from launch.jobs.masks import export, page, work
from perturb import methods
from perturb.methods.extremal import exact_recipe, torchray_recipe
from perturb.methods.meaningful import preset_operator
from perturb.types import Function, Record

_IMAGES, _MODEL, _WEIGHTS, _CLASS_NAMES, _PARITY = flags.shared(
    "images", "model", "weights", "class_names", "parity"
)
_LAYER, _TARGET, _SEED, _BATCH_SIZE, _PAGE_ITEMS, _OUT = flags.shared(
    "layer", "target", "seed", "batch_size", "page_items", "out"
)
_WEIGHTS_SHA256, _PROFILE_DIR, _LIST_LAYERS = flags.shared(
    "weights_sha256", "profile_dir", "list_layers"
)
flags.shared(*flags.JOB, "rename", "input_size")
_METHOD = absl_flags.DEFINE_enum(
    "method",
    "extremal",
    list(methods.NAMES),
    "extremal: the best region of a given area. meaningful: the smallest region, its area is a "
    "result. channels: the best channels of a layer. sufficient: of several areas (0.05, 0.1, 0.2, "
    "0.3, 0.5) the smallest whose region alone is still answered.",
)
_GAME = absl_flags.DEFINE_enum(
    "game",
    None,
    ["preserve", "delete", "dual"],
    "preserve: the region alone keeps the answer. delete: without it the answer is gone. dual: "
    "both. Default: preserve; delete for meaningful.",
)
_AREAS = flags.numbers(
    "areas",
    "0.05,0.1,0.2",
    "Areas of the regions, shares of the visible picture in (0, 1).",
    kind=float,
    check=lambda a: 0 < a < 1,
    want="shares of the picture between 0 and 1, like 0.05,0.1",
)
_REPRODUCIBLE = absl_flags.DEFINE_bool(
    "reproducible",
    None,
    "Compute every mask in its own program, so that its bits do not depend on what runs beside it; "
    "asked for, they do not depend on the number of processors either (XLA is given two threads "
    "unless PJRT_NPROC says otherwise), and such a run cannot be continued on another kind of "
    "processor. Default: yes on CPUs; no on accelerators, which are faster with many masks in one "
    "program.",
)
_COUNTS = flags.numbers(
    "counts",
    "25,50",
    "Numbers of channels to keep (channels).",
    kind=int,
    check=lambda n: n > 0,
    want="whole numbers above 0, like 25,50",
)
_SOLVER = absl_flags.DEFINE_enum(
    "solver",
    "exact",
    ["exact", "torchray"],
    "exact: the area is met exactly. torchray: the published algorithm, number by number "
    "(extremal).",
)
_OPERATOR = absl_flags.DEFINE_string(
    "operator",
    None,
    "What a removed pixel becomes (extremal, meaningful): blur, fade, mean, noise, or some of them "
    "in turn; scores are those of the first. Default: for extremal blur+mean+noise, which finds "
    "regions that hold under other fills too; blur, as published, for --solver=torchray and for "
    "meaningful.",
)
_REWARD = absl_flags.DEFINE_string(
    "reward",
    None,
    "What the search maximises: answer (log of the probability plus 2 %), logit, probability, "
    "log_probability, margin, kl, label (of independent labels), embedding, regression, value (one "
    "of a regression's numbers), score (whatever the network returns). "
    "Default: answer; logit for --solver=torchray and channels; probability for meaningful.",
)
_PRESET = absl_flags.DEFINE_string(
    "preset", None, "Published constants (meaningful): default, caffe or pytorch_port."
)
_STEPS = absl_flags.DEFINE_integer(
    "steps",
    None,
    "Optimisation steps. Default: what the method, solver or preset has.",
    lower_bound=1,
)
_RESTARTS = absl_flags.DEFINE_integer(
    "restarts", 1, "Starts, of which the best is kept.", lower_bound=1
)
_ALTERNATIVES = absl_flags.DEFINE_integer(
    "alternatives",
    0,
    "Other regions to look for that keep the answer about as well, each a further run of all steps "
    "(extremal, --game=preserve).",
    lower_bound=0,
)
_PATIENCE = absl_flags.DEFINE_integer(
    "patience",
    None,
    "Stop a mask early, after two thirds of its steps at the soonest, when this many steps brought "
    "no improvement; its slot goes to the next mask (extremal). Default: all steps.",
    lower_bound=1,
)
_EVIDENCE = absl_flags.DEFINE_enum(
    "evidence",
    "default",
    ["default", "full", "none"],
    "How much is checked about every mask. default: other fills, shifted copies, other areas, "
    "about 36 forward passes. full: also 100 copies, both games, reruns on noisy, mirrored and "
    "moved pictures (five times the work), and --second_model.",
)
_SECOND = absl_flags.DEFINE_string(
    "second_model", None, "Another network with the same classes, for --evidence=full."
)
_SECOND_WEIGHTS = absl_flags.DEFINE_string("second_weights", None, "Weight file of --second_model.")
_EXPORT = absl_flags.DEFINE_list(
    "export",
    [],
    "Further files: csv (results.csv, a line a mask), overlays (overlays/*.png, every region drawn "
    "into its picture). Of a finished run the same command writes them at once.",
)

# Settings that are arguments of the library's methods; a method is given those that it takes.
_ARGUMENTS = {
    "game": _GAME,
    "areas": _AREAS,
    "counts": _COUNTS,
    "layer": _LAYER,
    "solver": _SOLVER,
    "operator": _OPERATOR,
    "reward": _REWARD,
    "preset": _PRESET,
    "steps": _STEPS,
    "restarts": _RESTARTS,
    "alternatives": _ALTERNATIVES,
    "patience": _PATIENCE,
    "reproducible": _REPRODUCIBLE,
}
DEMO_PICTURES = 8
_REQUIRED = inspect.Parameter.empty


def main() -> int:
    """Runs the job that the flags describe; returns the exit code."""
    if _LIST_LAYERS.value:
        return models.list_layers(_load(_MODEL.value or "demo"))
    settings = _settings()
    if _REPRODUCIBLE.value:
        machine.fix_threads()
    place = flags.join()
    out = store.path(settings["out"])
    store.writable(out)
    # What is named has to be there before a file is written.
    model = _load(settings["model"])
    if _PARITY.value:
        models.parity_file(_PARITY.value)
    items = listing.scan(
        settings["images"] or batches.demo_pictures(out, settings["model"], DEMO_PICTURES)
    )
    # Resolved before it is recorded: the same list with another default must not continue the run.
    settings["target"] = listing.target(items, _TARGET.value)
    # Before anything is compiled: a misspelt layer costs a second, not a minute.
    models.check_settings(
        model, layer=_LAYER.value, reward=settings.get("reward"), target=settings["target"]
    )
    # A method without a reward has no such setting at all.
    if settings.get("reward", "") is None:
        settings["reward"] = _own_reward(settings, model)
    job = run.Run(
        out,
        settings,
        models.describe(model, _WEIGHTS.value),
        items,
        place=place,
    )
    left = len(items.items) - job.done()
    logging.info(
        "%s of %s for %d images, %d to do, into %s",
        settings["method"],
        model.name,
        len(items.items),
        left,
        out,
    )
    method = _method(settings, left)
    worker = work.Worker(
        model,
        method,
        root=store.path(items.root),
        target=settings["target"],
        removal=_removal(settings, model.channels, _OPERATOR.value),
        seed=settings["seed"],
        parity=_PARITY.value,
        evidence=_evidence(settings, model.channels, method),
    )
    progress = Progress(len(items.items), job.done())
    # One trace is enough, and several processes would write into one folder.
    with profile.Profile(_PROFILE_DIR.value if place.process == 0 else None) as traced:
        worker.run(job, progress, tick=traced.tick)
    progress.close()
    # The page is written by whoever commits the last shard.
    if flags.left_to_others(job):
        return 0
    rows, errors = job.finish()
    # Before the check for rows: a run of nothing but errors has a page that says so.
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
    export.write(out, _EXPORT.value)
    logging.info("done: %s", index)
    return flags.verdict(errors, len(items.items))


def _load(name: str) -> perturb.Model:
    return models.load(
        name,
        weights=_WEIGHTS.value,
        names_file=_CLASS_NAMES.value,
        sha256=_WEIGHTS_SHA256.value,
        **flags.given("rename", "input_size"),
    )


def _settings() -> Record:
    """Returns the resolved settings: every flag that the method reads, and no other."""
    other = [kind for kind in _EXPORT.value if kind not in export.KINDS]
    if other:
        raise ValueError(f"--export must be of {', '.join(export.KINDS)}, got {other[0]!r}")
    method = _METHOD.value
    # The library's own signature says what a method takes: a new argument needs no second list.
    takes = _takes(method)
    for name, flag in _ARGUMENTS.items():
        # Only a flag that was given: others have defaults that this method does not read.
        if name not in takes and flag.present:
            raise ValueError(f"--{name} is not a setting of --method={method}")
    if "layer" in takes and not _LAYER.value:
        raise ValueError(f"--method={method} needs --layer=NAME")
    if _REWARD.value:
        # Refused here, under the flag's name, and not in the middle of a run.
        perturb.rewards.get(_REWARD.value)
    if _OPERATOR.value:
        perturb.operators.get(_OPERATOR.value)
    if _SECOND.value and _EVIDENCE.value != "full":
        raise ValueError("--second_model is for --evidence=full")
    if _IMAGES.value and not _MODEL.value:
        raise ValueError("--model is missing: a net's name, or package.module:function")
    arguments = {
        name: takes[name].default if flag.value is None else flag.value
        for name, flag in _ARGUMENTS.items()
        if name in takes
    }
    if not _AREAS.present and "areas" in takes and takes["areas"].default is not _REQUIRED:
        arguments["areas"] = list(takes["areas"].default)
    if "operator" in arguments:
        # In run.json stands what is used, even where the solver chose it.
        arguments["operator"] = _OPERATOR.value or _own_operator(arguments)
    return {
        "method": method,
        **arguments,
        "images": _IMAGES.value,
        "model": _MODEL.value or "demo",
        "weights": _WEIGHTS.value,
        "class_names": _CLASS_NAMES.value,
        **flags.given("rename", "input_size"),
        "parity": _PARITY.value,
        "evidence": _EVIDENCE.value,
        "second_model": _SECOND.value,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "page_items": _PAGE_ITEMS.value,
        "out": _OUT.value or "out/masks",
    }


def _takes(method: str) -> Mapping[str, inspect.Parameter]:
    """Returns the arguments of the library's method; its defaults are ours."""
    return inspect.signature(methods.get(method)).parameters


def _method(settings: Record, left: int) -> Function:
    """Returns the library call of the method with everything but model, images, targets and keys.

    Args:
      settings: as resolved.
      left: images to do: with fewer masks than slots the spare slots would only run padding.
    """
    name = settings["method"]
    takes = _takes(name)
    given = {n: settings[n] for n in _ARGUMENTS if n in takes}
    if "operator" in given:  # None is the default of the solver or preset, border included
        given["operator"] = _OPERATOR.value
    masks = (
        left
        * len(settings.get("areas") or settings.get("counts") or [0])
        * settings.get("restarts", 1)
    )
    # Never fewer than two: a batch of one is another program, with other bits.
    slots = max(2, min(settings["batch_size"], -(-masks // len(jax.local_devices()))))
    return functools.partial(methods.get(name), **given, batch_size=slots)


def _own_reward(settings: Record, model: perturb.Model) -> str:
    """Returns the name of the default reward."""
    if settings.get("solver") == "torchray":
        return "logit"
    return perturb.rewards.chosen(None, model).name


def _own_operator(settings: Record) -> str:
    """Returns the name of the default fill of a solver or preset."""
    if settings.get("solver") != "torchray" and "preset" not in settings:
        return perturb.operators.DEFAULT
    return "median" if settings.get("preset") == "pytorch_port" else "blur"


def _removal(settings: Record, channels: int, given: str | None) -> tuple[str, Any]:
    """Returns name and operator of what is taken away; the name of several is that scores are taken
    under.
    """
    operators = perturb.operators
    if "layer" in settings:
        return "zero", None
    # Of several fills the first is the one that scores are taken under.
    name = operators.parts(settings.get("operator", operators.DEFAULT))[0]
    if given is not None:
        return name, operators.get(given)
    if "solver" in settings:
        # Any size will do: of the recipe only the operator is wanted, which does not depend on it.
        recipe = torchray_recipe if settings["solver"] == "torchray" else exact_recipe
        return name, recipe((224, 224), channels=channels).operator
    if "preset" in settings:
        return name, preset_operator(settings["preset"], channels=channels)
    return name, operators.get(settings.get("operator", operators.DEFAULT))


def _evidence(settings: Record, channels: int, method: Function) -> Function | None:
    """Returns the checks of every mask, or None; channel masks have no operator to change."""
    if settings["evidence"] == "none" or "layer" in settings:
        return None
    name, operator = _removal(settings, channels, _OPERATOR.value)
    given = {
        "operator": operator,
        "name": name,
        "reward": settings.get("reward"),
        "game": settings.get("game", "preserve"),
    }
    if settings["evidence"] == "default":
        return functools.partial(perturb.evidence.card, **given)
    second = None
    if settings["second_model"]:
        second = models.load(settings["second_model"], weights=_SECOND_WEIGHTS.value)
    return functools.partial(perturb.stability.full, **given, method=method, second=second)


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        flags.run(compare.main, compare.arguments(sys.argv), own=compare.OWN)
    flags.run(main)
