"""From files to a league table: attributions and metrics on every picture, shard by shard.

Reading, targets, shards and errors are those of `batches.Worker`. Attributions run on batches of
one size, filled up with the last picture, so that each is one program; what is random comes from
the content of the picture.
"""

from __future__ import annotations

import csv
import pathlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import perturb
from launch.inputs import columns, images
from launch.job import store
from launch.job.manifest import Item
from launch.job.progress import Progress
from launch.job.run import Run
from launch.jobs import batches
from perturb import attribution, devices, drawing, metrics
from perturb.metrics import suite
from perturb.types import Options, PyTree, Record

__all__ = ["SHARD_ROWS", "Boxes", "Worker", "read_boxes"]

# Boxes by the file's name: `[n, 4]` left, top, right, bottom in px of the photograph.
Boxes = Mapping[str, np.ndarray]
GRID = 2
# A picture under every method and metric takes half a minute: a run that is stopped loses little.
SHARD_ROWS = 8
# Of a large run the maps of the first shards alone are kept, for the page; px of their longer side.
DRAWN, SIDE = 64, 64


def read_boxes(path: str) -> Boxes:
    """Returns the boxes of a list with the columns file, xmin, ymin, xmax, ymax.

    Raises:
      ValueError: if it is no such list.
    """
    found: dict[str, list[list[float]]] = {}
    with pathlib.Path(path).open(newline="", encoding="utf-8-sig") as file:
        try:
            for row in columns.read(file, columns.BOXES):
                box = [float(row[k] or "") for k in ("xmin", "ymin", "xmax", "ymax")]
                # By name alone: lists of boxes seldom know the folders of the photographs.
                found.setdefault(pathlib.PurePath(row["file"] or "").name, []).append(box)
        except (csv.Error, ValueError) as error:
            raise ValueError(
                f"--boxes={path}: expected the columns file,xmin,ymin,xmax,ymax: {error}"
            ) from error
    return {name: np.array(boxes) for name, boxes in found.items()}


class _Found(NamedTuple):
    """What is known of a block.

    Attributes:
      values: of every picture `{attribution: {metric: value}}`.
      curves: `{metric: [A, B, n]}`.
      maps: `[A, B, H, W]` of the attributions that see the network.
      share: `[B]` of the picture that the boxes cover.
    """

    values: list[dict[str, Record]]
    curves: dict[str, np.ndarray]
    maps: np.ndarray
    share: np.ndarray


