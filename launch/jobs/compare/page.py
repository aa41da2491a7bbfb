"""The page of two runs of masks side by side: where they agree, where not, and which keeps more."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch import results
from launch.job import store
from launch.jobs.masks.cards import effect, marks
from launch.report import pictures
from launch.report.html import document, number, percent, text
from launch.report.parts import VERDICTS, asked, figure
from perturb import stability
from perturb.statistics import Interval, paired
from perturb.types import Record

__all__ = ["Pair", "pairs", "write"]


class Pair(NamedTuple):
    """One picture at one area, in both runs.

    Attributes:
      image: its name.
      area: asked of the first run.
      rows: of results.jsonl, of either run.
      masks: `[H, W]` of either run.
      picture: `[H, W, 3]` uint8, as the first network saw it.
      effects: what either region keeps, or takes; None where there is no scale.
      overlap: of the two regions (IoU); None where the networks take pictures of different sizes.
    """

    image: str
    area: float | None
    rows: tuple[dict[str, Any], dict[str, Any]]
    masks: tuple[np.ndarray, np.ndarray]
    picture: np.ndarray
    effects: tuple[float | None, float | None]
    overlap: float | None


def pairs(first: results.Out, second: results.Out) -> Iterator[Pair]:
    """Yields the pictures that both runs have, area by area, in the order of the first.

    Raises:
      ValueError: the runs are of different methods or games, or have no picture in common.
    """
    settings = [results.settings(out)["flags"] for out in (first, second)]
    for name in ("method", "game"):
        a, b = (s.get(name) for s in settings)
        if a != b:
            raise ValueError(f"--{name} differs between the runs: {a} of {first}, {b} of {second}")
    if settings[0]["method"] == "channels":
        raise ValueError("channels cannot be compared: they are no regions of the picture")
    delete = settings[0].get("game") == "delete"
    # Of a picture with several targets the n-th of one run goes with the n-th of the other.
    there: dict[tuple[str, int], dict[str, Any]] = {}
    for record in _numbered(second):
        there[record["key"]] = record
    found = False
    for record in _numbered(first):
        other = there.get(record["key"])
        # Pictures that one run alone has are left out: there is nothing beside them.
        if other is None:
            continue
        found = True
        picture = pictures.decode(record["image"])
        for a, row in enumerate(record["rows"]):
            b = _same_area(row["area"], other["rows"])
            if b is None:
                continue
            masks = record["masks"][a], other["masks"][b]
            rows = row, other["rows"][b]
            overlap = None
            # Masks of different sizes would have to be resampled, and their borders with them.
            if masks[0].shape == masks[1].shape:
                overlap = float(stability.iou(masks[0][None, None], masks[1][None, None])[0, 0])
            effects = effect(rows[0], delete), effect(rows[1], delete)
            yield Pair(row["image"], row["area"], rows, masks, picture, effects, overlap)
    if not found:
        raise ValueError(f"{first} and {second} have no picture of the same name in common")


def _numbered(out: results.Out) -> Iterator[dict[str, Any]]:
    seen: dict[str, int] = {}
    for record in results.records(out):
        name = record["rows"][0]["image"]
        seen[name] = seen.get(name, -1) + 1
        yield {**record, "key": (name, seen[name])}


def _same_area(area: float | None, rows: Sequence[dict[str, Any]]) -> int | None:
    """The row of the same area; where areas are results there is one."""
    if len(rows) == 1 and (area is None or rows[0]["area"] is None):
        return 0
    # Areas come from two JSON files, written as decimals of the same flag.
    near = [i for i, row in enumerate(rows) if abs((row["area"] or 0) - (area or 0)) < 1e-6]
    return near[0] if near else None


def write(out: store.Path, runs: Sequence[store.Path], names: tuple[str, str]) -> store.Path:
    """Writes compared.csv and report/index.html; returns the page's path.

    Args:
      out: folder of both.
      runs: the two folders.
      names: what a reader calls them.
    Raises:
      ValueError: see `pairs`.
    """
    found = list(pairs(*runs))
    # Pictures in common, or `pairs` would have raised; so it is the areas that differ.
    if not found:
        raise ValueError(
            "the runs have no area in common: repeat one with the --areas of the other"
        )
    told = [results.settings(run) for run in runs]
    delete = told[0]["flags"].get("game") == "delete"
    verb = "takes" if delete else "keeps"
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    store.put(out / "compared.csv", _as_csv(found))
    a, b = (text(name) for name in names)
    share = (
        "how much of the way from the score of the whole picture (0\N{NO-BREAK SPACE}%) to that of "
        "nothing left (100\N{NO-BREAK SPACE}%) is gone when the region is removed"
        if delete
        else "how far the region alone brings the score from that of nothing left "
        "(0\N{NO-BREAK SPACE}%) to that of the whole picture (100\N{NO-BREAK SPACE}%)"
    )
    lead = (
        f"The same pictures in two runs: the region of <b>{a}</b> beside that of <b>{b}</b>. "
        f"<b>{verb.capitalize()}</b> says {share}. <b>Overlap</b> is the area that both regions "
        "cover, over the area that either covers."
    )
    options = (
        '<option value="order">order of the run</option><option value="overlap:up">overlap: least '
        f'first</option><option value="lead:down">{a} {verb} more</option><option '
        f'value="lead:up">{b} {verb} more</option><option value="name">file name</option>'
    )
    controls = (
        '<nav class="controls" aria-label="Sort and filter"><label>Sort by <select id="sort">'
        f'{options}</select></label><label>Find <input id="find" type="search" placeholder="file '
        'or class"></label><output id="count"></output></nav><p id="empty" hidden>No picture here '
        'has that file name or class. <button type="button" id="clear">Show all</button></p>'
    )
    cards = "".join(_card(pair, place, names, verb, told) for place, pair in enumerate(found))
    body = (
        f"<header><h1><em>{a}</em> and <em>{b}</em></h1><p>{lead}</p>"
        f"{_summary(found, (a, b), verb)}{_questions(found, (a, b), verb)}</header>{controls}"
        f'<main id="cards" class="pairs">{cards}</main>'
    )
    style = ":root{--columns:3}.pairs .strip{grid-template-rows:auto}"
    page = document(f"{names[0]} and {names[1]}", body, style=style)
    store.put(folder / "index.html", page)
    return folder / "index.html"


def _by_area(found: Sequence[Pair]) -> dict[float | None, list[Pair]]:
    groups: dict[float | None, list[Pair]] = {}
    for pair in found:
        groups.setdefault(pair.area, []).append(pair)
    return groups


def _lead(some: Sequence[Pair]) -> Interval:
    known = [(a, b) for a, b in (p.effects for p in some) if a is not None and b is not None]
    return paired([a for a, _ in known], [b for _, b in known])


def _median(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return percent(statistics.median(known) if known else None)


def _summary(found: Sequence[Pair], names: tuple[str, str], verb: str) -> str:
    sides: list[str] = []
    lines = []
    for area, some in _by_area(found).items():
        held = [
            [p.rows[k]["evidence"]["verdict"] for p in some if p.rows[k]["evidence"]["verdict"]]
            for k in (0, 1)
        ]
        shares = [percent(h.count("holds") / len(h) if h else None) for h in held]
        medians = [_median([p.effects[k] for p in some]) for k in (0, 1)]
        ahead = _lead(some)
        interval = (
            f"{number(ahead.value)} ({number(ahead.low)} to {number(ahead.high)})"
            if ahead.number
            else "\N{EN DASH}"
        )
        middle = _median([p.overlap for p in some])
        size = "its own area" if area is None else percent(area)
        both = zip(names, medians, shares, strict=True)
        sides += [
            f"<tr><th scope=row>{size}</th><td>{name}</td><td>{median}</td><td>{share}</td></tr>"
            for name, median, share in both
        ]
        lines.append(
            f"<tr><th scope=row>{size}</th><td>{interval}</td><td>{middle}</td><td>{len(some)}</td>"
            "</tr>"
        )
    return (
        f'<table class="summary"><thead><tr><th>region</th><th>of</th><th>{verb}, median</th>'
        f"<th>evidence holds</th></tr></thead><tbody>{''.join(sides)}</tbody></table>"
        '<table class="summary"><thead><tr><th>region</th><th>first minus second, mean with '
        "95\N{NO-BREAK SPACE}% interval</th><th>overlap, median</th><th>regions</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _questions(found: Sequence[Pair], names: tuple[str, str], verb: str) -> str:
    overlaps = [p.overlap for p in found if p.overlap is not None]
    same = sum(v >= 0.5 for v in overlaps)
    looked = (
        f"The two look at the same place in {same} of {len(overlaps)} regions: there at least half "
        "of what either outlines is outlined by both."
        if overlaps
        else "The networks take pictures of different sizes: compare their regions by eye."
    )
    ahead = _lead(found)
    if not ahead.number:
        sure = "Neither has a scale of scores here, so none can be said to keep more."
    elif ahead.low <= 0 <= ahead.high:
        sure = (
            f"Over {ahead.number} regions neither {verb} more than the other: the interval of the "
            "mean difference holds 0."
        )
    else:
        more, less = names if ahead.value > 0 else names[::-1]
        sure = (
            f"Over {ahead.number} regions those of {more} {verb[:-1]} more of the score than those "
            f"of {less}, on average by {percent(abs(ahead.value))}; the interval does not hold 0."
        )
    then = (
        "Sort by overlap and open the pictures where the two differ most: where one region lies on "
        "something that should not matter, take that out of the picture and ask both again."
    )
    return asked(looked, sure, then)


def _card(pair: Pair, place: int, names: tuple[str, str], verb: str, told: Sequence[Record]) -> str:
    a, b = pair.effects
    data = {
        "order": place,
        "name": pair.image,
        "target": " ".join(_label(row) for row in pair.rows),
        "overlap": pair.overlap,
        "lead": None if a is None or b is None else a - b,
    }
    attributes = "".join(
        f' data-{key}="{text("" if value is None else value)}"' for key, value in data.items()
    )
    overlap = "" if pair.overlap is None else f"<span>overlap {percent(pair.overlap)}</span>"
    size = "" if pair.area is None else f"{percent(pair.area)} of it"
    whole = figure(
        "region", pictures.enlarge(pair.picture), "the whole picture", "picture", overlap
    )
    sides = "".join(
        figure(
            "region",
            pictures.overlay(_fitting(pair.picture, mask), mask),
            f"the region of {name}",
            f"{name}: {_label(row)}",
            f"<span>{verb} {percent(share)}</span>{''.join(marks([row], run))}{_checked(row)}",
        )
        for name, mask, row, share, run in zip(
            names, pair.masks, pair.rows, pair.effects, told, strict=True
        )
    )
    return (
        f'<article class="card"{attributes}><h2>{text(pair.image)}</h2><p class="file">{size}</p>'
        f'<div class="strip">{whole}{sides}</div></article>'
    )


def _fitting(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture at the mask's size: the second network may take another."""
    if picture.shape[:2] == mask.shape:
        return picture
    rows, columns = (
        np.arange(n) * have // n for n, have in zip(mask.shape, picture.shape[:2], strict=True)
    )
    return np.asarray(picture[rows][:, columns])


def _label(row: dict[str, Any]) -> str:
    return str(row.get("target_name", f"class {row['target']}"))


def _checked(row: dict[str, Any]) -> str:
    verdict = row["evidence"]["verdict"]
    if not verdict:
        return ""
    lines = "".join(f"<li>{text(reason)}</li>" for reason in row["evidence"]["reasons"])
    return (
        f'<details class="evidence {text(verdict)}"><summary>{text(verdict)}</summary>'
        f"<p>{text(VERDICTS[verdict])}</p><ul>{lines}</ul></details>"
    )


def _as_csv(found: Sequence[Pair]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = ("target", "effect", "probability_original", "probability_binary", "verdict")
    head = [f"{part}_{k}" for k in ("a", "b") for part in parts]
    writer.writerow(["image", "area", *head, "overlap"])
    for pair in found:
        cells = []
        for row, share in zip(pair.rows, pair.effects, strict=True):
            cells += [
                _label(row),
                share,
                row.get("probability_original"),
                row.get("probability_binary"),
                row["evidence"]["verdict"],
            ]
        writer.writerow([pair.image, pair.area, *cells, pair.overlap])
    return buffer.getvalue().encode()
