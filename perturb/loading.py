"""Photographs from a disk, in one array for a model."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from perturb.model import Model

__all__ = ["load_images"]

Path = str | os.PathLike[str]


def load_images(paths: Path | Iterable[Path], model: Model) -> np.ndarray:
    """Reads photographs as the model takes them: upright, resized and cropped by its geometry.

    Args:
      paths: a file; a folder, whose pictures are taken in the order of their names; or several
        paths, one a picture.
      model: the network, a `perturb.Model`: its `geometry` and `channels` say what it takes.
    Returns:
      `[B, H, W, C]` float32 in [0, 1].
    Raises:
      ValueError: if a file cannot be read as a picture, there is none, or pictures of several sizes
        are given to a model without a geometry.
    """
    # Pillow is loaded when pictures are read: `import perturb` does without.
    from perturb import photographs

    given: list[Path] = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if len(given) == 1 and os.path.isdir(given[0]):
        folder = pathlib.Path(given[0])
        kinds = photographs.EXTENSIONS
        given = [*sorted(p for p in folder.iterdir() if p.suffix.lower() in kinds)]
        if not given:
            raise ValueError(f"paths: no picture in the folder {_last(folder)}")
    if not given:
        raise ValueError("paths must name a folder, a file or several files, got none")
    found: list[np.ndarray] = []
    for path in given:
        try:
            data = photographs.read_bytes(path)
            pixels = photographs.picture(data, model.geometry, model.channels).pixels
        except (photographs.BadImage, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"paths: {_last(path)}: {str(why)[:160]}") from error
        if found and pixels.shape != found[0].shape:
            sizes = [f"{p.shape[1]} x {p.shape[0]} px" for p in (found[0], pixels)]
            raise ValueError(
                f"paths: {_last(given[0])} gives {sizes[0]}, {_last(path)} {sizes[1]}: model "
                f"{model.name[:40]} fixes no size; geometry=perturb.squash(224) would"
            )
        found.append(pixels)
    return np.stack(found)


def _last(path: Path) -> str:
    """The end of a path, which is where it differs from others."""
    text = os.fspath(path)
    return text if len(text) <= 60 else f"...{text[-57:]}"
