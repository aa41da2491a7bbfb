"""The list of what a run works on: fixed at the start, sorted, and the same on every machine.

A row is a picture and, where a list gives one, a target; or, where a generator draws the pictures,
a range of latents, which are known by their index. Paths are relative to `root`, so a folder may
be moved between two runs; sizes and times of change are recorded, contents are hashed when they are
decoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Item", "Manifest", "Part", "parts"]


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


class Manifest(NamedTuple):
    """Sorted items below `root`, or the passes over latents in their order."""

    root: str
    items: tuple[Any, ...]

    def dump(self) -> bytes:
        """Returns the manifest as JSON lines; its hash identifies the work of a run."""
        return b"".join(self.lines())

    def lines(self) -> Iterator[bytes]:
        """Yields the manifest line by line."""
        for item in self.items:
            # ASCII, for a file's name need not be valid UTF-8, and could not be written otherwise.
            yield json.dumps(item.row(), ensure_ascii=True).encode() + b"\n"

    def sha256(self) -> str:
        """Returns the SHA-256 of `dump()`, in hex."""
        digest = hashlib.sha256()
        # Line by line: a manifest of millions of rows need not be in memory twice.
        for line in self.lines():
            digest.update(line)
        return digest.hexdigest()


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
