"""The page of a classifier's units: what passes the null, by layer, and the units with their
pictures.
"""

from __future__ import annotations

import collections

import numpy as np

from launch import results
from launch.job import store
from launch.jobs.dissect import page as units
from launch.jobs.dissect_model import unit_page
from launch.jobs.dissect_model.unit_page import decimal
from launch.report import pictures
from launch.report.html import document, number, percent, text
from launch.report.parts import asked, figure, table
from perturb.internals.dissection import ENOUGH
from perturb.types import Record

__all__ = ["body", "lead", "questions", "write"]


def write(out: results.Out) -> store.Path:
    """Writes `report/index.html` of a finished run and returns its path."""
    run = results.settings(out)
    name = run["model"]["name"]
    page = document(
        f"Units of {name}",
        f"<header><h1>What the units of <em>{text(name)}</em> answer "
        f"to</h1><p>{lead(run)}</p>{questions(units.last(out)[0], run)}</header>"
        f"<main>{body(out)}</main>",
        style=units.STYLE,
    )
    folder = store.path(out) / "report"
    folder.mkdir(exist_ok=True)
    store.put(folder / "index.html", page)
    _unit_pages(out, name, folder)
    return folder / "index.html"


def _unit_pages(out: results.Out, model: str, folder: store.Path) -> None:
    record, arrays = units.last(out)
    # Runs of earlier versions have no portraits: they get a page without links.
    known = list(zip(record["items"], record.get("portraits", []), strict=False))
    # By number of the layer, for a layer's name may hold what a file's may not.
    linked = {
        (item["layer"], p["unit"]): unit_page.file_name(at, p["unit"])
        for at, (item, portraits) in enumerate(known)
        for p in portraits
    }
    rows = {(r["layer"], r["unit"]): r for r in record["rows"]}
    for at, (item, portraits) in enumerate(known):
        for p in portraits:
            key = item["layer"], p["unit"]
            page = unit_page.write(
                model, item["layer"], rows[key], p, arrays[f"page|{at}|{p['unit']}"], linked
            )
            store.put(folder / linked[key], page)


def lead(run: Record) -> str:
    """Returns what is shown, in a few sentences (safe HTML)."""
    flags = run["flags"]
    beyond = (
        ", and does so by more than the units of one further such network do, or its layer as a "
        "whole does"
        if flags["networks"] >= ENOUGH
        else ""
    )
    networks = units.plural(flags["networks"], "network")
    return (
        f"On {flags['samples']} pictures every unit is compared with every concept, where the unit "
        f"is among its own strongest {percent(1 - flags['quantile'])}. The published rule calls a "
        "unit a detector where the overlap of the two (IoU) is above .04. Here a unit "
        f"<b>passes</b> if it also stands out from the units of {networks} of the same "
        "architecture with random weights, at a false-discovery rate of 5\N{NO-BREAK SPACE}% a "
        f"layer{beyond}; otherwise it <b>fails</b>."
    )


def questions(record: Record, run: Record) -> str:
    """Returns what units answer to, how sure that is and what to do next (safe HTML)."""
    rows, items = record["rows"], record["items"]
    passed = collections.Counter(r["concept"] for r in rows if r["verdict"] == "passes")
    number = sum(passed.values())
    # The commonest: a network may answer to hundreds of concepts.
    words = ", ".join(f"<b>{text(n)}</b> ({k})" for n, k in passed.most_common(6))
    found = (
        f"{number} of {units.plural(len(rows))} pass, most of them for {words}."
        if number
        else f"None of {units.plural(len(rows))} passes: no concept of this list is told apart."
    )
    null = max((item["null_share"] or 0.0 for item in items), default=0.0)
    networks = run["flags"]["networks"]
    sure = (
        "By the published rule alone, up to "
        f"{percent(null)} of the units of a layer with random weights would count as detectors; "
        f"those that pass stand out from {units.plural(networks, 'such network')}. That a unit "
        "answers to a concept does not yet say that the network uses it: see what the true class "
        "loses when the unit is off."
    )
    then = (
        "Open <b>What else is known</b> of a unit before you name it. Where many units pass for "
        "something that should not matter (a mark, a frame), ask for the masks of those pictures: "
        "<code>python -m launch.masks</code>. To switch units off by a click, run <code>python -m "
        "launch.studio</code>."
    )
    return asked(found, sure, then, first="What do the units answer to?")


