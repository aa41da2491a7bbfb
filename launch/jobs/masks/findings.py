"""The three questions of a reader, answered from the rows of a run of masks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from launch.jobs.masks.cards import effect
from launch.report.html import percent
from launch.report.parts import asked

__all__ = ["questions"]

Rows = Sequence[Sequence[dict[str, Any]]]
# Shares of the regions: more that fail or have not settled, and the reader is told what to change.
MANY = 0.25


def questions(run: dict[str, Any], rows: Rows) -> str:
    """Returns what the network looked at, how sure that is and what to do next (safe HTML).

    Args:
      run: run.json.
      rows: of results.jsonl, a list an image and target; none where nothing could be used.
    """
    if not rows or run["flags"]["method"] == "channels":
        return ""
    delete = run["flags"].get("game") == "delete"
    return asked(_looked(rows, delete), _sure(rows), _then(run, rows, delete))


def _looked(rows: Rows, delete: bool) -> str:
    # The first area of every picture: a median over areas would mix sizes.
    first = [row for item in rows for row in item[:1]]
    effects = [e for e in (effect(row, delete) for row in first) if e is not None]
    area = percent(statistics.median(row["achieved_area"] or 0 for row in first))
    # No effect is known where the score of nothing left is no lower than the picture's.
    if not effects:
        return (
            "This run cannot say: with everything removed the scores are as high as on the whole "
            "pictures."
        )
    share = percent(statistics.median(effects))
    words = (
        f"At what is outlined in the pictures below. With {area} of the picture removed, in half "
        f"of the pictures at least {share} of the score is gone."
        if delete
        else f"At what is outlined in the pictures below. In half of the pictures {area} of the "
        f"picture, shown alone, keeps {share} or more of the score."
    )
    enough = [row["evidence"].get("sufficient_area") for row in first]
    known = [a for a in enough if a is not None]
    # A sufficient area answers what keeps the answer, which a deletion does not ask.
    if known and not delete:
        words += (
            f" In half of the pictures {percent(statistics.median(known))} of the picture is "
            "enough for the network to give the same answer."
        )
        if len(known) < len(first):
            words += (
                f" {len(first) - len(known)} pictures need more than three quarters, or were not "
                "checked."
            )
    return words


def _sure(rows: Rows) -> str:
    found = [row["evidence"]["verdict"] for item in rows for row in item]
    known = [v for v in found if v]
    # The share that had not: its words are chosen by whether there is any.
    settled = _share(rows, "not_converged")
    search = (
        f"{percent(settled)} of the searches had not settled when their steps ended."
        if settled
        else "All searches had settled."
    )
    if not known:
        return f"Nothing was checked: this run was made with --evidence=none. {search}"
    held, doubted, failed = (known.count(v) for v in ("holds", "doubtful", "fails"))
    return (
        f"Of {len(known)} regions <b>{held}</b> hold, <b>{doubted}</b> are doubtful and "
        f"<b>{failed}</b> fail. Each was shown alone under fills that it was not found with, and "
        f"held against copies of itself elsewhere in the picture. {search} None of this says that "
        "the answer is right: it says what the answer rests on."
    )


def _then(run: dict[str, Any], rows: Rows, delete: bool) -> str:
    known = [row["evidence"]["verdict"] for item in rows for row in item]
    known = [v for v in known if v]
    failed = known.count("fails") / len(known) if known else 0.0
    advice = []
    if not known:
        advice.append(
            "Run it again without <code>--evidence=none</code>: an unchecked region may be chance."
        )
    # Twice the areas, but never the whole picture, which would be no answer.
    if failed > MANY:
        sizes = run["flags"].get("areas")
        more = (
            f"larger areas (<code>--areas={','.join(f'{min(2 * a, 0.9):g}' for a in sizes)}</code>)"
            if sizes
            else "another <code>--preset</code>"
        )
        advice.append(f"{percent(failed)} of the regions fail: try {more}.")
    if _share(rows, "not_converged") > MANY:
        advice.append(
            "Many searches had not settled: give more <code>--steps</code>, or "
            "<code>--restarts=2</code>."
        )
    verb = "takes" if delete else "keeps"
    advice.append(
        f"Sort the pictures below by what the region {verb}, and look at the worst. Where a region "
        "that holds lies on something that should not matter (a mark, a frame, the background), "
        "take that out of the picture and ask the network again."
    )
    advice.append(
        "For other seeds, mirrored pictures and a second network run <code>--evidence=full</code>; "
        "to compare with other methods, <code>python -m launch.evaluate</code>."
    )
    return " ".join(advice)


def _share(rows: Rows, status: str) -> float:
    found = [row["status"] for item in rows for row in item]
    return found.count(status) / len(found)
