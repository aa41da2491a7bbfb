"""The card of a mask: what is shown to the network again, and what comes of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, operators, rewards, statistics
from perturb import masks as masks_lib
from perturb import scores as scores_lib
from perturb._numerics import devices
from perturb.evidence import answering, fills, verdict
from perturb.evidence.answering import ENOUGH, Measured, gain
from perturb.model import Model
from perturb.solver import entry
from perturb.types import ArrayLike, Function, PyTree

__all__ = ["AREAS", "Evidence", "card", "gain"]

# Areas at which the score map itself is cut, whatever area was asked.
AREAS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
# Folded into an image's key for the search that is to tell how much the key matters.
OTHER = 0x07E6
# Deviation of noise on the pixels that stands for another machine's rounding.
ROUNDING = 1e-6


class Evidence(NamedTuple):
    """What speaks for and against the masks of `B` images at `A` areas.

    Noise that the masks were found with is drawn anew. It and the shifts are the same for all
    images and keys, so that a region has one verdict.

    Attributes:
      floor: `{operator: [B]}` reward with everything removed, first under the operators that the
        mask was found with.
      gain: `[B, A]` share of the score that the region keeps ("delete": takes) under its own
        operator, the first of several; NaN without a scale.
      transfer: `{operator: [B, A]}` the same under operators the mask was not optimised on.
      transfer_ratio: `[B, A]` the least of them over `gain`, both counted up to 1; over the mean
        gain under all operators that the mask was found with, where they were several.
      curve: `[B, A, 8]` gains of regions of the areas `AREAS` cut from the same scores, under its
        own operator as `gain`; None without a score map.
      sufficient_area: `[B, A]` smallest of these areas that is answered under all operators that
        the mask was found with, or where a model gives no classes keeps 0.9 of the score, the mean
        under them; NaN where none is.
      control_percentile: `[B, A]` share of shifted copies of the region that do worse, 0 to 100;
        the copies are shared out among the operators that the mask was found with.
      control_gain: `[B, A]` mean gain of those copies.
      rival: `[B, A]` int, the strongest other class while only the region is shown ("delete": is
        missing); -1 where the model gives no classes.
      rival_score: `[B, A]` its output.
      overdriven: `[B, A]` bool, the region scores above the whole picture ("delete": below the
        floor).
      verdict: `[B, A]` str, one of `VERDICTS`.
      reasons: `[B][A]` lists of sentences, the gravest first.
      probability_original: `[B]` probability of the target on the whole picture; NaN where there is
        none.
      probability: `{operator: [B, A]}` while only the region is shown ("delete": is missing), those
        that the mask was found with first.
      rank: `{operator: [B, A]}` int, how many classes score higher then; -1 where the model gives
        no classes.
      answered: `{operator: [B, A]}` 1 where the region alone is answered ("delete": the rest is
        not), 0 where it is not, NaN where the operator has no say; see `perturb.evidence.verdict`.
      control_answered: `[B, A]` share of the shifted copies for which the same is so.
      rank_original: `[B]` int, how many classes score higher on the whole picture; -1 where the
        model gives no classes.
      key_overlap: `[B, A]` intersection over union with the region that a search under another key
        finds, on pixels that differ by a millionth; NaN where none was made.
    """

    floor: dict[str, np.ndarray]
    gain: np.ndarray
    transfer: dict[str, np.ndarray]
    transfer_ratio: np.ndarray
    curve: np.ndarray | None
    sufficient_area: np.ndarray
    control_percentile: np.ndarray
    control_gain: np.ndarray
    rival: np.ndarray
    rival_score: np.ndarray
    overdriven: np.ndarray
    verdict: np.ndarray
    reasons: list[list[list[str]]]
    probability_original: np.ndarray
    probability: dict[str, np.ndarray]
    rank: dict[str, np.ndarray]
    answered: dict[str, np.ndarray]
    control_answered: np.ndarray
    rank_original: np.ndarray | None = None
    key_overlap: np.ndarray | None = None

    def __repr__(self) -> str:
        return display.summary(self)


@jax.jit
def _cuts(scores: jax.Array) -> jax.Array:
    """Regions `[A, 8, *size]` of the areas `AREAS`, cut from `[A, *size]`."""
    counts = jnp.array([max(1, round(area * math.prod(scores.shape[1:]))) for area in AREAS])
    return jax.vmap(jax.vmap(masks_lib.binarise, (None, 0)), (0, None))(scores, counts) > 0.5


@functools.partial(jax.jit, static_argnames="delete")
def _all_views(
    own: tuple[PyTree, ...],
    others: tuple[PyTree, ...],
    image: jax.Array,
    key: jax.Array,
    regions: jax.Array,
    cuts: jax.Array,
    by: tuple[jax.Array, ...],
    *,
    delete: bool,
) -> jax.Array:
    """What a card needs of one image: the whole picture, then fill by fill in the order of
    `_Fill`.
    """
    size = regions.shape[1:]
    masks, cuts = regions.astype(jnp.float32), cuts.astype(jnp.float32)
    whole, none = jnp.ones((1, *size)), jnp.zeros((1, *size))
    views = []
    for n, fill in enumerate([*own, *others]):
        # Other areas under the fill that scores, whether the others take part is in question at few
        # of them (`_enough`); copies under those of the search: a card is to stay at some 36
        # forward passes a mask.
        shown = [masks] if n else [masks, cuts]
        if n < len(own):
            shown.append(jax.vmap(fills.shifted, (0, None))(masks, by[n]).reshape(-1, *size))
        shown = [1 - s for s in shown] if delete else shown
        # The whole picture is the same under every fill: it is shown once.
        first = [] if n else [whole]
        views.append(fills.views(fill, image, key, jnp.concatenate([*first, none, *shown])))
    return jnp.concatenate(views)


@functools.partial(jax.jit, static_argnames="delete")
def _further_views(
    others: tuple[PyTree, ...], image: jax.Array, key: jax.Array, cut: jax.Array, *, delete: bool
) -> jax.Array:
    """One region under further fills, a view each."""
    shown = cut.astype(jnp.float32)[None]
    shown = 1 - shown if delete else shown
    return jnp.concatenate([fills.views(fill, image, key, shown) for fill in others])


def card(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    result: PyTree,
    *,
    operator: str | operators.Operator = operators.DEFAULT,
    name: str | None = None,
    reward: str | rewards.Reward | Function | None = None,
    game: str = "preserve",
    controls: int = 12,
    again: Function | None = None,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
) -> Evidence:
    """Checks the binary masks of a result: floors, transfer, other areas, shifted copies, rival.

    Args:
      model, images, targets, reward, game, key, keys: as given to the method that made the masks.
      result: `perturb.Result`, or anything with `masks` `[B, A, *size]`; `scores`, `status` and
        `agreement` of its kind are used where they are there.
      operator: what the masks were optimised on, by default that of `perturb.extremal`.
      name: what to call it, of several the first, in `floor`.
      controls: shifted copies a mask, shared out among the operators that it was found with; with
        12, one that does better leaves the percentile at 92.
      again: `(model, images, targets, keys=) -> result`, a search such as
        `functools.partial(perturb.extremal, areas=0.1)`: run once with other keys, on pixels that
        differ by a millionth, it tells how much luck moves the region (`key_overlap`). At one area,
        its scores are cut at those of the masks.
    Returns:
      `Evidence`.
    Raises:
      ValueError: if the masks do not fit the images, or as the method itself.

    >>> import types, perturb
    >>> seen = perturb.Model(lambda w, x: x[:, 4:10, 4:10].mean((1, 2)) * jnp.array([2, 1, 0]), ())
    >>> region = jnp.zeros((1, 1, 16, 16)).at[:, :, 4:10, 4:10].set(1.0)
    >>> result = types.SimpleNamespace(masks=region)
    >>> found = card(seen, region[0, :, :, :, None] * jnp.ones(3), [0], result, operator="fade")
    >>> str(found.verdict[0, 0]), float(found.control_percentile[0, 0])
    ('holds', 100.0)
    """
    bound = rewards.chosen(reward, model)
    given = entry.check(model, images, targets, bound, game=game, key=key, keys=keys)
    regions = answering.check_regions(result, given.images)
    size = given.images.shape[1:-1]
    if controls < 1:
        raise ValueError(f"controls must be at least 1, got {controls}")
    own, others = fills.sought(operator), fills.held_out(operator)
    names = [*fills.names_of(own, name), *others]
    drawn = fills.another_draw()
    # A key of its own: the shifts must not follow the noise of a fill.
    by = fills.shifts(jax.random.fold_in(drawn, 0x5EED), size, controls)
    scores = getattr(result, "scores", None)
    output = answering.classes_of(model, bound, given.targets)
    areas = regions.shape[1]

    def row(model: Model, i: int) -> _Row:
        none = np.zeros((areas, 0, *size), bool)
        cuts = none if scores is None else np.asarray(_cuts(scores[i]))
        # A cut of the area that was asked for is the region itself: it is not shown a second time.
        fresh = (cuts != regions[i][:, None]).any(tuple(range(2, cuts.ndim)))
        searched = tuple(map(fills.sharp, own))
        views = _all_views(
            searched,
            tuple(map(fills.sharp, others.values())),
            given.images[i],
            drawn,
            regions[i],
            cuts[fresh],
            tuple(by[n :: len(own)] for n in range(len(own))),
            delete=game == "delete",
        )
        outputs = fills.outputs_of(model, np.asarray(views))
        target = jax.tree.map(lambda t: jnp.asarray(t[i]), given.targets)
        measured = functools.partial(answering.measured, bound, output, target=target)

        def further(cut: np.ndarray) -> Measured:
            views = _further_views(
                searched[1:], given.images[i], drawn, cut, delete=game == "delete"
            )
            # Behind the whole picture, which rewards compare with.
            rows = fills.outputs_of(model, np.asarray(views))
            rows = jax.tree.map(lambda a, b: np.concatenate([a[:1], b]), outputs, rows)
            return Measured(*(v[1:] for v in measured(rows)))

        # Copies are dealt out among the fills of the search, one after the other.
        copies = [len(by[n :: len(own)]) for n in range(len(own))] + [0] * len(others)
        split = _split(measured(outputs), areas, copies, fresh)
        return split._replace(
            rival=_rivals(model, outputs, target, areas),
            enough=_enough(split, len(own), cuts, fresh, further, game == "delete"),
        )

    rows = devices.spread(row, model, len(given.images))
    overlap = np.full(regions.shape[:2], np.nan)
    if again is not None:
        other_keys = jax.vmap(lambda k: jax.random.fold_in(k, OTHER))(given.keys)
        other = again(model, _shaken(given.images), given.targets, keys=other_keys)
        overlap = fills.iou(regions, _as_large(other, regions))
    return _gather(rows, names, len(own), result, overlap, game == "delete")


def _shaken(images: np.ndarray) -> np.ndarray:
    """The pictures as another machine's rounding might leave them: a search that draws nothing
    depends on no key, and still on that.
    """
    noise = np.random.default_rng(OTHER).standard_normal(images.shape)
    return np.clip(images + ROUNDING * noise, 0, 1).astype(images.dtype)


def _as_large(other: PyTree, regions: np.ndarray) -> np.ndarray:
    """The masks of another search, of the areas of `regions` `[B, A, *size]`."""
    masks = np.asarray(other.masks) > 0.5
    if masks.shape == regions.shape:
        return masks
    scores = getattr(other, "scores", None)
    if masks.shape[:1] + masks.shape[2:] != regions.shape[:1] + regions.shape[2:] or scores is None:
        raise ValueError(
            f"again must return masks {regions.shape}, or scores of one area, got {masks.shape}"
        )
    cut = jax.jit(masks_lib.binarise)
    pixels = regions.reshape(*regions.shape[:2], -1).sum(-1)
    return np.stack(
        [
            [np.asarray(cut(s[0], n)) > 0.5 for n in row]
            for s, row in zip(scores, pixels, strict=True)
        ]
    )


class _Fill(NamedTuple):
    """What one image measures under one fill: `[1]`, `[A]` and `[A, K]` entries."""

    floor: Measured
    kept: Measured
    control: Measured


class _Row(NamedTuple):
    """One image: the whole picture, the fills, those the mask was found with first, other areas
    under the first, `[A, 8]`, the rivals, and the areas that are enough, `[A]`.
    """

    top: Measured
    fills: list[_Fill]
    curve: Measured
    rival: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0))
    enough: np.ndarray = np.zeros(0)


def _split(found: Measured, areas: int, copies: list[int], fresh: np.ndarray) -> _Row:
    """Takes apart views in the order of `_all_views`; of the cuts those `fresh` `[A, 8]` were
    shown.
    """
    at = 0

    def take(number: int, *shape: int) -> Measured:
        nonlocal at
        at += number
        return Measured(*(v[at - number : at].reshape(shape or (number,)) for v in found))

    top = take(1)
    parts, curve = [], []
    for n, copied in enumerate(copies):
        floor, kept = take(1), take(areas)
        cut = take(0 if n else int(fresh.sum()))
        parts.append(_Fill(floor, kept, take(areas * copied, areas, copied)))
        for region, cuts in zip(kept, cut, strict=True) if not n else ():
            # Cuts that are the region itself were not shown again: they have its values.
            whole = np.broadcast_to(region[:, None], fresh.shape).copy()
            whole[fresh] = cuts
            curve.append(whole)
    return _Row(top, parts, Measured(*curve))


def _rivals(
    model: Model, outputs: PyTree, target: PyTree, areas: int
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest class besides the target while the regions are shown."""
    if model.output not in rewards.CLASSES or np.ndim(target) != 0:
        return np.full(areas, -1), np.full(areas, np.nan)
    # Rows 0 and 1 are the whole picture and the empty one, then come the regions.
    rows = jnp.asarray(outputs[2 : 2 + areas])
    best, score = jax.vmap(lambda row: scores_lib.rival(model.output, row, target))(rows)
    return np.asarray(best), np.asarray(score, np.float64)


