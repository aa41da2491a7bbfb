"""The page of a dissection: for every concept its units, what goes and comes with them, and what
leaks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launch import results
from launch.job import commit, store
from launch.report import pictures
from launch.report.html import document, number, percent, text
from launch.report.parts import asked, figure, table
from perturb.types import Record

__all__ = [
    "LEGEND",
    "STYLE",
    "bars",
    "body",
    "last",
    "lead",
    "plural",
    "points",
    "questions",
    "summary",
    "write",
]

TILE = 112  # px, side of a sample on the page

STYLE = (
    ":root{--columns:9}.unit-rows{display:grid;gap:.7rem;margin:.5rem 0 1rem;"
    "grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}"
    ".bars{width:100%;border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;"
    "table-layout:fixed}"
    ".bars th,.bars td{padding:.12rem .5rem .12rem "
    "0;text-align:left;font-weight:400;vertical-align:middle}.bars thead "
    "th{color:var(--soft)}.bars .meant th{font-weight:600}.bars "
    "svg{display:block;width:100%;height:14px}.bars .band{fill:var(--soft);opacity:.28}.bars "
    ".bar{fill:var(--fill)}.bars "
    ".whisker{stroke:var(--ink);stroke-width:1.5;vector-effect:non-scaling-stroke}.bars "
    ".zero{stroke:var(--soft);stroke-width:1;vector-effect:non-scaling-stroke}.bars "
    ".name{width:7rem}.card h3{font-size:.95rem;margin:.9rem 0 .3rem}.card "
    ".note{color:var(--soft);font-size:.86rem;margin:.2rem 0 "
    ".5rem;max-width:62rem}.edits{display:grid;gap:.6rem;max-width:62rem}.bars{max-width:84rem}"
    "main .card+.card,main .card+h2{margin-top:1.1rem}.bars .words{white-space:nowrap;width:14rem}"
    # On a telephone a concept is a block: its name, then bar and numbers of each state.
    "@media(max-width:40rem){.bars thead{display:none}.bars "
    "tr{display:grid;grid-template-columns:minmax(3rem,1fr) auto;gap:0 .5rem;padding:.3rem "
    "0;border-bottom:1px solid var(--line)}.bars th{grid-column:1/3}.bars td{padding:.1rem 0}.bars "
    "td{align-self:center}.bars .words{width:auto;font-size:.8rem}.bars "
    '.words::before{content:attr(data-state) ": "}}'
    ".legend .band{fill:var(--soft);opacity:.35}.legend .whisker{stroke:var(--ink);stroke-width:2}"
)
LEGEND = (
    '<ul class="legend"><li class="region"><svg viewBox="0 0 48 16" aria-hidden="true">'
    '<rect class="dim" width="48" height="16" rx="3"></rect>'
    '<rect class="line" x="14" y="3" width="20" height="10" rx="4"></rect></svg>'
    "where the unit is active, the rest dimmed</li>"
    '<li><svg viewBox="0 0 48 16" aria-hidden="true"><rect class="fill" y="3" width="30" '
    'height="10"></rect><line class="whisker" x1="22" x2="38" y1="8" y2="8"></line></svg>change '
    'and its 95\N{NO-BREAK SPACE}% interval</li><li><svg viewBox="0 0 48 16" '
    'aria-hidden="true"><rect class="band" x="6" y="1" width="30" height="14"></rect>'
    "</svg>what random sets of as many units do</li></ul>"
)


def write(out: results.Out) -> store.Path:
    """Writes `report/index.html` of a finished run of dissection and returns its path."""
    run = results.settings(out)
    record, arrays = last(out)
    name, layer = run["model"]["name"], run["flags"]["layer"]
    head = (
        f"<header><h1>What the units of <em>{text(layer)}</em> in {text(name)} draw</h1>"
        f"<p>{lead(run)}</p>{chips(run, arrays['table.interpretable'])}"
        f"{questions(record, run)}{summary(record)}{LEGEND}</header>"
    )
    page = document(
        f"Units of {layer} in {name}", head + f"<main>{body(record, arrays)}</main>", style=STYLE
    )
    folder = store.path(out) / "report"
    folder.mkdir(exist_ok=True)
    store.put(folder / "index.html", page)
    return folder / "index.html"


def last(out: results.Out) -> tuple[Record, dict[str, np.ndarray]]:
    """Returns record and arrays of a run's last shard, which holds table, effects and pictures."""
    stems = results.committed(out)
    # Shards are numbered by the manifest, whose last row is the pass that made these.
    return commit.read_shard(stems[-1])


