"""The page of a run of feature visualisation: a wall of pictures, each with what is known of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from launch import results
from launch.job import commit, store
from launch.report import pictures
from launch.report.html import document, number, percent, text
from launch.report.parts import asked, badge
from perturb.types import Record

__all__ = ["write"]

_STYLE = (
    ".wall{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));"
    "margin:.6rem 0 2rem}"
    ".wall figure{margin:0}.wall img{width:100%;height:auto;display:block;border-radius:4px}"
    ".wall img.natural{margin-top:.25rem}"
    ".wall figcaption{font-size:.82rem;line-height:1.35;margin-top:.25rem}"
    ".wall figcaption b{display:block}.wall .note{color:var(--soft)}"
    ".wall .badge{margin-right:0}.wall .badge summary{line-height:1.35;padding:.15rem 0}"
)
# What a verdict means, where it stands; the first words tell those that are as they should be.
_GOOD = ("shows", "started")
_MEANS = {
    "shows more than any natural picture": "the unit answers to this picture more than to any of "
    "the natural pictures that it was compared with",
    "shows no more than natural pictures do": "some natural picture excites the unit as much or "
    "more: look at that picture first",
    "takes another way than natural pictures": "what of earlier layers the unit is reached by is "
    "not what it is reached by in the natural pictures that it answers most to: what is seen here "
    "need not be what it does, and a network can be built to fool pictures of this kind",
    "busy: high frequencies": "the picture has far more fine grain than natural pictures have: "
    "what is seen in it may be grain that the unit reacts to, and nothing that it looks for",
    "did not start": "the unit never answered to what it was shown, so the picture is noise and "
    "says nothing: try another --seed",
    "not finite": "numbers overflowed on the way: do not use this picture",
    "started; no natural pictures to compare with": "the unit answers to the picture; how much "
    "that is beside natural pictures is not known: give --images",
}


def write(out: results.Out) -> store.Path:
    """Writes `report/index.html` of a finished run and returns its path."""
    run = results.settings(out)
    flags, networks = run["flags"], run["model"]["networks"]
    records: dict[str, list[_Shown]] = {n: [] for n in networks}
    # All pictures are read: the page holds them all, small.
    for stem in results.committed(out):
        record, arrays = commit.read_shard(stem)
        rows = record["rows"]
        # Without natural pictures there are no patches, and none in runs of before.
        patches = arrays.get("natural", [None] * len(rows))
        for row, image, cut in zip(rows, arrays["images"], patches, strict=True):
            records[row["network"]].append(_Shown(row, image, cut))
    walls = "".join(_wall(name, rows) for name, rows in records.items())
    layer = flags["layer"] or "logits"
    what = "the classes" if layer == "logits" else f"the units of {layer}"
    lead = (
        "Each picture began as noise and was changed, step by step, until one unit answered to it "
        "as strongly as it could. <b>Reach</b> is the share of natural pictures to which the unit "
        "answers less. A picture far above all of them is like nothing that the network was "
        "trained on: it shows what excites the unit, and not what the unit usually meets."
    )
    facts = [
        f"preset {flags['preset']}",
        f"seed {flags['seed']}",
        f"weights {run['model']['fingerprint'][:12]}",
    ]
    chips = "".join(f"<li>{text(f)}</li>" for f in facts)
    head = (
        f"<header><h1>What {text(what)} look for in <em>{text(' and '.join(networks))}</em></h1>"
        f'<p>{lead}</p><ul class="chips">{chips}</ul>{_questions(records)}</header>'
    )
    page = document(f"What {what} look for", head + f"<main>{walls}</main>", style=_STYLE)
    folder = store.path(out) / "report"
    folder.mkdir(exist_ok=True)
    store.put(folder / "index.html", page)
    return folder / "index.html"


class _Shown(NamedTuple):
    """A row, its picture and the natural patches `[k, side, side, 3]`, or None."""

    row: Record
    image: np.ndarray
    patches: np.ndarray | None


def _questions(records: dict[str, list[_Shown]]) -> str:
    """What the pictures show, how far they can be trusted, and what to do with them."""
    rows = [one.row for some in records.values() for one in some]
    if not rows:
        return ""
    good = sum(row["verdict"] == "shows more than any natural picture" for row in rows)
    bad = sum(not row["verdict"].startswith(_GOOD) for row in rows)
    found = (
        f"What excites each unit most. {good} of {len(rows)} pictures excite their unit more than "
        "any natural picture does."
    )
    sure = (
        f"{bad} of {len(rows)} pictures should not be used; the mark below each says why. Another "
        "start from other noise may end in another picture: one picture is one answer of many."
    )
    then = (
        "Compare with natural pictures before you name a unit: those below its picture, and more "
        "by <code>python -m launch.dissect</code>. Run again with another "
        "<code>--seed</code> and trust what comes back."
    )
    return asked(found, sure, then, first="What do the units look for?")


def _wall(name: str, rows: list[_Shown]) -> str:
    # A picture that never moved off the noise says nothing of its unit.
    started = sum(one.row["started"] for one in rows)
    words = f"{started} of {len(rows)} pictures started"
    # Only the embedded networks have stamps to look for.
    stamps = [one.row for one in rows if "stamp" in one.row]
    if stamps:
        own = sum(row["stamp"] == row["name"] for row in stamps)
        words += f"; in {own} of {len(stamps)} the best-matching stamp is the class's own"
    if any(one.patches is not None for one in rows):
        words += (
            "; below each picture lie the natural pictures that the unit answers to most, cut to "
            "what it sees of them"
        )
    figures = "".join(map(_figure, rows))
    return (
        f'<section><h2>{text(name)}</h2><p class="note">{text(words)}</p>'
        f'<div class="wall">{figures}</div></section>'
    )


def _figure(one: _Shown) -> str:
    row, image = one.row, one.image
    # Small pictures are enlarged, large ones made small: a wall of 512 has to open at once.
    side = 128 if max(image.shape[:2]) >= 64 else 4 * max(image.shape[:2])
    drawn = pictures.enlarge(image, side)
    good = row["verdict"].startswith(_GOOD)
    facts = [f"reach {percent(row['reach'])}"]
    if row["ratio"] is not None:
        facts.append(f"{number(row['ratio'])} × best natural")
    if row.get("route") is not None:
        facts.append(f"its way is {number(row['route'])} like theirs")
    if "stamp" in row:
        facts.append(f"stamp: {row['stamp']} ({number(row['stamp_match'])})")
    return (
        f'<figure><img loading="lazy" width="{drawn.shape[1]}" height="{drawn.shape[0]}" '
        f'alt="what {text(row["name"])} looks for" src="{pictures.data_uri(drawn)}">'
        f"{_patches(row, one.patches)}"
        f"<figcaption><b>{text(row['name'])}</b>"
        f"{badge(row['verdict'], _MEANS.get(row['verdict'], ''), quiet=good)}"
        f'<span class="note">{text(", ".join(facts))}</span></figcaption></figure>'
    )


def _patches(row: Record, patches: np.ndarray | None) -> str:
    if patches is None:
        return ""
    drawn = pictures.beside(list(patches))
    return (
        f'<img class="natural" loading="lazy" width="{drawn.shape[1]}" height="{drawn.shape[0]}" '
        f'alt="natural pictures that {text(row["name"])} answers to most" '
        f'src="{pictures.data_uri(drawn)}">'
    )
