"""The pictures and concepts that a classifier is dissected with, from what `--images` and
`--concepts` say.

Concepts of pictures are masks: those of the embedded world, of a folder, or of a table with a row a
picture, where a concept may also hold for a whole picture or not be known; or they are read off the
pictures, as colours and edges are.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import perturb
from launch import generators, models
from launch.demo import world
from launch.inputs import images as decoding
from launch.inputs import listing
from launch.job import store
from launch.jobs.dissect_model import known
from perturb.units import Concepts, concepts

__all__ = ["KINDS", "Material", "load"]

WORLD_SEED = 11
KINDS = (
    "color:NAME, edges, package.module:function, a folder of masks CONCEPT/PICTURE.png or of label "
    "maps PICTURE.png, or a TABLE.csv(path,CONCEPT,...)"
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
        drawn_of: Sequence[str] | Concepts = names
        if asked not in (None, "labels"):
            if pathlib.Path(str(asked)).exists():
                raise ValueError(f"--concepts={asked}: masks of pictures need --images")
            masks, drawn_of = None, _read_off(str(asked))
        sha256 = hashlib.sha256(np.packbits(drawn.label).tobytes()).hexdigest()
        return Material(drawn.image.astype(np.float32), masks, drawn_of, drawn.target, sha256)
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

    source = known.Slices(paths, picture)
    targets = None
    # Costs need every picture's class; names of classes are not resolved here.
    if all(item.target is not None and item.target.isdecimal() for item in items):
        targets = np.array([int(item.target or 0) for item in items])
    if asked is None:
        raise ValueError(f"--concepts is missing: {KINDS}")
    folder = pathlib.Path(asked)
    if folder.is_dir():
        found = known.of_folder(folder, paths, model)
    elif folder.suffix.lower() == ".csv":
        found = known.of_table(folder, paths, model, source)
    else:
        return Material(source, None, _read_off(asked), targets, digest.hexdigest())
    # Other masks are another run.
    digest.update(found.sha256.encode())
    return Material(source, found.masks, found.names, targets, digest.hexdigest(), found.labelled)


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
