"""What the answer loses without units: every unit alone, the best k off, only the best k kept.

`Zhou et al. 2018 <https://arxiv.org/abs/1806.02891>`_ and `Bau et al. 2020
<https://arxiv.org/abs/2009.05041>`_ switch units off without retraining and look at the accuracy of
single classes. What lies before the layer runs once; only the rest runs for each set of units.

Where we differ: units are ranked by a continuous effect, alone or together (the published ranking
by accuracy is mostly ties on a good network), on other pictures than they are tested on; "off" is
0, the unit's mean, or the unit as it is on another picture; and sets are held against random sets
of the same size and of about the same mean activation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb import display, taps
from perturb.internals._blocks import blocks, span
from perturb.internals._given import one_each
from perturb.internals._layers import check_layer, pooled, reader, units_back, units_last
from perturb.internals.joint import joint_orders
from perturb.model import Model
from perturb.statistics import Interval, paired, percentiles, ranks
from perturb.types import Array, ArrayLike, ImageSource, PyTree, Record

__all__ = [
    "Answers",
    "UnitTable",
    "ablate",
    "balanced_accuracy",
    "class_units",
    "interaction",
    "matched_sets",
    "mean_activation",
    "rank_units",
    "unit_p_values",
]

OFF = ("zero", "mean", "resample")


class Answers(NamedTuple):
    """What a model answers to N pictures, whole and without each of S sets of units. The first set
    is empty.

    Attributes:
      layer: its name.
      sets: `[S + 1, units]`, which are off; the first row none.
      targets: `[N]`, the true classes.
      predicted: `[S + 1, N]`, the class of the highest logit.
      log_probability: `[S + 1, N]`, of the true class.
      margin: `[S + 1, N]`, logit of the true class less the highest of the others.
    """

    layer: str
    sets: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    log_probability: np.ndarray
    margin: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def correct(self) -> np.ndarray:
        """`[S + 1, N]`, whether the true class has the highest logit."""
        found: np.ndarray = self.predicted == self.targets
        return found

    @property
    def soft(self) -> np.ndarray:
        """`[S + 1, N]`, sigmoid of the margin."""
        return 1 / (1 + np.exp(-np.clip(np.asarray(self.margin, np.float64), -700, 700)))

    def effect(self, measure: str = "log_probability") -> np.ndarray:
        """Returns what each set costs on each picture, `[S, N]`: whole less ablated.

        Args:
          measure: "log_probability", "margin", "soft" (sigmoid of the margin: accuracy with soft
            edges), or "correct".
        """
        if measure not in ("log_probability", "margin", "soft", "correct"):
            raise ValueError(
                f"measure must be log_probability, margin, soft or correct, got {measure!r}"
            )
        values = np.asarray(getattr(self, measure), np.float64)
        return values[:1] - values[1:]

    def cost(self, row: int, measure: str = "correct") -> Interval:
        """Returns the mean cost of set `row` with its paired 95 % bootstrap interval.

        Args:
          row: index of a set; 0 is the first one.
          measure: as in `effect`.
        """
        values = np.asarray(getattr(self, measure), np.float64)
        # The same pictures whole and ablated: paired, what varies between pictures cancels.
        return paired(values[0], values[1 + row], draws=2000)

    def select(self, pictures: Any) -> Answers:
        """Returns the answers to some of the pictures: indices, or booleans `[N]`.

        Args:
          pictures: indices, or booleans `[N]`.
        """
        return self._replace(
            targets=self.targets[pictures],
            **{
                name: getattr(self, name)[:, pictures]
                for name in ("predicted", "log_probability", "margin")
            },
        )


def ablate(
    model: Model,
    images: ImageSource,
    targets: PyTree,
    *,
    layer: str,
    sets: PyTree = None,
    off: str = "zero",
    means: np.ndarray | None = None,
    key: jax.Array | None = None,
    pictures: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    chunk: int = 8,
) -> Answers:
    """Runs the model whole and without each set of units, everything before the layer once.

    Args:
      model: its output is logits `[B, classes]`.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      targets: `[N]`, the true classes.
      layer: a name of `perturb.taps.names(model, images)`; after its rectification, as published.
      sets: booleans `[S, units]`, or S sequences of units; None is each unit alone.
      off: what a unit that is off becomes: "zero"; "mean", of `means`; "resample", itself on
        another picture of the same N, drawn by `key`: within the distribution.
      means: `[units]`, for "mean"; None measures them on `images`.
      key: random key, for "resample"; not consumed.
      pictures: how many, or `(start, stop)`; None is all.
      batch_size: pictures run at once.
      chunk: number of sets run at once; changes memory and time only.
    Raises:
      ValueError: if there is no such layer or unit, or an option does not fit.
    """
    if off not in OFF:
        raise ValueError(f"off must be one of {', '.join(OFF)}, got {off!r}")
    start, stop = span(images, pictures)
    targets = one_each("targets", targets, images)
    shape = check_layer(model, layer, jnp.zeros((2, *np.shape(images[0:1])[1:])))
    units = shape[-1]
    asked = np.concatenate([np.zeros((1, units), bool), _as_sets(layer, units, sets)])
    # Filled up with empty sets: one program, so that equal sets give equal answers to the last bit.
    padded = np.concatenate([asked, np.zeros((-len(asked) % chunk, units), bool)])
    values = np.zeros(units, np.float32)
    if off == "mean":
        values = np.asarray(
            mean_activation(model, images, layer=layer, batch_size=batch_size)
            if means is None
            else means,
            np.float32,
        )
    others = None
    if off == "resample":
        if key is None:
            raise ValueError("off='resample' needs key=, of the pictures that units are taken from")
        others = _partners(key, len(images))
    found = []
    for block in blocks(images, batch_size, (start, stop)):
        # Beyond the last picture the last again, as the block's pictures are.
        at = np.minimum(block.first + np.arange(batch_size), len(images) - 1)
        # Without resampling the partners are not read; something of their shape has to be
        # passed all the same.
        partner: PyTree = block.images if others is None else _gather(images, others[at])
        parts: PyTree = _answers(
            model,
            block.images,
            partner,
            targets[at],
            padded,
            values,
            layer=layer,
            resample=off == "resample",
            chunk=chunk,
        )
        found.append([np.asarray(p)[: len(asked), block.inside] for p in parts])
    predicted, log_probability, margin = (np.concatenate(p, 1) for p in zip(*found, strict=True))
    return Answers(layer, asked, targets[start:stop], predicted, log_probability, margin)


def mean_activation(
    model: Model,
    images: ImageSource,
    *,
    layer: str,
    pictures: int | tuple[int, int] | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns the mean activation of each unit over pictures and places, `[units]` float64.

    Args:
      model: the network, a `perturb.Model`.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` whose slices are such arrays.
      layer: a name of `perturb.taps.names(model, images)`.
      pictures: how many, or `(start, stop)`; None is all.
      batch_size: pictures run at once.
    """
    total: PyTree = 0.0
    start, stop = span(images, pictures)
    for block in blocks(images, batch_size, pictures):
        # Summed in float64: float32 would lose digits over many pictures.
        values = np.asarray(pooled(reader([layer])(model, block.images)[1][layer]), np.float64)
        total = total + values[block.inside].sum(0)
    found: np.ndarray = total / (stop - start)
    return found


