"""The page of a run of walks: strips of frames, and how each score changes on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from launch import results
from launch.job import commit, store
from launch.report import pictures
from launch.report.html import document, number, percent, text
from launch.report.parts import asked
from perturb.statistics import known_mean
from perturb.types import Record

__all__ = ["STYLE", "curve", "read", "strips", "write"]

SHOWN_SCORES = 8
TILE = 96  # px, side of a frame on the page

STYLE = (
    ".walk{display:grid;gap:.9rem;max-width:84rem}.walk figure img{border-radius:6px}"
    ".curves{display:grid;gap:1rem "
    "1.4rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,15.5rem),1fr));margin:.4rem 0 "
    "1.6rem}.curve{background:var(--card);border:1px solid "
    "var(--line);border-radius:14px;padding:.7rem .9rem .6rem}.curve h2{margin:0 0 "
    ".3rem;font-size:.95rem}.curve "
    "svg{display:block;width:100%;height:auto}"
    ".curve.meant{border-color:var(--fill);border-width:2px}"
    ".curve .each{fill:none;stroke:var(--soft);stroke-width:1;opacity:.4}"
    ".curve .mean{fill:none;stroke:var(--fill);stroke-width:3}"
    ".curve .band{fill:var(--soft);opacity:.22}.curve .axis{stroke:var(--line);stroke-width:1}"
    ".curve text{fill:var(--soft);font-size:11px}"
    ".curve p{margin:.2rem 0 0;color:var(--soft);font-size:.84rem}"
    ".ticks{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr);color:var(--soft);"
    "font-size:.84rem;text-align:center;"
    "font-variant-numeric:tabular-nums}.ticks b{color:var(--ink)}"
    ".legend .mean{stroke:var(--fill);stroke-width:3}.legend "
    ".each{stroke:var(--soft);stroke-width:1.5}.legend .band{fill:var(--soft);opacity:.3}"
)
LEGEND = (
    '<ul class="legend"><li><svg viewBox="0 0 48 16" aria-hidden="true"><line class="mean" x1="2" '
    'x2="46" y1="12" y2="4"></line></svg>mean over the latents</li><li><svg viewBox="0 0 48 16" '
    'aria-hidden="true"><line class="each" x1="2" x2="46" y1="12" y2="4"></line></svg>one '
    'latent</li><li><svg viewBox="0 0 48 16" aria-hidden="true"><rect class="band" x="2" y="3" '
    'width="44" height="10"></rect></svg>'
    "means along random directions, all of them</li></ul>"
)


def read(out: results.Out) -> tuple[tuple[str, ...], list[dict[str, np.ndarray]]]:
    """Returns the names of the scores and the arrays of every latent of a run."""
    stems = results.committed(out)
    found = [commit.read_shard(stem) for stem in stems]
    return tuple(found[0][0]["names"]), [arrays for _, arrays in found]


def write(out: results.Out) -> store.Path:
    """Writes `report/index.html` of a finished run of walks and returns its path."""
    run = results.settings(out)
    names, walks = read(out)
    flags, direction = run["flags"], run["model"]["direction"]
    name = text(direction["name"])
    positions = _positions(flags, direction)
    through = direction["kind"] == "through"
    facts = [
        f"{len(walks)} {'walks' if through else 'latents'}",
        f"{flags['frames']} frames"
        + ("" if through else f" from {number(flags['from'])} to {number(flags['to'])}"),
        *(
            [f"{flags['controls']} random directions"]
            if names and flags["controls"] and not through
            else []
        ),
        f"weights {run['model']['fingerprint'][:12]}",
    ]
    said = found(direction)
    if not through:
        said += (
            " Each strip below belongs to one latent; all are moved by the same distances, which "
            "stand above the frames. At 0 is the latent itself."
        )
    head = (
        f"<header><h1>A walk {'through' if through else 'along'} <em>{name}</em> in "
        f"{text(run['model']['name'])}</h1><p>{said}</p>"
        f'<ul class="chips">{"".join(f"<li>{text(f)}</li>" for f in facts)}</ul>'
        f"{'' if through else _questions(names, walks, direction)}</header>"
    )
    curves = ""
    if names:
        curves = LEGEND + curve(names, walks, positions, meant=direction["name"])
    body = f"{head}<main>{curves}{strips(walks, positions)}</main>"
    page = document(
        f"A walk {'through' if through else 'along'} {direction['name']}", body, style=STYLE
    )
    folder = store.path(out) / "report"
    folder.mkdir(exist_ok=True)
    store.put(folder / "index.html", page)
    return folder / "index.html"


def _positions(flags: Record, direction: Record) -> np.ndarray:
    if direction["kind"] == "through":
        # Places count the latents passed, the first of which is 0.
        return np.linspace(0, direction["latents"] - 1, flags["frames"])
    return np.linspace(flags["from"], flags["to"], flags["frames"])


def found(direction: Record) -> str:
    """Returns where a direction comes from, in a sentence (safe HTML)."""
    if direction["kind"] == "through":
        way = "at even angles" if direction["between"] == "spherical" else "in straight lines"
        return (
            f"From latent to latent {way}, through {direction['latents']} of them, at even steps. "
            "Whole numbers above a strip are the latents themselves."
        )
    if direction["kind"] == "attribute":
        return (
            "A plane was put between the latents whose pictures have most of it and those whose "
            "pictures have least; the direction is at right angles to that plane. Latents that "
            "the plane was not fitted on are told apart with an AUC of "
            f"<b>{number(direction['auc_test'])}</b> ({number(direction['auc_low'])} to "
            f"{number(direction['auc_high'])}); .5 is chance, 1 is never wrong."
            f"{_unscored(direction)}"
        )
    if direction["kind"] == "file":
        return "The direction was read from a file."
    layer, share = text(direction["layer"]), percent(direction["share"])
    if direction["kind"] == "sefa":
        return (
            "Of all directions in latent space this one changes the values of layer "
            f"<b>{layer}</b> most, as read from the layer's weights alone (SeFa): {share} of all "
            "the change that "
            "they allow lies along it."
        )
    return (
        f"This is the direction along which the values of layer <b>{layer}</b> vary most over many "
        f"latents (GANSpace): {share} of their variance lies along it."
    )


def _questions(names: Sequence[str], walks: Sequence[Record], direction: Record) -> str:
    """What changes along the way, whether random ways change it as much, and what to do next."""
    if not names:
        return ""
    others = np.stack([w["others"] for w in walks])  # [N, directions, frames, scores]
    ends = known_mean(np.stack([w["scores"] for w in walks]))[[0, -1]]  # [2, scores]
    change = ends[1] - ends[0]
    meant = direction["name"]
    found = "The scores of the frames are drawn below."
    if meant in names:
        at = list(names).index(meant)
        found = (
            f"<b>{text(meant)}</b> goes from {number(float(ends[0, at]))} to "
            f"{number(float(ends[1, at]))} on average."
        )
    if not others.shape[1]:
        sure = "Nothing was compared with it: this run was made with --controls=0."
        beyond: list[str] = []
    else:
        drawn = known_mean(others)  # [directions, frames, scores]
        most = np.abs(drawn[:, -1] - drawn[:, 0]).max(0)
        far = np.abs(change) > most
        beyond = [text(n) for n, f in zip(names, far, strict=True) if f and n != meant]
        count = others.shape[1]
        against = "the random direction" if count == 1 else f"each of {count} random directions"
        sure = ""
        if meant in names:
            moved = "more" if far[list(names).index(meant)] else "not more"
            sure = f"That is {moved} than {against} of the same length changes it. "
        sure += (
            "Beside it these change by more than along any of those: "
            f"{', '.join(beyond[:SHOWN_SCORES])}."
            if beyond
            else "Beside it nothing changes by more than along those."
        )
    then = (
        "What changes beside the score that was meant goes with it in this generator. To hold it "
        "still, mark it <b>hold</b> in <code>python -m launch.studio</code>, or take it out of "
        "the direction with <code>gan_dissect.project</code>."
        if beyond
        else "Walk farther (<code>--from</code>, <code>--to</code>) to see where pictures break, "
        "and give more <code>--walks</code> before you rely on a mean."
    )
    return asked(found, sure, then, first="What changes on the way?")


def _unscored(direction: Record) -> str:
    left = direction.get("left_out", 0)
    return (
        f" {left} of {left + direction['scored']} latents had no score and were left out."
        if left
        else ""
    )


def curve(
    names: Sequence[str],
    walks: Sequence[dict[str, np.ndarray]],
    positions: np.ndarray,
    *,
    meant: str,
    most: int = SHOWN_SCORES,
) -> str:
    """Returns a small curve for each score (safe HTML): the one meant first, then by how much they
    change.
    """
    scores = np.stack([w["scores"] for w in walks])  # [N, frames, scores]
    others = np.stack([w["others"] for w in walks])  # [N, directions, frames, scores]
    seen = [i for i in range(len(names)) if np.isfinite(scores[..., i]).any()]
    middle, spread = known_mean(scores), np.nanstd(scores[..., seen], (0, 1))
    swing = np.zeros(len(names))
    # Against the spread of each score: raw scores have no common scale.
    swing[seen] = (np.nanmax(middle[:, seen], 0) - np.nanmin(middle[:, seen], 0)) / (spread + 1e-9)
    order = sorted(seen, key=lambda i: (names[i] != meant, -swing[i]))[:most]
    drawn = []
    for i in order:
        kind = " meant" if names[i] == meant else ""
        mean = middle[:, i]
        words = f"{number(float(mean[0]))} to {number(float(mean[-1]))}"
        if others.shape[1]:
            ends = np.abs(known_mean(others[..., i])[:, -1] - known_mean(others[..., i])[:, 0])
            if np.isfinite(ends).any():
                words += (
                    f"; random directions change it by {number(float(np.nanmean(ends)))} on average"
                )
        drawn.append(
            f'<section class="curve{kind}"><h2>{text(names[i])}</h2>'
            f"{_svg(positions, scores[..., i], known_mean(others[..., i]))}<p>{words}</p></section>"
        )
    return f'<div class="curves">{"".join(drawn)}</div>'


def _svg(positions: np.ndarray, each: np.ndarray, others: np.ndarray) -> str:
    """One score: `[N, frames]` of the latents, `[directions, frames]` of random directions."""
    low, high = (
        float(np.nanmin([np.nanmin(each), *others[np.isfinite(others)]])),
        float(np.nanmax([np.nanmax(each), *others[np.isfinite(others)]])),
    )
    # A score that never changes is drawn as a level line.
    span = (high - low) or 1.0

    def x(p: float) -> float:
        found: float = 46 + 268 * (p - positions[0]) / (positions[-1] - positions[0])
        return found

    def y(v: float) -> float:
        return 112 - 104 * (v - low) / span

    def label(v: float) -> str:
        # To a hundredth of the range: a zero is not written out to its last digit.
        return text(number(round(v, 2 - math.floor(math.log10(span))) + 0.0))

    def line(values: np.ndarray, kind: str) -> str:
        # A frame without a score is passed over.
        shown = [(p, v) for p, v in zip(positions, values, strict=True) if np.isfinite(v)]
        at = " ".join(f"{x(p):.1f},{y(v):.1f}" for p, v in shown)
        return f'<polyline class="{kind}" points="{at}"></polyline>'

    band = ""
    # A band with gaps cannot be drawn as one polygon.
    others = others if np.isfinite(others).all() else others[:0]
    if len(others):
        there = [f"{x(p):.1f},{y(v):.1f}" for p, v in zip(positions, others.max(0), strict=True)]
        back = [f"{x(p):.1f},{y(v):.1f}" for p, v in zip(positions, others.min(0), strict=True)]
        band = f'<polygon class="band" points="{" ".join(there + back[::-1])}"></polygon>'
    marks = [float(positions[0]), float(positions[-1])]
    # The latent itself is marked where the walk passes it.
    if positions[0] < 0 < positions[-1]:
        marks.insert(1, 0.0)
    ticks = "".join(
        f'<text x="{x(p):.0f}" y="128" text-anchor="middle">{text(number(p))}</text>' for p in marks
    )
    return (
        '<svg viewBox="0 0 330 132" role="img" aria-label="score by distance">'
        '<line class="axis" x1="46" x2="314" y1="113" y2="113"></line>'
        f'<text x="42" y="14" text-anchor="end">{label(high)}</text>'
        f'<text x="42" y="113" text-anchor="end">{label(low)}</text>{ticks}{band}'
        + "".join(line(values, "each") for values in each)
        + line(known_mean(each), "mean")
        + "</svg>"
    )


def strips(walks: Sequence[dict[str, np.ndarray]], positions: np.ndarray, most: int = 24) -> str:
    """Returns the frames of the latents, one strip each (safe HTML)."""
    drawn = []
    for i, walked in enumerate(walks[:most]):
        tiles = [pictures.enlarge(frame, TILE) for frame in walked["frames"]]
        strip = pictures.beside(tiles)
        height, width = strip.shape[:2]
        drawn.append(
            f'<figure><img src="{pictures.data_uri(strip)}" width="{width}" height="{height}" '
            f'alt="walk {i}, frames from {positions[0]:g} to {positions[-1]:g}"></figure>'
        )
    marks = "".join(
        f"<b>{text(number(p))}</b>" if p == 0 else f"<span>{text(number(float(p)))}</span>"
        for p in positions.round(3)
    )
    return f'<div class="walk"><div class="ticks">{marks}</div>{"".join(drawn)}</div>'
