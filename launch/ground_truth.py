"""Ground truth of the pointing game, for those who have the data: PASCAL VOC's boxes, COCO's masks.

Conventions are the published ones: in VOC a class's truth is the union of its boxes and a pair all
of whose boxes are flagged difficult is left out; in COCO it is the union of its segmentation masks.
The files of the benchmark's own "difficult" subset are read by `difficult_pairs`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import PIL.ImageDraw

__all__ = ["Truth", "coco", "difficult_pairs", "voc"]


class Truth(NamedTuple):
    """Objects of one photograph.

    Attributes:
      size: height and width in px.      masks: by class, `[H, W]` bool.
      skip: classes all of whose objects are flagged difficult.
    """

    size: tuple[int, int]
    masks: dict[str, np.ndarray]
    skip: frozenset[str] = frozenset()


def voc(path: str | os.PathLike[str]) -> Truth:
    """Returns the truth of one VOC annotation file, `Annotations/000001.xml`.

    Raises:
      ValueError: if it is no such file.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = (int(_text(root, "size/height")), int(_text(root, "size/width")))
        masks: dict[str, np.ndarray] = {}
        easy: set[str] = set()
        for thing in root.iter("object"):
            name = _text(thing, "name")
            # VOC counts pixels from 1, and both ends belong to the box.
            left, top, right, bottom = (
                round(float(_text(thing, f"bndbox/{k}"))) for k in ("xmin", "ymin", "xmax", "ymax")
            )
            # A class with several objects has the union of their boxes as its truth.
            mask = masks.setdefault(name, np.zeros(size, bool))
            mask[max(top - 1, 0) : bottom, max(left - 1, 0) : right] = True
            if (thing.findtext("difficult") or "0").strip() == "0":
                easy.add(name)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: expected a VOC annotation: {error}") from error
    return Truth(size, masks, frozenset(set(masks) - easy))


def _text(node: ElementTree.Element, path: str) -> str:
    found = node.findtext(path)
    if found is None:
        raise ValueError(f"no {path}")
    return found.strip()


def coco(path: str | os.PathLike[str]) -> dict[str, Truth]:
    """Returns the truth of every photograph of a COCO instances file, by file name; classes by
    name.

    Raises:
      ValueError: if it is no such file.
    """
    try:
        data = json.loads(pathlib.Path(path).read_bytes())
        names = {c["id"]: c["name"] for c in data["categories"]}
        images = {i["id"]: i for i in data["images"]}
        found = {i["file_name"]: Truth((i["height"], i["width"]), {}) for i in images.values()}
        for thing in data["annotations"]:
            truth = found[images[thing["image_id"]]["file_name"]]
            mask = _segmentation(thing["segmentation"], truth.size)
            name = names[thing["category_id"]]
            truth.masks[name] = truth.masks.get(name, np.zeros(truth.size, bool)) | mask
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a COCO instances file: {error!r}") from error
    return found


def _segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Polygons, or run lengths (a list or COCO's compressed string), column by column."""
    if isinstance(segmentation, list):
        canvas = PIL.Image.new("1", (size[1], size[0]))
        draw = PIL.ImageDraw.Draw(canvas)
        for polygon in segmentation:
            draw.polygon([float(v) for v in polygon], fill=1, outline=1)
        return np.asarray(canvas, bool)
    counts = segmentation["counts"]
    runs = _runs(counts) if isinstance(counts, str) else counts
    # Runs take turns, the first of them is background.
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    # Column by column, as MATLAB stores a picture: the other way round than NumPy.
    return values.reshape(size[1], size[0]).T


def _runs(text: str) -> Sequence[int]:
    """Run lengths of COCO's compressed form: five bits a character, later ones relative to the last
    but one.
    """
    runs: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[at]) - 48
            value |= (bits & 31) << shift
            more, shift, at = bool(bits & 32), shift + 5, at + 1
            if not more and bits & 16:
                # The last five bits carry the sign.
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def difficult_pairs(path: str | os.PathLike[str]) -> set[tuple[str, int]]:
    """Returns `(image, class)` pairs of a list with one image a line: `name flag flag ...`.

    The flags are 1 for the classes of that image that are in the difficult subset, in class order.
    """
    pairs = set()
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        name, *flags = line.split()
        if any(f not in ("0", "1") for f in flags):
            raise ValueError(f"{path}, line {number}: expected a name and flags of 0 and 1")
        pairs |= {(name, c) for c, f in enumerate(flags) if f == "1"}
    return pairs