def body(out: results.Out, pages: str = "") -> str:
    """Returns a summary of the layers and a card for each (safe HTML); `pages` is where those of
    units lie.
    """
    record, arrays = units.last(out)
    lines, cards = [], []
    # By rank among the rotations: with fewer than this the p-value could not be low.
    turned = results.settings(out)["flags"]["rotations"] >= 19
    against = ["p of concepts lying along units, against rotations"] if turned else []
    for at, item in enumerate(record["items"]):
        rows = [r for r in record["rows"] if r["layer"] == item["layer"]]
        passed = [r for r in rows if r["verdict"] == "passes"]
        found = collections.Counter(r["concept"] for r in passed)
        # The commonest: a layer may answer to dozens of concepts.
        listed = [f"{text(n)} {k}" for n, k in found.most_common(6)]
        more = len(found) - len(listed)
        words = ", ".join(listed + [f"{more} more"] * (more > 0)) or "\N{EN DASH}"
        lines.append(
            [
                text(item["layer"]),
                f"{item['passes']} of {item['units']}",
                f"{item['rule']} ({percent(item['rule'] / item['units'])})",
                percent(item["null_share"]),
                *([decimal(item["aligned"])] if turned else []),
                words,
            ]
        )
        portraits = {p["unit"]: p for p in (record.get("portraits") or [[]] * (at + 1))[at]}
        cards.append(_card(at, item, {r["unit"]: r for r in rows}, arrays, portraits, pages))
    layers = table(
        [
            "layer",
            "units that pass",
            "by the published rule alone",
            "of random networks, by that rule",
            *against,
            "concepts of those that pass",
        ],
        lines,
    )
    return layers + "".join(cards)


def _card(
    at: int,
    item: Record,
    rows: dict[int, Record],
    arrays: dict[str, np.ndarray],
    portraits: dict[int, Record],
    pages: str,
) -> str:
    figures = []
    for unit in item["shown"]:
        row = rows[unit]
        low, high = decimal(row["iou_low"]), decimal(row["iou_high"])
        below = (
            f"<span>{text(row['concept'])}, {row['verdict']}: IoU {decimal(row['iou'])} ({low} to "
            f"{high}), by chance {decimal(row['chance'])}; p {number(row['p_value'])}</span>"
        )
        if "cost" in row:
            # Only where the classes of the pictures are known.
            below += f"<span>{unit_page.cost_words(row)}</span>"
        if unit in portraits:
            page = f"{pages}{unit_page.file_name(at, unit)}"
            below += (
                f'<span><a href="{page}">What else is known</a> '
                f"{unit_page.agrees(portraits[unit])}</span>"
            )
        tiles = pictures.beside(list(arrays[f"{at}|{unit}"]))
        figures.append(
            figure("region", tiles, f"top pictures of unit {unit}", f"unit {unit}", below)
        )
    # Units that have a page but no place among the pictures shown here.
    others = ", ".join(
        f'<a href="{pages}{unit_page.file_name(at, u)}">{u}</a>'
        for u in portraits
        if u not in item["shown"]
    )
    more = f'<p class="note">Pages of more units: {others}.</p>' if others else ""
    return (
        f'<article class="card"><h2>{text(item["layer"])}</h2>'
        '<p class="note">Top pictures of the units that stand out most; outlined where the unit is '
        "above half of its peak there.</p><div "
        f'class="unit-rows">{"".join(figures)}</div>{more}</article>'
    )
