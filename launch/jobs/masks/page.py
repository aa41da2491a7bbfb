"""The page of a run of masks: every image, its regions, what the network was shown, and the
scores.
"""

from __future__ import annotations

import heapq
import os
import random
import statistics
from collections.abc import Sequence

import numpy as np

from launch import results
from launch.job import store
from launch.job.ahead import ahead
from launch.jobs.masks import findings
from launch.jobs.masks.cards import card, effect
from launch.report.html import document, percent, text
from perturb import operators
from perturb.types import Record

__all__ = ["write"]

_REMOVED = {
    "blur": "blurred",
    "fade": "faded to grey",
    "mean": "replaced by its mean colour",
    "noise": "replaced by noise",
    "median": "smoothed by a median",
}
_LEGEND = (
    '<li class="region"><svg viewBox="0 0 48 16" aria-hidden="true">'
    '<rect class="dim" width="48" height="16" rx="3"></rect>'
    '<rect class="line" x="14" y="3" width="20" height="10" rx="4"></rect></svg>region, the rest '
    'dimmed</li><li><svg viewBox="0 0 48 16" aria-hidden="true"><rect class="track" y="5" '
    'width="48" height="6" rx="3"></rect><rect class="fill" y="5" width="30" height="6" '
    'rx="3"></rect><rect class="tick" x="38" y="5" width="1.6" height="6">'
    "</rect></svg>score, with a mark at that of the whole picture</li>"
    "<li><b>14.2 (97\N{NO-BREAK SPACE}%)</b> score of the class, and its probability</li>"
    "<li><b>holds, doubtful, fails</b> whether the region alone still gives the answer, under "
    "other fills too, and does better than shifted copies of itself</li>"
)


