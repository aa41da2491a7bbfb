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

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, TypeVar

from launch.job import disk, faults
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


T = TypeVar("T")


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
        return bool(_asked(self.text, lambda system: system.isfile(self.text)))

    def is_dir(self) -> bool:
        """Returns whether there are objects below."""
        return bool(_asked(self.text, lambda system: system.isdir(self.text)))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a store has no folders."""

    def read_bytes(self) -> bytes:
        """Returns the object."""
        return bytes(_asked(self.text, lambda system: system.cat_file(self.text)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the object as text."""
        return self.read_bytes().decode(encoding)

    def open(
        self, mode: str = "r", *, newline: str | None = None, encoding: str = "utf-8"
    ) -> IO[Any]:
        """Opens the object for reading."""
        more = {} if "b" in mode else {"newline": newline, "encoding": encoding}
        return _asked(self.text, lambda system: system.open(self.text, mode, **more))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        try:
            _asked(self.text, lambda system: system.rm_file(self.text))
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
    _system(text)
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
            _asked(where.text, upload)
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
    try:
        found = _asked(folder.text, lambda system: system.ls(folder.text, detail=False))
    except FileNotFoundError:
        return []
    return [name.rstrip("/").rpartition("/")[2] for name in found]


def abandoned(where: Path) -> bool:
    """Returns whether this is a temporary file of ours whose writer is gone; a store has none."""
    return not isinstance(where, Address) and disk.abandoned(where)


def remove(where: Path) -> bool:
    """Removes a file; returns whether there was one."""
    if not isinstance(where, Address):
        return disk.remove(where)
    try:
        where.unlink()
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
    call = "glob" if pattern else "find"
    found = _asked(where.text, lambda system: getattr(system, call)(where.text, detail=True))
    # Names come back with the bucket but without the scheme: what is cut off is found by
    # fsspec itself.
    above = fixed_part(where) if pattern else where
    root = str(_system(where.text)._strip_protocol(above.text)).rstrip("/")
    for name, info in found.items():
        if info.get("type") == "file" and name.startswith(f"{root}/"):
            yield Entry(name[len(root) + 1 :], int(info.get("size") or 0), _version(info))


def look(where: Path) -> Entry:
    """Returns the entry of one file or object, under its name.

    Raises:
      OSError: if there is none.
    """
    if not isinstance(where, Address):
        found = where.stat()
        return Entry(where.name, found.st_size, int(found.st_mtime))
    info = _asked(where.text, lambda system: system.info(where.text))
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


def _system(text: str) -> Any:
    """Returns the file system of an address."""
    return _opened(text.partition("://")[0])


@functools.cache
def _opened(scheme: str) -> Any:
    try:
        import fsspec

        # Others write there too: what was listed before says nothing.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs more than is installed ({error}): pip install gcsfs for gs://, "
            "s3fs for s3://, adlfs for az://"
        ) from error
    except ValueError as error:
        raise ValueError(f"{scheme}:// is no kind of store that is known ({error})") from error


def _asked(text: str, call: Callable[[Any], T]) -> T:
    """Returns what a call to the file system of an address gives; errors that pass are waited
    for.
    """

    def once() -> T:
        with _named(text):
            return call(_system(text))

    return faults.retried(once)


@contextlib.contextmanager
def _named(text: str) -> Iterator[None]:
    """Turns whatever a store's client raises into an `OSError` with a number and the address."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise
        # Clients raise the right class without a number; everything beyond this file goes
        # by numbers.
        code = error.errno or next((n for kind, n in _KINDS if isinstance(error, kind)), errno.EIO)
        words = str(error) if code == errno.EIO and str(error) else os.strerror(code)
        raise OSError(code, words, text) from error
    except Exception as error:
        words = " ".join(str(error).split())
        # Whatever else a client raises counts as an error that may pass, and is tried again.
        raise OSError(errno.EIO, f"{type(error).__name__}: {words}"[:300], text) from error


_KINDS = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (IsADirectoryError, errno.EISDIR),
    (TimeoutError, errno.ETIMEDOUT),
)
