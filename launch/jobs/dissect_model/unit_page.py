"""The page of one unit: patches at the top and along its range, concept, cost, ties, and whether
they agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from launch.jobs.dissect import page as units
from launch.jobs.dissect_model.portraits import LEVELS, TOP
from launch.report import pictures
from launch.report.html import document, number, percent, text
from launch.report.parts import figure

__all__ = ["file_name", "write"]

_CHECKS = {
    "top": "the pictures it answers to most hold the concept",
    "range": "along its whole range it is higher where the concept is",
    "cost": "without it the true class loses",
    "ties": "most units that it goes with in other layers have the same concept",
}
_ANSWERS = {True: "yes", False: "no", None: "cannot be checked here"}


def file_name(layer: int, unit: int) -> str:
    """The page of a unit within `report/`."""
    return f"unit-{layer}-{unit}.html"


def write(
    model: str,
    layer: str,
    row: dict[str, Any],
    portrait: dict[str, Any],
    tiles: np.ndarray,
    linked: dict[tuple[str, int], str],
) -> bytes:
    """Returns the page.

    Args:
      model, layer: their names.
      row: the unit's row of results.jsonl.
      portrait: what `portraits.draw` returned for it.
      tiles: `[TOP + levels, side, side, 3]` uint8.
      linked: pages of other units by layer and unit.
    """
    # Fewer than `TOP` where there are fewer pictures.
    top = len(tiles) - len(LEVELS)
    values = [number(v) for v in portrait["range"]]
    levels = ", ".join(
        f"{percent(share)}: {value}" for share, value in zip(LEVELS, values, strict=True)
    )
    patches = figure(
        "region",
        pictures.beside(list(tiles[:top])),
        f"the {TOP} highest patches",
        "highest",
        f"<span>activation {number(portrait['top'][0])} down to {number(portrait['top'][-1])}, cut "
        "to what the unit can see</span>",
    ) + figure(
        "region",
        pictures.beside(list(tiles[top:])),
        "patches along the range",
        "along its range",
        f"<span>activation higher than in a share of pictures at random, {levels}</span>",
    )
    ties = "".join(
        f"<li>{_link(t, linked)}: {text(t['concept'])}, correlation {number(t['correlation'])}</li>"
        for t in portrait["ties"]
    )
    # Answers may be missing: where every picture holds the concept, say, nothing can be compared.
    checks = "".join(
        f'<tr><th scope="row">{words}</th><td>{_ANSWERS[portrait["checks"][name]]}</td></tr>'
        for name, words in _CHECKS.items()
    )
    cost = "<p>Classes of the pictures are not known, so there is no cost.</p>"
    if "cost" in row:
        cost = (
            f"<p>Off, the true class loses {number(row['cost'])} of log-probability "
            f"({number(row['cost_low'])} to {number(row['cost_high'])}).</p>"
        )
    body = (
        f"<header><h1>Unit {row['unit']} of <em>{text(layer)}</em>, {text(model)}</h1>"
        f"<p>{text(row['concept'])}: IoU {number(row['iou'])} ({number(row['iou_low'])} to "
        f"{number(row['iou_high'])}), by chance {number(row['chance'])}; p "
        f"{number(row['p_value'])}, {row['verdict']}. What is known of it: "
        f"<b>{text(portrait['agreement'])}</b>. "
        '<a href="index.html">All units</a></p></header>'
        f'<main><article class="card"><div class="unit-rows">{patches}</div></article>'
        f'<article class="card"><h2>What the answer loses</h2>{cost}</article>'
        '<article class="card"><h2>Units that it goes '
        f"with</h2><ul>{ties or '<li>no other layer was read</li>'}</ul></article><article "
        'class="card"><h2>Does it agree?</h2><table '
        f'class="summary"><tbody>{checks}</tbody></table></article></main>'
    )
    return document(f"Unit {row['unit']} of {layer}", body, style=units.STYLE)


def _link(tie: dict[str, Any], linked: dict[tuple[str, int], str]) -> str:
    name = f"{text(tie['layer'])} {tie['unit']}"
    page = linked.get((tie["layer"], tie["unit"]))
    # Only units that stand out have a page.
    return name if page is None else f'<a href="{page}">{name}</a>'