def write(out: results.Out, page_items: int = 200) -> store.Path:
    """Writes `report/index.html`, and linked pages where there are more than `page_items` images.

    Args:
      out: the folder of a finished run.
      page_items: images on a page. With more, the first page shows the worst, the best and random
        ones, a third each.
    Returns:
      the path of the first page.
    """
    run = results.settings(out)
    delete = run["flags"].get("game") == "delete"
    # From the records alone: the arrays of a large run do not fit into memory.
    ranking = [(_rank(rows, delete), rows) for _, _, _, rows in results.summaries(out)]
    total = len(ranking)
    folder = store.path(out) / "report"
    folder.mkdir(exist_ok=True)
    head = _head(run, [rows for _, rows in ranking], _failed(out))
    pages = -(-total // page_items) if total > page_items else 0
    groups = _choose([rank for rank, _ in ranking], page_items) if pages else {}
    index = folder / "index.html"
    cards = _cards(out, run, groups if pages else dict.fromkeys(range(total), ""))
    store.put(index, _page(run, head, cards, _links(pages, 0), bool(groups)))
    for page in range(1, pages + 1):
        places = range((page - 1) * page_items, min(page * page_items, total))
        cards = _cards(out, run, dict.fromkeys(places, ""))
        data = _page(run, head, cards, _links(pages, page), False)
        store.put(folder / f"page-{page:04d}.html", data)
    return index


def _rank(rows: Sequence[Record], delete: bool) -> float:
    found = [e for e in (effect(row, delete) for row in rows) if e is not None]
    # A picture of which nothing can be said stands with the worst, where someone looks.
    return sum(found) / len(found) if found else -np.inf


def _choose(ranks: Sequence[float], count: int) -> dict[int, str]:
    """Returns places of the worst, the best and random items, and why each was chosen."""
    third = count // 3
    places = range(len(ranks))
    # Heaps of the few instead of a sort of all: a run may have a million pictures.
    chosen = dict.fromkeys(heapq.nsmallest(third, places, key=ranks.__getitem__), "worst")
    # More than a third, for with few pictures the best may be among the worst already.
    for i in heapq.nlargest(third + count, places, key=ranks.__getitem__):
        if list(chosen.values()).count("best") < third:
            chosen.setdefault(i, "best")
    rest = [i for i in places if i not in chosen]
    # A fixed seed: the page of a run is the same whenever it is written.
    drawn = random.Random(0).sample(rest, min(count - len(chosen), len(rest)))
    return chosen | dict.fromkeys(drawn, "random")


def _failed(out: results.Out) -> int:
    with (store.path(out) / "errors.jsonl").open() as file:
        return sum(1 for _ in file)


def _removed(operator: str) -> str:
    """What the page says of `blur`, or of several in turn.

    >>> _removed("blur+mean")  # doctest: +ELLIPSIS
    'blurred or replaced by its mean colour, in turn, while the region is sought, and ...'
    """
    ways = [_REMOVED.get(name, f"filled by {name}") for name in operators.parts(operator)]
    if len(ways) == 1:
        return ways[0]
    several = f"{', '.join(ways[:-1])} or {ways[-1]}"
    return f"{several}, in turn, while the region is sought, and {ways[0]} where it is scored"


def _asked(flags: Record) -> list[str]:
    """What each picture's regions are called, one an area or number of channels asked."""
    if "counts" in flags:
        return [f"{count} channels" for count in flags["counts"]]
    # Of several areas one was enough, and another one of each picture.
    if flags["method"] == "sufficient" or not flags.get("areas"):
        return ["the region"]
    return [percent(area) for area in flags["areas"]]


def _page(run: Record, head: str, cards: Sequence[str], links: str, groups: bool) -> bytes:
    # One column for the whole picture, one an area.
    columns = 1 + len(_asked(run["flags"]))
    controls = _controls(run, groups)
    none = (
        ""
        if cards
        else "<p>No picture of this run could be used: errors.jsonl, beside this folder, says why "
        "of each.</p>"
    )
    body = (
        f'{head}{links}{controls}<p id="empty" hidden>No picture here has that file name or class. '
        '<button type="button" id="clear">Show all</button></p>'
        f'{none}<main id="cards">{"".join(cards)}</main>{links}'
    )
    style = f":root{{--columns:{columns}}}"
    return document(f"What {run['model']['name']} needs to see", body, style=style)


def _head(run: Record, rows: Sequence[Sequence[Record]], failed: int) -> str:
    flags, name = run["flags"], text(run["model"]["name"])
    delete = flags.get("game") == "delete"
    if "counts" in flags:
        what = (
            "whose loss most takes the network's answer away"
            if delete
            else "that, with all others switched off, best keep the network's answer"
        )
        lead = f"For every picture: the few channels of layer <b>{text(flags['layer'])}</b> {what}."
    else:
        removed = _removed(flags.get("operator", operators.DEFAULT))
        lead = (
            "The outlined region is the part of the picture without which the answer is lost: it "
            f"is {removed}, everything else stays."
            if delete
            else "The outlined region is the part of the picture that alone best keeps the "
            "answer: "
            f"everything else is {removed}."
        )
        if flags["method"] == "sufficient":
            tried = ", ".join(map(percent, flags["areas"]))
            lead += (
                f" Of {tried} of the picture it is the first that is enough for the network to "
                "give the same answer under blur and mean colour; where none is, the largest."
            )
    what = "takes" if delete else "keeps"
    meaning = (
        f"<b>{what} 90\N{NO-BREAK SPACE}%</b> means: on the way from the score with nothing left "
        f"(0\N{NO-BREAK SPACE}%) to that of the whole picture (100\N{NO-BREAK SPACE}%), the region "
        f"{what} nine tenths; above 100\N{NO-BREAK SPACE}% the network is more certain than on the "
        "whole picture."
        if not delete
        else f"<b>{what} 90\N{NO-BREAK SPACE}%</b> means: of the score that the whole picture has "
        "above nothing left, nine "
        "tenths go with the region."
    )
    facts = [
        f"{len(rows)} pictures" + (f", {failed} failed" if failed else ""),
        f"method {flags['method']}",
        *(f"{k} {flags[k]}" for k in ("game", "solver", "operator", "reward") if flags.get(k)),
        f"weights {run['model']['fingerprint'][:12]}",
    ]
    chips = "".join(f"<li>{text(fact)}</li>" for fact in facts)
    return (
        f"<header><h1>What <em>{name}</em> needs to see</h1><p>{lead} {meaning}</p>"
        f'<ul class="chips">{chips}</ul>{_summary(_by_area(run, rows), len(rows), delete)}'
        f'{findings.questions(run, rows)}<ul class="legend '
        f'{flags["method"]}">{_LEGEND}</ul></header>'
    )


def _by_area(run: Record, rows: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """The rows of each area asked; of an area that is a result, those of the pictures it is of."""
    if run["flags"]["method"] == "sufficient":
        areas = sorted({row["area"] for item in rows for row in item})
        return [[row for item in rows for row in item if row["area"] == a] for a in areas]
    places = range(max((len(item) for item in rows), default=0))
    return [[item[place] for item in rows if len(item) > place] for place in places]


def _summary(columns: Sequence[Sequence[Record]], number: int, delete: bool) -> str:
    """A row an area: how much of the score the regions keep or take, over all pictures."""
    lines = []
    for column in columns:
        # Pictures without a scale are left out of the median, not counted as 0.
        effects = [e for e in (effect(row, delete) for row in column) if e is not None]
        if not effects:
            continue
        strong = sum(e >= 0.9 for e in effects) / len(effects)
        size = statistics.median(row["achieved_area"] or 0 for row in column)
        lines.append(
            f"<tr><th scope=row>{_size_words(column[0], size)}{_part(len(column), number)}</th>"
            f"<td>{percent(statistics.median(effects))}</td><td>{percent(strong)}</td>"
            f"<td>{_verdicts(column)}</td></tr>"
        )
    verb = "takes" if delete else "keeps"
    return (
        f'<table class="summary"><thead><tr><th>region</th><th>median {verb}</th>'
        f"<th>pictures where it {verb} 90\N{NO-BREAK SPACE}% or more</th><th>evidence "
        f"holds</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
        if lines
        else ""
    )


def _part(some: int, number: int) -> str:
    return "" if some == number else f" ({some} of {number})"


def _verdicts(column: Sequence[Record]) -> str:
    """How many of the masks that were checked passed; a dash where none was."""
    found = [row["evidence"]["verdict"] for row in column if row["evidence"]["verdict"]]
    return percent(found.count("holds") / len(found) if found else None)


def _size_words(row: Record, area: float | None) -> str:
    if "count" in row:
        return f"{row['count']} channels"
    return f"{percent(area)} of the picture"


def _controls(run: Record, groups: bool) -> str:
    flags = run["flags"]
    verb = "takes" if flags.get("game") == "delete" else "keeps"
    names = _asked(flags)
    # Keys are names of the cards' data attributes; ":down" turns the order around.
    options = [("order", "order of the run"), ("name", "file name"), ("target", "class")]
    for i, name in enumerate(names):
        options += [
            (f"effect{i}:up", f"{name}: {verb} least"),
            (f"effect{i}:down", f"{name}: {verb} most"),
        ]
    options += [("original:down", "score of the whole picture"), ("area:up", "area of the region")]
    choices = "".join(f'<option value="{key}">{text(label)}</option>' for key, label in options)
    group = (
        '<label>Show <select id="group"><option value="">all</option><option>worst</option>'
        "<option>best</option><option>random</option></select></label>"
        if groups
        else ""
    )
    view = (
        '<label>Pictures <select id="view"><option value="both">region and what was shown</option>'
        '<option value="region">region</option><option value="shown">what was shown</option>'
        "</select></label>"
        if "counts" not in flags
        else ""
    )
    return (
        '<nav class="controls" aria-label="Sort and filter"><label>Sort by <select '
        f'id="sort">{choices}'
        f"</select></label>{group}{view}"
        '<label>Find <input id="find" type="search" placeholder="file or class"></label>'
        '<output id="count"></output></nav>'
    )


def _links(pages: int, here: int) -> str:
    if not pages:
        return ""
    # The first page is a selection; the others hold the whole run, in its order.
    names = ["selection", *(str(i) for i in range(1, pages + 1))]
    links = []
    for i, name in enumerate(names):
        target = "index.html" if i == 0 else f"page-{i:04d}.html"
        current = ' aria-current="page"' if i == here else ""
        links.append(f'<a href="{target}"{current}>{name}</a>')
    return f'<nav class="links" aria-label="All pictures">{" ".join(links)}</nav>'


def _cards(out: results.Out, run: Record, groups: dict[int, str]) -> list[str]:
    """Returns the cards of the items at these places, in order, drawn by several threads."""
    # In the order of the run, in which the shards are read once.
    found = zip(sorted(groups), results.records(out, groups), strict=True)
    drawn = ahead(
        # Pillow and zlib let go of the interpreter while they work, so threads help.
        lambda pair: card(pair[1], run, pair[0], groups[pair[0]]),
        found,
        workers=min(8, os.cpu_count() or 1),
        window=16,
    )
    return list(drawn)
