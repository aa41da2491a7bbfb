"""The list of what a run works on: fixed at the start, sorted, and the same on every machine.

A row is a picture and, where a list gives one, a target; or, where a generator draws the pictures,
a range of latents, which are known by their index. Paths are relative to `root`, so a folder may
be moved between two runs; sizes and times of change are recorded, contents are hashed when they are
decoded.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Item", "Manifest", "Part", "Rows", "parts"]

BLOCK = 256  # lines that are packed together, some 20 KB


class Item(NamedTuple):
    """A row of the manifest.

    Attributes:
      path: relative to the root.      size: in bytes, -1 where there is no such file.
      target: of a list, or None.
      changed: time of the last change in seconds since 1970; in a store its hash or etag.
    """

    path: str
    size: int
    target: str | None = None
    changed: int | str = 0

    def row(self) -> dict[str, object]:
        """Returns the row as it is written."""
        row: dict[str, object] = {"path": self.path, "size": self.size, "changed": self.changed}
        return row if self.target is None else {**row, "target": self.target}


class Part(NamedTuple):
    """A row of the manifest: the latents `start` to `stop - 1` in one pass of a run."""

    stage: str
    start: int
    stop: int

    def row(self) -> dict[str, object]:
        """Returns the row as it is written."""
        return self._asdict()


class Rows(Sequence[Item]):
    """Items as packed lines of the manifest, a tenth of the memory of as many tuples.

    Args:
      items: in the order of their paths, or, if not, all are held once while they are sorted.

    >>> rows = Rows([Item("b.png", 3, None, "etag"), Item("a.png", 2)])
    >>> len(rows), rows[0].path, [item.size for item in rows[:5]]
    (2, 'a.png', [2, 3])
    """

    def __init__(self, items: Iterable[Item]):
        self._blocks: list[bytes] = []
        self._count = 0
        # The block that was read last: a job goes through its rows in order, shard by shard.
        self._last: tuple[int, list[bytes]] = (-1, [])
        lines: list[bytes] = []
        last, sorted_ = "", True
        for item in items:
            sorted_ = sorted_ and last <= item.path
            last = item.path
            lines.append(_line(item))
            self._count += 1
            if len(lines) == BLOCK:
                self._blocks.append(_packed(lines))
                lines = []
        if lines:
            self._blocks.append(_packed(lines))
        if not sorted_:
            self.__init__(sorted(self, key=lambda item: item.path))  # type: ignore[misc]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """Returns the item of a number, or a tuple of the items of a slice."""
        if isinstance(index, slice):
            return tuple(map(self._item, range(*index.indices(len(self)))))
        return self._item(range(len(self))[index])

    def __iter__(self) -> Iterator[Item]:
        return map(_read, self.lines())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def lines(self) -> Iterator[bytes]:
        """Yields the rows as they are written."""
        for block in self._blocks:
            yield from _unpacked(block)

    def _item(self, index: int) -> Item:
        number, at = divmod(index, BLOCK)
        # Read once and replaced as a whole, so that threads may ask for different rows.
        known, lines = self._last
        if known != number:
            lines = _unpacked(self._blocks[number])
            self._last = number, lines
        return _read(lines[at])


def _packed(lines: list[bytes]) -> bytes:
    # The fastest level: names beside each other are alike, and a hash in hex is half empty.
    return zlib.compress(b"".join(lines), 1)


def _unpacked(block: bytes) -> list[bytes]:
    return zlib.decompress(block).splitlines(keepends=True)


def _read(line: bytes) -> Item:
    return Item(**json.loads(line))


class Manifest(NamedTuple):
    """Sorted items below `root`, or the passes over latents in their order."""

    root: str
    items: Sequence[Any]

    def dump(self) -> bytes:
        """Returns the manifest as JSON lines; its hash identifies the work of a run."""
        return b"".join(self.lines())

    def lines(self) -> Iterator[bytes]:
        """Yields the manifest line by line."""
        return self.items.lines() if isinstance(self.items, Rows) else map(_line, self.items)

    def sha256(self) -> str:
        """Returns the SHA-256 of `dump()`, in hex."""
        digest = hashlib.sha256()
        # Line by line: a manifest of millions of rows need not be in memory twice.
        for line in self.lines():
            digest.update(line)
        return digest.hexdigest()


def _line(item: Any) -> bytes:
    # ASCII, for a file's name need not be valid UTF-8, and could not be written otherwise.
    return json.dumps(item.row(), ensure_ascii=True).encode() + b"\n"


def parts(stages: Sequence[tuple[str, int]], size: int) -> Manifest:
    """Returns the manifest of passes over latents: each `(stage, latents)` in parts of `size`.

    >>> [tuple(part) for part in parts([("count", 5), ("effect", 2)], 3).items]
    [('count', 0, 3), ('count', 3, 5), ('effect', 0, 2)]
    """
    return Manifest(
        "",
        tuple(
            Part(stage, start, min(start + size, total))
            for stage, total in stages
            # Parts begin at whole multiples whatever the machine: so are the shards, and
            # what is in them.
            for start in range(0, total, size)
        ),
    )
