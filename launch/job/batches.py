"""From files to masks: decode ahead, run the method shard by shard, commit.

The method is given the pictures of a shard that have one shape and cuts them into slots itself; what
is computed here beside it runs on a fixed number of pictures, filled up with grey, so that one program
serves all. An item's randomness comes from the bytes of its file, not from where it lies.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import perturb
from launch import models, results
from launch.job import commit, faults, images, store
from launch.job.ahead import ahead
from launch.job.decoding import Decoders
from launch.job.manifest import Item
from launch.job.progress import Progress
from launch.job.run import SHARD_ROWS, Run

__all__ = ["Done", "Failed", "Ready", "Worker", "content_keys", "demo_pictures"]

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

    entry: dict[str, Any]
    arrays: dict[str, np.ndarray]
    rows: list[dict[str, Any]]


class Worker:
    """Computes the shards of a run.

    Args:
      model: the network.
      method: `(model, images, targets, key=, keys=, progress=) -> result`.
      root: folder that the manifest's paths start from.
      target: `top1`, `csv`, or a class index.
      removal: name and operator of what is taken away, the operator None for channel masks.
      seed: of all randomness.
      parity: a file to compare the model with, see `models.check`.
      evidence: `(model, images, targets, result, keys=) -> evidence` on the masks, or None.
    """

    def __init__(
        self,
        model: perturb.Model,
        method: Callable[..., Any],
        *,
        root: store.Path,
        target: str,
        removal: tuple[str, Any],
        seed: int,
        parity: str | None = None,
        evidence: Callable[..., Any] | None = None,
    ):
        self._model, self._method, self._root = model, method, root
        self._target, self._removal, self._key = target, removal, jax.random.key(seed)
        self._parity, self._evidence = parity, evidence
        self._decoders = Decoders(DECODERS)
        self._checked = False
        self._classes: int | None = None

    def run(self, job: Run, progress: Progress) -> None:
        """Computes and commits every pending shard."""
        # A store answers late, so more is asked of it than can be decoded at once.
        workers = READERS if isinstance(self._root, store.Address) else DECODERS
        decoded = ahead(
            lambda pair: (pair[0], self._read(pair[1])),
            job.pending(),
            workers=workers,
            window=2 * SHARD_ROWS,
        )
        with self._decoders, contextlib.closing(decoded):
            self._commit(job, decoded, progress)

    def _commit(
        self, job: Run, decoded: Iterator[tuple[int, Ready | Failed]], progress: Progress
    ) -> None:
        for shard, group in itertools.groupby(decoded, key=lambda pair: pair[0]):
            if job.committed(shard):  # by another process, since it was decoded
                progress.add(len(list(group)))
                continue
            done = self._shard([read for _, read in group], progress)
            items = [d for d in done if isinstance(d, Done)]
            arrays = {f"{i}.{k}": a for i, d in enumerate(items) for k, a in d.arrays.items()}
            record = {
                "items": [d.entry for d in items],
                "rows": [row for d in items for row in d.rows],
                "errors": [_error_row(d) for d in done if isinstance(d, Failed)],
            }
            job.commit(shard, arrays, record)

    def _read(self, item: Item) -> Ready | Failed:
        try:
            path = store.join(self._root, item.path)
            picture = self._decoders.read(path, self._model.geometry, self._model.channels)
            return Ready(item, picture)
        except images.BadImage as error:
            return Failed(item, error.stage, str(error), error.sha256)

    def _shard(self, read: Sequence[Ready | Failed], progress: Progress) -> list[Done | Failed]:
        """Returns what became of every item, in the order of the manifest."""
        done: dict[int, Done | Failed] = {i: r for i, r in enumerate(read) if isinstance(r, Failed)}
        progress.add(len(done))
        ready = [(i, r) for i, r in enumerate(read) if isinstance(r, Ready)]
        # One program a shape: pictures of equal shape go together wherever they lie in the shard.
        ready.sort(key=lambda pair: pair[1].picture.pixels.shape)
        for _, same in itertools.groupby(ready, key=lambda pair: pair[1].picture.pixels.shape):
            places, batch = zip(*same, strict=True)
            done |= zip(places, self._batch(batch, progress), strict=True)
            progress.add(len(batch))
        return [done[i] for i in sorted(done)]

    def _batch(self, batch: Sequence[Ready], progress: Progress) -> list[Done | Failed]:
        """Runs the method on pictures of one shape."""
        pixels = np.stack([r.picture.pixels for r in batch])
        self._check(pixels)
        targets, bad = self._targets(batch, pixels)
        done: dict[int, Done | Failed] = {i: b for i, b in enumerate(bad) if b is not None}
        good = [i for i, b in enumerate(bad) if b is None]
        if good:
            batch, pixels, targets = [batch[i] for i in good], pixels[good], targets[good]
            keys = self._keys(batch)
            result, found = self._masks(pixels, targets, keys, progress)
            removed = self._removed(pixels, keys)
            for n, i in enumerate(good):
                target = int(targets[n])
                done[i] = self._done(batch[n], result, n, target, pixels[n], removed[n], found)
        return [done[i] for i in sorted(done)]

    def _masks(
        self, pixels: np.ndarray, targets: np.ndarray, keys: jax.Array, progress: Progress
    ) -> tuple[Any, Any]:
        """Returns what the method and the evidence say, on fewer slots where the memory is too small."""

        def show(steps: int, total: int) -> None:
            progress.show(len(pixels) * steps / max(total, 1))

        while True:
            try:
                result = self._method(self._model, pixels, targets, keys=keys, progress=show)
                if self._evidence is None:
                    return result, None
                return result, self._evidence(self._model, pixels, targets, result, keys=keys)
            except (RuntimeError, MemoryError) as error:
                given = getattr(self._method, "keywords", {}).get("batch_size", 2)
                if not faults.exhausted(error):
                    raise
                if given <= 2:
                    raise ValueError(
                        "two masks side by side do not fit into the device's memory: give a smaller "
                        f"model or smaller images ({str(error)[:200]})"
                    ) from error
            # Results do not depend on the number of slots, so the items are begun anew with fewer.
            slots = max(2, given // 2)
            logging.warning("out of memory: from %d slots to %d", given, slots)
            self._method = functools.partial(self._method, batch_size=slots)

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
        words = [np.frombuffer(bytes.fromhex(r.picture.sha256), ">u4") for r in batch]
        return content_keys(self._key, np.stack(words).astype(np.uint32))

    def _targets(
        self, batch: Sequence[Ready], pixels: np.ndarray
    ) -> tuple[np.ndarray, list[Failed | None]]:
        """Returns a class for every item, and for every item why it has none."""
        targets = np.zeros(len(batch), np.int32)
        bad: list[Failed | None] = [None] * len(batch)
        if self._target.isdecimal():
            targets[:] = _class(self._target, self._classes, "--target")
        elif self._target == "top1":
            if self._classes is None:
                raise ValueError(
                    f"--target=top1: model {self._model.name} returns {self._model.output}, not "
                    "classes; give --target=INDEX"
                )
            outputs = _filled(functools.partial(_outputs, self._model), pixels)
            targets = np.nan_to_num(outputs, nan=-np.inf).argmax(axis=1).astype(np.int32)
        else:
            for i, (item, picture) in enumerate(batch):
                try:
                    targets[i] = _class(item.target or "", self._classes, "target")
                except ValueError as error:
                    bad[i] = Failed(item, "target", str(error), picture.sha256)
        for i in np.flatnonzero(~_finite(self._model, pixels)).tolist():
            if bad[i] is None:
                item, picture = batch[i]
                bad[i] = Failed(item, "model", "outputs are not finite", picture.sha256)
        return targets, bad

    def _identity(self, ready: Ready, target: int) -> dict[str, Any]:
        item, picture = ready
        identity = {"id": _id(item, picture.sha256), "image": item.path, "target": target}
        if self._model.class_names:
            identity["target_name"] = self._model.class_names[target]
        return identity

    def _removed(self, pixels: np.ndarray, keys: jax.Array) -> np.ndarray | list[None]:
        operator = self._removal[1]
        if operator is None:
            return [None] * len(pixels)
        return _filled(functools.partial(_all_removed, operator), pixels, keys)

    def _done(
        self,
        ready: Ready,
        result: Any,
        slot: int,
        target: int,
        pixels: np.ndarray,
        removed: np.ndarray | None,
        evidence: Any,
    ) -> Done:
        picture, names = ready.picture, self._model.class_names
        identity = self._identity(ready, target)
        rows = results.rows(
            result,
            slot,
            identity=identity,
            crop=picture.crop,
            removal=self._removal[0],
            evidence=evidence,
        )
        for row in rows:
            rival = row["evidence"].get("rival")
            if rival and names:
                rival["target_name"] = names[rival["target"]]
        arrays = results.arrays(result, slot)
        arrays["image"] = images.encode(pixels)
        if removed is not None:
            arrays["removed"] = images.encode(removed)
        entry = {
            "id": identity["id"],
            "target": target,
            "sha256": picture.sha256,
            "size": list(picture.size),
            "areas": [row["area"] for row in rows],
        }
        if hasattr(result, "channels"):
            entry["channels"] = int(np.shape(result.channels)[-1])
        return Done(entry, arrays, rows)


def demo_pictures(out: store.Path, model: str, number: int) -> str:
    """Writes the embedded pictures next to the results and returns their folder."""
    from launch.demo import world

    folder = out / "pictures" / model
    folder.mkdir(parents=True, exist_ok=True)
    for picture in world.pictures(number, watermark="right" if model == "demo_cheat" else None):
        path = folder / f"{picture.id}.png"
        if not path.is_file():
            commit.write(path, images.encode(picture.image).tobytes())
    return str(folder)


@jax.jit
def content_keys(key: jax.Array, words: jax.Array) -> jax.Array:
    """Returns a key an item: `key` folded with the `words` `[B, 8]` uint32 of its content's SHA-256."""

    def fold(key: jax.Array, word: jax.Array) -> tuple[jax.Array, None]:
        return jax.random.fold_in(key, word), None

    return jax.vmap(lambda row: jax.lax.scan(fold, key, row)[0])(words)


