"""Where the files of a job lie: a disk, or an object store; the same few functions for both.

A path is a `pathlib.Path`, or an `Address` like `gs://bucket/run`, which fsspec reads and writes.
On a disk a file is put by `launch.job.disk`. In a store an object is put by one request, which is
there as a whole or not at all, and `once` asks the store itself to refuse a second one (GCS:
if-generation-match; S3: If-None-Match; Azure: no overwrite), so that of several writers one wins.
Where a store knows no such condition, what stands between looking and writing is one request.

>>> path("memory://bucket/run") / "shards" / "000000.json"
Address(text='memory://bucket/run/shards/000000.json')
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from launch.job import clients, disk, faults, pages
from perturb.types import Options

__all__ = [
    "Address",
    "Entry",
    "Path",
    "abandoned",
    "find",
    "fixed_part",
    "join",
    "look",
    "names",
    "path",
    "put",
    "put_parts",
    "read",
    "remove",
    "writable",
]

# Stores that put an object as a whole; others would show readers half of one.
WHOLE = ("abfs", "abfss", "az", "gcs", "gs", "memory", "s3", "s3a")
DISK = ("file", "local")  # fsspec's names of what `launch.job.disk` does with more care
SPOOL = 32 << 20  # bytes that an upload holds in memory; more goes through a nameless local file
# How a store says that an object is another one: first what follows its content alone.
_VERSIONS = ("md5Hash", "ETag", "etag", "generation")
_TIMES = ("mtime", "LastModified", "last_modified", "created")


@dataclasses.dataclass(frozen=True)
class Address:
    """A place in an object store, with the methods of `pathlib.Path` that a job needs.

    Attributes:
      text: `scheme://bucket/key`.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.text.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """The place above."""
        return Address(self.text.rstrip("/").rpartition("/")[0])

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return pathlib.PurePosixPath(self.name).suffix

    def with_suffix(self, suffix: str) -> Address:
        """Returns the address with another end of the name."""
        return self.parent / pathlib.PurePosixPath(self.name).with_suffix(suffix).name

    def is_file(self) -> bool:
        """Returns whether there is an object."""
        # Not fsspec's `isfile`, which takes any error, a busy store's too, for "there is none".
        try:
            look(self)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Returns whether there are objects below."""
        return next(_pages(self.text, flat=True, below=True), None) is not None

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a store has no folders."""

    def read_bytes(self) -> bytes:
        """Returns the object."""
        return bytes(clients.asked(self.text, lambda system: system.cat_file(self.text)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the object as text."""
        return self.read_bytes().decode(encoding)

    def open(
        self, mode: str = "r", *, newline: str | None = None, encoding: str = "utf-8"
    ) -> IO[Any]:
        """Opens the object for reading."""
        more = {} if "b" in mode else {"newline": newline, "encoding": encoding}
        return clients.asked(self.text, lambda system: system.open(self.text, mode, **more))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        try:
            clients.asked(self.text, lambda system: system.rm_file(self.text))
        except FileNotFoundError:
            if not missing_ok:
                raise


Path = pathlib.Path | Address


class Entry(NamedTuple):
    """An object that was found.

    Attributes:
      path: relative to where was searched.      size: in bytes.
      version: its hash or etag; the time of its last change in seconds since 1970 where it has
        none.
    """

    path: str
    size: int
    version: str | int


def path(where: str | os.PathLike[str] | Address) -> Path:
    """Returns the path of a file or folder, or the address in a store.

    Raises:
      ValueError: if no such kind of store is known, or what it needs is not installed.
    """
    if isinstance(where, Address):
        return where
    text = os.fspath(where)
    scheme, mark, rest = text.partition("://")
    if not mark or isinstance(where, pathlib.PurePath):
        return pathlib.Path(text).expanduser()
    if scheme in DISK:
        return pathlib.Path(rest)
    clients.system(text)
    return Address(text)


def join(root: Path, name: str) -> Path:
    """Returns `root / name`, or `name` itself where that is an address or an absolute path."""
    return path(name) if "://" in name else root / name


def put(where: Path, data: bytes, once: bool = False) -> bool:
    """Writes a file or an object; after a crash at any moment the old one or the new one is there.

    Args:
      once: leave what is already there alone.
    Returns:
      whether it was written: False only with `once`.
    Raises:
      OSError: if the disk is full or read-only, or stays in error after errors that pass were
        waited for; nothing but what was there before is left.
    """
    if isinstance(where, Address):
        return put_parts(where, [data], once)
    # The whole of it again: a write that failed half-way has left nothing under its name.
    return faults.retried(lambda: disk.put(where, [data], once))


def put_parts(where: Path, parts: Iterable[bytes], once: bool = False) -> bool:
    """The same for data that comes in parts and need not fit into memory; to a disk in one
    attempt.
    """
    if not isinstance(where, Address):
        # Parts come from an iterator, which cannot be asked a second time.
        return disk.put(where, parts, once)
    mode = "create" if once else "overwrite"
    # Collected first: a condition on an object needs one request, and a request may have to
    # be repeated.
    with tempfile.SpooledTemporaryFile(SPOOL) as file:
        for part in parts:
            file.write(part)
        size = file.tell()

        def upload(system: Any) -> None:
            # A second try has to send everything again.
            file.seek(0)
            if size <= SPOOL:
                system.pipe_file(where.text, file.read(), mode=mode)
            else:
                # By its number: a file without a name is gone with the process, however that ends.
                system.put_file(f"/dev/fd/{file.fileno()}", where.text, mode=mode)

        try:
            clients.asked(where.text, upload)
        except FileExistsError:
            if not once:
                raise
            return False
    return True


def read(where: Path) -> bytes:
    """Returns a file or an object; errors that pass are waited for."""
    return where.read_bytes() if isinstance(where, Address) else faults.retried(where.read_bytes)


def names(folder: Path) -> list[str]:
    """Returns the names in a folder; none where there is no folder."""
    if not isinstance(folder, Address):
        return disk.names(folder)
    return [key.rstrip("/") for key, _ in _pages(folder.text, flat=False, below=True) if key]


def abandoned(where: Path) -> bool:
    """Returns whether this is a temporary file of ours whose writer is gone; a store has none."""
    return not isinstance(where, Address) and disk.abandoned(where)


def remove(where: Path) -> bool:
    """Removes a file; returns whether there was one."""
    if not isinstance(where, Address):
        return disk.remove(where)
    try:
        where.unlink()
    except clients.Busy:
        raise
    except OSError:
        return False
    return True


def writable(folder: Path) -> None:
    """Creates the folder and raises `OSError` if nothing can be written there.

    Of a store only that it answers: an object written as a test could stay behind.
    """
    if not isinstance(folder, Address):
        return disk.writable(folder)
    if folder.text.partition("://")[0] not in WHOLE:
        raise ValueError(
            f"--out={folder}: results go to a disk or to a store that puts an object as a whole "
            f"({', '.join(f'{name}://' for name in WHOLE)})"
        )
    names(folder)


def find(where: Address, *, pattern: bool = False) -> Iterator[Entry]:
    """Yields the objects below `where`; with `pattern`, those that a glob matches, from its last
    fixed part on.
    """
    if not pattern:
        yield from _entries(_pages(where.text, flat=True, below=True))
        return
    from fsspec import utils

    above = fixed_part(where)
    asked = where.text[len(above.text) + 1 :]
    matches = re.compile(utils.glob_translate(asked)).match
    # The store looks for what stands before the first wildcard, and where that is in the last part,
    # in one folder.
    start = re.split(r"[*?\[]", asked, maxsplit=1)[0]
    found = _pages(f"{above.text}/{start}", flat="/" in asked, below=False)
    for entry in _entries((start + key, info) for key, info in found):
        if matches(entry.path):
            yield entry


def _entries(found: Iterable[tuple[str, Options]]) -> Iterator[Entry]:
    for key, info in found:
        if key and not key.endswith("/"):
            yield Entry(key, int(info.get("size") or 0), _version(info))


def _pages(text: str, *, flat: bool, below: bool) -> Iterator[tuple[str, Options]]:
    """Yields name after `text` and what is said of each object; nothing where no bucket is.

    Args:
      flat: all that lies below, else one level, where folders end with "/".
      below: `text` is a folder, else the beginning of names.
    """
    mark = None
    while True:
        try:
            found, mark = clients.asked(text, functools.partial(_page, text, flat, below, mark))
        except FileNotFoundError:
            return
        yield from found
        if mark is None:
            return


def _page(
    text: str, flat: bool, below: bool, mark: Any, system: Any
) -> tuple[list[tuple[str, Options]], Any]:
    bucket, _, prefix = str(system._strip_protocol(text)).lstrip("/").partition("/")
    prefix = prefix.rstrip("/")
    if prefix and (below or text.endswith("/")):
        prefix += "/"
    found, mark = pages.page(system, bucket, prefix, flat=flat, mark=mark)
    return [(one.key[len(prefix) :], one.info) for one in found], mark


def look(where: Path) -> Entry:
    """Returns the entry of one file or object, under its name.

    Raises:
      OSError: if there is none.
    """
    if not isinstance(where, Address):
        found = where.stat()
        return Entry(where.name, found.st_size, int(found.st_mtime))
    info = clients.asked(where.text, lambda system: system.info(where.text))
    if info.get("type") != "file":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where.text)
    return Entry(where.name, int(info.get("size") or 0), _version(info))


def fixed_part(pattern: Address) -> Address:
    """Returns the part of a glob above its first wildcard.

    >>> str(fixed_part(Address("gs://bucket/a/b*/c.png")))
    'gs://bucket/a'
    """
    scheme, _, rest = pattern.text.partition("://")
    fixed: list[str] = []
    for part in rest.split("/")[:-1]:
        if any(mark in part for mark in "*?["):
            break
        fixed.append(part)
    return Address(f"{scheme}://{'/'.join(fixed)}")


def _version(info: Options) -> str | int:
    for name in _VERSIONS:
        if info.get(name):
            return str(info[name]).strip('"')
    for name in _TIMES:
        value = info.get(name)
        if value:
            return int(value.timestamp() if hasattr(value, "timestamp") else value)
    return 0
