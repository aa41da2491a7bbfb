"""A run: its folder, its settings, which shards are committed, and how it is finished.

`run.json` records the settings and the model; a repeated command continues, another one is
refused. Shards are ranges of manifest rows whose size depends on nothing, so that what is committed
does not depend on the machine. Readers go through the committed records only.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import platform
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from launch.job import commit, machine, store
from launch.job.manifest import Manifest
from perturb.types import Options, Record

__all__ = ["ALONE", "FREE", "SHARD_ROWS", "Run", "versions"]

SHARD_ROWS = 16
# Of a model; named last and without their numbers, which say nothing to a reader.
MEASURED = ("fingerprint", "answers")
ANSWERS = 1e-2  # share of the largest number by which a model's answers may differ between devices
# Settings that may differ when a run is continued: they change no result, or what they point at is
# compared by its content (the manifest, the model's fingerprint).
FREE = frozenset({"batch_size", "class_names", "images", "out", "page_items", "parity", "weights"})


class Place(NamedTuple):
    """This process among those of a job.

    Attributes:
      process: k, from 0.
      processes: K.
      helps: whether it goes on with what others have left: they were started together.
    """

    process: int = 0
    processes: int = 1
    helps: bool = False


ALONE = Place()


class Run:
    """The folder `out` of one run.

    Args:
      out: the folder or the address in a store, created where needed.
      flags: the resolved settings.
      model: what identifies the model; at least `name` and `fingerprint`.
      manifest: what to work on.
      shard_rows: rows of the manifest in a shard.
      free: settings that may differ when the run is continued.
      place: this process among those of the job.
    Raises:
      ValueError: if `out` holds a run with other settings, another model or other pictures.
      OSError: if `out` cannot be written.
    """

    def __init__(
        self,
        out: store.Path,
        flags: Options,
        model: Options,
        manifest: Manifest,
        *,
        shard_rows: int = SHARD_ROWS,
        free: Collection[str] = FREE,
        place: Place = ALONE,
    ):
        self.out, self.manifest, self._size = out, manifest, shard_rows
        asked = {
            "flags": dict(flags),
            "model": dict(model),
            "manifest": {"items": len(manifest.items), "sha256": manifest.sha256()},
            "root": manifest.root,
            "shard_rows": shard_rows,
            "versions": versions(),
            "machine": machine.here(),
        }
        asked = json.loads(json.dumps(asked))  # as it will read back: tuples are lists
        path, shards = out / "run.json", out / "shards"
        self._place = place
        self._shards = -(-len(manifest.items) // shard_rows)
        shards.mkdir(parents=True, exist_ok=True)
        text = (json.dumps(asked, indent=2) + "\n").encode()
        # A run that committed nothing, because its settings were refused, stands in nobody's way;
        # but of several processes none gives way to another.
        if place.processes == 1 and path.is_file() and not self._committed():
            path.unlink()
        # The manifest first: where there is a run.json there is all that belongs to it.
        if not path.is_file():
            store.put_parts(out / "manifest.jsonl", manifest.lines())
        if not store.put(path, text, once=True):
            _refuse_other(path, asked, free, manifest)
        self.collect()

    def pending(
        self, shards: Collection[int] | None = None, *, help_others: bool | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yields shard number and item of everything that is for this process to do, in order.

        First its own shards, those of number `k` modulo `K`; then, where it helps, what others have
        not committed, in an order of its own, so that two helpers seldom meet.

        Args:
          shards: only these.
          help_others: for these shards, instead of the setting of the whole run.
        """
        committed = self._committed()
        process, processes, helps = self._place
        asked = range(self._shards) if shards is None else sorted(shards)
        for shard in asked:
            if shard % processes == process and shard not in committed:
                yield from ((shard, item) for item in self._rows(shard))
        if not (helps if help_others is None else help_others) or processes == 1:
            return
        # Looked up again: others have gone on while this process did its own.
        left = sorted({s for s in asked if s % processes != process} - self._committed())
        random.Random(process).shuffle(left)
        for shard in left:
            if not self.committed(shard):
                yield from ((shard, item) for item in self._rows(shard))

    def done(self) -> int:
        """Returns the number of items in committed shards."""
        return sum(len(self._rows(shard)) for shard in self._committed())

    def committed(self, shard: int) -> bool:
        """Returns whether a shard is final."""
        return self._stem(shard).with_suffix(".json").is_file()

    def complete(self) -> bool:
        """Returns whether every shard is final."""
        return len(self._committed()) == self._shards

    def commit(self, shard: int, arrays: Mapping[str, np.ndarray], record: Record) -> bool:
        """Makes a shard final: `record` holds `items`, `rows` and `errors`.

        Returns whether it was this call that did; of several processes one commits a shard.
        """
        return commit.write_shard(self._stem(shard), arrays, {"shard": shard, **record})

    def collect(self, named: Mapping[int, str] | None = None) -> None:
        """Removes what writers that died left behind, and no other file."""
        for folder in (self.out, self.out / "shards", self.out / "report"):
            commit.collect(folder, named if folder.name == "shards" else None)

    def read(self, shard: int) -> tuple[Record, dict[str, np.ndarray]]:
        """Returns record and arrays of a committed shard."""
        return commit.read_shard(self._stem(shard))

    def ended(self, items: int) -> tuple[int, int] | None:
        """Finishes the run where every shard is final.

        Args:
          items: of the run.
        Returns:
          how many of the items failed, and their number; None where others have not finished.
        """
        return (self.finish()[1], items) if self.complete() else None

    def finish(self) -> tuple[int, int]:
        """Writes results.jsonl and errors.jsonl from the records; returns their numbers of rows."""
        counts: list[int] = []
        named: dict[int, str] = {}
        for name, field in (("results.jsonl", "rows"), ("errors.jsonl", "errors")):
            count = 0

            def lines(field: str = field) -> Iterator[bytes]:
                nonlocal count
                # In the order of the manifest, whoever committed which: the files are the same for
                # any number of processes.
                stems = map(self._stem, range(self._shards))
                for shard, record in enumerate(commit.read_records(stems)):
                    named[shard] = record["npz"]
                    for row in record[field]:
                        count += 1
                        yield json.dumps(row, allow_nan=False).encode() + b"\n"

            store.put_parts(self.out / name, lines())
            counts.append(count)
        self.collect(named)
        return counts[0], counts[1]

    def first_error(self) -> str:
        """Returns the first row of errors.jsonl as `id: error`."""
        with (self.out / "errors.jsonl").open() as file:
            row = json.loads(file.readline())
        return f"{row['id']}: {row['error']}"

    def _rows(self, shard: int) -> Sequence[Any]:
        return self.manifest.items[shard * self._size : (shard + 1) * self._size]

    def _committed(self) -> set[int]:
        """Returns the numbers of the shards that have a record."""
        # One listing, not a question a shard: there may be hundreds of thousands.
        names = store.names(self.out / "shards")
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return {int(stem) for stem in stems if stem.isdecimal() and int(stem) < self._shards}

    def _stem(self, shard: int) -> store.Path:
        return self.out / "shards" / f"{shard:06d}"


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "numpy", "pillow", "perturb-dissect"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "source tree"
    return found


