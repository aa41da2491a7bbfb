"""The page of one unit: patches at the top and along its range, concept, cost, ties, and whether
they agree.
"""

from __future__ import annotations

import numpy as np

from launch.jobs.dissect import page as units
from launch.jobs.dissect_model.portraits import LEVELS, TOP
from launch.report import pictures
from launch.report.html import document, number, text
from launch.report.parts import figure
from perturb.types import Record

__all__ = ["agrees", "cost_words", "decimal", "file_name", "write"]

_CHECKS = {
    "top": "the pictures it answers to most hold the concept",
    "range": "along its whole range it is higher where the concept is",
    "cost": "without it the true class loses",
    "ties": "most units that it goes with in other layers have the same concept",
}
_FAILS = {
    "top": "top pictures",
    "range": "range",
    "cost": "cost",
    "ties": "units that it goes with",
}
_ANSWERS = {True: "yes", False: "no", None: "cannot be checked here"}


def file_name(layer: int, unit: int) -> str:
    """The page of a unit within `report/`."""
    return f"unit-{layer}-{unit}.html"


def decimal(value: float | None) -> str:
    """Returns a number with three decimals, so that a value and its interval can be read together.

    >>> decimal(0.0991), decimal(-0.0009), decimal(None)
    ('0.099', '\N{MINUS SIGN}0.001', '\N{EN DASH}')
    """
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def cost_words(row: Record) -> str:
    """Returns what switching the unit off does to the true class, as a change and its interval.

    >>> cost_words({"cost": -0.25, "cost_low": -0.5, "cost_high": -0.125})
    'Off, the log-probability of the true class changes by +0.250 (+0.125 to +0.500)'
    """
    # A cost below 0 is a gain: as a change nobody has to take one minus from another.
    change, low, high = (
        decimal(v) if v < 0 else f"+{decimal(v)}"
        for v in (0.0 - row[end] for end in ("cost", "cost_high", "cost_low"))
    )
    return f"Off, the log-probability of the true class changes by {change} ({low} to {high})"


def agrees(portrait: Record) -> str:
    """Returns whether what else is known of a unit fits its concept: the end of a sentence."""
    if portrait["agreement"] == "not known":
        return "is too little to compare"
    failed = [_FAILS[name] for name, fits in portrait["checks"].items() if fits is False]
    return f"does not all fit: {', '.join(failed)}" if failed else "fits"


def write(
    model: str,
    layer: str,
    row: Record,
    portrait: Record,
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
    values = ", ".join(number(v) for v in portrait["range"])
    levels = ", ".join(f"{100 * share:.0f}" for share in LEVELS)
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
        f"<span>activation {values}: higher than in {levels} of 100 pictures</span>",
    )
    ties = "".join(
        f"<li>{_link(t, linked)}: {text(t['concept'])}, correlation {t['correlation']:.2f}</li>"
        for t in portrait["ties"]
    )
    # Answers may be missing: where every picture holds the concept, say, nothing can be compared.
    checks = "".join(
        f'<tr><th scope="row">{words}</th><td>{_ANSWERS[portrait["checks"][name]]}</td></tr>'
        for name, words in _CHECKS.items()
    )
    cost = (
        "<p>Not measured: the classes of the pictures are not known. A list path,target for "
        "--images tells them.</p>"
    )
    if "cost" in row:
        cost = f"<p>{cost_words(row)}.</p>"
    body = (
        f"<header><h1>Unit {row['unit']} of <em>{text(layer)}</em>, {text(model)}</h1>"
        f"<p>{text(row['concept'])}: IoU {decimal(row['iou'])} ({decimal(row['iou_low'])} to "
        f"{decimal(row['iou_high'])}), by chance {decimal(row['chance'])}; p "
        f"{number(row['p_value'])}, <b>{row['verdict']}</b>. What else is known of it "
        f"{agrees(portrait)}.</p>"
        '<p><a href="index.html">All units</a></p></header>'
        f'<main><article class="card"><div class="unit-rows">{patches}</div></article>'
        f'<article class="card"><h2>What the answer rests on</h2>{cost}</article>'
        '<article class="card"><h2>Units that it goes '
        f"with</h2><ul>{ties or '<li>no other layer was read</li>'}</ul></article><article "
        'class="card"><h2>Does it agree?</h2><table '
        f'class="summary"><tbody>{checks}</tbody></table></article></main>'
    )
    return document(f"Unit {row['unit']} of {layer}", body, style=units.STYLE)


def _link(tie: Record, linked: dict[tuple[str, int], str]) -> str:
    name = f"{text(tie['layer'])} {tie['unit']}"
    page = linked.get((tie["layer"], tie["unit"]))
    # Only units that stand out have a page.
    return name if page is None else f'<a href="{page}">{name}</a>'
