"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder.

A shard is an `.npz` of arrays, named by its content, and a `.json` record that names it. The record is
put in place last and only where there is none, so that of several who compute a shard one commits it;
a shard without its record was never committed and is computed again.

Temporary files carry a name of our own and a lock as long as their writer lives; nothing else is ever
collected.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import platform
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from launch.job import faults

__all__ = ["collect", "read_record", "read_shard", "write", "write_lines", "write_shard"]

BUFFER = 1 << 20
STALE = 3600.0  # seconds after which a temporary file of another machine has no writer
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-[0-9a-f]{32}")
_ARRAYS = re.compile(r"(?P<shard>[0-9]{6,})-[0-9a-f]{12}\.npz")
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)
_NO_LINK = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def write(path: pathlib.Path, data: bytes, *, once: bool = False) -> bool:
    """Puts `data` at `path`; after a crash at any moment the old file or the new one is there.

    Args:
      once: leave a file that is already there alone.
    Returns:
      whether it was put there: False only with `once`.
    Raises:
      OSError: if the disk is full or read-only, or stays in error; nothing but the old file is left.
    """
    return faults.retried(lambda: write_lines(path, [data], once=once))


def write_lines(path: pathlib.Path, parts: Iterable[bytes], *, once: bool = False) -> bool:
    """The same for data that comes in parts and need not fit into memory; one attempt."""
    temporary, descriptor = _temporary(path.parent)
    try:
        try:
            pending = bytearray()
            for part in parts:
                pending += part
                if len(pending) >= BUFFER:
                    _write(descriptor, pending)
                    pending = bytearray()
            _write(descriptor, pending)
            os.fsync(descriptor)
            placed = _place(temporary, path, once)
        finally:
            os.close(descriptor)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    # The rename itself is on the disk only once the folder is.
    _sync_folder(path.parent)
    return placed


def write_shard(
    stem: pathlib.Path, arrays: Mapping[str, np.ndarray], record: dict[str, Any]
) -> bool:
    """Commits the arrays and the record of a shard; returns whether it was this call that did.

    The record becomes `stem.json`; if there is one already, that one stands and nothing is left behind.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    place = stem.parent / f"{stem.name}-{digest[:12]}.npz"
    write(place, data)
    record = {**record, "npz": place.name, "npz_sha256": digest}
    record["record_sha256"] = _record_digest(record)
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    if write(stem.with_suffix(".json"), line, once=True):
        return True
    if read_record(stem)["npz"] != place.name:
        place.unlink(missing_ok=True)
    return False


def read_record(stem: pathlib.Path) -> dict[str, Any]:
    """Returns the record of a committed shard.

    Raises:
      ValueError: if it is not the one that was committed.
    """
    path = stem.with_suffix(".json")
    data = faults.retried(path.read_bytes)
    try:
        record = json.loads(data)
        sound = record["record_sha256"] == _record_digest(record)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise _damaged(path, path)
    return record


def read_shard(
    stem: pathlib.Path, *, arrays: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the record and, if asked, the arrays of a committed shard.

    Raises:
      ValueError: if they are not the ones that were committed.
    """
    record = read_record(stem)
    if not arrays:
        return record, {}
    path = stem.parent / record["npz"]
    data = faults.retried(path.read_bytes)
    if hashlib.sha256(data).hexdigest() != record["npz_sha256"]:
        raise _damaged(path, stem.with_suffix(".json"))
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return record, {name: file[name] for name in file.files}


def collect(where: pathlib.Path, named: Mapping[int, str] | None = None) -> int:
    """Removes what writers that died have left in a folder; returns how many files.

    Args:
      named: the arrays of every committed shard by its number: others of these shards lost a race.
    """
    if not where.is_dir():
        return 0
    count = 0
    with os.scandir(where) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        arrays = _ARRAYS.fullmatch(name)
        lost = arrays and named and named.get(int(arrays["shard"]), name) != name
        if lost or _abandoned(where / name):
            count += _remove(where / name)
    return count


def _temporary(where: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Returns a new file under a name of our own, locked."""
    while True:
        path = where / f".tmp-{_HOST}-{uuid.uuid4().hex}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        _lock(descriptor)
        # Between the two calls someone may have taken it for a leftover.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def _abandoned(path: pathlib.Path) -> bool:
    """Returns whether `path` is a temporary file of ours whose writer is gone."""
    match = _TEMPORARY.fullmatch(path.name)
    if not match:
        return False
    try:
        # Not every network disk passes locks on to other machines.
        if match["host"] != _HOST and time.time() - path.stat().st_mtime < STALE:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LINK or error.errno == errno.ENOLCK
    return True


def _write(descriptor: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _place(temporary: pathlib.Path, path: pathlib.Path, once: bool) -> bool:
    if once:
        # A link, unlike a rename, fails where there is a file.
        try:
            os.link(temporary, path)
        except FileExistsError:
            os.unlink(temporary)
            return False
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            if path.exists():  # a disk without links: the narrowest window there is
                os.unlink(temporary)
                return False
        else:
            os.unlink(temporary)
            return True
    os.replace(temporary, path)
    return True


def _sync_folder(where: pathlib.Path) -> None:
    descriptor = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _remove(path: pathlib.Path) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _record_digest(record: Mapping[str, Any]) -> str:
    body = {k: v for k, v in record.items() if k != "record_sha256"}
    return hashlib.sha256(json.dumps(body, allow_nan=False).encode()).hexdigest()


def _damaged(path: pathlib.Path, record: pathlib.Path) -> ValueError:
    return ValueError(
        f"{path} was changed or damaged after it was written: delete {record} and repeat the run "
        "to compute it again"
    )
