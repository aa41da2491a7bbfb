"""Shards that are either whole or not there, on a disk or in an object store.

A shard is an `.npz` of arrays, named by its content, and a `.json` record that names it. The record
is put in place last and only where there is none, so that of several who compute a shard one
commits it; a shard without its record was never committed and is computed again. How a file gets to
its place as a whole is `launch.job.store`'s business.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from launch.job import store
from launch.job.ahead import ahead
from perturb.types import Options, Record

__all__ = [
    "collect",
    "read_record",
    "read_records",
    "read_shard",
    "write_shard",
]

_ARRAYS = re.compile(r"(?P<shard>[0-9]{6,})-[0-9a-f]{12}\.npz")
READERS = (
    32  # records that are asked of a store at the same time; a disk answers faster than it is asked
)


def write_shard(stem: store.Path, arrays: Mapping[str, np.ndarray], record: Record) -> bool:
    """Commits the arrays and the record of a shard; returns whether it was this call that did.

    The record becomes `stem.json`; if there is one already, that one stands and nothing is left
    behind.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    # Named by its content: two writers of one shard never write to one file, and a reader of an old
    # record still finds the arrays that it names.
    digest = hashlib.sha256(data).hexdigest()
    place = stem.parent / f"{stem.name}-{digest[:12]}.npz"
    store.put(place, data)
    record = {**record, "npz": place.name, "npz_sha256": digest}
    record["record_sha256"] = _record_digest(record)
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    # The commit: until this file is there nothing was written, and only one writer can put
    # it there.
    if store.put(stem.with_suffix(".json"), line, once=True):
        return True
    # Lost the race. The arrays are removed, unless the winner's are the very same.
    if read_record(stem)["npz"] != place.name:
        store.remove(place)
    return False


def read_record(stem: store.Path) -> Record:
    """Returns the record of a committed shard.

    Raises:
      ValueError: if it is not the one that was committed.
    """
    path = stem.with_suffix(".json")
    data = store.read(path)
    try:
        record = json.loads(data)
        sound = record["record_sha256"] == _record_digest(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise _damaged(path, path)
    found: Record = record
    return found


def read_records(stems: Iterable[store.Path]) -> Iterator[Record]:
    """Yields the records of committed shards in order."""
    stems = list(stems)
    # A disk answers at once; a store takes some hundredths of a second a question.
    if not any(isinstance(stem, store.Address) for stem in stems[:1]):
        return map(read_record, stems)
    return ahead(read_record, stems, workers=READERS, window=4 * READERS)


def read_shard(stem: store.Path, *, arrays: bool = True) -> tuple[Record, dict[str, np.ndarray]]:
    """Returns the record and, if asked, the arrays of a committed shard.

    Raises:
      ValueError: if they are not the ones that were committed.
    """
    record = read_record(stem)
    if not arrays:
        return record, {}
    path = stem.parent / record["npz"]
    data = store.read(path)
    if hashlib.sha256(data).hexdigest() != record["npz_sha256"]:
        raise _damaged(path, stem.with_suffix(".json"))
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return record, {name: file[name] for name in file.files}


def collect(where: store.Path, named: Mapping[int, str] | None = None) -> int:
    """Removes what writers that died have left in a folder; returns how many files.

    Args:
      named: the arrays of every committed shard by its number: others of these shards lost a race.
    """
    count = 0
    for name in store.names(where):
        arrays = _ARRAYS.fullmatch(name)
        lost = arrays and named and named.get(int(arrays["shard"]), name) != name
        if lost or store.abandoned(where / name):
            count += store.remove(where / name)
    return count


def _record_digest(record: Options) -> str:
    # Of the record as JSON, without the digest itself: a byte that changed on the disk shows.
    body = {k: v for k, v in record.items() if k != "record_sha256"}
    return hashlib.sha256(json.dumps(body, allow_nan=False).encode()).hexdigest()


def _damaged(path: store.Path, record: store.Path) -> ValueError:
    return ValueError(
        f"{path} was changed or damaged after it was written: delete {record} and repeat the run "
        "to compute it again"
    )