def _same(name: str, before: Any, now: Any) -> bool:
    """Equality; answers are measured and may differ a little from device to device."""
    if name != "answers" or not before or not now or len(before) != len(now):
        found: bool = before == now
        return found
    return bool(np.allclose(before, now, rtol=0, atol=ANSWERS * max(map(abs, now))))


def _refuse_other(
    path: store.Path, asked: Record, free: Collection[str], manifest: Manifest
) -> None:
    try:
        before = json.loads(path.read_bytes())
        pairs = [
            *((f"--{name}", name, "flags") for name in asked["flags"] if name not in free),
            *((name, name, "model") for name in sorted(asked["model"], key=MEASURED.__contains__)),
        ]
        differ = [
            label
            if name in MEASURED
            else f"{label} ({_brief(before[group].get(name))} there, {_brief(asked[group][name])} "
            "now)"
            for label, name, group in pairs
            if not _same(name, before[group].get(name), asked[group][name])
        ]
        if before["manifest"] != asked["manifest"]:
            differ.append(_first_other(path.parent / "manifest.jsonl", manifest))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a record of this program's runs") from error
    moved = _moved(before.get("machine"), asked["machine"])
    if moved and asked["flags"].get("reproducible"):
        differ.append(f"{moved}, where masks are close but not the same bits")
    if differ:
        more = [f"and {len(differ) - 3} more"] if len(differ) > 3 else []
        raise ValueError(
            f"--out={path.parent} holds another run: {'; '.join([*differ[:3], *more])}. "
            "Give another folder, or repeat the first command to continue it"
        )
    if before["shard_rows"] != asked["shard_rows"]:
        raise ValueError(f"--out={path.parent} was begun by another version: give another folder")
    if moved:
        logging.warning(
            "%s: %s; what is done here is close to what was done there, not the same bits",
            path.parent,
            moved,
        )


def _moved(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """Says how the machine of a run differs from this one; "" where not, or where none was
    recorded.
    """
    if not before or before == now:
        return ""
    other = [name for name in now if before.get(name) != now[name]]
    ways = ", ".join(f"{name} {before.get(name)} there, {now[name]} now" for name in other)
    return f"the kind of machine ({ways})"


def _brief(value: object) -> str:
    # Of weights from the Hub the revision says it all.
    text = str(value.get("revision", value) if isinstance(value, dict) else value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _first_other(path: store.Path, manifest: Manifest) -> str:
    """Says how the first row of the manifest that differs reads there and now."""
    there = path.read_bytes().splitlines()
    rows = itertools.zip_longest(map(json.loads, there), (item.row() for item in manifest.items))
    before, now = next(((a or {}, b or {}) for a, b in rows if a != b), ({}, {}))
    counts = f"{len(there)} there, {len(manifest.items)} now"
    if "path" not in (before | now):
        return f"passes over latents ({counts})"
    if before.get("path") != now.get("path"):
        first = min(row["path"] for row in (before, now) if row)
        return f"the pictures ({counts}; the first that differs: {first})"
    other = [name for name in before | now if before.get(name) != now.get(name)]
    ways = ", ".join(f"{name} {before.get(name)} there, {now.get(name)} now" for name in other)
    hint = (
        "; copied with their times, as by cp -p, they are the same" if other == ["changed"] else ""
    )
    return f"the pictures ({now['path']}: {ways}{hint})"
