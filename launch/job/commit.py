"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder.

A shard is an `.npz` of arrays and a `.json` record with the arrays' checksum. The record is written
last: a shard without its record was never committed and is computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["read_shard", "write", "write_lines", "write_shard"]


def write(path: pathlib.Path, data: bytes) -> None:
    """Puts `data` at `path`; after a crash at any moment the old file or the new one is there."""
    write_lines(path, [data])


def write_lines(path: pathlib.Path, parts: Iterable[bytes]) -> None:
    """The same for data that comes in parts and need not fit into memory."""
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself is on the disk only once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_shard(
    stem: pathlib.Path, arrays: Mapping[str, np.ndarray], record: dict[str, Any]
) -> None:
    """Commits the arrays and the record of a shard as `stem.npz` and `stem.json`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    write(stem.with_suffix(".npz"), data)
    record = {**record, "npz_sha256": hashlib.sha256(data).hexdigest()}
    write(stem.with_suffix(".json"), json.dumps(record, allow_nan=False).encode() + b"\n")


def read_shard(
    stem: pathlib.Path, *, arrays: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the record and, if asked, the arrays of a committed shard.

    Raises:
      ValueError: if the arrays are not the ones that were committed.
    """
    record = json.loads(stem.with_suffix(".json").read_bytes())
    if not arrays:
        return record, {}
    path = stem.with_suffix(".npz")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record["npz_sha256"]:
        raise ValueError(
            f"{path} was changed or damaged after it was written: delete "
            f"{stem.with_suffix('.json')} and repeat the run to compute it again"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return record, {name: file[name] for name in file.files}