def lead(run: Record) -> str:
    """Returns what is shown, in two sentences (safe HTML)."""
    flags = run["flags"]
    top = percent(1 - flags["quantile"])
    times = flags.get("on_level", 1.0)
    value = "the value" if times == 1 else f"{times:g} times the value"
    return (
        f"A unit counts as active where it is among its own strongest {top}. How well it matches a "
        "concept is the IoU: the area that both cover, over the area that either covers. The "
        f"{plural(flags['units'])} of highest IoU are switched together: <b>off</b> sets them to "
        f"0 everywhere, <b>on</b> sets them everywhere to {value} that only their strongest "
        f"{top} exceed. What changes beside the concept that was meant is called leakage."
    )


def plural(number: int, word: str = "unit") -> str:
    """Returns `1 unit`, `8 units`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def chips(run: Record, interpretable: np.ndarray) -> str:
    """Returns the facts of the run, and how many of its units draw one concept better than
    chance.
    """
    flags = run["flags"]
    facts = [
        f"{flags['samples']} latents",
        f"effects on {flags['effect_samples']}",
        f"{flags['controls']} random sets",
        f"{int(interpretable.sum())} of {plural(len(interpretable))} interpretable",
        f"weights {run['model']['fingerprint'][:12]}",
    ]
    return f'<ul class="chips">{"".join(f"<li>{text(f)}</li>" for f in facts)}</ul>'


def effects_of(record: Record) -> dict[tuple[str, str], Record]:
    """Returns the rows of effects by concept and state."""
    return {(r["concept"], r["state"]): r for r in record["rows"] if r["kind"] == "effect"}


def questions(record: Record, run: Record) -> str:
    """Returns what units draw, how sure that is and what to do next; nothing where nothing was
    switched (safe HTML).
    """
    effects = effects_of(record)
    off = {c: row for (c, state), row in effects.items() if state == "off"}
    known = {c: row for c, row in off.items() if row["effect"]["ratio"] is not None}
    if not known:
        return ""
    flags = run["flags"]
    held = [c for c, row in known.items() if _beyond(row["effect"])]
    order = sorted(known, key=lambda c: known[c]["effect"]["ratio"])
    parts = [f"<b>{text(c)}</b> {percent(known[c]['effect']['ratio'])}" for c in order]
    found = (
        f"With the best {plural(flags['units'])} of a concept switched off, this much of its area "
        f"is left: {', '.join(parts)}."
    )
    rest = [text(c) for c in known if c not in held]
    sure = (
        f"For {len(held) or 'none'} of {plural(len(known), 'concept')} that is less than what "
        f"random sets of as many units leave ({flags['controls']} sets, "
        f"{flags['effect_samples']} new pictures)."
    )
    if rest:
        sure += f" For {', '.join(rest)} it may be chance."
    on = [c for c, s in effects if s == "on" and (effects[c, s]["effect"]["change_low"] or 0) > 0]
    then = (
        "Look at the leakage of a concept before you call its units its cause: units that take "
        "other things with them draw more than one. "
        + (
            f"Switched on everywhere, units bring more of {', '.join(map(text, on))}. "
            if on
            else "Switched on everywhere, no concept's units bring more of it. "
        )
        + "To brush them in and out at a place, run <code>python -m launch.studio</code>."
    )
    return asked(found, sure, then, first="What do the units draw?")


def _beyond(e: Record) -> bool:
    """Whether an edit takes more than random sets do, all intervals considered."""
    return e["random_low"] is not None and (e["change_high"] or 0) < min(e["random_low"], 0)


def summary(record: Record) -> str:
    """Returns a row a concept: how often it is seen, what is left when off, what random sets leave,
    worst leakage.
    """
    effects, lines = effects_of(record), []
    for item in record["items"]:
        row = effects.get((item["concept"], "off"))
        if row is None:
            continue
        e = row["effect"]
        # Null where no sample has the concept: then there is no share to speak of.
        before = e["before"] or 0
        others = {n: v["change"] for n, v in row["leakage"].items() if v["change"] is not None}
        # Of either sign: what an edit adds elsewhere is leakage too.
        worst = max(others, key=lambda n: abs(others[n]), default=None)
        leak = f"{text(worst)} {points(others[worst])}" if worst else "\N{EN DASH}"
        left = [
            # As a share of what was there: 1 is nothing changed.
            1 + e[k] / before if before and e[k] is not None else None
            for k in ("random_low", "random_high")
        ]
        lines.append(
            [
                text(item["concept"]),
                f"{row['images']}",
                percent(before),
                f"{percent(e['ratio'])} ({percent(e['ratio_low'])} to {percent(e['ratio_high'])})",
                f"{percent(left[0])} to {percent(left[1])}",
                leak,
            ]
        )
    if not lines:
        return ""
    return table(
        [
            "concept",
            "pictures with it",
            "area of all",
            "left with its units off (95\N{NO-BREAK SPACE}%)",
            "left with random units off",
            "largest leakage, in points",
        ],
        lines,
    )


def points(share: float | None) -> str:
    """Returns a difference of shares in percentage points.

    >>> points(0.0213), points(-0.1), points(-0.0001), points(None)
    ('+2.1', '−10.0', '+0.0', '–')
    """
    if share is None:
        return "\N{EN DASH}"
    # Adding 0 makes -0 a 0.
    return f"{round(100 * share, 1) + 0:+.1f}".replace("-", "\N{MINUS SIGN}")


def body(record: Record, arrays: dict[str, np.ndarray], only: Sequence[str] = ()) -> str:
    """Returns a card a concept (safe HTML), all of them or those of `only`."""
    cards = []
    for place, item in enumerate(record["items"]):
        if not only or item["concept"] in only:
            cards.append(_card(place, item, record, arrays))
    return "".join(cards)


def _card(place: int, item: Record, record: Record, arrays: dict[str, np.ndarray]) -> str:
    concept = item["concept"]
    shown = arrays["shown"].tolist()
    names = record["concepts"]
    rows = []
    for unit in item["units"]:
        # Pictures are kept for the first units of a concept only.
        if unit not in shown:
            continue
        at, c = shown.index(unit), names.index(concept)
        iou, low, high = (arrays[f"table.{k}"][unit, c] for k in ("iou", "iou_low", "iou_high"))
        drawn = [
            pictures.overlay(image, _fit(active, image.shape[:2]), side=TILE)
            for image, active in zip(
                arrays["top.images"][at], arrays["top.active"][at], strict=True
            )
        ]
        chance = number(arrays["table.chance"][unit, c])
        below = (
            f"<span>IoU {number(iou)} ({number(low)} to {number(high)}), by chance {chance}</span>"
        )
        rows.append(
            figure(
                "region",
                pictures.beside(drawn),
                f"samples in which unit {unit} is most active",
                f"unit {unit}",
                below,
            )
        )
    parts = [f'<div class="unit-rows">{"".join(rows)}</div>']
    effects = effects_of(record)
    # Concepts that come from files cannot be found in edited pictures: then there are no effects.
    states = [s for s in ("off", "on") if (concept, s) in effects]
    if states:
        parts.append(_edits(place, concept, effects, arrays, len(item["units"])))
        parts.append(bars({s: effects[concept, s] for s in states}, concept))
    units = ", ".join(map(str, item["units"]))
    return (
        f'<article class="card"><h2>{text(concept)}</h2>'
        f'<p class="note">units, best match first: {units}</p>{"".join(parts)}</article>'
    )


def _edits(
    place: int,
    concept: str,
    effects: dict[tuple[str, str], Record],
    arrays: dict[str, np.ndarray],
    count: int,
) -> str:
    def grown(images: np.ndarray) -> np.ndarray:
        return pictures.beside([pictures.enlarge(i, TILE) for i in images])

    # The state before is the same for both edits.
    off = effects[concept, "off"]["effect"]
    figures = [
        figure(
            "shown",
            grown(arrays["before"][place]),
            "samples as they are",
            "as drawn",
            f"<span>{text(concept)}: {percent(off['before'])} of the area of all samples</span>",
        ),
    ]
    for i, state in enumerate(("off", "on")):
        e = effects[concept, state]["effect"]
        figures.append(
            figure(
                "shown",
                grown(arrays["edited"][place, i]),
                f"the same samples, units {state}",
                f"{plural(count)} {state}",
                f"<span>{percent(e['after'])}: {points(e['change'])} points "
                f"({points(e['change_low'])} to {points(e['change_high'])})</span>",
            )
        )
    return f'<h3>Switched off and on</h3><div class="edits">{"".join(figures)}</div>'


def bars(states: dict[str, Record], concept: str) -> str:
    """Returns a table of the change of every concept under each edit, with intervals and random
    bands.
    """
    first = next(iter(states.values()))
    # The same order for all states, or rows could not be read across.
    order = [concept, *sorted(first["leakage"])]
    found = {s: {concept: row["effect"], **row["leakage"]} for s, row in states.items()}
    head = "".join(
        f'<th colspan="2">units {text(s)}: change of the area, in points</th>' for s in states
    )
    lines = []
    for name in order:
        cells = ""
        for s in states:
            # One scale for all bars of a state, so that they can be compared.
            span = max(
                (
                    abs(v[k] or 0)
                    for v in found[s].values()
                    for k in ("change_low", "change_high", "random_low", "random_high")
                ),
                default=0,
            )
            e = found[s][name]
            words = (
                f"{points(e['change'])} ({points(e['change_low'])} to {points(e['change_high'])})"
            )
            cells += (
                f'<td>{_bar(e, span or 1.0)}</td><td class="words" '
                f'data-state="{text(s)}">{words}</td>'
            )
        kind = ' class="meant"' if name == concept else ""
        lines.append(f'<tr{kind}><th scope="row">{text(name)}</th>{cells}</tr>')
    return (
        f"<h3>What was meant, and what leaks</h3>"
        f'<table class="bars"><thead><tr><th class="name"></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _bar(e: Record, span: float) -> str:
    """A change as a bar from the middle, with its interval and the band of random sets."""

    def x(value: float | None) -> float:
        # 98 of the 100 on each side: a stroke at the very end stays within the picture.
        return 100 + 98 * (value or 0) / span

    # A rectangle has no negative width: a fall is drawn from its end to the middle.
    low, high = sorted((x(0), x(e["change"])))
    # Below, nothing is thinner than can be seen: no change at all has a bar, too.
    left, right = x(e["random_low"]), x(e["random_high"])
    return (
        '<svg viewBox="0 0 200 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="band" x="{left:.1f}" width="{max(right - left, 0.5):.1f}" '
        f'height="14"></rect><rect class="bar" x="{low:.1f}" y="3" '
        f'width="{max(high - low, 0.3):.1f}" height="8"></rect><line class="whisker" '
        f'x1="{x(e["change_low"]):.1f}" x2="{x(e["change_high"]):.1f}" y1="7" y2="7"></line><line '
        'class="zero" x1="100" x2="100" y1="0" y2="14"></line></svg>'
    )


def _fit(active: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges the cells of a layer to the picture, each cell whole."""
    rows = np.arange(size[0]) * active.shape[0] // size[0]
    columns = np.arange(size[1]) * active.shape[1] // size[1]
    # Not smoothed: the page shows which cells are active, no more.
    found: np.ndarray = active[rows][:, columns].astype(np.float32)
    return found
