"""The page of a run of feature visualisation: a wall of pictures, each with what is known of it."""

from __future__ import annotations

import numpy as np

from launch import results
from launch.job import commit, store
from launch.report import pictures
from launch.report.html import document, number, percent, text
from perturb.types import Record

__all__ = ["write"]

_STYLE = (
    ".wall{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));"
    "margin:.6rem 0 2rem}"
    ".wall figure{margin:0}.wall img{width:100%;height:auto;display:block;border-radius:4px}"
    ".wall figcaption{font-size:.82rem;line-height:1.35;margin-top:.25rem}"
    ".wall figcaption b{display:block}.wall .note{color:var(--soft)}"
    ".wall .warn{font-weight:600}"
)
_GOOD = ("shows", "started")


def write(out: results.Out) -> store.Path:
    """Writes `report/index.html` of a finished run and returns its path."""
    run = results.settings(out)
    flags, networks = run["flags"], run["model"]["networks"]
    records: dict[str, list[tuple[Record, np.ndarray]]] = {n: [] for n in networks}
    # All pictures are read: the page holds them all, small.
    for stem in results.committed(out):
        record, arrays = commit.read_shard(stem)
        for row, image in zip(record["rows"], arrays["images"], strict=True):
            records[row["network"]].append((row, image))
    walls = "".join(_wall(name, rows) for name, rows in records.items())
    layer = flags["layer"] or "logits"
    what = "the classes" if layer == "logits" else f"the units of {layer}"
    lead = (
        "Each picture was optimised so that one unit answers most to it, from noise. <b>Reach</b> "
        "is the share of natural pictures that the unit answers less to; what lies far above all "
        "of them is outside what the network was made for, and says what excites the unit, not "
        "what it meets."
    )
    facts = [
        f"preset {flags['preset']}",
        f"seed {flags['seed']}",
        f"weights {run['model']['fingerprint'][:12]}",
    ]
    chips = "".join(f"<li>{text(f)}</li>" for f in facts)
    head = (
        f"<header><h1>What {text(what)} look for in <em>{text(' and '.join(networks))}</em></h1>"
        f'<p>{lead}</p><ul class="chips">{chips}</ul></header>'
    )
    page = document(f"What {what} look for", head + f"<main>{walls}</main>", style=_STYLE)
    folder = store.path(out) / "report"
    folder.mkdir(exist_ok=True)
    store.put(folder / "index.html", page)
    return folder / "index.html"


def _wall(name: str, rows: list[tuple[Record, np.ndarray]]) -> str:
    # A picture that never moved off the noise says nothing of its unit.
    started = sum(row["started"] for row, _ in rows)
    words = f"{started} of {len(rows)} pictures started"
    # Only the embedded networks have stamps to look for.
    stamps = [row for row, _ in rows if "stamp" in row]
    if stamps:
        own = sum(row["stamp"] == row["name"] for row in stamps)
        words += f"; in {own} of {len(stamps)} the best-matching stamp is the class's own"
    figures = "".join(_figure(row, image) for row, image in rows)
    return (
        f'<section><h2>{text(name)}</h2><p class="note">{text(words)}</p>'
        f'<div class="wall">{figures}</div></section>'
    )


def _figure(row: Record, image: np.ndarray) -> str:
    # Small pictures are enlarged, large ones made small: a wall of 512 has to open at once.
    side = 128 if max(image.shape[:2]) >= 64 else 4 * max(image.shape[:2])
    drawn = pictures.enlarge(image, side)
    good = row["verdict"].startswith(_GOOD)
    facts = [f"reach {percent(row['reach'])}"]
    if row["ratio"] is not None:
        facts.append(f"{number(row['ratio'])} × best natural")
    if "stamp" in row:
        facts.append(f"stamp: {row['stamp']} ({number(row['stamp_match'])})")
    return (
        f'<figure><img loading="lazy" width="{drawn.shape[1]}" height="{drawn.shape[0]}" '
        f'alt="what {text(row["name"])} looks for" src="{pictures.data_uri(drawn)}">'
        f'<figcaption><b>{text(row["name"])}</b><span class="{"note" if good else "warn"}">'
        f'{text(row["verdict"])}</span><br><span class="note">{text(", ".join(facts))}</span>'
        "</figcaption></figure>"
    )
