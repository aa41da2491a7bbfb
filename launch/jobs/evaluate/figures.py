"""What the table of a comparison does not show: curves, pictures of disagreement, classes, sizes.

Curves are of all pictures. Maps are kept of the first pictures of a run alone, small, so that a
large run stays small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from launch import results
from launch.job import commit
from launch.report import pictures
from launch.report.html import number, text
from launch.report.parts import figure
from launch.report.parts import table as drawn
from perturb import drawing
from perturb.attribution import CONTROLS
from perturb.metrics import spearman, suite
from perturb.statistics import known_mean

__all__ = ["STYLE", "Picture", "breakdown", "curves", "disagreements", "label", "read"]

# Pictures drawn, and px of a map on the page.
SHOWN, TILE = 4, 112
# Fewer pictures of a class say nothing of it; more classes are no longer read.
FEWEST, CLASSES = 4, 12
SIZES = ("small", "middle", "large")
# Told apart in both colour schemes and by the colour-blind (Okabe and Ito); dashes are told apart
# in print. The first is drawn over all others.
COLOURS = ("#e39a1c", "#0a84c1", "#009e73", "#cc5a9b", "#d55e00", "#7a6ff0", "#56b4e9", "#8a7a00")
DASHES = ("", "7 3", "2 3", "9 3 2 3")

STYLE = (
    ".lines{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),"
    "1fr));max-width:66rem}.lines section{background:var(--card);border:1px solid var(--line);"
    "border-radius:14px;padding:.7rem .9rem}.lines h3{margin:0 0 .3rem;font-size:.95rem}"
    ".lines svg.plot{display:block;width:100%;height:auto}.lines text{fill:var(--soft);"
    "font-size:11px}.lines .axis{stroke:var(--line);stroke-width:1}.lines ul{list-style:none;"
    "display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:.3rem 0 0;padding:0;font-size:.84rem}"
    ".lines polyline,.lines li line{fill:none;stroke-width:1.8}.lines .first{stroke-width:3.2}"
    ".lines .control{stroke:var(--soft);opacity:.6;stroke-width:1.2}"
    ".views{display:grid;gap:.5rem;grid-template-columns:repeat(auto-fill,minmax(7.4rem,1fr));"
    "max-width:66rem;margin:.5rem 0 1.2rem}.views figcaption{font-size:.8rem;"
    "overflow-wrap:anywhere}main details.more{margin:.4rem 0}"
)


class Picture(NamedTuple):
    """One picture of a run.

    Attributes:
      image: its path in the list.
      target: name or number of the class asked about.
      values: `{attribution: {metric: value}}`, NaN where there is none.
      share: of the picture that the boxes cover, or NaN.
      pixels: encoded, or empty.
      maps: `[A, h, w]` uint8 of the attributions that see the network, or None.
    """

    image: str
    target: str
    values: Mapping[str, Mapping[str, float]]
    share: float
    pixels: bytes
    maps: np.ndarray | None


def read(out: results.Out) -> tuple[list[Picture], dict[str, np.ndarray]]:
    """Returns the pictures of a run, and the mean curves `{metric: [A, n]}` over them, attributions
    in the order of the run.
    """
    found: list[Picture] = []
    # Sums and counts: of many pictures the curves themselves would fill the memory.
    total: dict[str, np.ndarray] = {}
    known: dict[str, np.ndarray] = {}
    for stem in results.committed(out):
        record, arrays = commit.read_shard(stem)
        rows = iter(record["rows"])
        each = len(record["rows"]) // max(len(record["items"]), 1)
        for place, entry in enumerate(record["items"]):
            own = [next(rows) for _ in range(each)]
            found.append(
                Picture(
                    image=own[0]["image"],
                    target=own[0].get("target_name") or f"class {entry['target']}",
                    values={
                        row["attribution"]: {
                            n: math.nan if v is None else v for n, v in row["values"].items()
                        }
                        for row in own
                    },
                    share=entry.get("object", math.nan),
                    pixels=arrays[f"{place}.image"].tobytes()
                    if f"{place}.image" in arrays
                    else b"",
                    maps=arrays.get(f"{place}.maps"),
                )
            )
            begin = f"{place}.curves."
            for name in (n for n in arrays if n.startswith(begin)):
                metric, curve = name.removeprefix(begin), arrays[name].astype(np.float64)
                fine = np.isfinite(curve)
                total[metric] = total.get(metric, 0) + np.where(fine, curve, 0)
                known[metric] = known.get(metric, 0) + fine
    return found, {m: total[m] / np.maximum(known[m], 1) for m in total}


def _seeing(names: Sequence[str]) -> list[str]:
    """The attributions that see the network."""
    return [n for n in names if n not in CONTROLS]


def curves(means: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Returns the mean curves `{metric: [A, n]}` of attributions (safe HTML)."""
    if not means:
        return ""
    words = (
        "<p>Mean probability of the target over the pictures, by the share of the pixels that has "
        "changed, those that a map ranks highest first.</p>"
    )
    parts = "".join(_plot(metric, one, names) for metric, one in means.items())
    return f'<h2>Curves</h2>{words}<div class="lines">{parts}</div>'