class Worker(batches.Worker):
    """Computes the shards of a comparison.

    Args:
      model, root, target, seed: as for `batches.Worker`.
      attributions: names, or `maps:FOLDER`.      metrics: names of `perturb.metrics.suite`.
      options: keywords of attributions by name.      boxes: of the photographs, or None.
      size: pictures an attribution is given at once.
    """

    def __init__(
        self,
        model: perturb.Model,
        *,
        root: store.Path,
        target: str,
        seed: int,
        attributions: Sequence[str],
        metrics: Sequence[str],
        options: Mapping[str, Options],
        boxes: Boxes | None,
        size: int,
    ):
        super().__init__(model, root=root, target=target, seed=seed)
        self._attributions, self._metrics = list(attributions), list(metrics)
        self._options, self._boxes = options, boxes
        # At most eight: some attributions hold many views of each picture at once.
        self._size = max(2, min(size, 8))

    def seconds_an_image(self, job: Run) -> float:
        """Returns an estimate from the passes that each part takes and the time of one pass
        here.
        """
        readable = (self._read(item) for _, item in job.pending())
        first = next((r for r in readable if isinstance(r, batches.Ready)), None)
        if first is None:
            return 0.0
        pixels = np.repeat(first.picture.pixels[None], self._size, 0)
        call = jax.jit(lambda model, x: model(x))
        jax.block_until_ready(call(self._model, pixels))
        begin = time.monotonic()
        jax.block_until_ready(call(self._model, pixels))
        once = (time.monotonic() - begin) / self._size
        costs: dict[str, float] = dict(attribution.PASSES)
        costs |= {n: float(o["samples"]) for n, o in self._options.items() if "samples" in o}
        passes = sum(costs.get(name, 0) for name in self._attributions)
        if "grid_pointing" in self._metrics:
            passes *= 1.5  # a mosaic for every other picture
        each = sum(suite.get(name).passes for name in self._metrics)
        return once * (passes + each * len(self._attributions))

    def _solved(
        self, blocks: Iterator[batches.Block], progress: Progress, tick: Callable[[], None]
    ) -> Generator[tuple[batches.Block, Any], None, None]:
        """Yields every block with the values of its pictures, by attribution and metric."""

        def on(there: perturb.Model, _: int, block: batches.Block) -> tuple[batches.Block, PyTree]:
            return block, self._values(there, block, progress)

        for found in devices.each(on, self._model, blocks):
            yield found
            tick()

    def _values(self, model: perturb.Model, block: batches.Block, progress: Progress) -> _Found:
        batch, pixels, targets, keys = block.batch, block.pixels, block.targets, block.keys
        boxes = [self._boxes_of(r.item, r.picture, pixels.shape[1:3]) for r in batch]
        truth = _filled_boxes(boxes, pixels.shape[1:3])
        values: list[dict[str, Record]] = [{} for _ in batch]
        curves: dict[str, list[np.ndarray]] = {}
        drawn = []
        for number, name in enumerate(self._attributions):
            begin = time.monotonic()
            maps = self._maps(model, name, block)
            seconds = (time.monotonic() - begin) / len(batch)
            if name not in attribution.CONTROLS:
                drawn.append(maps)
            for metric in self._metrics:
                entry = suite.get(metric)
                if metric == "grid_pointing":
                    found = self._grid(model, name, block)
                elif entry.curve is not None:
                    curve = entry.curve(model, pixels, targets, maps)
                    found = curve.area
                    curves.setdefault(metric, []).append(curve.scores)
                else:
                    found = entry.call(model, pixels, targets, maps, truth, boxes, keys)
                for i, value in enumerate(found):
                    values[i].setdefault(name, {})[metric] = _number(value)
            for i in range(len(batch)):
                values[i][name]["seconds"] = _number(seconds)
            progress.show(len(batch) * (number + 1) / len(self._attributions))
        return _Found(
            values,
            {metric: np.stack(some) for metric, some in curves.items()},
            np.stack(drawn),
            truth.mean((1, 2)),
        )

    def _done(
        self, ready: batches.Ready, target: int, block: batches.Block, row: int, found: _Found
    ) -> batches.Done:
        identity = self._identity(ready, target)
        rows = [
            {**identity, "attribution": name, "values": values}
            for name, values in found.values[row].items()
        ]
        entry: Record = {"id": identity["id"], "target": target, "sha256": ready.picture.sha256}
        if found.share[row]:
            entry["object"] = _number(found.share[row])
        arrays = {
            f"curves.{metric}": curve[:, row].astype(np.float32)
            for metric, curve in found.curves.items()
        }
        if block.shard.number < DRAWN:
            arrays["maps"] = np.stack([_small(one[row]) for one in found.maps])
            arrays["image"] = images.encode(ready.picture.pixels)
        return batches.Done(entry, arrays, rows)

    def _maps(self, model: perturb.Model, name: str, block: batches.Block) -> np.ndarray:
        if name.startswith("maps:"):
            folder, size = pathlib.Path(name.removeprefix("maps:")), block.pixels.shape[1:3]
            return np.stack([_own_map(folder, r.item, size) for r in block.batch])
        return self._call(model, name, block.pixels, block.targets, block.keys)

    def _call(
        self,
        model: perturb.Model,
        name: str,
        pixels: np.ndarray,
        targets: np.ndarray,
        keys: jax.Array,
    ) -> np.ndarray:
        """Runs an attribution on batches of one size."""
        function: Callable[..., np.ndarray] = attribution.get(name)
        options = dict(self._options.get(name, {}))
        parts = []
        for at in range(0, len(pixels), self._size):
            # The last batch repeats the last picture: one size, one program.
            rows = np.minimum(np.arange(at, at + self._size), len(pixels) - 1)
            # rise has one set of masks for all pictures; the others draw for each.
            if name in attribution.KEYED:
                options["key"] = keys[rows]
            found = function(model, pixels[rows], targets[rows], **options)
            parts.append(found[: len(pixels) - at])
        return np.concatenate(parts)

    def _grid(self, model: perturb.Model, name: str, block: batches.Block) -> np.ndarray:
        """The first half of the pictures get a mosaic's share, the others none."""
        pixels, targets, keys = block.pixels, block.targets, block.keys
        found = np.full(len(pixels), np.nan)
        # Maps from files are of whole photographs; and a mosaic needs as many classes as cells.
        if name.startswith("maps:") or len(np.unique(targets)) < GRID**2:
            return found
        # Half as many mosaics of four as pictures: each picture is used about twice.
        number = max(1, len(pixels) // 2)
        made = metrics.mosaics(pixels, targets, n=GRID, number=number, size=min(pixels.shape[1:3]))
        shares = metrics.grid_pointing(
            lambda x, t: self._call(model, name, x, t, keys[: len(x)]), made, cells=1
        )
        found[:number] = shares[:, 0]
        return found

    def _boxes_of(self, item: Item, picture: images.Picture, size: tuple[int, ...]) -> np.ndarray:
        """Boxes in px of the model's input, cut to what it shows."""
        if self._boxes is None:
            return np.zeros((0, 4))
        boxes = self._boxes.get(pathlib.PurePath(item.path).name, np.zeros((0, 4)))
        left, top, right, bottom = picture.crop
        scale = np.array([size[1] / (right - left), size[0] / (bottom - top)] * 2)
        moved = (boxes - np.array([left, top] * 2)) * scale
        moved = np.clip(moved, 0, np.array([size[1], size[0]] * 2))
        found: np.ndarray = moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]
        return found


def _filled_boxes(boxes: Sequence[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    truth = np.zeros((len(boxes), *size), bool)
    for i, some in enumerate(boxes):
        for left, top, right, bottom in np.round(some).astype(int):
            truth[i, top:bottom, left:right] = True
    return truth


def _own_map(folder: pathlib.Path, item: Item, size: tuple[int, ...]) -> np.ndarray:
    """Reads STEM.npy `[H, W]`, or STEM.npz with `map` `[H, W]` or `mask` `[A, H, W]` (summed)."""
    stem = folder / pathlib.PurePath(item.path).stem
    for path in (stem.with_suffix(".npy"), stem.with_suffix(".npz")):
        if not path.is_file():
            continue
        data = np.load(path, allow_pickle=False)
        if not isinstance(data, np.ndarray):
            data = data["map" if "map" in data else "mask"]
        found = np.asarray(data, np.float32)
        found = found.sum(0) if found.ndim == 3 else found
        if found.shape != tuple(size):
            raise ValueError(f"{path}: the map must be {list(size)} px, got {found.shape}")
        return found
    raise ValueError(f"maps:{folder}: no {stem.name}.npy or .npz for {item.path}")


def _small(values: np.ndarray) -> np.ndarray:
    """Returns a map `[H, W]` over its own range, `[h, w]` uint8."""
    levels = np.rint(255 * drawing.over_range(values)).astype(np.uint8)
    return drawing.enlarge(levels, min(SIDE, max(levels.shape)))


def _number(value: Any) -> float | None:
    return float(f"{float(value):.9g}") if np.isfinite(value) else None
