"""Which pictures a run works on: a folder, a glob or a list, here or in a store.

Paths are relative to a root, so that a folder may be moved between two runs; sizes and times of
change are recorded, and contents are hashed when they are decoded.
"""

from __future__ import annotations

import csv
import glob
import operator
import os
import pathlib
from collections.abc import Iterator

from absl import logging

from launch.inputs import columns
from launch.inputs.images import EXTENSIONS
from launch.job import clients, store
from launch.job.ahead import ahead
from launch.job.manifest import Item, Manifest, Rows
from perturb.types import PyTree

__all__ = ["EXTENSIONS", "scan", "target"]

LOOKERS = 32  # objects of a list that a store is asked for at the same time
NOTED = 100_000  # files between two words on how far the search is


def scan(images: str) -> Manifest:
    """Returns the manifest of a folder, a glob or a list.

    Args:
      images: a folder (searched with its subfolders for files with one of `EXTENSIONS`; links that
        lead out of it are left out), a glob, or a `.csv` file with the header `path,target`
        (also `label`, `class`, see `columns`; `target` may be missing; relative paths start at the
        file's folder; a path may be listed with several targets; it may also be an address). Each
        may lie in a store: `gs://bucket/photos`.
    Raises:
      ValueError: if there is nothing to work on, or the list cannot be read as one.
      OSError: if the folder or the list cannot be read.
    """
    path = store.path(images)
    root: store.Path
    items: list[Item] | Rows
    if isinstance(path, store.Address):
        root, items, where = _stored(path)
    elif path.is_dir():
        root, items = path, _sized(path, _walk(path, path.resolve()))
        where = f"no picture ({', '.join(sorted(EXTENSIONS))}) in the folder"
    elif path.suffix.lower() == ".csv":
        root, items = path.parent, _listed(path)
        where = "no row in the list"
    elif path.is_file():
        root, items = path.parent, _sized(path.parent, iter([path.name]))
        where = ""
    elif glob.has_magic(images):
        root = _fixed_part(path)
        found = glob.iglob(str(path), recursive=True)
        items = _sized(root, (os.path.relpath(p, root) for p in found if os.path.isfile(p)))
        where = "no file matches"
    else:
        raise ValueError(f"--images={images}: no such folder, file or list")
    if not items:
        raise ValueError(f"--images={images}: {where}")
    if isinstance(items, Rows):
        return Manifest(str(root), items)
    if path.suffix.lower() == ".csv":  # which may name a picture twice
        items = list(set(items))
        items.sort(key=_order)
    else:  # with keys that are there already: a copy of a million names takes its memory
        items.sort(key=operator.itemgetter(0))
    return Manifest(str(root if isinstance(root, store.Address) else root.resolve()), tuple(items))


def target(items: Manifest, asked: str | None) -> str:
    """Returns `csv`, `top1`, a class index or a class name: what was asked, or what the list
    suggests.

    Raises:
      ValueError: if the list has no targets.
    """
    listed = [item for item in items.items if item.target is not None]
    found = asked or ("csv" if listed else "top1")
    if found == "csv" and not listed:
        raise ValueError("--target=csv: --images is not a list with a target column")
    return found


def _order(item: Item) -> tuple[str, str]:
    return item.path, item.target or ""


def _walk(folder: pathlib.Path, root: pathlib.Path, below: str = "") -> Iterator[str]:
    """Yields paths relative to the root; follows links to files that stay inside it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(pathlib.Path(entry.path), root, f"{below}{entry.name}/")
                continue
            if _is_picture(entry.name) and entry.is_file() and _inside(entry, root):
                yield below + entry.name


def _inside(entry: os.DirEntry[str], root: pathlib.Path) -> bool:
    return not entry.is_symlink() or pathlib.Path(entry.path).resolve().is_relative_to(root)


def _stored(path: store.Address) -> tuple[store.Path, list[Item] | Rows, str]:
    """Returns root, items and what to say if there are none, of what lies in a store."""
    if path.suffix.lower() == ".csv":
        return path.parent, _listed(path), "no row in the list"
    if glob.has_magic(path.text):
        root, found, where = (
            store.fixed_part(path),
            store.find(path, pattern=True),
            "no file matches",
        )
        return root, _found(found), where
    if path.is_file():
        return path.parent, [_item(path.parent, path.name, None)], ""
    found = (e for e in store.find(path) if _is_picture(e.path.rpartition("/")[2]))
    where = f"no picture ({', '.join(sorted(EXTENSIONS))}) below this address"
    return path, _found(found), where


def _is_picture(name: str) -> bool:
    # Names with a leading dot are other programs' notes (._photo.jpg), not photographs.
    return name[:1] != "." and os.path.splitext(name)[1].lower() in EXTENSIONS


def _sized(root: pathlib.Path, paths: Iterator[str]) -> list[Item]:
    return _noted(_item(root, path, None) for path in paths)


def _found(entries: Iterator[store.Entry]) -> Rows:
    # A store lists in the order of the names, so that nothing has to be held to be sorted.
    return Rows(_told(Item(e.path, e.size, None, e.version) for e in entries))


def _noted(items: Iterator[Item]) -> list[Item]:
    return list(_told(items))


def _told(items: Iterator[Item]) -> Iterator[Item]:
    """Passes items on and says from time to time how many there were."""
    for number, item in enumerate(items, 1):
        yield item
        if number % NOTED == 0:
            logging.info("%d pictures found so far", number)


def _item(root: store.Path, path: str, target: str | None) -> Item:
    # A missing file stays in the manifest and becomes a row of errors.jsonl: nothing is lost
    # quietly.
    try:
        if isinstance(root, store.Address) or "://" in path:
            entry = store.look(store.join(root, path))
            return Item(path, entry.size, target, entry.version)
        # One string a row and no pathlib: a folder may hold a million.
        found = os.stat(os.path.join(root, path))
    except clients.Busy:
        raise
    except OSError:
        return Item(path, -1, target)
    return Item(path, found.st_size, target, int(found.st_mtime))


def _listed(path: store.Path) -> list[Item]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            read = columns.read(file, columns.PICTURES, optional="target")
            rows = [(row["path"], row["target"]) for row in read if row["path"]]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"--images={path}: not a readable list: {error}") from error
        except ValueError as error:
            raise ValueError(f"--images={path}: {error}") from error
    root = path.parent

    def found(row: tuple[PyTree, str | None]) -> Item:
        return _item(root, row[0], row[1] or None)

    if isinstance(root, store.Address):
        return list(ahead(found, rows, workers=LOOKERS, window=4 * LOOKERS))
    return [found(row) for row in rows]


def _fixed_part(pattern: pathlib.Path) -> pathlib.Path:
    """Returns the folder above the first wildcard of a glob."""
    fixed = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return pathlib.Path(*fixed) if fixed else pathlib.Path(".")
