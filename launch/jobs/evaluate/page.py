"""The league table: per metric every attribution's mean with its interval, and against the first.

Intervals are 95 % bootstraps over pictures; differences are paired, picture by picture.
"""

from __future__ import annotations

import csv
import io
import json
from typing import NamedTuple

import numpy as np

from launch import results
from launch.job import store
from launch.jobs.evaluate import figures
from launch.jobs.evaluate.figures import label
from launch.report.html import document, text
from launch.report.parts import asked
from launch.report.parts import table as drawn
from perturb.attribution import CONTROLS
from perturb.metrics import mean_interval, paired, suite
from perturb.statistics import rank_intervals
from perturb.types import Record

__all__ = ["Cell", "as_csv", "as_markdown", "table", "write"]


class Cell(NamedTuple):
    """One attribution on one metric.

    Attributes:
      metric, attribution, convention: names.      higher: whether higher is better.
      mean, low, high, images: of the attribution.      rank: 1 is best.
      lead, lead_low, lead_high: how much better the first attribution is, picture by picture, in
        the metric's own direction; NaN for the first itself.
      rank_low, rank_high: between which ranks other draws of the pictures would put it.
    """

    metric: str
    attribution: str
    convention: str
    higher: bool
    mean: float
    low: float
    high: float
    images: int
    rank: int
    lead: float
    lead_low: float
    lead_high: float
    rank_low: int
    rank_high: int


