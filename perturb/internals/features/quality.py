"""How good is a picture? Its reach beside natural pictures, its frequencies, and a verdict in
words.

A picture that excites a unit says what excites it, not what it answers to among natural pictures:
an optimised picture that is far above all of those, in frequencies none of them has, is outside
what the network was made for. So every picture comes with what natural pictures do.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals.features.loop import Features, activations, evaluate
from perturb.internals.features.objectives import Objective
from perturb.internals.features.spectra import high_share
from perturb.model import Model
from perturb.statistics import spearman
from perturb.types import ArrayLike, PyTree

__all__ = ["Quality", "path_similarity", "quality"]

BUSY = 2.0  # times the natural pictures' share of high frequencies from which a picture is busy


class Quality(NamedTuple):
    """What is known of N pictures.

    Attributes:
      reach: `[N]` share of the natural pictures whose value is below the picture's, in [0, 1].
      ratio: `[N]` the value over the best natural picture's; NaN where that is not above 0.
      high_share: `[N]` energy at more than .25 cycles a pixel.
      high_ratio: `[N]` the same over the natural pictures' median.
      verdict: one of "shows more than any natural picture", "shows no more than natural pictures
        do", "busy: high frequencies", "did not start" and "not finite".
      reasons: for each picture, sentences with the numbers behind the verdict.
    """

    reach: np.ndarray
    ratio: np.ndarray
    high_share: np.ndarray
    high_ratio: np.ndarray
    verdict: tuple[str, ...]
    reasons: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        return display.summary(self)


def quality(
    model: Model,
    objective: Objective,
    found: Features,
    natural: ArrayLike,
    *,
    batch_size: int = 16,
) -> Quality:
    """Compares pictures with natural ones.

    Args:
      model, objective: as given to `visualise`.
      found: what it returned, one picture an item.
      natural: pictures `[B, H, W, C]` in [0, 1] of the model's input size.
      batch_size: pictures at once.
    Raises:
      ValueError: if there are more pictures than items, or no natural pictures.
    """
    natural = np.asarray(natural, np.float32)
    if natural.ndim != 4 or not len(natural):
        raise ValueError(f"natural must be pictures [B, H, W, C], got shape {natural.shape}")
    values = evaluate(model, objective, natural, batch_size=batch_size)
    if len(values) != len(found.values):
        raise ValueError(
            f"found must have one picture an item, got {len(found.values)} for {len(values)} items"
        )
    # The reach is among all natural pictures, the ratio against the best of them.
    best = values.max(1)
    reach = (values < found.values[:, None]).mean(1)
    ratio = found.values / np.where(best > 0, best, np.nan)
    high = high_share(found.images[..., : natural.shape[-1]])
    # The median: one noisy photograph must not excuse a noisy picture.
    usual = float(np.median(high_share(natural)))
    high_ratio = high / usual if usual > 0 else np.full(len(high), np.nan)
    words = [
        _verdict(*row)
        for row in zip(found.finite, found.started, found.values > best, high_ratio, strict=True)
    ]
    reasons = tuple(
        _reasons(r, q, h, len(natural)) for r, q, h in zip(reach, ratio, high_ratio, strict=True)
    )
    return Quality(reach, ratio, high, high_ratio, tuple(words), reasons)


def _verdict(finite: bool, started: bool, above: bool, high_ratio: float) -> str:
    if not finite:
        return "not finite"
    if not started:
        return "did not start"
    if high_ratio > BUSY:
        return "busy: high frequencies"
    return (
        "shows more than any natural picture" if above else "shows no more than natural pictures do"
    )


def _reasons(reach: float, ratio: float, high: float, count: int) -> tuple[str, ...]:
    found = [f"above {100 * reach:.0f} % of {count} natural pictures"]
    if np.isfinite(ratio):
        found.append(f"{ratio:.2g} times the best of them")
        if ratio > 1.5:
            found.append("far outside what natural pictures reach")
    if np.isfinite(high):
        found.append(f"{high:.2g} times their share of high frequencies")
    return tuple(found)


def path_similarity(
    model: Model,
    picture: ArrayLike,
    same: PyTree,
    other: PyTree,
    layers: tuple[str, ...],
) -> np.ndarray:
    """Returns how alike the way through the network is of a picture and of natural pictures, by
    layer.

    The rank correlation of a picture's activations with those of natural pictures that excite the
    same unit, scaled so that 0 is what other natural pictures have with these and 1 what they have
    among themselves (Geirhos et al. 2024).

    Args:
      model: the network, a `perturb.Model`.
      picture: `[H, W, C]`.
      same: `[B, H, W, C]` natural pictures that excite the unit, at least 2.
      other: `[B, H, W, C]` natural pictures that do not.
      layers: names, in the order of the network.
    Returns:
      `[layers]`; NaN where a layer does not tell the two groups apart.
    """
    same, other = np.asarray(same, np.float32), np.asarray(other, np.float32)
    if len(same) < 2 or len(other) < 1:
        raise ValueError(
            f"same must have 2 pictures or more and other 1, got {len(same)} and {len(other)}"
        )
    every = np.concatenate([np.asarray(picture, np.float32)[None], same, other])
    _, values = _activations(model, jnp.asarray(every), layers)
    found = []
    for name in layers:
        # Mean over places: where in the picture a thing lies is no part of the way.
        value = np.asarray(values[name], np.float64)
        flat = value.mean(tuple(range(1, value.ndim - 1)))
        mine, alike, rest = flat[0], flat[1 : 1 + len(same)], flat[1 + len(same) :]
        among = _mean_rank([(a, b) for i, a in enumerate(alike) for b in alike[:i]])
        between = _mean_rank([(a, b) for a in alike for b in rest])
        got = _mean_rank([(mine, a) for a in alike])
        span = among - between
        found.append((got - between) / span if span > 1e-3 else np.nan)
    return np.array(found)


def _activations_of(model: Model, images: jax.Array, layers: tuple[str, ...]) -> PyTree:
    return activations(model, images, layers)


_activations = jax.jit(_activations_of, static_argnums=2)


def _mean_rank(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    found = np.array([float(spearman(a, b)) for a, b in pairs])
    # A picture that leaves the layer silent has no ranks.
    return float(np.nanmean(found)) if np.isfinite(found).any() else np.nan
