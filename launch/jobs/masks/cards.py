"""An image's card on the page: its regions, what the network was shown, and the scores in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from launch.report import pictures
from launch.report.html import number, percent, text
from launch.report.parts import VERDICTS, badge, figure
from perturb.evidence import gain
from perturb.types import Array, Record

__all__ = ["card", "effect", "marks"]


def effect(row: Record, delete: bool) -> float | None:
    """Returns what the region does, on a scale from no effect (0) to all of it (1).

    For a kept region the share of the score, between nothing left (0) and the whole picture (1),
    that it keeps; for a removed one the share that goes with it. None where the scale has no
    length: nothing left scores as much as the whole picture, within 2 %.

    >>> effect({"score_original": 10.0, "score_floor": 2.0, "score_binary": 8.0}, delete=False)
    0.75
    """
    whole, floor, score = (row.get(f"score_{k}") for k in ("original", "floor", "binary"))
    if whole is None or floor is None or score is None:
        return None
    share = float(gain(score, whole, floor, delete=delete))
    return None if math.isnan(share) else share


def card(record: Record, run: Record, place: int, group: str) -> str:
    """Returns an image's card.

    Args:
      record: as `launch.results.records` yields it.      run: run.json.
      place: in the order of the run.      group: why a selection shows it, or "".
    """
    rows = record["rows"]
    delete = run["flags"].get("game") == "delete"
    first = rows[0]
    label = first.get("target_name", f"class {first['target']}")
    effects = [effect(row, delete) for row in rows]
    data = {
        "order": place,
        "name": first["image"],
        "target": label,
        "group": group,
        "original": first["score_original"],
        "area": first["achieved_area"],
        **{f"effect{i}": value for i, value in enumerate(effects)},
    }
    # Read by the page's script, which sorts and filters the cards without asking a server.
    attributes = "".join(
        f' data-{key}="{text("" if value is None else value)}"' for key, value in data.items()
    )
    badges = "".join(_badges(record, run, effects, group))
    figures = "".join(_channel_figures(record) if "channels" in record else _figures(record, run))
    return (
        f'<article class="card"{attributes}><h2 title="{text(label)}">{text(label)}</h2>{badges}'
        f'<p class="file" title="{text(first["image"])}">{text(first["image"])}</p>'
        f'<div class="strip">{figures}</div></article>'
    )


# What a badge says where it stands; the number of areas it is true of goes before it.
_MEANS = {
    "not_converged": "in the last third of its steps the search still found regions better by more "
    "than 5 % of the score: more --steps may find a better one",
    "nonfinite": "the network's scores were not finite numbers while the region was sought: do not "
    "use this mask",
    "interrupted": "the search was stopped before its last step: there is no mask",
}
_GROUPS = {
    "worst": "one of the pictures whose regions keep least of the score",
    "best": "one of the pictures whose regions keep most of the score",
    "random": "drawn at random from the others, so that the selection is not only extremes",
}


def marks(rows: Sequence[Record], run: Record) -> Iterator[str]:
    """Yields badges of an answer that is wrong and of searches that did not end well, each opening
    into what it means (safe HTML).

    Args:
      rows: of results.jsonl, those of one picture and target.
      run: run.json.
    """
    before = rows[0]["evidence"].get("answer", {}).get("rank_original")
    if before and run["flags"].get("target") == "csv":
        others = "another class scores" if before == 1 else f"{before} other classes score"
        yield badge(
            "wrong answer",
            f"on the whole picture {others} higher than the class of the list: the network does "
            "not answer this class, and the regions say what speaks for it all the same",
        )
    for status in sorted({row["status"] for row in rows} - {"ok"}):
        number = sum(row["status"] == status for row in rows)
        where = "" if len(rows) == 1 else f"{number} of {len(rows)} regions: "
        meaning = _MEANS.get(status, "the search ended with this status")
        yield badge(status.replace("_", " "), where + meaning, quiet=status != "nonfinite")


def _badges(
    record: Record, run: Record, effects: Sequence[float | None], group: str
) -> Iterator[str]:
    """What is to be known of a picture before its regions are believed, each opening into what it
    means.
    """
    yield from marks(record["rows"], run)
    if all(found is None for found in effects):
        yield badge(
            "nothing left scores as high",
            "with everything removed the score is that of the whole picture, within 2 %: no region "
            "can be told from another; try another --operator",
        )
    if group:
        yield badge(group, _GROUPS[group], quiet=True)


def _figures(record: Record, run: Record) -> Iterator[str]:
    rows = record["rows"]
    delete = run["flags"].get("game") == "delete"
    image, removed = pictures.decode(record["image"]), pictures.decode(record["removed"])
    first = rows[0]
    yield figure(
        "region",
        pictures.enlarge(image),
        "the whole picture",
        "whole picture",
        _score(first, "original"),
    )
    yield figure(
        "shown",
        pictures.enlarge(removed),
        "everything removed",
        "nothing left",
        _score(first, "floor"),
    )
    others = record.get("alternatives") or [()] * len(rows)
    for mask, row, also in zip(record["masks"], rows, others, strict=True):
        words = f"{percent(row['achieved_area'])} {'removed' if delete else 'kept'}"
        alt = f"{percent(row['achieved_area'])} of the picture outlined"
        # Two pictures a region: where it is, and what the network saw.
        yield figure("region", pictures.overlay(image, mask), alt, words, "")
        # Put together again from the stored pictures: what the network was shown, but for their
        # compression.
        blend = pictures.shown(image, removed, mask, delete=delete)
        yield figure(
            "shown",
            blend,
            words,
            _verdict(row, delete),
            _score(row, "binary")
            + _gauge(row, rows)
            + _evidence(row["evidence"])
            + _alternatives(image, also, row),
        )


def _channel_figures(record: Record) -> Iterator[str]:
    first = record["rows"][0]
    image = pictures.enlarge(pictures.decode(record["image"]))
    yield figure("region", image, "the picture", "all channels", _score(first, "original"))
    for channels, row in zip(record["channels"], record["rows"], strict=True):
        kept = ", ".join(str(c) for c in np.flatnonzero(channels > 0.5))
        yield (
            # Reached by the keyboard, for long lists scroll.
            f'<figure class="channels"><p tabindex="0">{text(kept)}</p>'
            f"<figcaption><b>{row['count']} channels: "
            f"{_verdict(row, False)}</b>{_score(row, 'binary')}{_gauge(row, record['rows'])}"
            "</figcaption></figure>"
        )


def _score(row: Record, part: str) -> str:
    score, chance = row.get(f"score_{part}"), row.get(f"probability_{part}")
    # Scores without a probability, such as those of a regression, have none to show.
    more = f" ({percent(chance)})" if chance is not None else ""
    return f"<span>{number(score)}{more}</span>"


def _verdict(row: Record, delete: bool) -> str:
    found = effect(row, delete)
    return f"{'takes' if delete else 'keeps'} {percent(found)}" if found is not None else "score"


def _evidence(found: Record) -> str:
    """The verdict of the checks, opening into its reasons."""
    if not found["verdict"]:
        return ""
    lines = [*found["reasons"]]
    if "rival" in found:
        rival = found["rival"]
        name = rival.get("target_name", f"class {rival['target']}")
        lines.append(f"strongest other class: {name}, {number(rival['score'])}")
    # Of a region that is not answered the reasons say what the answer needs.
    told = any("cut from the same scores" in line for line in lines)
    if found["sufficient_area"] is not None and not told:
        lines.append(
            f"{percent(found['sufficient_area'])} of the picture, cut from the same scores, is "
            "enough"
        )
    if found.get("answer"):
        lines += _answers(found["answer"])
    if "key_overlap" in found:
        lines.append(
            "found again with another key and other rounding, by overlap: "
            f"{percent(found['key_overlap'])}"
        )
    if "full" in found:
        # Overlap with the regions of other seeds, of the mirrored and of the moved picture.
        same = [f"{n} {percent(found['full'][n])}" for n in ("seeds", "flip", "shift")]
        lines.append(f"the same region again, by overlap: {', '.join(same)}")
        lines += [
            f"{what}: {percent(found['full'][n])}"
            for n, what in (
                ("other_game", "in the other game"),
                ("second", "under a second network"),
            )
            if found["full"].get(n) is not None
        ]
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return (
        '<details class="evidence '
        f'{text(found["verdict"])}"><summary>{text(found["verdict"])}</summary>'
        f"<p>{text(VERDICTS[found['verdict']])}</p><ul>{items}</ul></details>"
    )


def _answers(answer: Record) -> list[str]:
    """The class's probability and place under each fill, in a line."""
    places = [
        f"{name.replace('_', ' ')} {percent(p)}"
        # Ranks are counted from 0, places from 1.
        + (f" (place {answer['rank'][name] + 1})" if p is not None else "")
        for name, p in answer["probability"].items()
    ]
    return [f"probability of {percent(answer['probability_original'])}: {', '.join(places)}"]


