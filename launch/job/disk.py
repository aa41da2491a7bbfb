"""Files on a disk that are either whole or not there: temporary name, fsync, rename, fsync of the
folder.

Temporary files carry a name of our own and a lock as long as their writer lives; nothing else is
ever taken for a leftover.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pathlib
import platform
import re
import time
import uuid
from collections.abc import Iterable

__all__ = ["abandoned", "names", "put", "remove", "writable"]

BUFFER = 1 << 20
STALE = 3600.0  # seconds after which a temporary file of another machine has no writer
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-[0-9a-f]{32}")
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)
_NO_LINK = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def put(path: pathlib.Path, parts: Iterable[bytes], once: bool) -> bool:
    """Writes a file; after a crash at any moment the old one or the new one is there."""
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
            # Before the rename: else after a crash the new name could stand on an empty file.
            os.fsync(descriptor)
            placed = _place(temporary, path, once)
        finally:
            os.close(descriptor)
    except BaseException as error:
        remove(temporary)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    # The rename itself is on the disk only once the folder is.
    _sync_folder(path.parent)
    return placed


def names(folder: pathlib.Path) -> list[str]:
    """Returns the names in a folder; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def abandoned(path: pathlib.Path) -> bool:
    """Returns whether `path` is a temporary file of ours whose writer is gone."""
    match = _TEMPORARY.fullmatch(path.name)
    if not match:
        return False
    try:
        young = time.time() - path.stat().st_mtime < STALE
        # Not every network disk passes locks on to other machines.
        if match["host"] != _HOST and young:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        locked = _lock(descriptor)
    finally:
        os.close(descriptor)
    # On a disk that knows no locks a writer may be alive: age alone tells.
    return not young if locked is None else locked


def remove(path: pathlib.Path) -> bool:
    """Removes a file; returns whether there was one."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def writable(folder: pathlib.Path) -> None:
    """Creates the folder and raises `OSError` if nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    probe, descriptor = _temporary(folder)
    os.close(descriptor)
    probe.unlink()


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


def _lock(descriptor: int) -> bool | None:
    """Returns whether the lock could be had; None on a disk that knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _NO_LINK or error.errno == errno.ENOLCK else False
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
