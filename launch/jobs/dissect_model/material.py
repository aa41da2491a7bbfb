"""The pictures and concepts that a classifier is dissected with, from what `--images` and
`--concepts` say.

Concepts of pictures are masks: those of the embedded world, of a folder, or of a table with a row a
picture, where a concept may also hold for a whole picture or not be known; or they are read off the
pictures, as colours and edges are.
"""

from __future__ import annotations

import csv
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import perturb
from launch import generators, models
from launch.demo import world
from launch.inputs import images as decoding
from launch.inputs import listing
from launch.job import store
from perturb.units import Concepts, concepts

__all__ = ["KINDS", "Material", "load"]

WORLD_SEED = 11
LABELLED = "labelled"  # the folder beside those of concepts that says where anything is known
KINDS = (
    "color:NAME, edges, package.module:function, a folder of masks CONCEPT/PICTURE.png, or a "
    "TABLE.csv(path,CONCEPT,...)"
)


class Material(NamedTuple):
    """What a classifier is dissected with.

    Attributes:
      images: `[N, H, W, C]`, or what reads them slice by slice.
      masks: `[N, H, W, K]`, likewise, or None.
      concepts: names of the masks, or `Concepts` read off the pictures.
      targets: `[N]` classes, or None.
      sha256: of what the pictures are.
      labelled: `[N, H, W, K]` or `[N, H, W, 1]`, where concepts are known; None is everywhere.
    """

    images: Any
    masks: Any
    concepts: Sequence[str] | Concepts
    targets: np.ndarray | None
    sha256: str
    labelled: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the concepts."""
        found = self.concepts
        return found.names if isinstance(found, Concepts) else tuple(found)


def load(images: str | None, asked: str | None, model: perturb.Model, samples: int) -> Material:
    """Returns the pictures and concepts that `--images` and `--concepts` ask for.

    Without images: the embedded world, whose every pixel is known, each picture with a stamp of a
    class at random.

    Raises:
      ValueError: naming what is wrong with the flags.
    """
    if images is None:
        drawn = world.render_batch(WORLD_SEED, range(samples), watermark="random")
        names = world.label_names[1:]
        # Label 0 is the background of the world and no concept.
        masks = drawn.label[..., None] == 1 + np.arange(len(names))
        found: Sequence[str] | Concepts = names
        if asked not in (None, "labels"):
            masks, found = None, _read_off(str(asked))
        sha256 = hashlib.sha256(np.packbits(drawn.label).tobytes()).hexdigest()
        return Material(drawn.image.astype(np.float32), masks, found, drawn.target, sha256)
    listed = listing.scan(images)
    items = listed.items[:samples]
    paths = [item.path for item in items]
    root = store.path(listed.root)
    # Names, sizes and times: to hash the contents every picture would have to be read once more.
    digest = hashlib.sha256("\n".join(f"{i.path} {i.size} {i.changed}" for i in items).encode())

    def picture(path: str) -> np.ndarray:
        try:
            return decoding.read(root / path, model.geometry, model.channels).pixels
        except decoding.BadImage as error:
            raise ValueError(f"--images: {path}: {error}") from error

    source = _Slices(paths, picture)
    targets = None
    # Costs need every picture's class; names of classes are not resolved here.
    if all(item.target is not None and item.target.isdecimal() for item in items):
        targets = np.array([int(item.target or 0) for item in items])
    if asked is None:
        raise ValueError(f"--concepts is missing: {KINDS}")
    folder = pathlib.Path(asked)
    if folder.is_dir():
        masked = _of_folder(folder, paths, model)
    elif folder.suffix.lower() == ".csv":
        masked = _of_table(folder, paths, model, source)
        digest.update(folder.read_bytes())
    else:
        return Material(source, None, _read_off(asked), targets, digest.hexdigest())
    names, masks, labelled = masked
    return Material(source, masks, names, targets, digest.hexdigest(), labelled)


class _Slices:
    """Arrays of one picture each, read and stacked slice by slice."""

    def __init__(self, paths: Sequence[str], one: Callable[[str], np.ndarray]):
        self._paths, self._one = paths, one

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, at: slice) -> np.ndarray:
        return np.stack([self._one(path) for path in self._paths[at]])


_Masked = tuple[tuple[str, ...], Any, Any]


def _of_folder(folder: pathlib.Path, paths: Sequence[str], model: perturb.Model) -> _Masked:
    """Masks CONCEPT/PICTURE.png; a picture without a file does not show the concept."""
    known = sorted(p.name for p in folder.iterdir() if p.is_dir())
    names = tuple(n for n in known if n != LABELLED)
    if not names:
        raise ValueError(f"--concepts={folder}: no folder CONCEPT with masks PICTURE.png in it")

    def masks(asked: Sequence[str], path: str) -> np.ndarray:
        files = [folder / n / f"{pathlib.PurePath(path).stem}.png" for n in asked]
        found = [_mask(file, model) if file.is_file() else None for file in files]
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
    if LABELLED in known:
        labelled = _Slices(paths, lambda path: masks([LABELLED], path))
    return names, _Slices(paths, lambda path: masks(names, path)), labelled


def _of_table(
    table: pathlib.Path, paths: Sequence[str], model: perturb.Model, source: _Slices
) -> _Masked:
    """A row a picture, a column a concept: 1 or 0 for the whole picture, a mask's file, or nothing
    where it is not known.
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
                    f"--concepts={table}: {cell} is {mask.shape[0]} by {mask.shape[1]} px, its "
                    f"picture {size[0]} by {size[1]}"
                )
            found.append(mask)
        return np.stack(found, -1)

    def known(path: str) -> np.ndarray:
        return np.broadcast_to([cell != "" for cell in cells[path]], (*size_of(path), len(names)))

    # Without a gap the cheaper counts can be used, which know no third state.
    partial = any(cell == "" for path in paths for cell in cells[path])
    return names, _Slices(paths, masks), _Slices(paths, known) if partial else None


def _mask(file: pathlib.Path, model: perturb.Model) -> np.ndarray:
    try:
        # Through the same resizing and cropping as the picture, or the two would not lie on
        # each other.
        return decoding.read(file, model.geometry, 1).pixels[..., 0] > 0.5
    except decoding.BadImage as error:
        raise ValueError(f"--concepts: {file}: {error}") from error


def _read_off(asked: str) -> Concepts:
    if asked == "edges":
        return concepts.edges()
    if asked.startswith("color:"):
        named = generators.colours(asked.removeprefix("color:"))
        return concepts.colours(named, tolerance=generators.TOLERANCE)
    if ":" in asked:
        found: Concepts = models.user_function("concepts", asked, Concepts)
        return found
    raise ValueError(f"--concepts={asked}: expected {KINDS}")