class _Judged(NamedTuple):
    """Gains and answers of one image, `[F, A]`; `curve` is `[A, 8]` under the first fill; of the
    copies, side by side, `[A, K]`.
    """

    gain: np.ndarray
    answered: np.ndarray
    curve: np.ndarray
    copies: np.ndarray
    copies_answered: np.ndarray
    worse: np.ndarray


def _shares(
    row: _Row, part: Measured, fill: _Fill, *, delete: bool, least: float = verdict.KEPT
) -> tuple[np.ndarray, np.ndarray]:
    return answering.shares(part, row.top, fill.floor, delete=delete, least=least)


def _enough(
    row: _Row,
    own: int,
    cuts: np.ndarray,
    fresh: np.ndarray,
    further: Callable[[np.ndarray], Measured],
    delete: bool,
) -> np.ndarray:
    """Returns `[A]`, the smallest of `AREAS` that suffices, NaN where none of them does.

    What is not answered under the first fill is not answered under all of them: the others are
    asked only where the first says yes, from the smallest area up, and no more once all do.

    Args:
      row: what was measured under all fills, the cuts `[A, 8, *size]` under the first.
      own: how many fills the masks were found with.
      fresh: `[A, 8]` the cuts that are not the region itself.
      further: what one cut gives under the fills of the search but the first, `[own - 1]`.
    """
    classes = bool(row.top.rank[0] >= 0)
    enough = functools.partial(_shares, row, delete=delete, least=ENOUGH)
    share, good = enough(row.curve, row.fills[0])
    found = np.full(len(cuts), np.nan)
    for a, k in np.ndindex(*cuts.shape[:2]):
        if not np.isnan(found[a]) or (classes and good[a, k] == 0):
            continue
        shares, answers = [share[a, k]], [good[a, k]]
        if own > 1:
            if fresh[a, k]:
                shown = further(cuts[a, k])
                kept = [_at(shown, n) for n in range(own - 1)]
            else:
                kept = [_at(fill.kept, a) for fill in row.fills[1:own]]
            for part, fill in zip(kept, row.fills[1:own], strict=True):
                one, answered = enough(part, fill)
                shares.append(one)
                answers.append(answered)
        if classes:
            suffices = answering.under_all(np.array(answers))
        else:
            suffices = statistics.known_mean(np.array(shares), 0) >= ENOUGH
        found[a] = AREAS[k] if suffices else np.nan
    return found


