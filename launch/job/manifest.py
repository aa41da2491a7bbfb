"""The list of what a run works on: fixed at the start, sorted, and the same on every machine.

A row is a picture and, where a list gives one, a target; or, where a generator draws the pictures,
a range of latents, which are known by their index. Paths are relative to `root`, so a folder may
be moved between two runs; sizes and times of change are recorded, contents are hashed when they are
decoded.
"""

from __future__ import annotations

import array
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Item", "Manifest", "Part", "Rows", "parts"]


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
    """Items as the lines of the manifest, a third of the memory of as many tuples.

    Args:
      items: in the order of their paths, or, if not, all are held once while they are sorted.

    >>> rows = Rows([Item("b.png", 3, None, "etag"), Item("a.png", 2)])
    >>> len(rows), rows[0].path, [item.size for item in rows[:5]]
    (2, 'a.png', [2, 3])
    """

    def __init__(self, items: Iterable[Item]):
        self._text, self._ends = bytearray(), array.array("Q")
        last, sorted_ = "", True
        for item in items:
            sorted_ = sorted_ and last <= item.path
            last = item.path
            self._text += _line(item)
            self._ends.append(len(self._text))
        if not sorted_:
            self.__init__(sorted(self, key=lambda item: item.path))  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        """Returns the item of a number, or a tuple of the items of a slice."""
        if isinstance(index, slice):
            return tuple(map(self._item, range(*index.indices(len(self)))))
        return self._item(range(len(self))[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def lines(self) -> Iterator[bytes]:
        """Yields the rows as they are written."""
        return map(self._line, range(len(self)))

    def _line(self, index: int) -> bytes:
        return bytes(self._text[self._ends[index - 1] if index else 0 : self._ends[index]])

    def _item(self, index: int) -> Item:
        return Item(**json.loads(self._line(index)))


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