def table(out: results.Out) -> list[Cell]:
    """Returns all cells of a finished run, metric by metric, best first."""
    run = results.settings(out)
    names, asked = run["flags"]["attributions"], run["flags"]["metrics"]
    values: dict[str, dict[str, dict[str, float]]] = {m: {n: {} for n in names} for m in asked}
    with (store.path(out) / "results.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            for metric in asked:
                value = row["values"].get(metric)
                identity = f"{row['id']} {row['target']}"
                # By picture and target, so that two attributions can be paired.
                values[metric][row["attribution"]][identity] = np.nan if value is None else value
    cells = []
    for metric in asked:
        entry = suite.get(metric)
        sign = 1 if entry.higher else -1
        found = {n: np.array(list(v.values()), np.float64) for n, v in values[metric].items()}
        means = {n: mean_interval(v) for n, v in found.items()}
        # Without a single value an attribution has no rank.
        known = [n for n in names if means[n].number]
        order = sorted(known, key=lambda n: -sign * means[n].value)
        ranks = rank_intervals([sign * found[n] for n in order])
        for rank, name in enumerate(order, 1):
            ahead = mean_interval([])
            if name != names[0] and names[0] in known:
                # Turned so that above 0 is better, whichever way the metric points.
                ahead = paired(sign * found[names[0]], sign * found[name])
            cells.append(
                Cell(
                    metric,
                    name,
                    entry.convention,
                    entry.higher,
                    *means[name],
                    rank,
                    *ahead[:3],
                    *ranks[rank - 1].tolist(),
                )
            )
    return cells


def as_csv(cells: list[Cell]) -> bytes:
    """Returns the table as CSV; NaN cells are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Cell._fields)
    for cell in cells:
        writer.writerow(
            # Only NaN differs from itself.
            f"{v:.6g}" if isinstance(v, float) and np.isfinite(v) else "" if v != v else v
            for v in cell
        )
    return buffer.getvalue().encode()


def as_markdown(cells: list[Cell]) -> str:
    """Returns the table in Markdown: a row an attribution, a column a metric."""
    metrics = list(dict.fromkeys(c.metric for c in cells))
    names = list(dict.fromkeys(c.attribution for c in cells))
    at = {(c.metric, c.attribution): c for c in cells}
    arrows = {c.metric: "↑" if c.higher else "↓" for c in cells}
    lines = ["| | " + " | ".join(f"{m} {arrows[m]}" for m in metrics) + " |"]
    lines.append("|---" * (1 + len(metrics)) + "|")
    for name in names:
        row = [_words(at.get((m, name))) for m in metrics]
        lines.append(f"| {label(name)} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _words(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    best = f"**{cell.mean:.3f}**" if cell.rank == 1 else f"{cell.mean:.3f}"
    return f"{best} ({cell.low:.3f} to {cell.high:.3f})"


def write(out: results.Out, cells: list[Cell]) -> store.Path:
    """Writes report/index.html and returns its path."""
    run = results.settings(out)
    metrics = list(dict.fromkeys(c.metric for c in cells))
    name = text(run["model"]["name"])
    names = run["flags"]["attributions"]
    plain = label(names[0])
    first = text(plain)
    sections = "".join(_section([c for c in cells if c.metric == m], plain) for m in metrics)
    found, means = figures.read(out)
    more = (
        figures.curves(means, names)
        + figures.disagreements(found, names, metrics[0] if metrics else "")
        + figures.breakdown(found, names, metrics)
    )
    body = (
        f"<header><h1>Who explains <em>{name}</em> best?</h1><p>Means over the same pictures with "
        f"95\N{NO-BREAK SPACE}% bootstrap intervals. The last column says how much better or worse "
        f"<b>{first}</b> is, picture by picture, in the table's own unit; where its interval holds "
        "0 the difference may be chance. Behind a rank stands between which ranks other draws of "
        "the pictures would put it. Grey rows are controls: maps that are made without the "
        f"network.</p>{_questions(cells, run)}</header><main>{sections}{more}</main>"
    )
    folder = store.path(out) / "report"
    folder.mkdir(exist_ok=True)
    index = folder / "index.html"
    style = (
        "tr.control th,tr.control td{color:var(--soft)}"
        "main h2{font-size:1.15rem;margin:2rem 0 .3rem}"
        "main h3{font-size:1rem;margin:1rem 0 .2rem}"
    ) + figures.STYLE
    store.put(index, document(f"Attributions of {run['model']['name']}", body, style=style))
    return index


def _questions(cells: list[Cell], run: Record) -> str:
    """Which attribution leads, whether that is more than chance, and what to do with it."""
    metrics = list(dict.fromkeys(c.metric for c in cells))
    if not metrics:
        return ""
    names = run["flags"]["attributions"]
    first = text(label(names[0]))
    # The best of those that see the network: a control that leads says that a metric is no test.
    leads: dict[str, list[str]] = {}
    for metric in metrics:
        ranked = [c for c in cells if c.metric == metric and c.attribution not in CONTROLS]
        if ranked:
            leads.setdefault(text(label(ranked[0].attribution)), []).append(_plain(metric))
    order = sorted(leads.items(), key=lambda item: -len(item[1]))
    parts = [f"<b>{name}</b> on {_listed(won)}" for name, won in order]
    found = f"Best of the attributions that see the network: {'; '.join(parts)}."
    beaten = {
        metric: all(
            c.lead_low > 0 for c in cells if c.metric == metric and c.attribution in CONTROLS
        )
        for metric in metrics
    }
    lost = [_plain(metric) for metric, won in beaten.items() if not won]
    sure = (
        f"<b>{first}</b> is better than every control on {len(metrics) - len(lost)} of "
        f"{len(metrics)} metrics, and the intervals of those differences do not hold 0."
    )
    if lost:
        sure += (
            f" On {_listed(lost)} it is not: there a map that is made without the network does as "
            "well, or the pictures are too few to tell."
        )
    then = (
        "Choose by the metric that asks your question, and not by the number of wins. Where "
        "intervals hold 0, give more pictures. To see the regions themselves and whether each "
        "holds, run <code>python -m launch.masks</code> on the same pictures."
    )
    return asked(found, sure, then, first="Which attribution should I use?")


def _plain(metric: str) -> str:
    return text(metric.replace("_", " "))


def _listed(names: list[str]) -> str:
    """Returns names as they are read aloud.

    >>> _listed(["a"]), _listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _section(cells: list[Cell], first: str) -> str:
    one = cells[0]
    better = "higher is better" if one.higher else "lower is better"
    entry = suite.get(one.metric)
    unit = "mosaics" if entry.needs == "mosaics" else "pictures"
    rows = drawn(
        ["attribution", "rank", "mean", "interval", unit, f"{first} against it"],
        [
            [
                text(label(c.attribution)),
                _rank(c),
                f"{c.mean:.3f}",
                f"{c.low:.3f} to {c.high:.3f}",
                f"{c.images}",
                _lead(c),
            ]
            for c in cells
        ],
        ["control" if c.attribution in CONTROLS else "" for c in cells],
    )
    return (
        f"<h2>{_plain(one.metric)}</h2>"
        f"<p>{text(entry.about[0].upper() + entry.about[1:])}; {better}."
        f"{' Convention: ' + text(one.convention) + '.' if one.convention else ''}</p>"
        f"{rows}"
    )


def _rank(cell: Cell) -> str:
    if cell.rank_low == cell.rank_high:
        return f"{cell.rank}"
    return f"{cell.rank} ({cell.rank_low} to {cell.rank_high})"


def _lead(cell: Cell) -> str:
    # The first attribution has no lead over itself.
    if not np.isfinite(cell.lead):
        return "\N{EN DASH}"
    # A word instead of a sign, for lower is better in some tables.
    words = f"{abs(cell.lead):.3f} {'worse' if cell.lead < 0 else 'better'}"
    interval = f"{cell.lead_low:+.3f} to {cell.lead_high:+.3f}".replace("-", "\N{MINUS SIGN}")
    return f"{words} ({interval})"
