"""What is known of pictures from files: masks of concepts, label maps, or a table with a row a
picture.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

import perturb
from launch.inputs import images, regions

__all__ = ["Known", "Slices", "of_folder", "of_table"]

LABELLED = "labelled"  # the folder beside those of concepts that says where anything is known
NAMES = ("classes.json", "classes.txt")  # of the values of label maps
# Classes of a label map that say that nobody has looked.
NONE = frozenset({"", "unlabelled", "unlabeled", "void", "ignore", "ignored", "unknown"})
KEPT = 256 << 20  # bytes of one source that are kept, so that they are decoded once


class Slices:
    """Arrays of one picture each, read and stacked slice by slice; the first of them are kept."""

    def __init__(self, paths: Sequence[str], one: Callable[[str], np.ndarray]):
        self._paths, self._one = paths, one
        self._found: dict[str, np.ndarray] = {}
        self._left = KEPT

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, at: slice) -> np.ndarray:
        paths = self._paths[at]
        found = [self._read(path) for path in paths]
        for path, array in zip(paths, found, strict=True):
            if array.shape != found[0].shape:
                raise ValueError(
                    f"pictures must be of one size: {paths[0]} is {_size(found[0])}, {path} "
                    f"{_size(array)}; resize them, or give the model a geometry of fixed size"
                )
        return np.stack(found)

    def _read(self, path: str) -> np.ndarray:
        if path in self._found:
            return self._found[path]
        array = self._one(path)
        # Every network makes three passes; an array that is not kept is decoded in each of them.
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            self._found[path] = array
        return array


class Known(NamedTuple):
    """Concepts of pictures.

    Attributes:
      names: of the concepts.
      masks: slices `[B, H, W, K]`, where each concept is.
      labelled: slices `[B, H, W, K]` or `[B, H, W, 1]`, where that is known; None is everywhere.
      sha256: of the files, by name, size and time of change.
    """

    names: tuple[str, ...]
    masks: Slices
    labelled: Slices | None
    sha256: str


def of_folder(folder: pathlib.Path, paths: Sequence[str], model: perturb.Model) -> Known:
    """Masks CONCEPT/PICTURE.png, or label maps PICTURE.png.

    Raises:
      ValueError: if there is neither, or none is named like a picture.
    """
    below = sorted(p.name for p in folder.iterdir() if p.is_dir())
    names = tuple(n for n in below if n != LABELLED)
    if not names and any(folder.glob("*.png")):
        return _of_maps(folder, paths, model)
    if not names:
        raise ValueError(
            f"--concepts={folder}: neither folders CONCEPT with masks PICTURE.png nor label maps "
            "PICTURE.png in it"
        )
    files = {(n, path): _file(folder / n, path) for n in below for path in paths}
    if not any(files[n, path] for n in names for path in paths):
        raise _misnamed(folder, f"{names[0]}/", paths)

    def masks(asked: Sequence[str], path: str) -> np.ndarray:
        found = [_mask(f, model) if (f := files[n, path]) else None for n in asked]
        # A concept without a file is an empty mask, whose size the others or the model must tell.
        sizes = [m.shape for m in found if m is not None]
        if model.geometry and model.geometry.size:
            sizes.append(model.geometry.size)
        if not sizes:
            raise ValueError(
                f"--concepts: no mask of {path}, and its size is not known without one"
            )
        return np.stack([np.zeros(sizes[0], bool) if m is None else m for m in found], -1)

    labelled = None
    if LABELLED in below:
        labelled = Slices(paths, lambda path: masks([LABELLED], path))
    return Known(names, Slices(paths, lambda path: masks(names, path)), labelled, _digest(files))


def _of_maps(folder: pathlib.Path, paths: Sequence[str], model: perturb.Model) -> Known:
    """A number a pixel; those without a name, and 255, are not known."""
    named = {k: name for k, name in _values(folder).items() if name.casefold() not in NONE}
    files = {path: _file(folder, path) for path in paths}
    if not any(files.values()):
        raise _misnamed(folder, "", paths)
    values = np.array(sorted(named))

    @functools.lru_cache(maxsize=1)
    def numbers(path: str) -> np.ndarray:
        file = files[path]
        if file is None:
            raise ValueError(f"--concepts={folder}: no label map of {path}")
        try:
            return regions.label_map(file, model.geometry)
        except images.BadImage as error:
            raise ValueError(f"--concepts: {file}: {error}") from error

    return Known(
        tuple(named[k] for k in values.tolist()),
        Slices(paths, lambda path: numbers(path)[..., None] == values),
        Slices(paths, lambda path: np.isin(numbers(path), values)[..., None]),
        _digest(files),
    )


def _values(folder: pathlib.Path) -> dict[int, str]:
    """Names of the values of label maps, from a file in the folder or beside it."""
    for file in (place / name for place in (folder, folder.parent) for name in NAMES):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            found = json.loads(text) if file.suffix == ".json" else text.splitlines()
            if isinstance(found, dict):
                found = found.get("classes", found)
            pairs = found.items() if isinstance(found, dict) else enumerate(found)
            named = {int(k): str(name).strip() for k, name in pairs}
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f'{file}: expected a name a line, from value 0, or {{"0": "sky", ...}}'
            ) from error
        kept = [n for n in named.values() if n.casefold() not in NONE]
        if not kept or len(set(kept)) < len(kept):
            raise ValueError(f"{file}: names must differ and be at least one, got {len(kept)}")
        return {k: n for k, n in named.items() if k != regions.UNKNOWN}
    raise ValueError(
        f"--concepts={folder}: the values of label maps need names: put classes.txt (a name a "
        'line, from value 0) or classes.json ({"0": "sky", ...}) into it or beside it'
    )


def of_table(
    table: pathlib.Path, paths: Sequence[str], model: perturb.Model, source: Slices
) -> Known:
    """A row a picture, a column a concept: 1 or 0 for the whole picture, a mask's file, or nothing
    where it is not known.

    Raises:
      ValueError: if the table is no such one, or a picture has no row.
    """
    try:
        with table.open(newline="") as lines:
            header, *rows = list(csv.reader(lines, skipinitialspace=True)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"--concepts={table}: not a readable list: {error}") from error
    names = tuple(name.strip() for name in header[1:])
    if not names or header[0].strip().casefold() != "path" or len(set(names)) < len(names):
        raise ValueError(
            f"--concepts={table}: the first line must be path,CONCEPT,... with a name a concept, "
            f"got {','.join(header)[:80]!r}"
        )
    cells = {row[0].strip(): [c.strip() for c in row[1:]] for row in rows if row}
    missing = [path for path in paths if path not in cells]
    if missing:
        raise ValueError(
            f"--concepts={table}: no row of {missing[0]} ({len(missing)} pictures have none); "
            "paths are those within --images"
        )
    for path in paths:
        if len(cells[path]) != len(names):
            raise ValueError(
                f"--concepts={table}: {path} has {len(cells[path])} values for {len(names)} "
                "concepts: leave those empty that are not known"
            )

    places = {path: at for at, path in enumerate(paths)}

    def size_of(path: str) -> tuple[int, ...]:
        if model.geometry and model.geometry.size:
            return model.geometry.size
        # A network of any size: the picture itself has to be read for its size.
        return source[places[path] : places[path] + 1].shape[1:3]

    def masks(path: str) -> np.ndarray:
        size, found = size_of(path), []
        for cell in cells[path]:
            if cell in ("", "0", "1"):
                # Unknown is False here; `known` below takes those pixels out of the count.
                found.append(np.full(size, cell == "1"))
                continue
            mask = _mask(table.parent / cell, model)
            if mask.shape != size:
                raise ValueError(
                    f"--concepts={table}: {cell} is {_size(mask)}, its picture {size[0]} by "
                    f"{size[1]} px"
                )
            found.append(mask)
        return np.stack(found, -1)

    def known(path: str) -> np.ndarray:
        return np.broadcast_to([cell != "" for cell in cells[path]], (*size_of(path), len(names)))

    # Without a gap the cheaper counts can be used, which know no third state.
    partial = any(cell == "" for path in paths for cell in cells[path])
    return Known(
        names,
        Slices(paths, masks),
        Slices(paths, known) if partial else None,
        hashlib.sha256(table.read_bytes()).hexdigest(),
    )


def _file(folder: pathlib.Path, path: str) -> pathlib.Path | None:
    """The PNG of a picture: below the same subfolder, or by its name alone."""
    inside = pathlib.PurePath(path).with_suffix(".png")
    for name in (inside, inside.name):
        if not inside.is_absolute() and (folder / name).is_file():
            return folder / name
    return None


def _mask(file: pathlib.Path, model: perturb.Model) -> np.ndarray:
    try:
        return regions.mask(file, model.geometry)
    except images.BadImage as error:
        raise ValueError(f"--concepts: {file}: {error}") from error


def _misnamed(folder: pathlib.Path, below: str, paths: Sequence[str]) -> ValueError:
    wanted = pathlib.PurePath(paths[0]).stem
    there = sorted(p.name for p in (folder / below).glob("*"))[:1]
    return ValueError(
        f"--concepts={folder}: no file is named like a picture: {below}{wanted}.png is not there"
        f"{f', {below}{there[0]} is' if there else ''}"
    )


def _digest(files: dict[Any, pathlib.Path | None]) -> str:
    lines: Iterable[str] = (
        f"{key} {'' if f is None else f'{(s := f.stat()).st_size} {int(s.st_mtime)}'}"
        for key, f in sorted(files.items(), key=lambda pair: str(pair[0]))
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} by {array.shape[1]} px"
