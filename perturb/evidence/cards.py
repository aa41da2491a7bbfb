"""What is reported with every mask: is the region the reason, or an artefact of how it was found?

A mask that keeps 99 % of the answer under the blur it was optimised with may keep a third under any
other fill, and a shifted copy of it may do as well. So every region is shown again: under four
operators it never saw, against shifted copies of itself, and at eight other areas of the same scores.
Everything is forward passes: about 38 a mask, where 100 steps of optimisation cost some 300.

Shares are on the way from the score with everything removed (0) to that of the whole picture (1),
each operator with its own floor: `gain`.

>>> round(float(gain(8.0, 10.0, 2.0)), 2), round(float(gain(8.0, 10.0, 2.0, delete=True)), 2)
(0.75, 0.25)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import _display, operators, rewards
from perturb import masks as masks_lib
from perturb import scores as scores_lib
from perturb._numerics import devices
from perturb.methods import _run
from perturb.model import Model

__all__ = [
    "AREAS",
    "VERDICTS",
    "Evidence",
    "card",
    "gain",
    "held_out",
    "outputs_of",
    "shifts",
    "show",
]

# Areas at which the score map itself is cut, whatever area was asked.
AREAS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
VERDICTS = ("holds", "doubtful", "fails")
# Below these a region fails, or is doubtful.
KEPT, TRANSFER, BEATEN, RARE = 0.5, 0.5, 50.0, 95.0


class Evidence(NamedTuple):
    """What speaks for and against the masks of `B` images at `A` areas.

    Attributes:
      floor: `{operator: [B]}` reward with everything removed, first under the operators that the mask
        was sought with.
      gain: `[B, A]` share of the score that the region keeps ("delete": takes) under its own operator,
        the first of several; NaN without a scale.
      transfer: `{operator: [B, A]}` the same under operators the mask was not optimised on.
      transfer_ratio: `[B, A]` the least of them over `gain`, both counted up to 1; over the mean gain
        under all operators that the mask was sought with, where they were several.
      curve: `[B, A, 8]` gains of regions of the areas `AREAS` cut from the same scores; None without
        a score map.
      sufficient_area: `[B, A]` smallest of these areas with a gain of 0.9; NaN where none has.
      control_percentile: `[B, A]` share of shifted copies of the region that do worse, 0 to 100.
      control_gain: `[B, A]` mean gain of those copies.
      rival: `[B, A]` int, the strongest other class while only the region is shown ("delete": is
        missing); -1 where the model gives no classes.
      rival_score: `[B, A]` its output.
      overdriven: `[B, A]` bool, the region scores above the whole picture ("delete": below the floor).
      verdict: `[B, A]` str, one of `VERDICTS`.
      reasons: `[B][A]` lists of sentences, the gravest first.
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

    def __repr__(self) -> str:
        return _display.summary(self)


def gain(score: Any, original: Any, floor: Any, *, delete: bool = False) -> np.ndarray:
    """Returns the share of the way from `floor` to `original` that `score` keeps ("delete": takes).

    NaN where the way has no length: nothing left scores as high as the whole picture, within 2 %.
    """
    score, top, low = (np.asarray(v, np.float64) for v in (score, original, floor))
    way = top - low
    flat = ~(way > 0.02 * np.maximum(np.abs(top), np.abs(low)))
    kept = (score - low) / np.where(flat, np.nan, way)
    return 1 - kept if delete else kept


def held_out(operator: operators.Operator) -> dict[str, operators.Operator]:
    """Returns four operators that `operator` is not, nor has among its own."""
    used = _used(operator)
    blur = next((o for o in used if isinstance(o, operators.Blur)), operators.Blur())

    def scaled(by: float) -> operators.Blur:
        pixels = by * blur.pixels if blur.pixels else None
        return dataclasses.replace(blur, strength=by * blur.strength, pixels=pixels)

    found: dict[str, operators.Operator] = {
        "blur": blur,
        "half_blur": scaled(0.5),
        "double_blur": scaled(2.0),
        "mean": operators.Fade(),
        "noise": operators.Noise(),
        "fade": operators.Fade(colour=0.5),
        "black": operators.Fade(colour=0.0),
    }
    own = [_name(o) for o in used]
    return {name: found[name] for name in [n for n in found if n not in own][:4]}