@jax.jit
def _outputs(model: perturb.Model, pixels: jax.Array) -> Any:
    return model(pixels)


def _finite(model: perturb.Model, pixels: np.ndarray) -> np.ndarray:
    """Returns `[B]` bool: whether all that the model gives for a picture are numbers."""
    return _filled(functools.partial(_are_finite, model), pixels)


@jax.jit
def _are_finite(model: perturb.Model, pixels: jax.Array) -> jax.Array:
    leaves = jax.tree.leaves(model(pixels))
    return jnp.stack([jnp.isfinite(x).reshape(len(x), -1).all(1) for x in leaves]).all(0)


@jax.jit
def _all_removed(operator: Any, pixels: jax.Array, keys: jax.Array) -> jax.Array:
    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        return operator.apply(operator.prepare(image, key), jnp.zeros(image.shape[:-1]))

    return jax.vmap(one)(pixels, keys)


def _filled(function: Callable[..., Any], *arrays: Any) -> np.ndarray:
    """Maps `function` over rows, `FILL` at once; never fewer, which would be another program."""
    parts = []
    for at in range(0, len(arrays[0]), FILL):
        rows = [array[at : at + FILL] for array in arrays]
        idle = FILL - len(rows[0])
        # The last row is repeated to fill up: keys and pictures alike have no neutral value.
        full = [jnp.concatenate([row, *[row[-1:]] * idle]) for row in rows]
        parts.append(np.asarray(function(*full))[: FILL - idle])
    return np.concatenate(parts)


def _class(text: str, classes: int | None, label: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{label} must be a class index, got {text!r}")
    if classes is not None and int(text) >= classes:
        raise ValueError(f"{label} must be below the model's {classes} classes, got {text}")
    return int(text)


def _id(item: Item, sha256: str) -> str:
    return f"{item.path}@{sha256[:16]}" if sha256 else item.path


def _error_row(failed: Failed) -> dict[str, str]:
    return {
        "id": _id(failed.item, failed.sha256),
        "stage": failed.stage,
        "error": failed.message,
    }