def _at(part: Measured, n: int) -> Measured:
    return Measured(*(v[n] for v in part))


def _weigh(row: _Row, own: int, delete: bool) -> _Judged:
    kept = [_shares(row, fill.kept, fill, delete=delete) for fill in row.fills]
    copies = [_shares(row, fill.control, fill, delete=delete) for fill in row.fills[:own]]
    worse = []
    for fill in row.fills[:own]:
        score, copied = fill.kept.score[:, None], fill.control.score
        below = score < copied if delete else copied < score
        # A tie counts half, so that a network which ignores the picture puts regions at 50 %.
        worse.append(below + 0.5 * (copied == score))
    return _Judged(
        gain=np.stack([share for share, _ in kept]),
        answered=np.stack([good for _, good in kept]),
        curve=_shares(row, row.curve, row.fills[0], delete=delete)[0],
        copies=np.concatenate([share for share, _ in copies], 1),
        copies_answered=np.concatenate([good for _, good in copies], 1),
        worse=np.concatenate(worse, 1),
    )


def _gather(
    rows: list[_Row],
    names: list[str],
    own: int,
    result: PyTree,
    overlap: np.ndarray,
    delete: bool,
) -> Evidence:
    weighed = [_weigh(row, own, delete) for row in rows]

    def column(field: str) -> np.ndarray:
        return np.stack([getattr(one, field) for one in weighed])

    def fill(part: str, field: str) -> np.ndarray:
        """`[B, F, ...]` of all fills."""
        return np.stack(
            [np.stack([getattr(getattr(f, part), field) for f in row.fills]) for row in rows]
        )

    gains, good = column("gain"), column("answered")  # [B, F, A]
    floor = fill("floor", "score")[..., 0]
    kept, top = fill("kept", "score")[:, 0], np.array([row.top.score[0] for row in rows])
    # The fill that scores masks comes first, the held-out ones last.
    first, moved = gains[:, 0], gains[:, own:]
    # Under an operator that removes nothing there is no scale: it has no say.
    least = np.where(np.isnan(moved), np.inf, moved).min(1)
    least = np.where(np.isinf(least), np.nan, least)
    mean = np.where(np.isnan(first), np.nan, statistics.known_mean(gains[:, :own], 1))
    # Capped at 1 on both sides: what exceeds the whole picture's score is no transfer.
    ratio = np.clip(least, 0, 1) / np.where(mean > 0, np.minimum(mean, 1), np.nan)
    curve = column("curve")  # [B, A, 8], without a score map [B, A, 0]
    enough = np.stack([row.enough for row in rows])
    classes = bool((rows[0].top.rank >= 0).all())
    overdriven = kept < floor[:, :1] if delete else kept > top[:, None]
    percentile = 100 * column("worse").mean(-1)
    status = np.broadcast_to(getattr(result, "status", np.array("ok")), first.shape)
    agreement = getattr(result, "agreement", None)
    agreement = np.broadcast_to(np.nan if agreement is None else agreement, first.shape)
    # The worse of the two where there are both: starts and keys are luck alike.
    agreement = np.fmin(agreement, overlap)
    shown = (np.asarray(result.masks) > 0.5).reshape(*first.shape, -1).mean(-1)
    chance, rank = fill("kept", "chance"), fill("kept", "rank")
    floor_rank = fill("floor", "rank")[..., 0]
    original = np.array([row.top.chance[0] for row in rows])
    judged = [
        [
            verdict.judge(
                verdict.Case(
                    gain=dict(zip(names, gains[i, :, a].tolist(), strict=True)),
                    answered={
                        n: None if np.isnan(good[i, f, a]) else bool(good[i, f, a])
                        for f, n in enumerate(names)
                    },
                    probability=dict(zip(names, chance[i, :, a].tolist(), strict=True))
                    if classes
                    else {},
                    original=float(original[i]),
                    trivial=frozenset(n for f, n in enumerate(names) if floor_rank[i, f] == 0),
                    sought=own,
                    percentile=float(percentile[i, a]),
                    copies=column("worse").shape[-1],
                    agreement=float(agreement[i, a]),
                    overdriven=bool(overdriven[i, a]),
                    status=str(status[i, a]),
                    delete=delete,
                    enough=float(enough[i, a]) if enough[i, a] > shown[i, a] else math.nan,
                )
            )
            for a in range(first.shape[1])
        ]
        for i in range(len(rows))
    ]
    return Evidence(
        floor=dict(zip(names, floor.T, strict=True)),
        gain=first,
        transfer={n: moved[:, k] for k, n in enumerate(names[own:])},
        transfer_ratio=ratio,
        curve=curve if curve.size else None,
        sufficient_area=enough,
        control_percentile=percentile,
        control_gain=statistics.known_mean(column("copies"), -1),
        rival=np.stack([row.rival[0] for row in rows]),
        rival_score=np.stack([row.rival[1] for row in rows]),
        overdriven=overdriven,
        verdict=np.array([[v for v, _ in row] for row in judged]),
        reasons=[[r for _, r in row] for row in judged],
        probability_original=original,
        probability={n: chance[:, f] for f, n in enumerate(names)},
        rank={n: rank[:, f] for f, n in enumerate(names)},
        answered={n: good[:, f] for f, n in enumerate(names)},
        control_answered=statistics.known_mean(column("copies_answered"), -1),
        rank_original=np.array([row.top.rank[0] for row in rows]),
        key_overlap=overlap,
    )
