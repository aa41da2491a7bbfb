"""From pictures to what a classifier's units do: one shard a network, the trained one and those of
random weights.

Every network runs over all pictures with the same program; a run that was stopped goes on with the
network it was at, and gives the same numbers. The last shard holds verdicts, ablation and pictures
for the page.
"""

from __future__ import annotations

import fnmatch
import functools

import jax
import numpy as np
from absl import logging

import perturb
from launch import models
from launch.job import store
from launch.job.manifest import Manifest, Part
from launch.job.progress import Progress
from launch.job.run import ALONE, FREE, Place, Run
from launch.jobs.dissect_model import portraits
from launch.jobs.dissect_model.material import Material, load
from launch.report import pictures
from perturb import internals, taps, units
from perturb.types import Array, Record
from perturb.units import Dissection
from perturb.units.pictures import maps

__all__ = ["Material", "load", "run"]

UNBOUND = FREE - {"batch_size"} | {"concepts", "model"}
TOP, SIDE, SHOWN = 5, 96, 8  # patches of a unit, their side in px, units of a layer with patches
# The first, the middle and the last with places, of a network of the embedded world.
DEMO_LAYERS = ("relu", "relu#4", "relu#6")
TOKEN_LAYERS = tuple(f"encoder.layers.encoder_layer_{n}" for n in (0, 1, 3))


def run(
    out: store.Path,
    settings: Record,
    *,
    place: Place = ALONE,
    weights_sha256: str | None = None,
) -> tuple[int, int] | None:
    """Dissects a classifier from resolved settings, or continues a run of it.

    Args:
      out: folder of the run.
      settings: `model`, `weights`, `images`, `concepts`, `layer`, `samples`, `quantile`,
        `networks`, `rotations`, `seed` and `batch_size`, as on the command line.
      place: this process among those of the job.
      weights_sha256: that the weight file must have.
    Returns:
      how many of how many items failed; None where others have not finished their share.
    """
    model = models.load(
        settings["model"],
        weights=settings["weights"],
        sha256=weights_sha256,
        rename=settings.get("rename"),
        input_size=settings.get("input_size"),
    )
    if settings["images"] is None and model.name not in models.EMBEDDED:
        raise ValueError(
            f"--images is missing: only {' and '.join(models.EMBEDDED)} bring pictures"
        )
    material = load(settings["images"], settings["concepts"], model, settings["samples"])
    layers = _layers(settings["layer"], model, material.images)
    count = len(material.images)
    # A shard a network: the unit of work that can be given to another machine.
    stages = ["trained", *(f"random {n}" for n in range(settings["networks"])), "verdicts"]
    listed = Manifest("", tuple(Part(stage, 0, count) for stage in stages))
    described = {
        **models.describe(model, settings["weights"]),
        "images_sha256": material.sha256,
        "concepts": list(material.names),
    }
    # As resolved, so that a default that changes later does not continue this run.
    settings = {**settings, "layer": ",".join(layers), "samples": count}
    job = Run(out, settings, described, listed, shard_rows=1, free=UNBOUND, place=place)
    logging.info(
        "%s of %s, %d pictures, %d concepts, %d random networks, into %s",
        *(", ".join(layers), model.name, count, len(material.names), settings["networks"], out),
    )
    progress = Progress(len(stages) * count, 0, unit="pictures")
    key = jax.random.key(settings["seed"])
    for shard, _ in job.pending(range(len(stages) - 1), help_others=True):
        number = shard - 1
        net = (
            model
            if shard == 0
            else internals.random_network(model, jax.random.fold_in(key, number))
        )
        tables = internals.layer_tables(
            net,
            material.images,
            layers=layers,
            masks=material.masks,
            concepts=material.concepts,
            labelled=material.labelled,
            rotations=settings["rotations"] if shard == 0 else 0,
            # Beyond the numbers of the networks, which the same key is folded with.
            key=jax.random.fold_in(key, 2**31),
            quantile=settings["quantile"],
            enlarge="bilinear",
            batch_size=settings["batch_size"],
            # Intervals are shown for the trained network only.
            replicates=100 if shard == 0 else 0,
            top=TOP,
        )
        arrays = {
            f"{n}|{k}": np.asarray(v) for n, t in tables.items() for k, v in _fields(t).items()
        }
        job.commit(shard, arrays, {"layers": list(tables), "items": [], "rows": [], "errors": []})
        progress.add(count)
    # Verdicts need the tables of all networks, whoever made them.
    if all(job.committed(n) for n in range(len(stages) - 1)):
        for shard, _ in job.pending([len(stages) - 1]):
            arrays, record = _last(job, model, material, layers, settings)
            job.commit(shard, arrays, record)
            progress.add(count)
    progress.close()
    return job.ended(len(stages))


def _layers(asked: str | None, model: perturb.Model, images: Array) -> tuple[str, ...]:
    if asked is None and model.name in models.EMBEDDED:
        return TOKEN_LAYERS if model.name == "demo_vit" else DEMO_LAYERS
    known = taps.names(model, np.asarray(images[0:2]))
    if asked is None:
        raise ValueError(f"--layer is missing; layers of {model.name}: {', '.join(known)}"[:300])
    wanted: dict[str, None] = {}  # a set that keeps its order
    for name in filter(None, asked.split(",")):
        # A pattern takes all layers with units that it fits.
        fits = [n for n in fnmatch.filter(known, name) if len(known[n].shape) > 1]
        wanted |= dict.fromkeys([name] if name in known else fits)
        if name not in known and not fits:
            # Names of one block begin alike; else the last layers, which are asked for most.
            near = [n for n in known if name.split("/")[0] in n][:5] or list(known)[-5:]
            raise ValueError(
                f"--layer={name}: {model.name} has no such layer; among its {len(known)}: "
                f"{', '.join(near)}"
            )
    return tuple(wanted)


