"""From files to shards: decode ahead, hand batches of one shape to the job, commit.

A job over pictures derives from `Worker` and says what becomes of a batch. A shard is committed
when all of its items are done. What is computed here runs on a fixed number of pictures, so that
one program serves all. An item's randomness comes from its pixels, not from where it lies.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from launch import models
from launch.inputs import images
from launch.inputs.decoding import Decoders
from launch.job import store
from launch.job.ahead import ahead
from launch.job.manifest import Item
from launch.job.progress import Progress
from launch.job.run import SHARD_ROWS, Run
from perturb import inputs, scores
from perturb.types import Function, PyTree, Record

__all__ = [
    "Block",
    "Done",
    "Failed",
    "Ready",
    "Shard",
    "Worker",
    "content_keys",
    "demo_pictures",
    "filled",
]

FILL = 8  # pictures that the programs of this file take at once
DECODERS = min(8, os.cpu_count() or 1)  # processes
READERS = 16  # files that a store is asked for at the same time


class Failed(NamedTuple):
    """An item that could not be used, and at which stage that showed."""

    item: Item
    stage: str
    message: str
    sha256: str = ""


class Ready(NamedTuple):
    """An item and its decoded picture."""

    item: Item
    picture: images.Picture


class Done(NamedTuple):
    """What is committed of an item: its entry, arrays and rows."""

    entry: Record
    arrays: dict[str, np.ndarray]
    rows: list[Record]


class Shard:
    """A shard under way: what became of its items so far, by place, and how many blocks are
    left.
    """

    def __init__(self, number: int):
        self.number, self.left = number, 0
        self.done: dict[int, Done | Failed] = {}


class Block(NamedTuple):
    """Pictures of one shape and one shard, which the job is given together."""

    shard: Shard
    places: tuple[int, ...]
    batch: tuple[Ready, ...]
    pixels: np.ndarray
    targets: np.ndarray
    keys: jax.Array


class Worker(abc.ABC):
    """Computes the shards of a run over pictures.

    Args:
      model: the network.
      root: folder that the manifest's paths start from.
      target: `top1`, `csv`, or a class index.
      seed: of all randomness.
      parity: a file to compare the model with, see `models.check`.
    """

    def __init__(
        self,
        model: perturb.Model,
        *,
        root: store.Path,
        target: str,
        seed: int,
        parity: str | None = None,
    ):
        self._model, self._root = model, root
        self._target, self._key = target, jax.random.key(seed)
        self._parity = parity
        self._decoders = Decoders(DECODERS)
        self._checked = False
        self._classes: int | None = None

    @abc.abstractmethod
    def _solved(
        self, blocks: Iterator[Block], progress: Progress, tick: Callable[[], None]
    ) -> Generator[tuple[Block, Any], None, None]:
        """Yields every block with what the job found of its pictures, in order."""

    @abc.abstractmethod
    def _done(self, ready: Ready, target: int, block: Block, row: int, found: PyTree) -> Done:
        """Returns what is committed of the picture at `row` of a block."""

    def run(self, job: Run, progress: Progress, *, tick: Callable[[], None] = lambda: None) -> None:
        """Computes every pending shard, and commits it once all of its items are done.

        Args:
          tick: called after every chunk of steps.
        """
        # A store answers late, so more is asked of it than can be decoded at once.
        workers = READERS if isinstance(self._root, store.Address) else DECODERS
        decoded = ahead(
            lambda pair: (pair[0], self._read(pair[1])),
            job.pending(),
            workers=workers,
            window=2 * SHARD_ROWS,
        )
        blocks = self._blocks(job, decoded, progress)
        solving = contextlib.closing(self._solved(blocks, progress, tick))
        # Closed from the inside out: the solver first, then what feeds it, then the processes.
        with self._decoders, contextlib.closing(decoded), solving as solved:
            for block, found in solved:
                self._take(block, found)
                progress.add(len(block.batch))
                if not block.shard.left:
                    self._commit(job, block.shard)

    def _blocks(
        self, job: Run, decoded: Iterator[tuple[int, Ready | Failed]], progress: Progress
    ) -> Iterator[Block]:
        """Yields the blocks of the job, shard by shard; items that cannot be used end here."""
        for number, group in itertools.groupby(decoded, key=lambda pair: pair[0]):
            read = [r for _, r in group]
            if job.committed(number):  # by another process, since it was decoded
                progress.add(len(read))
                continue
            shard = Shard(number)
            # All blocks of a shard are known before the first is given away: it is
            # committed when none is left.
            blocks = list(self._shard(shard, read))
            shard.left = len(blocks)
            progress.add(len(shard.done))
            if not blocks:
                # Nothing but errors: no block will come back to commit it.
                self._commit(job, shard)
            yield from blocks

    def _commit(self, job: Run, shard: Shard) -> None:
        # In the order of the manifest, however the pictures were grouped by shape.
        done = [shard.done[i] for i in sorted(shard.done)]
        items = [d for d in done if isinstance(d, Done)]
        arrays = {f"{i}.{k}": a for i, d in enumerate(items) for k, a in d.arrays.items()}
        record = {
            "items": [d.entry for d in items],
            "rows": [row for d in items for row in d.rows],
            "errors": [_error_row(d) for d in done if isinstance(d, Failed)],
        }
        job.commit(shard.number, arrays, record)

    def _read(self, item: Item) -> Ready | Failed:
        try:
            path = store.join(self._root, item.path)
            picture = self._decoders.read(path, self._model.geometry, self._model.channels)
            return Ready(item, picture)
        except images.BadImage as error:
            return Failed(item, error.stage, str(error), error.sha256)

    def _shard(self, shard: Shard, read: Sequence[Ready | Failed]) -> Iterator[Block]:
        """Yields the usable pictures of a shard, those of one shape together; others are done."""
        shard.done |= {i: r for i, r in enumerate(read) if isinstance(r, Failed)}
        ready = [(i, r) for i, r in enumerate(read) if isinstance(r, Ready)]
        # One program a shape: pictures of equal shape go together wherever they lie in the shard.
        ready.sort(key=lambda pair: pair[1].picture.pixels.shape)
        for _, same in itertools.groupby(ready, key=lambda pair: pair[1].picture.pixels.shape):
            places, batch = zip(*same, strict=True)
            pixels = np.stack([r.picture.pixels for r in batch])
            self._check(pixels)
            targets, bad = self._targets(batch, pixels)
            shard.done |= {places[i]: b for i, b in enumerate(bad) if b is not None}
            good = [i for i, b in enumerate(bad) if b is None]
            if good:
                batch = tuple(batch[i] for i in good)
                keys = self._keys(batch)
                places = tuple(places[i] for i in good)
                yield Block(shard, places, batch, pixels[good], targets[good], keys)

    def _take(self, block: Block, found: PyTree) -> None:
        for row, (place, ready) in enumerate(zip(block.places, block.batch, strict=True)):
            done = self._done(ready, int(block.targets[row]), block, row, found)
            block.shard.done[place] = done
        block.shard.left -= 1

    def _check(self, pixels: np.ndarray) -> None:
        """Refuses, once, a model that cannot be trusted."""
        if self._checked:
            return
        try:
            self._classes = models.check(self._model, pixels, self._parity)
        except ValueError:
            # Pictures that a sound model cannot answer become rows of errors.jsonl.
            finite = _finite(self._model, pixels)
            if finite.all() or not finite.any():
                raise
            self._classes = models.check(self._model, pixels[finite], self._parity)
        self._checked = True

    def _keys(self, batch: Sequence[Ready]) -> jax.Array:
        # Of the pixels, not of the file: the same picture in another format has the same masks.
        digests = [_digest(r.picture.pixels) for r in batch]
        # Big-endian by name: the keys must be the same on every machine.
        words = [np.frombuffer(digest, ">u4") for digest in digests]
        found: jax.Array = content_keys(self._key, np.stack(words).astype(np.uint32))
        return found

    def _targets(
        self, batch: Sequence[Ready], pixels: np.ndarray
    ) -> tuple[np.ndarray, list[Failed | None]]:
        """Returns a class for every item, and for every item why it has none."""
        targets = np.zeros(len(batch), np.int32)
        bad: list[Failed | None] = [None] * len(batch)
        if self._target == "top1":
            if self._classes is None:
                raise ValueError(
                    f"--target=top1: model {self._model.name} returns {self._model.output}, not "
                    "classes; give --target=INDEX"
                )
            targets = filled(functools.partial(_top, self._model), pixels).astype(np.int32)
        elif self._target != "csv":
            targets[:] = _class(self._target, self._classes, "--target", self._model)
        else:
            for i, (item, picture) in enumerate(batch):
                try:
                    targets[i] = _class(item.target or "", self._classes, "target", self._model)
                except ValueError as error:
                    bad[i] = Failed(item, "target", str(error), picture.sha256)
        for i in np.flatnonzero(~_finite(self._model, pixels)).tolist():
            if bad[i] is None:
                item, picture = batch[i]
                bad[i] = Failed(item, "model", "outputs are not finite", picture.sha256)
        return targets, bad

    def _identity(self, ready: Ready, target: int) -> Record:
        item, picture = ready
        identity = {"id": _id(item, picture.sha256), "image": item.path, "target": target}
        if self._model.class_names:
            identity["target_name"] = self._model.class_names[target]
        return identity


def demo_pictures(out: store.Path, model: str, number: int) -> str:
    """Writes the embedded pictures next to the results and returns their folder."""
    from launch.demo import world

    # Of a name that could lead out of the folder only the letters.
    folder = out / "pictures" / re.sub(r"[^\w.:-]", "_", model)
    folder.mkdir(parents=True, exist_ok=True)
    for picture in world.pictures(number, watermark="right" if model == "demo_cheat" else None):
        path = folder / f"{picture.id}.png"
        if not path.is_file():
            store.put(path, images.encode(picture.image).tobytes())
    return str(folder)


def _digest(pixels: np.ndarray) -> bytes:
    """SHA-256 of a decoded picture, whatever file it came from."""
    # Shape and type belong to what is hashed: the same bytes may be pictures of two shapes.
    pixels = np.ascontiguousarray(pixels)
    return hashlib.sha256(f"{pixels.shape} {pixels.dtype.str}".encode() + pixels.tobytes()).digest()


@jax.jit
def content_keys(key: jax.Array, words: jax.Array) -> jax.Array:
    """Returns a key an item: `key` folded with the `words` `[B, 8]` uint32 of its content's
    SHA-256.
    """

    def fold(key: jax.Array, word: jax.Array) -> tuple[jax.Array, None]:
        return jax.random.fold_in(key, word), None

    return jax.vmap(lambda row: jax.lax.scan(fold, key, row)[0])(words)


@jax.jit
def _top(model: perturb.Model, pixels: jax.Array) -> jax.Array:
    def one(row: jax.Array) -> jax.Array:
        # NaN must not win; the row is refused by `_finite` all the same.
        return scores.top(model.output, jnp.nan_to_num(row, nan=-jnp.inf))

    return jax.vmap(one)(model(pixels))


def _finite(model: perturb.Model, pixels: np.ndarray) -> np.ndarray:
    """Returns `[B]` bool: whether all that the model gives for a picture are numbers."""
    return filled(functools.partial(_are_finite, model), pixels)


@jax.jit
def _are_finite(model: perturb.Model, pixels: jax.Array) -> jax.Array:
    leaves = jax.tree.leaves(model(pixels))
    return jnp.stack([jnp.isfinite(x).reshape(len(x), -1).all(1) for x in leaves]).all(0)


def filled(function: Function, *arrays: PyTree) -> np.ndarray:
    """Returns `function` mapped over rows, `FILL` at once; never fewer, which would be another
    program.
    """
    parts = []
    for at in range(0, len(arrays[0]), FILL):
        rows = [array[at : at + FILL] for array in arrays]
        idle = FILL - len(rows[0])
        # The last row is repeated to fill up: keys and pictures alike have no neutral value.
        full = [jnp.concatenate([row, *[row[-1:]] * idle]) for row in rows]
        parts.append(np.asarray(function(*full))[: FILL - idle])
    return np.concatenate(parts)


def _class(text: str, classes: int | None, label: str, model: perturb.Model) -> int:
    """A class from its number or, where the model has class names, its name."""
    if not text:
        raise ValueError(f"{label} is missing: the list has none for this picture")
    number = text.removesuffix(".0")  # pandas writes 3.0 where a column has gaps
    if not number.isdecimal():
        if not model.class_names:
            raise ValueError(
                f"{label} must be a class index, got {text!r}; names need --class_names=FILE"
            )
        return inputs.named(model, text)
    if classes is not None and int(number) >= classes:
        raise ValueError(f"{label} must be below the model's {classes} classes, got {text}")
    return int(number)


def _id(item: Item, sha256: str) -> str:
    return f"{item.path}@{sha256[:16]}" if sha256 else item.path


def _error_row(failed: Failed) -> dict[str, str]:
    return {
        "id": _id(failed.item, failed.sha256),
        "stage": failed.stage,
        "error": failed.message,
    }