def _used(operator: operators.Operator) -> tuple[operators.Operator, ...]:
    """The operators that a mask was sought with, the one that scores it first."""
    return operator.operators if isinstance(operator, operators.Alternate) else (operator,)


def _name(operator: operators.Operator) -> str:
    if isinstance(operator, operators.Fade):
        if operator.colour is None:
            return "mean"
        return "black" if np.ndim(operator.colour) == 0 and operator.colour == 0 else "fade"
    return type(operator).__name__.lower()


def _distinct(names: list[str]) -> list[str]:
    """Names of which the second of a kind is called `kind_2`."""
    before = [names[:at].count(name) for at, name in enumerate(names)]
    return [f"{name}_{n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def shifts(key: jax.Array, size: tuple[int, ...], number: int) -> np.ndarray:
    """Returns `[number, dims]` shifts in px, at least an eighth of every side either way round."""
    margin = np.array([math.ceil(n / 8) for n in size])
    part = np.asarray(jax.random.uniform(key, (number, len(size))))
    return (margin + np.floor(part * (np.array(size) - 2 * margin + 1))).astype(np.int32)


def _shifted(mask: jax.Array, by: jax.Array) -> jax.Array:
    axes = tuple(range(mask.ndim))
    return jax.vmap(lambda s: jnp.roll(mask, tuple(s[d] for d in axes), axes))(by)


@jax.jit
def _shown(operator: Any, image: jax.Array, key: jax.Array, regions: jax.Array) -> jax.Array:
    reference = operator.prepare(image, key)
    return jax.vmap(lambda m: operator.apply(reference, m))(regions)


def show(operator: Any, image: Any, key: jax.Array, regions: Any) -> np.ndarray:
    """Returns the views `[N, *size, C]` of one image with `regions` `[N, *size]`, 0 or 1, kept."""
    return np.asarray(_shown(_sharp(_used(operator)[0]), image, key, regions))


@jax.jit
def _cuts(scores: jax.Array) -> jax.Array:
    """Regions `[A, 8, *size]` of the areas `AREAS`, cut from `[A, *size]`."""
    counts = jnp.array([max(1, round(area * math.prod(scores.shape[1:]))) for area in AREAS])
    return jax.vmap(jax.vmap(masks_lib.binarise, (None, 0)), (0, None))(scores, counts) > 0.5


@functools.partial(jax.jit, static_argnames="delete")
def _all_views(
    own: Any,
    others: tuple[Any, ...],
    image: jax.Array,
    key: jax.Array,
    regions: jax.Array,
    cuts: jax.Array,
    by: jax.Array,
    *,
    delete: bool,
) -> jax.Array:
    """What a card needs of one image, in the order that `_split` takes apart."""
    size = regions.shape[1:]
    masks, cuts = regions.astype(jnp.float32), cuts.astype(jnp.float32)
    moved = jax.vmap(_shifted, (0, None))(masks, by).reshape(-1, *size)
    shown = jnp.concatenate([masks, cuts, moved])
    if delete:
        shown, masks = 1 - shown, 1 - masks
    whole, none = jnp.ones((1, *size)), jnp.zeros((1, *size))
    views = [_shown(own, image, key, jnp.concatenate([whole, none, shown]))]
    views += [_shown(other, image, key, jnp.concatenate([none, masks])) for other in others]
    return jnp.concatenate(views)


@jax.jit
def _run_model(model: Model, views: jax.Array) -> Any:
    return jax.tree.map(lambda y: y.astype(jnp.float32), model(views))


@functools.partial(jax.jit, static_argnames="reward")
def _pay(reward: rewards.Reward, rows: Any, target: Any) -> jax.Array:
    """Rewards of `rows`; the first of them is the whole picture."""
    original = jax.tree.map(lambda y: y[0], rows)
    return jax.vmap(lambda row: reward(row, target, original))(rows)


def outputs_of(model: Model, views: np.ndarray) -> Any:
    """Returns the outputs for `views` `[N, *size, C]`, in batches of one size.

    The batches of one image never hold another's views, so that a result does not depend on them.
    """
    mesh = devices.local(1, like=model)
    # What a network makes of two pictures stays in a CPU's cache: for twelve SqueezeNet takes a sixth longer.
    most = devices.least(mesh) if mesh.devices.flat[0].platform == "cpu" else 16
    number = len(views)
    batches = math.ceil(number / most)
    size = max(2, math.ceil(number / batches))
    parts = []
    for at in range(0, number, size):
        batch = views[at : at + size]
        if len(batch) < size:
            batch = np.concatenate([batch, *[batch[-1:]] * (size - len(batch))])
        parts.append(jax.device_get(_run_model(model, batch)))
    return jax.tree.map(lambda *p: np.concatenate(p)[:number], *parts)


def _sharp(operator: Any) -> Any:
    """The operator on masks of 0 and 1, which show the first and the last level of a pyramid only."""
    if isinstance(operator, operators.Blur):
        return dataclasses.replace(operator, levels=2)
    return operator


def card(
    model: Model,
    images: Any,
    targets: Any,
    result: Any,
    *,
    operator: str | operators.Operator = operators.DEFAULT,
    name: str | None = None,
    reward: str | rewards.Reward | Callable[..., Any] = "logit",
    game: str = "preserve",
    controls: int = 16,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
) -> Evidence:
    """Checks the binary masks of a result: floors, transfer, other areas, shifted copies, rival.

    Args:
      model, images, targets, reward, game, key, keys: as given to the method that made the masks.
      result: `perturb.Result`, or anything with `masks` `[B, A, *size]`; `scores` and `converged` of
        the same shapes are used where they are there.
      operator: what the masks were optimised on, by default that of `perturb.extremal`.
      name: what to call it, of several the first, in `floor`.
      controls: shifted copies a mask; with 16, one that does better leaves the percentile at 94.
    Returns:
      `Evidence`.
    Raises:
      ValueError: if the masks do not fit the images, or as the method itself.

    >>> import types, perturb
    >>> seen = perturb.Model(lambda w, x: x[:, 4:10, 4:10].mean((1, 2)), ())
    >>> region = jnp.zeros((1, 1, 16, 16)).at[:, :, 4:10, 4:10].set(1.0)
    >>> result = types.SimpleNamespace(masks=region)
    >>> found = card(seen, region[0, :, :, :, None] * jnp.ones(3), [0], result, operator="fade")
    >>> str(found.verdict[0, 0]), float(found.control_percentile[0, 0])
    ('holds', 100.0)
    """
    paid = rewards.bind(rewards.get(reward), model)
    door = _run.check(model, images, targets, paid, game=game, key=key, keys=keys)
    regions = np.asarray(result.masks) > 0.5
    size = door.images.shape[1:-1]
    if regions.shape[:1] + regions.shape[2:] != door.images.shape[:-1]:
        raise ValueError(
            f"result.masks must be [B, A, *size] for images {door.images.shape}, "
            f"got {regions.shape}"
        )
    if controls < 1:
        raise ValueError(f"controls must be at least 1, got {controls}")
    operator = operators.get(operator)
    own, *more = _used(operator)
    others = held_out(operator)
    names = _distinct([name or _name(own), *map(_name, more)])
    scores = getattr(result, "scores", None)

    def row(model: Model, i: int) -> _Row:
        key = jax.random.fold_in(door.keys[i], 0x5EED)
        none = np.zeros((len(regions[i]), 0, *size), bool)
        cuts = none if scores is None else np.asarray(_cuts(scores[i]))
        # A cut of the area that was asked for is the region itself: it is not shown a second time.
        fresh = (cuts != regions[i][:, None]).any(tuple(range(2, cuts.ndim)))
        views = _all_views(
            _sharp(own),
            tuple(_sharp(other) for other in [*more, *others.values()]),
            door.images[i],
            door.keys[i],
            regions[i],
            cuts[fresh],
            shifts(key, size, controls),
            delete=game == "delete",
        )
        outputs = outputs_of(model, np.asarray(views))
        target = jax.tree.map(lambda t: jnp.asarray(t[i]), door.targets)
        paid_rows = np.asarray(_pay(paid, outputs, target), np.float64)
        areas = regions.shape[1]
        split = _split(paid_rows, areas, controls, len(more) + len(others), fresh)
        rival, rival_score = _rivals(model, outputs, target, areas)
        return split._replace(rival=rival, rival_score=rival_score)

    rows = devices.spread(row, model, len(door.images))
    return _gather(rows, names, tuple(others), result, game)


class _Row(NamedTuple):
    """Rewards of one image: `[]`, `[]`, `[A]`, `[A, 8]` or `[A, 0]`, `[A, K]`, `[O]`, `[O, A]`, rivals.

    Of the `O` other operators those that took turns with the first come first, then those held out.
    """

    top: float
    floor: float
    kept: np.ndarray
    curve: np.ndarray
    control: np.ndarray
    other_floor: np.ndarray
    other: np.ndarray
    rival: np.ndarray = np.zeros(0)
    rival_score: np.ndarray = np.zeros(0)


def _split(pay: np.ndarray, areas: int, controls: int, others: int, fresh: np.ndarray) -> _Row:
    """Takes apart what views in the order of `_all_views` are paid; of the cuts those `fresh` `[A, 8]`."""
    sizes = [1, 1, areas, fresh.sum(), areas * controls, others * (1 + areas)]
    top, floor, kept, cut, control, rest = np.split(pay, np.cumsum(sizes)[:-1])
    rest = rest.reshape(others, 1 + areas)
    curve = np.broadcast_to(kept[:, None], fresh.shape).copy()
    curve[fresh] = cut
    return _Row(
        top=float(top[0]),
        floor=float(floor[0]),
        kept=kept,
        curve=curve,
        control=control.reshape(areas, controls),
        other_floor=rest[:, 0],
        other=rest[:, 1:],
    )


def _rivals(model: Model, outputs: Any, target: Any, areas: int) -> tuple[np.ndarray, np.ndarray]:
    """The strongest class besides the target while the regions are shown."""
    if model.output not in rewards.CLASSES or np.ndim(target) != 0:
        return np.full(areas, -1), np.full(areas, np.nan)
    rows = jnp.asarray(outputs[2 : 2 + areas])
    best, score = jax.vmap(lambda row: scores_lib.rival(model.output, row, target))(rows)
    return np.asarray(best), np.asarray(score, np.float64)


def _gather(
    rows: list[_Row], names: list[str], others: tuple[str, ...], result: Any, game: str
) -> Evidence:
    delete = game == "delete"

    def column(field: str) -> np.ndarray:
        return np.stack([getattr(row, field) for row in rows])

    top, floor, kept, control = (column(f) for f in ("top", "floor", "kept", "control"))
    own = gain(kept, top[:, None], floor[:, None], delete=delete)
    other_floor, other = column("other_floor"), column("other")
    gains = gain(other, top[:, None, None], other_floor[..., None], delete=delete)
    turns, moved = np.split(gains, [len(names) - 1], 1)
    # Under an operator that removes nothing there is no scale: it has no say.
    least = np.where(np.isnan(moved), np.inf, moved).min(1)
    least = np.where(np.isinf(least), np.nan, least)
    known = np.concatenate([own[:, None], turns], 1)
    sought = np.where(np.isnan(own), np.nan, np.ma.masked_invalid(known).mean(1).filled(np.nan))
    ratio = np.clip(least, 0, 1) / np.where(sought > 0, np.minimum(sought, 1), np.nan)
    sign = -1 if delete else 1
    worse = (sign * control < sign * kept[..., None]).mean(-1)
    ties = (control == kept[..., None]).mean(-1)
    copies = gain(control, top[:, None, None], floor[:, None, None], delete=delete).mean(-1)
    curve, enough = None, np.full(own.shape, np.nan)
    if rows[0].curve.size:
        curve = gain(column("curve"), top[:, None, None], floor[:, None, None], delete=delete)
        reached = curve >= 0.9
        enough = np.where(reached.any(-1), np.array(AREAS)[reached.argmax(-1)], np.nan)
    overdriven = kept < floor[:, None] if delete else kept > top[:, None]
    percentile = 100 * (worse + 0.5 * ties)
    status = np.broadcast_to(getattr(result, "status", np.array("ok")), own.shape)
    judged = [
        [
            _judge(
                own[i, a],
                ratio[i, a],
                {n: float(moved[i, k, a]) for k, n in enumerate(others)},
                percentile[i, a],
                control.shape[-1],
                bool(overdriven[i, a]),
                str(status[i, a]),
                delete,
            )
            for a in range(own.shape[1])
        ]
        for i in range(len(rows))
    ]
    return Evidence(
        floor=dict(zip([*names, *others], [floor, *other_floor.T], strict=True)),
        gain=own,
        transfer={n: moved[:, k] for k, n in enumerate(others)},
        transfer_ratio=ratio,
        curve=curve,
        sufficient_area=enough,
        control_percentile=percentile,
        control_gain=copies,
        rival=column("rival"),
        rival_score=column("rival_score"),
        overdriven=overdriven,
        verdict=np.array([[v for v, _ in row] for row in judged]),
        reasons=[[r for _, r in row] for row in judged],
    )


def _judge(
    own: float,
    ratio: float,
    moved: dict[str, float],
    percentile: float,
    controls: int,
    overdriven: bool,
    status: str,
    delete: bool,
) -> tuple[str, list[str]]:
    """The verdict on one mask, and its reasons: what fails, what is doubtful, what holds, notes."""
    verb = "takes" if delete else "keeps"
    if status == "nonfinite":
        return "fails", ["the network's scores were not finite while the mask was sought"]
    if math.isnan(own):
        return "fails", ["with everything removed the score is as high as with the whole picture"]
    fails: list[str] = []
    doubts: list[str] = []
    holds: list[str] = []
    notes: list[str] = []
    text = f"the region {verb} {_percent(own)} of the score"
    (fails if own < KEPT else holds).append(text)
    known = {n: g for n, g in moved.items() if not math.isnan(g)}
    if known:
        weakest = min(known, key=lambda n: known[n])
        text = f"under fills it was not found with it {verb} at least {_percent(known[weakest])} ({weakest})"
        (doubts if ratio < TRANSFER else holds).append(text)
        if ratio < TRANSFER and weakest == "noise" and not delete:
            notes.append(f'with operator="{operators.DEFAULT}" regions mostly hold under noise too')
    else:
        doubts.append("no other fill takes the answer away, so nothing else could be tried")
    beaten = round(percentile / 100 * controls, 1)
    text = f"it does better than {beaten:g} of {controls} shifted copies of itself"
    (fails if percentile < BEATEN else doubts if percentile < RARE else holds).append(text)
    if overdriven:
        notes.append(
            "without it the score falls below that of an empty picture"
            if delete
            else "the region alone scores above the whole picture"
        )
    if status == "not_converged":
        notes.append("the optimisation had not settled: more steps may find a better region")
    verdict = "fails" if fails else "doubtful" if doubts else "holds"
    return verdict, [*fails, *doubts, *holds, *notes]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