def _plot(metric: str, means: np.ndarray, names: Sequence[str]) -> str:
    top = max(float(np.nanmax(means)), 1e-6)
    sign = 1 if suite.get(metric).higher else -1
    seen = _seeing(names)

    def stroke(name: str) -> str:
        if name in CONTROLS:
            return 'class="control"'
        at = seen.index(name)
        dash = DASHES[at // len(COLOURS) % len(DASHES)]
        kind = ' class="first"' if at == 0 else ""
        return f'stroke="{COLOURS[at % len(COLOURS)]}" stroke-dasharray="{dash}"{kind}'

    def line(name: str) -> str:
        values = means[names.index(name)]
        places = np.linspace(40, 390, len(values))
        heights = 170 - 158 * values / top
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
        return f'<polyline {stroke(name)} points="{points}"></polyline>'

    # Controls below, the first attribution over all.
    order = sorted(names, key=lambda n: (n not in CONTROLS, n == seen[0]))
    best = sorted(names, key=lambda n: -sign * float(means[names.index(n)].mean()))
    key = "".join(
        f'<li><svg width="26" height="9" aria-hidden="true"><line {stroke(n)} x1="1" x2="25" '
        f'y1="5" y2="5"></line></svg> {text(label(n))}</li>'
        for n in best
    )
    return (
        f"<section><h3>{text(metric.replace('_', ' '))}</h3>"
        f'<svg class="plot" viewBox="0 0 400 190" role="img" aria-label="mean curves of '
        f'{text(metric)}, best first: {text(", ".join(label(n) for n in best))}">'
        '<line class="axis" x1="40" x2="390" y1="170" y2="170"></line>'
        f'<text x="36" y="16" text-anchor="end">{number(top)}</text>'
        '<text x="36" y="172" text-anchor="end">0</text><text x="40" y="186">0 %</text>'
        '<text x="390" y="186" text-anchor="end">100 % of the pixels</text>'
        f"{''.join(line(n) for n in order)}</svg><ul>{key}</ul></section>"
    )


def disagreements(found: Sequence[Picture], names: Sequence[str], metric: str) -> str:
    """Returns the pictures whose maps are least alike (safe HTML).

    Args:
      found: the pictures of a run.
      names: its attributions.
      metric: whose values stand below the maps.
    """
    seen = _seeing(names)
    kept = [(p, p.maps) for p in found if p.maps is not None and p.pixels]
    if len(seen) < 2 or not kept:
        return ""
    alike = np.array([_alike(maps) for _, maps in kept])
    rows = []
    for at in np.argsort(alike, kind="stable")[:SHOWN].tolist():
        picture, maps = kept[at]
        tiles = [
            figure(
                "shown",
                drawing.enlarge(pictures.decode(picture.pixels), TILE),
                f"the picture {picture.image}",
                picture.target,
                f"<span>alike {number(float(alike[at]))}</span>",
            )
        ]
        for name, one in zip(seen, maps, strict=True):
            value = picture.values[name].get(metric, math.nan)
            below = "" if math.isnan(value) else f"<span>{number(value)}</span>"
            tiles.append(
                figure(
                    "map",
                    drawing.enlarge(drawing.heat(one), TILE),
                    f"{label(name)} of {picture.image}",
                    label(name),
                    below,
                )
            )
        rows.append(f'<div class="views">{"".join(tiles)}</div>')
    words = (
        f"The {len(rows)} pictures, of the first {len(kept)}, whose maps are least alike. Alike is "
        "the mean rank correlation of two maps, 1 where all rank the pixels alike: over these "
        f"pictures {number(float(np.median(alike)))} in the middle. Below a map stands its own "
        f"{text(metric.replace('_', ' '))}."
    )
    return f"<h2>Where they disagree</h2><p>{words}</p>{''.join(rows)}"


def _alike(maps: np.ndarray) -> float:
    pairs = [(a, b) for a in range(len(maps)) for b in range(a)]
    one, other = (maps[list(side)].astype(np.float32) for side in zip(*pairs, strict=True))
    # A flat map is like no other.
    return float(np.nan_to_num(spearman(one, other)).mean())


def breakdown(found: Sequence[Picture], names: Sequence[str], metrics: Sequence[str]) -> str:
    """Returns the means by class and by the object's size, where there are enough of each (safe
    HTML).
    """
    seen = _seeing(names)
    by_class: dict[str, list[Picture]] = {}
    for picture in found:
        by_class.setdefault(picture.target, []).append(picture)
    large = sorted(by_class.items(), key=lambda item: -len(item[1]))
    classes = {name: some for name, some in large[:CLASSES] if len(some) >= FEWEST}
    parts = []
    if len(classes) > 1:
        left = len(by_class) - len(classes)
        words = f"Classes of at least {FEWEST} pictures" + (f"; {left} others." if left else ".")
        parts.append(_groups("By class", words, "class", classes, seen, metrics))
    sized = sorted((p for p in found if np.isfinite(p.share)), key=lambda p: p.share)
    if len(sized) >= FEWEST * len(SIZES):
        cut = np.array_split(np.arange(len(sized)), len(SIZES))
        groups = {}
        for name, places in zip(SIZES, cut, strict=True):
            some = [sized[i] for i in places]
            low, high = (f"{100 * some[end].share:.0f}" for end in (0, -1))
            groups[f"{name}, {low} to {high} %"] = some
        words = "Thirds of the pictures by the share that the object's boxes cover."
        parts.append(_groups("By the object's size", words, "object", groups, seen, metrics))
    return "".join(parts)


def _groups(
    title: str,
    words: str,
    what: str,
    groups: Mapping[str, Sequence[Picture]],
    names: Sequence[str],
    metrics: Sequence[str],
) -> str:
    tables = []
    for metric in metrics:
        sign = 1 if suite.get(metric).higher else -1
        lines = []
        for name, some in groups.items():
            values = np.array([[p.values[n].get(metric, math.nan) for n in names] for p in some])
            means = known_mean(values)
            if np.isnan(means).all():
                continue
            # As they are written: what a reader cannot tell apart is best alike.
            best = f"{sign * np.nanmax(sign * means):.3f}"
            written = [f"{m:.3f}" if np.isfinite(m) else "\N{EN DASH}" for m in means]
            cells = [f"<b>{w}</b>" if w == best else w for w in written]
            lines.append([text(name), f"{len(some)}", *cells])
        if lines:
            head = [what, "pictures", *map(label, names)]
            heading = f"{metric.replace('_', ' ')}, {'more' if sign > 0 else 'less'} is better"
            tables.append(f"<h3>{text(heading)}</h3>{drawn(head, lines)}")
    return (
        f'<details class="more"><summary><b>{text(title)}</b></summary><p>{text(words)}</p>'
        f"{''.join(tables)}</details>"
        if tables
        else ""
    )


def label(name: str) -> str:
    """Returns an attribution's name as a reader wants it: of a folder of maps, its last part."""
    if not name.startswith("maps:"):
        return name
    return f"maps of {name.removeprefix('maps:').rstrip('/').rsplit('/', 1)[-1]}"
