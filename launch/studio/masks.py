"""The tab of masks: what a network answers, the map of a picture, the verdict on a region, a region
by hand.
"""

from __future__ import annotations

import base64
import collections
import threading
import types
from typing import Any

import jax
import numpy as np

import perturb
from launch.report import pictures
from launch.studio.work import Report
from launch.studio.world import World, chance
from perturb import operators
from perturb.evidence import fills
from perturb.types import Options, PyTree, Record

__all__ = ["GRID", "Masks", "bits", "cells", "grid", "number", "ranks", "spread"]

GRID = 64  # cells of a brush along the longer side, at most
MAPS = 200  # kept
TOP = 5  # classes shown
QUESTION = "enough"
# The map is the same whatever areas are scored, and the page cuts it anew: one is enough.
AREAS = (0.1,)
FILL = "blur"


class Masks:
    """Answers the questions of the tab; maps are kept, so that any area is one cut."""

    def __init__(self, world: World):
        self._world = world
        self._maps: collections.OrderedDict[tuple[Any, ...], Any] = collections.OrderedDict()
        self._targets: dict[tuple[object, ...], int] = {}
        self._lock = threading.Lock()
        # Fixed: the same question has the same answer in every tab, and in the script that
        # the page gives.
        self._key = jax.random.key(0)

    def answers(self, asked: Options) -> Record:
        """What a network says of a whole picture: `{model, picture}`."""
        model, image = self._subject(asked)
        row = chance(model, fills.outputs_of(model, np.stack([image, image])))[0]
        return {"top": _top(model, row), "size": image.shape[:2]}

    def map(self, asked: Options, report: Report) -> Record:
        """The map of a picture for a target: `{model, picture, target}`; the place of every pixel,
        1 the first.
        """
        model, image = self._subject(asked)
        target = self._target(model, asked)
        found = self._found(asked, model, image, target, report)
        # Ranks go to the browser once; every area is then cut there, without asking.
        places = ranks(found.area[0])
        return {
            # As bytes: a list of fifty thousand numbers in JSON is slow to write and to read.
            "places": base64.b64encode(places.astype("<u4").tobytes()).decode(),
            "size": places.shape,
            "target": target,
        }

    def verdict(self, asked: Options) -> Record:
        """What the region of an area is worth: `{model, picture, target, area}`, after its map."""
        model, image = self._subject(asked)
        target, area = self._target(model, asked), number(asked, "area", 0.001, 1.0)
        with self._lock:
            found = self._maps.get(_at(asked, target))
        if found is None:
            raise ValueError("there is no map of this picture yet: ask for it first")
        # At least one pixel: an empty region has no verdict.
        count = max(1, round(area * found.area[0].size))
        mask = (ranks(found.area[0]) <= count).astype(np.float32)
        card = perturb.evidence.card(
            model,
            image[None],
            np.array([target]),
            types.SimpleNamespace(masks=mask[None, None], scores=found.heat[:, None]),
            operator=FILL,
            key=self._key,
        )
        enough = float(card.sufficient_area[0, 0])
        rival = int(card.rival[0, 0])
        return {
            "verdict": str(card.verdict[0, 0]),
            "reasons": card.reasons[0][0],
            "whole": card.probability_original[0],
            "alone": card.probability[FILL][0, 0],
            "fills": {name: row[0, 0] for name, row in card.probability.items()},
            "shifted": card.control_percentile[0, 0],
            "enough": enough,
            "rival": _name(model, rival) if rival >= 0 else None,
        }

    def score(self, asked: Options) -> Record:
        """What a region by hand gives: `{model, picture, target, mask, fill, seen}`; the mask's
        cells in bits.
        """
        model, image = self._subject(asked)
        target = self._target(model, asked)
        fill = asked.get("fill", FILL)
        if fill not in operators.NAMES:
            raise ValueError(f"fill must be one of {', '.join(operators.NAMES)}, got {fill!r:.40}")
        mask = spread(grid(asked, image.shape[:2]), image.shape[:2])
        views = fills.show(
            operators.get(fill), image, self._key, np.stack([np.ones_like(mask), mask, 1 - mask])
        )
        rows = chance(model, fills.outputs_of(model, views))
        seen = pictures.levels(views[2 if asked.get("seen") == "without" else 1])
        return {
            "area": mask.mean(),
            "whole": rows[0, target],
            "alone": rows[1, target],
            "without": rows[2, target],
            "top": _top(model, rows[1]),
            "seen": pictures.data_uri(pictures.enlarge(seen)) if asked.get("seen") else None,
        }

    def _subject(self, asked: Options) -> tuple[perturb.Model, np.ndarray]:
        return self._world.model(asked.get("model")), self._world.pixels(
            asked.get("picture"), str(asked.get("model"))
        )

    def _target(self, model: perturb.Model, asked: Options) -> int:
        given = asked.get("target")
        # No target named: what the network itself says.
        if given in (None, ""):
            _, image = self._subject(asked)
            row = chance(model, fills.outputs_of(model, np.stack([image, image])))[0]
            return int(row.argmax())
        # In Python a bool is an int, and "true" no class.
        if not isinstance(given, int | str) or isinstance(given, bool):
            raise ValueError("target must be a class name or a number")
        if isinstance(given, str) and given.isdecimal():
            given = int(given)
        _, image = self._subject(asked)
        # Checked once and not at every step of a brush: half of the time of a score.
        at = str(asked.get("model")), image.shape, given
        if at not in self._targets:
            found = int(perturb.check_inputs(model, image[None], [given]).targets[0])
            self._targets[at] = found
        return self._targets[at]

    def _found(
        self, asked: Options, model: Any, image: np.ndarray, target: int, report: Report
    ) -> PyTree:
        at = _at(asked, target)
        with self._lock:
            if at in self._maps:
                self._maps.move_to_end(at)
                return self._maps[at]
        report(0, 1, "looking for the region")
        found = perturb.importance_map(
            model,
            image[None],
            np.array([target]),
            question=QUESTION,
            operator=FILL,
            areas=AREAS,
            key=self._key,
            progress=lambda done, total: report(done, total, "looking for the region"),
        )
        with self._lock:
            self._maps[at] = found
            # The oldest go: a tab left open for days must not fill the memory.
            while len(self._maps) > MAPS:
                self._maps.popitem(last=False)
        return found