def rank_units(
    answers: Answers, *, by: str = "log_probability", target: int | None = None
) -> np.ndarray:
    """Returns the sets in order of their cost, the costliest first, the lower number on ties.

    Args:
      answers: of each unit alone.
      by: "log_probability", "margin" or "soft" (see `Answers.effect`) of the true class over the
        pictures of `target`; or "accuracy", as published: the balanced accuracy of telling the
        class from the others.
      target: a class; None is all pictures.
    """
    if by == "accuracy":
        scores = (
            answers.correct.mean(1)
            if target is None
            else balanced_accuracy(answers.predicted, answers.targets, target)
        )
        cost = scores[0] - scores[1:]
    else:
        which = slice(None) if target is None else answers.targets == target
        cost = answers.select(which).effect(by).mean(1)
    return np.argsort(-cost, kind="stable")


def unit_p_values(
    answers: Answers, *, measure: str = "log_probability", target: int | None = None
) -> np.ndarray:
    """Returns one-sided p-values `[S]` of a set costing no more than the others do.

    Each picture ranks the sets by their cost. Where the sets do not differ, every order is equally
    likely, so the sum of a set's ranks has a known mean and variance, ties included (`Friedman
    1937 <https://doi.org/10.1080/01621459.1937.10503522>`_); for `statistics.discoveries`.

    Args:
      answers: of each unit alone, of some tens of pictures at least.
      measure: "log_probability", "margin" or "correct".
      target: a class; None is all pictures.
    """
    from scipy.special import ndtr

    which = slice(None) if target is None else answers.targets == target
    # Ranks within each picture: a picture on which everything costs much weighs no more
    # than another.
    rank = ranks(answers.select(which).effect(measure).T)  # [N, S]
    spread = np.sqrt(rank.var(1).sum())
    above = (rank - rank.mean(1, keepdims=True)).sum(0)
    return np.asarray(ndtr(-above / spread)) if spread > 0 else np.ones(len(above))


