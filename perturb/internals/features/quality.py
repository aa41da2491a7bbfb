"""How good is a picture? Its reach beside natural pictures, its frequencies, and a verdict in
words.

A picture that excites a unit says what excites it, not what it answers to among natural pictures:
an optimised picture that is far above all of those, in frequencies none of them has, is outside
what the network was made for. So every picture comes with what natural pictures do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perturb import display
from perturb.internals.features.loop import Features, evaluate
from perturb.internals.features.objectives import Objective
from perturb.internals.features.paths import paths, routes
from perturb.internals.features.spectra import high_share
from perturb.model import Model
from perturb.types import ArrayLike

__all__ = ["Quality", "quality"]

# Route likeness below which a picture takes another way: between what ten clean units (.80 to 1.12)
# and ten fooling circuits (-.29 to .32 in the layer before) had in the embedded network.
ANOTHER = 0.5
BUSY = 2.0  # times the natural pictures' share of high frequencies from which a picture is busy


class Quality(NamedTuple):
    """What is known of N pictures.

    Attributes:
      reach: `[N]` share of the natural pictures whose value is below the picture's, in [0, 1].
      ratio: `[N]` the value over the best natural picture's; NaN where that is not above 0.
      high_share: `[N]` energy at more than .25 cycles a pixel.
      high_ratio: `[N]` the same over the natural pictures' median.
      verdict: one of "shows more than any natural picture", "shows no more than natural pictures
        do", "takes another way than natural pictures", "busy: high frequencies", "did not start"
        and "not finite".
      reasons: for each picture, sentences with the numbers behind the verdict.
      path: `[N, layers]` path similarity by activations, see `paths`; no layers, no columns.
      route: `[N, layers]` the same of what the unit itself reads, see `routes`, which the verdict
        is by.
      strongest: `[N, B]` indices of the natural pictures, from the one that answers most.
    """

    reach: np.ndarray
    ratio: np.ndarray
    high_share: np.ndarray
    high_ratio: np.ndarray
    verdict: tuple[str, ...]
    reasons: tuple[tuple[str, ...], ...]
    path: np.ndarray = np.zeros((0, 0))
    route: np.ndarray = np.zeros((0, 0))
    strongest: np.ndarray = np.zeros((0, 0), int)

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def lowest(self) -> np.ndarray:
        """`[N]` the least of each route: a switch shows in one layer; NaN where none is known."""
        least = np.where(np.isfinite(self.route), self.route, np.inf).min(1, initial=np.inf)
        found: np.ndarray = np.where(np.isfinite(least), least, np.nan)
        return found


def quality(
    model: Model,
    objective: Objective,
    found: Features,
    natural: ArrayLike,
    *,
    layers: tuple[str, ...] = (),
    alike: int = 16,
    batch_size: int = 16,
) -> Quality:
    """Compares pictures with natural ones.

    Args:
      model, objective: as given to `visualise`.
      found: what it returned, one picture an item.
      natural: pictures `[B, H, W, C]` in [0, 1] of the model's input size.
      layers: names of layers before the unit, in the order of the network: whether the picture
        takes the way through them that natural pictures take. A circuit that shows a tool of this
        kind something else than natural pictures (Geirhos et al. 2024) is told by that.
      alike: how many natural pictures, those that the unit answers most to, are the same kind.
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
    path = route = np.zeros((len(values), 0))
    if layers:
        made = found.images[..., : natural.shape[-1]]
        path = paths(model, made, natural, values, layers, alike=alike)
        route = routes(model, objective, made, natural, values, layers, alike=alike)
    # Of equal values the lower picture comes first.
    strongest = np.argsort(-values, axis=1, kind="stable")
    found_so_far = Quality(reach, ratio, high, high_ratio, (), (), path, route, strongest)
    low = found_so_far.lowest
    words = [
        _verdict(*row)
        for row in zip(
            found.finite, found.started, found.values > best, high_ratio, low, strict=True
        )
    ]
    reasons = tuple(
        _reasons(*row, len(natural)) for row in zip(reach, ratio, high_ratio, low, strict=True)
    )
    return found_so_far._replace(verdict=tuple(words), reasons=reasons)


def _verdict(finite: bool, started: bool, above: bool, high_ratio: float, low: float) -> str:
    if not finite:
        return "not finite"
    if not started:
        return "did not start"
    # Before all else that can be said of it: what it shows need not be what the unit meets.
    if low < ANOTHER:
        return "takes another way than natural pictures"
    if high_ratio > BUSY:
        return "busy: high frequencies"
    return (
        "shows more than any natural picture" if above else "shows no more than natural pictures do"
    )


def _reasons(reach: float, ratio: float, high: float, low: float, count: int) -> tuple[str, ...]:
    found = [f"above {100 * reach:.0f} % of {count} natural pictures"]
    if np.isfinite(ratio):
        found.append(f"{ratio:.2g} times the best of them")
        if ratio > 1.5:
            found.append("far outside what natural pictures reach")
    if np.isfinite(high):
        found.append(f"{high:.2g} times their share of high frequencies")
    if np.isfinite(low):
        found.append(
            f"its way there is {low:.2f} like that of the natural pictures that the unit answers "
            "most to (1 is as among themselves, 0 no likeness)"
        )
    return tuple(found)