def _alternatives(image: np.ndarray, masks: Array, row: Record) -> str:
    """The other regions that keep the answer about as well, opening into pictures."""
    if not len(masks):
        return ""
    drawn = []
    for mask, other in zip(masks, row["alternatives"], strict=True):
        words = f"probability {percent(other['probability'])}" if other["probability"] else ""
        words += f", overlap {percent(other['overlap'])}"
        pixels = pictures.overlay(image, mask.astype(np.float32))
        drawn.append(figure("region", pixels, "another region outlined", words.lstrip(", "), ""))
    title = f"or {len(drawn)} other region{'s' * (len(drawn) > 1)}"
    return f'<details class="evidence"><summary>{title}</summary>{"".join(drawn)}</details>'


def _gauge(row: Record, rows: Sequence[Record]) -> str:
    """A bar from the lowest to the highest score of this picture, with a tick at the whole
    picture.
    """
    whole, floor, score = (row.get(f"score_{k}") for k in ("original", "floor", "binary"))
    if whole is None or floor is None or score is None:
        return ""
    known = [r["score_binary"] for r in rows if r.get("score_binary") is not None]
    low, high = min(floor, *known), max(whole, *known)
    width = (high - low) or 1.0
    at, tick = 100 * (score - low) / width, 100 * (whole - low) / width
    return (
        '<svg class="gauge" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="6"></rect>'
        f'<rect class="fill" width="{at:.1f}" height="6"></rect>'
        f'<rect class="tick" x="{min(tick, 98.8):.1f}" width="1.2" height="6"></rect></svg>'
    )
