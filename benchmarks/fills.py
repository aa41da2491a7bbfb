"""What regions keep under fills that they were not found with: figures of `benchmarks.league`."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from benchmarks import quality
from perturb import evidence, metrics, statistics
from perturb.imagenet import MEAN

KEY = jax.random.key(0)


def transfer(number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields median transfer ratios, of logits and of probabilities, and the paired difference.

    Ours as they are found by default, under three fills in turn, under two, and under blur alone,
    beside the masks that torchray left of the same photographs.
    """
    data = pathlib.Path(os.environ["PERTURB_DATA"])
    photographs, model = quality.load(data, number), quality.network(data, quality.NET)
    published = quality.binary(photographs.masks, quality.AREAS)
    ways = (perturb.operators.DEFAULT, "blur+noise", "blur")
    yield from _carried(
        model, photographs.images, photographs.targets, published, quality.AREAS, ways
    )


def carried(number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the same of other photographs, at area .1: torchray's masks are those of its solver as
    we have it.
    """
    model, images, targets = _untouched(number)
    # No more processes than photographs, and none on a core that is not ours.
    cores = sorted(os.sched_getaffinity(0))[:number]
    shares = [np.array_split(v, len(cores)) for v in (images, targets)]
    # A fork would take over JAX's threads as they stand, locks included.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(cores), context) as pool:
        soft = np.concatenate(list(pool.map(_ported, cores, *shares)))
    published = quality.binary(soft, (0.1,))
    yield from _carried(model, images, targets, published, (0.1,), (perturb.operators.DEFAULT,))


def _ported(core: int, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Runs on one core, before jax counts them: that solver's step keeps hardly more than one
    busy.
    """
    os.sched_setaffinity(0, {core})
    model = quality.network(pathlib.Path(os.environ["PERTURB_DATA"]), quality.NET)
    return quality.ported(model, images, targets, 0.1)


def _untouched(number: int) -> tuple[perturb.Model, np.ndarray, np.ndarray]:
    """Photographs that neither torchray's masks nor any choice of ours were made on, and the first
    answers.
    """
    data = pathlib.Path(os.environ["PERTURB_DATA"])
    left, known = quality.reportable(data)
    paths = [path for path in left if path not in known]
    # Evenly spread: neighbours in the list show the like.
    places = np.linspace(0, len(paths) - 1, number).round().astype(int)
    images = np.stack([quality.picture(paths[p]) for p in places])
    model = quality.network(data, quality.NET)
    return model, images, quality.answers(model, images)


def _carried(
    model: perturb.Model,
    images: Any,
    targets: Any,
    published: np.ndarray,
    areas: tuple[float, ...],
    ways: tuple[str, ...],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ours, sought in each of `ways`, against the masks `published` `[B, A, H, W]`.

    Noise is not held out for ways that have it: torchray's masks are tried with their own four
    held-out fills, noise among them, and with ours. Each area is a line; the last one takes a
    photograph's mean over the areas.
    """
    # torchray's own blur, of 20 px and with the mean colour as padding.
    border = perturb.operators.Blur(pixels=20.0, padding=MEAN)
    alone = {"their own held-out fills": border}

    def together(*more: perturb.operators.Operator) -> dict[str, Any]:
        same = perturb.operators.Alternate(operators=(border, *more))
        return {**alone, "the fills held out for ours": same}

    mean, noise = perturb.operators.Fade(), perturb.operators.Noise()
    tried = {
        perturb.operators.DEFAULT: together(mean, noise),
        "blur+noise": together(noise),
        "blur": alone,
    }
    for ours in ways:
        own = perturb.extremal(
            model, images, targets, areas=areas, operator=ours, reward="logit", key=KEY
        )
        # Its regions are cut already, so there are no scores to cut them by.
        other = own._replace(masks=published, scores=None)
        yield (
            f"{ours}; ROAD's imputation, medians by area",
            _under_imputation(
                model, images, targets, {"ours": np.asarray(own.masks), "torchray": published}
            ),
        )
        cards = {
            reward: evidence.card(
                model, images, targets, own, operator=ours, reward=reward, key=KEY
            )
            for reward in ("logit", "probability")
        }
        for (reward, a), (fills, theirs) in itertools.product(cards.items(), tried[ours].items()):
            b = evidence.card(
                model, images, targets, other, operator=theirs, reward=reward, key=KEY
            )
            # The worst of the fills held out, so that no single one carries a region.
            least = [np.nanmin(np.stack(list(card.transfer.values())), 0) for card in (a, b)]
            # Over the gain under the first fill alone. torchray's masks never saw another; of ours
            # noise, the hardest, lowers the mean that the card's own ratio is over.
            strict, ratio = (
                np.clip(low, 0, 1) / np.where(card.gain > 0, np.minimum(card.gain, 1), np.nan)
                for low, card in zip(least, (a, b), strict=True)
            )
            # A photograph on which nothing was gained carries nothing over.
            ratios = [np.nan_to_num(v) for v in (a.transfer_ratio, ratio, strict)]
            head = f"{ours}, {reward}; torchray's with {fills}"
            for n, area in enumerate(areas):
                gains = [
                    {
                        fill: round(float(np.nanmedian(v[:, n])), 2)
                        for fill, v in {"own": c.gain, **c.transfer}.items()
                    }
                    for c in (a, b)
                ]
                yield (
                    f"{head}; area {area}",
                    {
                        **_ahead(*(v[:, n] for v in (*ratios, *least))),
                        "median gains, ours and torchray's": gains,
                        "verdicts": [
                            dict(zip(*np.unique(c.verdict[:, n], return_counts=True), strict=True))
                            for c in (a, b)
                        ],
                    },
                )
            if len(areas) > 1:
                yield f"{head}; all areas", _ahead(*(v.mean(1) for v in (*ratios, *least)))


def _under_imputation(
    model: perturb.Model, images: Any, targets: Any, masks: dict[str, np.ndarray]
) -> dict[str, str]:
    view = functools.partial(_imputed, np.asarray(images))
    return {
        whose: " ".join(
            f"{np.nanmedian(_gains(model, images, targets, view, found[:, n] > 0.5)):.2f}"
            for n in range(found.shape[1])
        )
        for whose, found in masks.items()
    }


def _ahead(
    ours: np.ndarray,
    theirs: np.ndarray,
    strict: np.ndarray,
    least: np.ndarray,
    their_least: np.ndarray,
) -> dict[str, metrics.Interval]:
    return {
        "ours": metrics.mean_interval(ours, statistic="median"),
        "torchray": metrics.mean_interval(theirs, statistic="median"),
        "difference": metrics.paired(ours, theirs, statistic="median"),
        "difference of the medians": _of_medians(ours, theirs),
        "ours over the gain under blur alone": metrics.mean_interval(strict, statistic="median"),
        "difference then": metrics.paired(strict, theirs, statistic="median"),
        "least gain, difference": metrics.paired(least, their_least),
    }


def _of_medians(ours: np.ndarray, theirs: np.ndarray) -> metrics.Interval:
    """Interval of the medians' difference; that of a photograph's difference is another number."""
    return statistics.bootstrap(
        lambda a, b: np.median(a, axis=-1) - np.median(b, axis=-1), ours, theirs
    )


def fills(number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields mean gains of regions of area .1, sought under some fills, under those and seven
    others.

    On photographs that neither torchray's masks nor any choice of ours were made on.
    """
    model, images, targets = _untouched(number)

    def shown(fill: perturb.operators.Operator, i: int, mask: np.ndarray) -> np.ndarray:
        # One key a picture: every way is shown under the same noise.
        key = jax.random.fold_in(jax.random.key(1), i)
        return np.asarray(fill.apply(fill.prepare(jnp.asarray(images[i]), key), mask * 1.0))

    def other(i: int, mask: np.ndarray) -> np.ndarray:
        # Not a neighbour in the list: it shows the like.
        return np.where(mask[..., None], images[i], images[(i + max(1, number // 3)) % number])

    named = perturb.operators
    seen = {name: functools.partial(shown, named.get(name)) for name in ("blur", "mean", "noise")}
    unseen = {
        "half the blur": functools.partial(shown, named.Blur(strength=10 / 224)),
        "twice the blur": functools.partial(shown, named.Blur(strength=40 / 224)),
        "grey": functools.partial(shown, named.Fade(colour=0.5)),
        "black": functools.partial(shown, named.Fade(colour=0.0)),
        "white": functools.partial(shown, named.Fade(colour=1.0)),
        "ROAD's imputation": functools.partial(_imputed, images),
        "another photograph": other,
    }

    # The first way is blur alone, to which the others are compared.
    alone = None
    for way in ("blur", "blur+noise", "blur+mean", named.DEFAULT):
        own = perturb.extremal(
            model, images, targets, areas=0.1, operator=way, reward="logit", key=KEY
        )
        regions = np.asarray(own.masks)[:, 0] > 0.5
        found = {
            name: _gains(model, images, targets, view, regions)
            for name, view in {**seen, **unseen}.items()
        }
        least = np.nanmin(np.stack([found[name] for name in unseen]), 0)
        alone = least if alone is None else alone
        yield (
            way,
            {
                "mean gains": {n: round(float(np.nanmean(v)), 3) for n, v in found.items()},
                "least of those unseen": metrics.mean_interval(least),
                "more than by blur alone": metrics.paired(least, alone),
            },
        )


def _imputed(images: np.ndarray, i: int, mask: np.ndarray) -> np.ndarray:
    """ROAD has nothing to begin from where all is removed: that is the mean colour, with as much
    noise.
    """
    # By the picture's number, so that each region of it is filled with the same noise.
    rng = np.random.default_rng(i)
    if not mask.any():
        return images[i].mean((0, 1)) + 0.01 * rng.standard_normal(images[i].shape)
    return metrics.impute(images[i], ~mask, rng=rng)


def _gains(
    model: perturb.Model,
    images: np.ndarray,
    targets: Any,
    view: Callable[[int, np.ndarray], np.ndarray],
    regions: np.ndarray,
) -> np.ndarray:
    """Gains `[B]` of `regions` `[B, H, W]` bool, of logits; `view(i, region)` shows one of them."""
    rows = []
    for i, region in enumerate(regions):
        # Whole, without anything, and with the region alone: the gain is its place between the two.
        views = [images[i], view(i, np.zeros_like(region)), view(i, region)]
        outputs = evidence.outputs_of(model, np.asarray(views, np.float32))
        top, floor, kept = outputs[:, targets[i]]
        rows.append(evidence.gain(kept, top, floor))
    return np.array(rows)


def tried(number: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields what changes of a search under blur do: all held to the same four fills, noise among
    them.
    """
    data = pathlib.Path(os.environ["PERTURB_DATA"])
    photographs, model = quality.load(data, number), quality.network(data, quality.NET)
    images, targets = photographs.images, photographs.targets

    def grainy(weights: Any, x: jax.Array) -> Any:
        return model.apply(weights, x + 0.1 * jax.random.normal(KEY, x.shape))

    ways: dict[str, dict[str, Any]] = {
        "blur": {},
        "25 steps": {"steps": 25},
        "blobs half as wide again": {"mask": perturb.masks.Blobs(blob=0.3)},
        "blobs 2.25 times as wide": {"mask": perturb.masks.Blobs(blob=0.45)},
        "blur and grey in turn": {"operator": "blur+fade"},
        "blur and noise in turn": {"operator": "blur+noise"},
        "blur and mean in turn": {"operator": "blur+mean"},
        "blur, mean and noise in turn": {"operator": "blur+mean+noise"},
        "noise of .1 on the network's input": {"model": dataclasses.replace(model, apply=grainy)},
    }
    for way, options in ways.items():
        sought = options.pop("model", model)
        asked = {"operator": "blur", "areas": 0.1, "reward": "logit", "key": KEY} | options
        own = perturb.extremal(sought, images, targets, **asked)
        card = evidence.card(model, images, targets, own, operator="blur", key=KEY)
        median = {"ratio": card.transfer_ratio, "gain": card.gain, "noise": card.transfer["noise"]}
        yield way, {name: round(float(np.nanmedian(v)), 2) for name, v in median.items()}