def balanced_accuracy(predicted: ArrayLike, targets: PyTree, target: int) -> np.ndarray:
    """Returns (recall + true-negative rate) / 2 of one class for predictions `[..., N]`.

    Args:
      predicted: `[..., N]` class indices that were said.
      targets: `[N]` true class indices.
      target: index of the class.

    >>> balanced_accuracy([[0, 0, 1, 1]], [0, 1, 1, 1], 0).tolist()
    [0.8333333333333333]
    """
    named, of = np.asarray(predicted) == target, np.asarray(targets) == target
    if not 0 < of.sum() < len(of):
        raise ValueError(f"targets must hold class {target} and others, got {int(of.sum())} of it")
    found: np.ndarray = (named[..., of].mean(-1) + (~named[..., ~of]).mean(-1)) / 2
    return found


class UnitTable(NamedTuple):
    """Classes without their most important k units, without others, and with only these. K sizes.

    Attributes:
      sizes: `[K]`.
      whole: balanced accuracy with all units, mean over classes.
      off: `[K]` Intervals, the k most important units off, over classes and pictures.
      kept: `[K]` Intervals, only these units kept.
      random: `[K, R]`, k random units off.
      matched: `[K, R]`, k units of about the same mean activation off.
      overall: `[K]`, accuracy over all classes with one class's units off, mean over classes.
      lost: `[K]` Intervals of the paired difference: random off (mean over the R) less most
        important off.
      orders: `[classes, units]`.
    """

    sizes: np.ndarray
    whole: float
    off: list[Interval]
    kept: list[Interval]
    random: np.ndarray
    matched: np.ndarray
    overall: np.ndarray
    lost: list[Interval]
    orders: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def class_units(
    model: Model,
    images: ImageSource,
    targets: PyTree,
    *,
    layer: str,
    sizes: Sequence[int] = (1, 2, 4, 8, 16),
    controls: int = 20,
    by: str = "log_probability",
    off: str = "zero",
    key: jax.Array,
    batch_size: int = 32,
    chunk: int = 8,
    replicates: int = 1000,
) -> UnitTable:
    """Ranks the units of every class on the even pictures and tests sets of them on the odd ones.

    Args:
      model, images, targets, layer, off, batch_size, chunk: see `ablate`.
      sizes: numbers k of units that are switched off together, rising.
      controls: random sets of each size, of either kind; at least 20.
      by: see `rank_units`; "accuracy" is the published ranking; "joint" takes the units together,
        see `joint_orders`.
      key: random key of the random sets; not consumed.
      replicates: of the bootstrap over pictures.
    """
    targets = np.asarray(targets)
    first, second = _Part(images, 0), _Part(images, 1)
    common: Record = {"layer": layer, "off": off, "batch_size": batch_size, "chunk": chunk}
    resample = jax.random.fold_in(key, 0)
    # Ranked on even pictures, tested on odd ones: chosen as the best of many, units look better
    # than they are on the pictures that they were chosen on.
    single = ablate(model, first, targets[::2], key=resample, **common)
    # Only classes that both halves hold.
    classes = [int(c) for c in np.unique(targets[1::2]) if (targets[::2] == c).any()]
    alone = "soft" if by == "joint" else by
    orders = np.stack([rank_units(single, by=alone, target=c) for c in classes])
    units = orders.shape[1]
    means = mean_activation(model, first, layer=layer, batch_size=batch_size)
    if by == "joint":
        held = np.isin(targets[::2], classes)
        together = joint_orders(
            model,
            _Picked(first, np.flatnonzero(held)),
            targets[::2][held],
            layer=layer,
            count=max(sizes),
            off=off,
            means=means if off == "mean" else None,
            chunk=chunk,
        )
        orders = np.stack(
            [[*t, *(u for u in o if u not in t)] for t, o in zip(together, orders, strict=True)]
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, 1))))
    sets: list[np.ndarray] = []
    for k in sizes:
        for order in orders:
            chosen = np.isin(np.arange(units), order[:k])
            sets += [chosen, ~chosen]
        # One list of sets for all sizes and classes, and one pass over the pictures; the rows are
        # found again by their place, see below.
        sets += [np.isin(np.arange(units), rng.permutation(units)[:k]) for _ in range(controls)]
        for order in orders:
            sets += list(matched_sets(means, order[:k], controls, rng))
    answers = ablate(model, second, targets[1::2], sets=np.array(sets), key=resample, **common)
    truth = answers.targets
    weights = np.random.default_rng(0).multinomial(
        len(truth), np.full(len(truth), 1 / len(truth)), replicates
    )

    def balanced(rows: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Mean over classes for rows `[classes]` of the answers, by weights `[W, N]`."""
        found = []
        for row, c in zip(rows, classes, strict=True):
            named, of = answers.predicted[row] == c, truth == c
            with np.errstate(invalid="ignore"):
                # A bootstrap copy may hold no picture of a class; that class is left out of
                # the mean.
                recall = w @ (named & of) / (w @ of)
                found.append((recall + w @ (~named & ~of) / (w @ ~of)) / 2)
        result: np.ndarray = np.nanmean(found, 0)
        return result

    def interval(rows: np.ndarray, against: np.ndarray | None = None) -> Interval:
        # Row 0 is the pictures as they are, the others are the bootstrap's.
        every = np.concatenate([np.ones((1, len(truth)), int), weights])
        values = balanced(rows, every)
        if against is not None:
            values = np.mean([balanced(r, every) for r in against], 0) - values
        low, high = percentiles(values[1:])
        return Interval(float(values[0]), float(low), float(high), len(truth))

    # Sets of one size: a chosen one and its complement for each class, random ones, matched ones
    # for each class.
    n, per = len(classes), 2 * len(classes) + controls + len(classes) * controls
    one = np.ones((1, len(truth)), int)
    off_, kept, random, matched, overall, lost = [], [], [], [], [], []
    for i in range(len(sizes)):
        start = 1 + i * per
        best, rest = start + 2 * np.arange(n), start + 2 * np.arange(n) + 1
        others = [np.full(n, start + 2 * n + r) for r in range(controls)]
        alike = [start + 2 * n + controls + np.arange(n) * controls + r for r in range(controls)]
        off_.append(interval(best))
        kept.append(interval(rest))
        random.append([balanced(r, one)[0] for r in others])
        matched.append([balanced(r, one)[0] for r in alike])
        overall.append(answers.correct[best].mean())
        lost.append(interval(best, np.array(others)))
    whole = float(balanced(np.zeros(n, int), one)[0])
    return UnitTable(
        np.array(sizes),
        whole,
        off_,
        kept,
        np.array(random),
        np.array(matched),
        np.array(overall),
        lost,
        orders,
    )


def matched_sets(
    means: np.ndarray, chosen: PyTree, count: int, rng: np.random.Generator, near: int = 6
) -> np.ndarray:
    """Returns `count` random sets as large as `chosen` and of about the same mean activation,
    `[count, units]`.

    Each unit is exchanged for one of the `near` units closest to it in rank of mean activation,
    itself among them, none twice.

    Args:
      means: `[units]` mean activations.
      chosen: indices of the units.
      count: number of sets.
      rng: a NumPy generator of random numbers.
      near: number of neighbours in rank that a unit may be exchanged for.
    """
    chosen = np.asarray(chosen)
    # Ranks and not activations: layers differ widely in how these are spread.
    rank = np.argsort(np.argsort(means, kind="stable"), kind="stable")
    sets = np.zeros((count, len(means)), bool)
    for row in sets:
        # In random order, or the first units would always be given the nearest partners.
        for unit in rng.permutation(chosen):
            free = np.flatnonzero(~row)
            order = np.argsort(np.abs(rank[free] - rank[unit]), kind="stable")
            row[free[rng.choice(order[:near])]] = True
    return sets


def interaction(
    answers: Answers, joint: int, parts: Sequence[int], measure: str = "margin"
) -> Interval:
    """Returns the cost of a set over the sum of the costs of its units, with a bootstrap interval.

    1 where units add up, below 1 where they stand in for each other, above 1 where one alone can be
    spared.

    Args:
      answers: holding the set and each of its units alone.
      joint: row of the set among `sets`, from 0 without the empty one.
      parts: rows of its units.
      measure: as in `Answers.effect`.
    """
    effect = answers.effect(measure)
    together, alone = effect[joint], effect[list(parts)].sum(0)
    pick = np.random.default_rng(0).integers(0, len(together), (2000, len(together)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = together[pick].mean(1) / alone[pick].mean(1)
        value = float(together.mean() / alone.mean())
    # Copies in which the units alone cost nothing give infinite ratios; an interpolating quantile
    # would make NaN of them.
    low, high = np.nanquantile(ratios, (0.025, 0.975), method="inverted_cdf")
    return Interval(value, float(low), float(high), len(together))


class _Part:
    """Every other picture of a source, from the first or the second."""

    def __init__(self, images: ImageSource, start: int):
        self._images, self._start = images, start

    def __len__(self) -> int:
        return (len(self._images) - self._start + 1) // 2

    def __getitem__(self, at: slice) -> np.ndarray:
        first, stop, _ = at.indices(len(self))
        return np.asarray(self._images[2 * first + self._start : 2 * stop + self._start])[::2]


class _Picked:
    """Some pictures of a source, by index."""

    def __init__(self, images: PyTree, indices: np.ndarray):
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, at: slice) -> np.ndarray:
        return _gather(self._images, self._indices[at])


@functools.partial(jax.jit, static_argnames=("layer", "resample", "chunk"))
def _answers(
    model: Model,
    images: jax.Array,
    partners: jax.Array,
    targets: jax.Array,
    sets: jax.Array,
    values: jax.Array,
    *,
    layer: str,
    resample: bool,
    chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    prefix, suffix = taps.split(model, layer)
    activation, live = prefix(images)
    plain = units_last(model, activation)
    other = units_last(model, prefix(partners)[0]) if resample else values

    def run(units: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits = suffix(units_back(model, jnp.where(units, other, plain)), live)
        rows = jnp.arange(len(logits))
        true = logits[rows, targets]
        # The highest logit but the true one's, which is left out.
        rest = logits.at[rows, targets].set(-jnp.inf).max(-1)
        log_probability = jax.nn.log_softmax(logits)[rows, targets]
        return logits.argmax(-1).astype(jnp.int32), log_probability, true - rest

    # Chunks bound the memory: under `vmap` alone the activations of all sets would be held at once.
    found: tuple[jax.Array, jax.Array, jax.Array] = lax.map(run, sets, batch_size=chunk)
    return found


def _as_sets(layer: str, units: int, sets: Array) -> np.ndarray:
    if sets is None:
        return np.eye(units, dtype=bool)
    if isinstance(sets, np.ndarray) and sets.dtype == bool:
        if sets.ndim != 2 or sets.shape[1] != units:
            raise ValueError(f"sets of {layer!r} must be [S, {units}], got shape {sets.shape}")
        return sets
    found = np.zeros((len(sets), units), bool)
    for row, chosen in zip(found, sets, strict=True):
        chosen = np.atleast_1d(chosen).astype(int)
        if ((chosen < 0) | (chosen >= units)).any():
            raise ValueError(f"units of {layer!r} are 0 to {units - 1}, got {chosen.tolist()[:5]}")
        row[chosen] = True
    return found


def _partners(key: jax.Array, count: int) -> np.ndarray:
    """Another picture for each: one cycle through all of them in random order."""
    order = np.asarray(jax.random.permutation(key, count))
    found = np.empty(count, np.int64)
    # Along a cycle no picture is its own partner, and each is a partner once.
    found[order] = np.roll(order, 1)
    return found


def _gather(images: ImageSource, indices: np.ndarray) -> np.ndarray:
    if isinstance(images, np.ndarray):
        return np.asarray(images[indices], np.float32)
    # A source that reads files answers to slices only.
    return np.concatenate([np.asarray(images[int(i) : int(i) + 1], np.float32) for i in indices])
