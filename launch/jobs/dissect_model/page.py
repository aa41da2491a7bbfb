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
from launch.report.parts import figure
from perturb.internals.dissection import ENOUGH
from perturb.types import Record

__all__ = ["body", "write"]


def write(out: results.Out) -> store.Path:
    """Writes `report/index.html` of a finished run and returns its path."""
    run = results.settings(out)
    name = run["model"]["name"]
    page = document(
        f"Units of {name}",
        f"<header><h1>What the units of <em>{text(name)}</em> answer "
        f"to</h1><p>{lead(run)}</p></header><main>{body(out)}</main>",
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
    """Returns what is shown, in three sentences (safe HTML)."""
    flags = run["flags"]
    beyond = (
        ", and further than the units of one more such network would, or than its layer would as "
        "a whole"
        if flags["networks"] >= ENOUGH
        else ""
    )
    return (
        f"On {flags['samples']} pictures, every unit is compared with every concept where it is "
        f"among its own strongest {percent(1 - flags['quantile'])}. The published rule takes a "
        "unit for a detector where their overlap (IoU) exceeds .04; a unit <b>passes</b> here if "
        f"it does and also stands out from the units of {flags['networks']} networks of the same "
        "architecture with random weights, at a false-discovery rate of 5\N{NO-BREAK SPACE}% a "
        f"layer{beyond}."
    )


def body(out: results.Out, pages: str = "") -> str:
    """Returns a summary of the layers and a card for each (safe HTML); `pages` is where those of
    units lie.
    """
    record, arrays = units.last(out)
    lines, cards = [], []
    # By rank among the rotations: with fewer than this the p-value could not be low.
    turned = results.settings(out)["flags"]["rotations"] >= 19
    against = "<th>p of concepts lying along units, against rotations</th>" if turned else ""
    for at, item in enumerate(record["items"]):
        rows = [r for r in record["rows"] if r["layer"] == item["layer"]]
        passed = [r for r in rows if r["verdict"] == "passes"]
        found = collections.Counter(r["concept"] for r in passed)
        # The commonest: a layer may answer to dozens of concepts.
        words = ", ".join(f"{text(n)} {k}" for n, k in found.most_common(6)) or "\N{EN DASH}"
        p = f"<td>{decimal(item['aligned'])}</td>" if turned else ""
        lines.append(
            f'<tr><th scope="row">{text(item["layer"])}</th><td>{item["passes"]} of '
            f"{item['units']}</td>"
            f"<td>{item['rule']}</td><td>{percent(item['null_share'])}</td>"
            f"{p}<td>{words}</td></tr>"
        )
        portraits = {p["unit"]: p for p in (record.get("portraits") or [[]] * (at + 1))[at]}
        cards.append(_card(at, item, {r["unit"]: r for r in rows}, arrays, portraits, pages))
    return (
        '<table class="summary"><thead><tr><th>layer</th><th>units that pass</th>'
        "<th>by the published rule alone</th><th>of random networks, by that rule</th>"
        f"{against}<th>concepts of those that pass</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>{''.join(cards)}"
    )


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
            below += (
                f"<span>Off, the true class loses {decimal(row['cost'])} of log-probability "
                f"({decimal(row['cost_low'])} to {decimal(row['cost_high'])})</span>"
            )
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
