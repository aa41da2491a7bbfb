"""The verdict on one region, in terms of the answer: is the region alone still answered?

A share of the score says little: a region may keep 90 % of a logit and lose the answer, from a
probability of 99.9 to one of 1.6 %. So a region is *answered* under a fill where its class comes
first. Where the class is not first on the whole picture either, it must keep half of its
probability; where a model gives no classes, half of the score. A fill under which the empty picture
is answered too has a say only by the score.

Of a removed region ("delete") the same is asked of what is left, and the other answer is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from perturb import operators

__all__ = ["VERDICTS", "Case", "answered", "judge"]

VERDICTS = ("holds", "doubtful", "fails")
# Below: a region that keeps less of the score, or of a probability that was not the highest, is not
# answered.
KEPT = 0.5
# Shares of shifted copies that do worse, in per cent: below the first a region is not special,
# below the second that may be chance.
BEATEN, RARE = 50.0, 95.0
# Below the first overlap between two starts the region depends on luck; below the second they are
# two regions.
AGREEMENT, ANOTHER = 0.5, 0.3
# Shares of the fills: a region that is answered under fewer fails.
MOST = 0.5


class Case(NamedTuple):
    """What is known of one region.

    Attributes:
      gain: `{fill: share of the score kept ("delete": taken)}`, NaN where there is no scale; those
        the region was found with first.
      answered: `{fill: bool}` whether the region alone is answered ("delete": the rest is not);
        None where the fill has no say.
      probability: `{fill: probability}` of the target, empty where there is none.
      original: probability on the whole picture.
      trivial: the fills under which the empty picture is answered too, so that the score decides.
      sought: how many of the fills the region was found with.
      percentile: share of the shifted copies that do worse, 0 to 100.
      copies: how many there are.
      agreement: overlap with the region of another start, key or rounding; NaN where none was
        made.
      overdriven: the region scores above the whole picture ("delete": the rest below the empty
        one).
      status: of the optimisation.
      delete: whether the region is removed.
      enough: the larger area, cut from the same scores, that is answered under all fills the
        region was found with; NaN where none is, or none was tried.
    """

    gain: Mapping[str, float]
    answered: Mapping[str, bool | None]
    probability: Mapping[str, float]
    original: float
    trivial: frozenset[str]
    sought: int
    percentile: float
    copies: int
    agreement: float
    overdriven: bool
    status: str
    delete: bool
    enough: float = math.nan


def answered(
    gain: np.ndarray,
    chance: np.ndarray,
    rank: np.ndarray,
    original: tuple[float, int],
    floor_rank: np.ndarray,
    *,
    delete: bool,
    least: float = KEPT,
) -> np.ndarray:
    """Returns whether a region does what it should: 1 yes, 0 no, NaN where the fill has no say.

    Args:
      gain: shares of the score, of any shape.
      chance, rank: of the target, of the same shape; NaN and -1 where there are none.
      original: probability and rank on the whole picture.
      floor_rank: of the empty picture under the same fill, to be broadcast.
      delete: whether the region is removed: then it should not be answered.
      least: share of the score, where that decides.

    >>> first = (0.9, 0)
    >>> def one(p, rank):
    ...     p, rank = np.array(p), np.array(rank)
    ...     return float(answered(0.9, p, rank, first, np.array(5), delete=False))
    >>> one(0.4, 0), one(0.3, 1)
    (1.0, 0.0)
    """
    by_score = np.where(np.isnan(gain), np.nan, np.asarray(gain) >= least)
    whole, place = original
    if place < 0:
        return by_score
    if place == 0:
        stays = rank == 0
        trivial = floor_rank == 0
    else:
        stays = chance >= KEPT * whole
        # Without a scale of scores an answer that was not given says nothing.
        trivial = np.isnan(by_score)
    good = np.where(stays, 0.0, 1.0) if delete else np.where(stays, 1.0, 0.0)
    # What an empty picture still says cannot be taken away by a region, nor be kept by one.
    by_share = by_score if delete else np.where(stays, by_score, 0.0 * by_score)
    return np.where(trivial, by_share, good)


def judge(case: Case) -> tuple[str, list[str]]:
    """Returns the verdict and its reasons: what fails, what is doubtful, what holds, notes."""
    if case.status == "nonfinite":
        return "fails", ["the network's scores were not finite during the search"]
    names = list(case.gain)
    known = {n: case.answered[n] for n in names if case.answered[n] is not None}
    own = [n for n in names[: case.sought] if n in known]
    if not own:
        return "fails", ["with everything removed the score is as high as with the whole picture"]
    fails: list[str] = []
    doubts: list[str] = []
    holds: list[str] = []
    notes: list[str] = []
    lost = [n for n in own if not known[n]]
    if lost:
        # One of several fills that took turns leaves a doubt; the one that scores, or most of them,
        # do not.
        grave = lost[0] == own[0] or len(lost) > MOST * len(own)
        (fails if grave else doubts).append(_said(case, lost, "it was found with"))
        if "noise" in lost:
            notes.append("noise is another draw than the search was shown")
        if not case.delete and not math.isnan(case.enough):
            share = _percent(case.enough)
            notes.append(f"the answer needs {share} of the picture, cut from the same scores")
    else:
        holds.append(_said(case, own, "it was found with"))
    others = [n for n in names[case.sought :] if n in known]
    lost = [n for n in others if not known[n]]
    if not others:
        doubts.append("no other fill takes the answer away, so nothing else could be tried")
    elif lost:
        doubts.append(_said(case, lost, "it was not found with"))
        if "noise" in lost and not case.delete:
            notes.append(f'with operator="{operators.DEFAULT}" regions mostly hold under noise too')
    else:
        holds.append(_said(case, others, "it was not found with"))
    beaten = round(case.percentile / 100 * case.copies, 1)
    text = f"it does better than {beaten:g} of {case.copies} shifted copies of itself"
    if case.percentile < BEATEN:
        (fails if fails or doubts else doubts).append(text)
    else:
        (doubts if case.percentile < RARE else holds).append(text)
    weak = list(_weak(case))
    # Each alone is common among regions that hold everywhere; together they are a reason to doubt.
    # A region that another start does not find at all is one of several.
    (doubts if len(weak) > 1 or case.agreement < ANOTHER else notes).extend(weak)
    verdict = "fails" if fails else "doubtful" if doubts else "holds"
    return verdict, [*fails, *doubts, *holds, *notes]


def _weak(case: Case) -> Iterator[str]:
    """Sentences on what may be wrong with a region that is answered."""
    if case.agreement < AGREEMENT:
        share = _percent(case.agreement)
        yield f"another start, key or rounding found another region: they overlap by {share}"
    if case.status == "not_converged":
        yield "the optimisation had not settled: more steps may find a better region"
    if case.overdriven:
        yield (
            "without it the score falls below that of an empty picture"
            if case.delete
            else "the region alone scores above the whole picture"
        )


def _said(case: Case, names: list[str], which: str) -> str:
    """A sentence on how the region does under `names`, all of which it passes, or all of which it
    does not.
    """
    good = bool(case.answered[names[0]])
    fills = f"fills {which} ({', '.join(names)})"
    verb = "takes" if case.delete else "keeps"
    least = min(names, key=lambda n: case.gain[n] if not math.isnan(case.gain[n]) else math.inf)
    share = f"the region {verb} {'at least ' * good}{_percent(case.gain[least])} of the score"
    telling = [n for n in names if n not in case.trivial]
    if not case.probability or not telling:
        return f"{share} under {fills}"
    worst = max if case.delete else min
    if not good:
        worst = min if case.delete else max
    name = worst(telling, key=lambda n: case.probability[n])
    change = f"probability {_chance(case.original)} → {_chance(case.probability[name])} ({name})"
    if case.delete:
        what = (
            "without the region the answer is gone"
            if good
            else "the answer is still there without the region"
        )
    else:
        what = f"the region alone {'still gives' if good else 'does not give'} the answer"
    return f"{what} under {fills}: {change}; {share}"


def _percent(share: float) -> str:
    return "no measurable share" if math.isnan(share) else f"{100 * share:.0f} %"


def _chance(p: float) -> str:
    """A probability in per cent, with a digit more at either end.

    >>> _chance(0.9991), _chance(0.5), _chance(0.016)
    ('99.9 %', '50 %', '1.6 %')
    """
    return f"{100 * p:.1f} %" if min(p, 1 - p) < 0.1 else f"{100 * p:.0f} %"