def ranks(area: np.ndarray) -> np.ndarray:
    """Returns the place of every pixel of a map `[H, W]`, from 1 for what is kept at the smallest
    area.

    >>> ranks(np.array([[0.5, 0.25], [1.0, 0.75]])).tolist()
    [[2, 1], [4, 3]]
    """
    order = np.argsort(area, axis=None, kind="stable")
    found = np.empty(area.size, np.uint32)
    found[order] = np.arange(1, area.size + 1)
    return found.reshape(area.shape)


def grid(asked: Options, size: tuple[int, ...]) -> np.ndarray:
    """Returns the cells of a brush `[rows, columns]` of 0 and 1, from `mask`: base64 of bits, row
    by row.

    The longer side of the picture has at most `GRID` cells.

    Raises:
      ValueError: if they are not as many as there should be.
    """
    rows, columns = cells(size)
    return bits(asked.get("mask"), rows, columns)


def bits(given: PyTree, rows: int, columns: int) -> np.ndarray:
    """Returns `[rows, columns]` of 0 and 1 from base64 of their bits, row by row.

    >>> bits("oA==", 2, 2).tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    want = (rows * columns + 7) // 8
    try:
        data = base64.b64decode(str(given or ""), validate=True)
    except ValueError:
        data = b""
    if len(data) != want:
        raise ValueError(
            f"mask must be {rows} x {columns} bits in base64, {want} bytes, got {len(data)}"
        )
    found = np.unpackbits(np.frombuffer(data, np.uint8))[: rows * columns]
    return found.reshape(rows, columns).astype(np.float32)


def cells(size: tuple[int, ...]) -> tuple[int, int]:
    """Returns rows and columns of a brush on a picture of `size`.

    >>> cells((64, 64)), cells((224, 112))
    ((64, 64), (64, 32))
    """
    scale = min(1.0, GRID / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def spread(found: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Returns cells `[rows, columns]` as a mask `[H, W]`, the nearest cell to every pixel."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, found.shape, strict=True))
    result: np.ndarray = found[rows][:, columns]
    return result


def _at(asked: Options, target: int) -> tuple[PyTree, ...]:
    return str(asked.get("model")), str(asked.get("picture")), target


def number(asked: Options, name: str, low: float, high: float) -> float:
    value = asked.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r:.40}")
    return float(value)


def _name(model: perturb.Model, target: int) -> str:
    return model.class_names[target] if model.class_names else str(target)


def _top(model: perturb.Model, row: np.ndarray) -> list[Record]:
    order = np.argsort(-row, kind="stable")[:TOP]
    return [{"target": int(t), "name": _name(model, int(t)), "p": float(row[t])} for t in order]
