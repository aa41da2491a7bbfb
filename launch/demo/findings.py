"""The three questions of a reader, answered from what `make demo` found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.report.html import percent
from launch.report.parts import VERDICTS, asked

__all__ = ["VERDICTS", "questions"]


def questions(summary: dict[str, Any], verdicts: Sequence[Sequence[str]]) -> str:
    """Returns what the networks looked at, how sure that is and what to do next (safe HTML).

    Args:
      summary: what demo.json holds: of "honest" and "cheat" accuracy, on_object and on_mark.
      verdicts: of the regions of the honest network and of the cheat.
    """
    honest, cheat = summary["honest"], summary["cheat"]
    looked = (
        f"The honest network looked at the object: on average {percent(honest['on_object'])} of a "
        "region lies on it. The cheat looked at the stamp: on average "
        f"{percent(cheat['on_mark'])} of a region lies there, and {percent(cheat['on_object'])} on "
        "the object."
    )
    known = [[v for v in each if v] for each in verdicts]
    sure = (
        f"{_held('honest network', known[0])} {_held('cheat', known[1])} A region holds where it "
        "alone still gives the answer, under fills that it was not found with too, and does better "
        "than shifted copies of itself. The stamp can be put to the test besides: where it shows a "
        f"wrong class the cheat is right {percent(cheat['accuracy']['wrong'])} of the time, the "
        f"honest network {percent(honest['accuracy']['wrong'])}."
    )
    then = (
        "Do not use the cheat where a stamp may be missing or wrong: train it on pictures whose "
        "stamps say nothing. To see which of its units read the stamp, run <code>make "
        "demo-units</code>; to ask the same of your own network, <code>python -m launch.masks "
        "--images=photos --model=my.nets:load</code>."
    )
    return asked(looked, sure, then)


def _held(name: str, verdicts: Sequence[str]) -> str:
    """How many regions hold, in a sentence.

    >>> _held("cheat", ["holds", "doubtful", "holds"])
    'Of the 3 regions of the cheat 2 hold, 1 is doubtful and none fails.'
    """
    if not verdicts:
        return f"The regions of the {name} were not checked."
    held, doubted, failed = (verdicts.count(v) for v in ("holds", "doubtful", "fails"))
    words = [
        f"{held or 'none'} hold{'s' * (held < 2)}",
        f"{doubted or 'none'} {'is' if doubted < 2 else 'are'} doubtful",
        f"{failed or 'none'} fail{'s' * (failed < 2)}",
    ]
    return f"Of the {len(verdicts)} regions of the {name} {words[0]}, {words[1]} and {words[2]}."