def _fields(table: Dissection) -> Record:
    skip = ("layer", "concepts", "iqr")
    return {k: v for k, v in table._asdict().items() if k not in skip}


def _tables(job: Run, shard: int, names: tuple[str, ...]) -> dict[str, Dissection]:
    record, arrays = job.read(shard)
    found = {}
    for layer in record["layers"]:
        parts: Record = {
            k.removeprefix(f"{layer}|"): v for k, v in arrays.items() if k.startswith(f"{layer}|")
        }
        # A number comes back from a file as an array without axes.
        parts["pixels"] = int(parts["pixels"])
        found[layer] = Dissection(layer=layer, concepts=names, iqr=None, **parts)
    return found


def _last(
    job: Run,
    model: perturb.Model,
    material: Material,
    layers: tuple[str, ...],
    settings: Record,
) -> tuple[dict[str, np.ndarray], Record]:
    """Returns verdicts, costs of units and patches for the page."""
    names = material.names
    trained = _tables(job, 0, names)
    others = [_tables(job, 1 + n, names) for n in range(settings["networks"])]
    arrays: dict[str, np.ndarray] = {}
    rows, items = [], []
    judged, costs = {}, {}
    for at, layer in enumerate(layers):
        turned = [trained[units.rotated_name(layer, r)] for r in range(settings["rotations"])]
        found = internals.verdicts(trained[layer], [o[layer] for o in others], turned)
        cost = _costs(model, material, layer, settings)
        judged[layer], costs[layer] = found, cost
        for row in internals.summary({layer: found}):
            unit = row["unit"]
            rows.append({"kind": "unit", **row, **({} if cost is None else cost[unit])})
        order = np.lexsort((-found.score, ~found.passes))[:SHOWN]
        for unit in order:
            indices = found.table.top_indices[unit]
            arrays[f"{at}|{unit}"] = _patches(model, material.images, layer, int(unit), indices)
        items.append(
            {
                "layer": layer,
                "shown": order.tolist(),
                "passes": int(found.passes.sum()),
                "units": len(found.passes),
                "rule": int(found.table.interpretable.sum()),
                "null_share": found.null_share,
                "aligned": None if np.isnan(found.aligned) else found.aligned,
            }
        )
    tiles, drawn = portraits.draw(model, material, judged, costs, settings["batch_size"])
    verdicts = {
        (layer, p["unit"]): p["agreement"]
        for layer, portraits_ in zip(layers, drawn, strict=True)
        for p in portraits_
    }
    for row in rows:
        key = row["layer"], row["unit"]
        if key in verdicts:
            row["agreement"] = verdicts[key]
    record = {"concepts": list(names), "items": items, "portraits": drawn, "rows": rows}
    return arrays | tiles, {**record, "errors": []}


def _costs(
    model: perturb.Model, material: Material, layer: str, settings: Record
) -> list[Record] | None:
    """What every unit alone costs the true class, where classes are known and few pictures
    suffice.
    """
    if material.targets is None:
        return None
    found = internals.ablate(
        model,
        material.images,
        material.targets,
        layer=layer,
        pictures=min(len(material.images), 200),
        batch_size=settings["batch_size"],
    )
    effect = found.effect()
    # Twice the standard error: intervals of every unit by bootstrap would take longer than the
    # networks.
    error = 2 * effect.std(1) / np.sqrt(effect.shape[1])
    mean = effect.mean(1)
    return [
        {"cost": float(m), "cost_low": float(m - e), "cost_high": float(m + e)}
        for m, e in zip(mean, error, strict=True)
    ]


def _patches(
    model: perturb.Model, images: Array, layer: str, unit: int, indices: np.ndarray
) -> np.ndarray:
    """The top pictures of a unit, what it sees as it is and the rest dimmed: `[k, side, side, 3]`
    uint8.
    """
    chosen = np.concatenate([np.asarray(images[int(i) : int(i) + 1]) for i in indices])
    # Never a batch of one: one more, which is cut off again.
    batch = np.concatenate([chosen, chosen[:1]])
    value = np.asarray(_maps(model, batch, layer=layer))[: len(indices), ..., unit]
    tiles = []
    for picture, map_ in zip(chosen, value, strict=True):
        drawn = pictures.levels(picture)
        if map_.size > 1:
            height, width = drawn.shape[:2]
            rows = np.arange(height) * map_.shape[0] // height
            columns = np.arange(width) * map_.shape[1] // width
            # A unit that is 0 everywhere has no strong places, rather than all.
            strong = map_ >= max(float(map_.max()) * 0.5, 1e-12)
            tiles.append(
                pictures.overlay(drawn, strong[rows][:, columns].astype(np.float32), side=SIDE)
            )
        else:
            tiles.append(pictures.enlarge(drawn, SIDE))
    return np.stack(tiles)


@functools.partial(jax.jit, static_argnames="layer")
def _maps(model: perturb.Model, images: jax.Array, *, layer: str) -> jax.Array:
    """A layer as `[B, h, w, units]`: tokens have places too."""
    return maps(model, images, layer, taps.read(model, layer)(images)[1][layer])
