"""Files of a finished run of masks for other programs: a table, and a drawing a mask."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from launch import results
from launch.job import store
from launch.report import pictures

__all__ = ["KINDS", "write"]

KINDS = ("csv", "overlays")
# The columns of results.csv; what a run does not have is empty.
_COLUMNS = (
    *("id", "image", "target", "target_name", "area", "achieved_area", "count", "status"),
    *(f"score_{part}" for part in results.PARTS),
    *(f"probability_{part}" for part in results.PARTS),
    "agreement",
    *("verdict", "reasons", "gain", "transfer_ratio", "control_percentile", "sufficient_area"),
)


def write(out: store.Path, kinds: Sequence[str]) -> list[store.Path]:
    """Writes results.csv, and overlays/*.png, as asked; returns what was written.

    Args:
      out: the folder of a finished run.
      kinds: of `KINDS`.
    """
    written = []
    if "csv" in kinds:
        store.put(out / "results.csv", _table(out))
        written.append(out / "results.csv")
    if "overlays" in kinds:
        folder = out / "overlays"
        folder.mkdir(exist_ok=True)
        # A shard at a time: the masks of a whole run need not fit into memory.
        for place, record in enumerate(results.records(out)):
            if "masks" not in record:
                raise ValueError("--export=overlays draws regions: --method=channels has none")
            image = pictures.decode(record["image"])
            for mask, row in zip(record["masks"], record["rows"], strict=True):
                path = folder / _name(place, row)
                store.put(path, pictures.png(pictures.overlay(image, mask)))
                written.append(path)
    return written


def _name(place: int, row: dict[str, Any]) -> str:
    """A file name that sorts as the run and holds no character of a stranger's choosing."""
    # The end of a long name is kept: pictures of a series differ there.
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", row["image"].rsplit(".", 1)[0])[-60:]
    return f"{place:06d}-{stem}-{100 * (row['achieved_area'] or 0):.3g}.png"


def _table(out: store.Path) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    # The summaries leave the masks unread, which are most of a run's bytes.
    for _, _, _, rows in results.summaries(out):
        for row in rows:
            found = row["evidence"]
            writer.writerow({**row, **found, "reasons": "; ".join(found["reasons"])})
    return buffer.getvalue().encode()
