"""Columns of a list by their names, however people spell them: `Path`, ` target`, `label`,
`class`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["BOXES", "PICTURES", "read"]

# Names of a column, the documented one first.
PICTURES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "filename", "file_name", "image", "image_path", "filepath", "file_path"),
    "target": (
        *("target", "label", "class", "class_index", "class_id", "class_name"),
        *("targets", "labels", "classes", "label_id", "category", "y"),
    ),
}
BOXES: Mapping[str, tuple[str, ...]] = {
    "file": ("file", "path", "filename", "file_name", "image", "image_path", "imageid", "image_id"),
    **{name: (name,) for name in ("xmin", "ymin", "xmax", "ymax")},
}


def read(
    lines: Iterable[str], known: Mapping[str, tuple[str, ...]], *, optional: str = ""
) -> Iterator[dict[str, str | None]]:
    """Yields the rows of a list, under the names of `known`.

    Args:
      lines: of the file, the header first.
      known: names of each column.
      optional: the column that may be missing, where the list has no column besides the others.
    Raises:
      ValueError: if a column is missing, or two may be meant; without the rest of the sentence that
        names the file.

    >>> list(read(["Path, Label", "a.png, 3"], PICTURES, optional="target"))
    [{'path': 'a.png', 'target': '3'}]
    """
    reader = csv.reader(lines, skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    folded = [name.casefold().replace(" ", "_").replace("-", "_") for name in header]
    places: dict[str, int | None] = {}
    for column, names in known.items():
        found = [i for i, name in enumerate(folded) if name in names]
        # The documented name wins over the others that a list may have beside it.
        if len(found) > 1 and folded.count(column) == 1:
            found = [folded.index(column)]
        if len(found) > 1:
            two = " and ".join(header[i] for i in found[:2])
            raise ValueError(f"columns {two} may both be the {column}: rename one to {column}")
        places[column] = found[0] if found else None
    missing = [column for column, place in places.items() if place is None]
    spare = [name for i, name in enumerate(header) if i not in places.values() and name]
    # Without the optional column a list has one only: with others beside it the name is misspelt.
    if missing and (missing != [optional] or spare):
        shown = ",".join(header)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        from perturb.messages import did_you_mean  # which brings JAX: a list is read without it

        near = did_you_mean(missing[0], spare) if spare else ""
        others = ", ".join(known[missing[0]][1:4])
        raise ValueError(
            f"the first line must be {','.join(known)}, got {shown!r}: no column is called "
            f"{missing[0]}{f' (or {others}, ...)' if others else ''}{near}"
        )
    for row in reader:
        if row:
            yield {
                c: row[p].strip() if p is not None and p < len(row) else None
                for c, p in places.items()
            }
