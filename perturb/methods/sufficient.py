"""The smallest region that suffices: areas in rising order, until the region alone is answered.

Fong, Patrick, Vedaldi: Understanding Deep Networks via Extremal Perturbations and Smooth Masks,
ICCV 2019, take of several areas the smallest whose preserved score reaches a threshold. Here it is
not a score that must be reached but the answer: see `perturb.evidence.answers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from perturb import display, evidence, messages, operators, rewards
from perturb import progress as progress_lib
from perturb.evidence.answering import ENOUGH
from perturb.methods._run import Result
from perturb.methods.extremal import extremal
from perturb.model import Model
from perturb.solver import entry
from perturb.types import Function, PyTree, Record

__all__ = ["SufficientRegion", "sufficient", "sufficient_region"]

AREAS = (0.05, 0.1, 0.2, 0.3, 0.5)


class SufficientRegion(NamedTuple):
    """The smallest region that is still answered, for `B` images.

    Attributes:
      area: `[B]` share of the picture of the region; the largest tried where none suffices.
      masks: `[B, *size]` float32 in [0, 1], 1 on that region.
      scores: `[B, *size]` float32, what the mask is cut from.
      answered: `[B]` bool, whether the region suffices; where it does not, not even the largest
        area tried does.
      areas: `[A]` areas tried, in rising order.
      probability: `{fill: [B, A]}` of the target while only the region of that area is shown; NaN
        for areas that were not tried, for a smaller one was enough, and where there is none.
      gain: `{fill: [B, A]}` share of the score that it keeps; NaN likewise.
      probability_original: `[B]` on the whole picture; NaN where there is none.
      status: `[B]` str of the search, see `perturb.Result`; "interrupted": Ctrl-C came first, and
        area and mask are NaN.
      result: `perturb.Result` of each image's own area, `areas` `[B, 1]`: to draw, to save, and for
        `perturb.evidence.card`.
    """

    area: np.ndarray
    masks: np.ndarray
    scores: np.ndarray
    answered: np.ndarray
    areas: np.ndarray
    probability: dict[str, np.ndarray]
    gain: dict[str, np.ndarray]
    probability_original: np.ndarray
    status: np.ndarray
    result: Result

    def __repr__(self) -> str:
        return display.summary(self)


def sufficient_region(
    model: Model,
    images: PyTree,
    targets: PyTree,
    *,
    areas: Sequence[float] | np.ndarray = AREAS,
    fills: str | operators.Operator = "blur+mean",
    least: float = ENOUGH,
    reward: str | rewards.Reward | Function | None = None,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: PyTree,
) -> SufficientRegion:
    """Finds, for every image, the smallest of some areas whose best region is still answered.

    Every area is a search of its own, `perturb.extremal`, and only of the images that no smaller
    area was enough for. An image's region does not depend on the others.

    Args:
      model, images, targets, reward, key, keys: as for `perturb.extremal`.
      areas: `[A]` shares of the picture to try, in rising order.
      fills: under each of which the region alone must be answered: an operator, or names joined by
        "+". Noise is drawn by the image's key, as in the search.
      least: share of the score to be kept where the model gives no classes, or where an empty
        picture is answered too. Else the class must be first; where it is not on the whole picture
        either, half of its probability must be kept.
      progress: called with (steps done, steps if every area is tried).
      options: of `perturb.extremal`: `steps`, `operator`, `restarts`, `mask` and so on.
    Returns:
      `SufficientRegion`.
    Raises:
      ValueError: naming the argument that cannot be served.

    >>> import jax.numpy as jnp, perturb
    >>> def quarter(w, x):  # class 0 wants a quarter of a white picture
    ...     return jnp.stack([x.mean((1, 2, 3)), 0.25 + 0 * x[:, 0, 0, 0]], 1)
    >>> bright = perturb.Model(quarter, ())
    >>> found = sufficient_region(bright, jnp.ones((1, 16, 16, 3)), [0], steps=5,
    ...                           fills=perturb.operators.Fade(colour=0.0))
    >>> round(float(found.area[0]), 2), bool(found.answered[0])
    (0.3, True)
    """
    tried = _rising(areas)
    for name, instead in _OTHERWISE.items():
        if options.get(name) not in (None, 0, "preserve"):
            raise ValueError(f"{name} is no option of sufficient_region: {instead}")
    given = entry.check(
        model, images, targets, rewards.chosen(reward, model), game="preserve", key=key, keys=keys
    )
    entry.check_areas(tried, len(given.images), given.images.shape[1:-1])
    rows = _Rows(given, tried)
    with progress_lib.shown("steps", progress) as tell:
        try:
            for a, area in enumerate(tried):
                left = np.flatnonzero(~rows.answered)
                if not left.size:
                    break
                pictures = given.images[left]
                wanted = jax.tree.map(lambda t, at=left: t[at], given.targets)
                of_these: Record = {"reward": reward, "keys": given.keys[left]}
                result = extremal(
                    model,
                    pictures,
                    wanted,
                    areas=float(area),
                    progress=_of_all(tell, a, tried.size, len(given.images) / left.size),
                    **of_these,
                    **_per_image(options, left, given),
                )
                kept = evidence.answers(
                    model, pictures, wanted, result, operator=fills, least=least, **of_these
                )
                rows.add(a, left, result, kept)
            tell(1, 1)
        except KeyboardInterrupt:
            if not rows.answered.any():
                raise
            rows.lose()
    found = rows.gathered()
    if (found.status == "interrupted").any():
        progress_lib.give_back(int(found.answered.sum()), len(found.answered), "regions")
    return found


def sufficient(
    model: Model,
    images: PyTree,
    targets: PyTree,
    *,
    areas: Sequence[float] | np.ndarray = AREAS,
    operator: str | operators.Operator | None = None,
    reward: str | rewards.Reward | Function | None = None,
    steps: int | None = None,
    restarts: int = 1,
    batch_size: int | None = None,
    reproducible: bool | None = None,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Returns the masks of `sufficient_region` alone, as other methods do: one an image, of its own
    area.

    Args:
      model, images, targets, areas, key, keys, progress: as for `sufficient_region`.
      operator, reward, steps, restarts, batch_size, reproducible: as for `perturb.extremal`.
    """
    return sufficient_region(
        model,
        images,
        targets,
        areas=areas,
        operator=operator,
        reward=reward,
        steps=steps,
        restarts=restarts,
        batch_size=batch_size,
        reproducible=reproducible,
        key=key,
        keys=keys,
        progress=progress,
    ).result


_OTHERWISE = {
    "game": "the region is kept, so leave it out",
    "alternatives": "call extremal(areas=found.area[:, None], alternatives=2) for them",
}


def _rising(areas: Sequence[float] | np.ndarray) -> np.ndarray:
    try:
        tried = np.atleast_1d(np.asarray(areas, np.float64))
    except (TypeError, ValueError):
        tried = np.zeros((0, 0))
    if tried.ndim != 1 or not tried.size or not (np.diff(tried) > 0).all():
        raise ValueError(
            "areas must be shares of the picture in rising order, as in (0.05, 0.1), got "
            f"{messages.short(areas, 60)}"
        )
    return tried


def _of_all(
    tell: Callable[[int, int], None], before: int, areas: int, more: float
) -> Callable[[int, int], None]:
    """Progress of one area's search as part of all; images that were answered count as done."""

    def told(done: int, total: int) -> None:
        each = round(total * more)
        tell(before * each + each - total + done, areas * each)

    return told


def _per_image(options: Record, left: np.ndarray, given: entry.Given) -> Record:
    """The options of the images left: regions and groups may be one an image."""
    found = dict(options)
    for name in ("within", "groups"):
        value = options.get(name)
        if value is not None and np.ndim(value) == given.images.ndim - 1:
            found[name] = np.asarray(value)[left]
    return found


class _Rows:
    """What is known of each image so far."""

    def __init__(self, given: entry.Given, tried: np.ndarray) -> None:
        number = len(given.images)
        self.tried = tried
        self.area = np.full(number, np.nan)
        self.answered = np.zeros(number, bool)
        self.original = np.full(number, np.nan)
        self.probability: dict[str, np.ndarray] = {}
        self.gain: dict[str, np.ndarray] = {}
        self.result: Result | None = None

    def add(self, a: int, left: np.ndarray, result: PyTree, kept: evidence.Answers) -> None:
        self.area[left] = self.tried[a]
        self.original[left] = kept.original
        # A mask that is not finite shows nothing, which an indifferent network may answer.
        self.answered[left] = kept.under_all[:, 0] & (result.status[:, 0] != "nonfinite")
        own = result._replace(areas=np.full((len(left), 1), self.tried[a], np.float32))
        # The first area is searched for all images.
        self.result = own if self.result is None else _put(self.result, left, own)
        for every, found in ((self.probability, kept.probability), (self.gain, kept.gain)):
            for name, values in found.items():
                blank = np.full((len(self.area), self.tried.size), np.nan)
                every.setdefault(name, blank)[left, a] = values[:, 0]

    def lose(self) -> None:
        """Marks what is not decided yet."""
        lost = ~self.answered
        self.area[lost] = np.nan
        if self.result is not None:
            blank = jax.tree.map(_unknown, self.result)
            self.result = _put(self.result, lost, jax.tree.map(lambda v: v[lost], blank))

    def gathered(self) -> SufficientRegion:
        if self.result is None or self.result.scores is None:
            raise RuntimeError("no area was searched")
        return SufficientRegion(
            area=self.area,
            masks=self.result.masks[:, 0],
            scores=self.result.scores[:, 0],
            answered=self.answered,
            areas=self.tried,
            probability=self.probability,
            gain=self.gain,
            probability_original=self.original,
            status=self.result.status[:, 0],
            result=self.result,
        )


def _put(whole: Result, rows: np.ndarray, some: Result) -> Result:
    """Returns `whole` with `some` in those rows."""

    def each(all_rows: np.ndarray, new: np.ndarray) -> np.ndarray:
        # A longer word than those there would be cut.
        found = all_rows.astype(np.promote_types(all_rows.dtype, new.dtype))
        found[rows] = new
        return found

    put: Result = jax.tree.map(each, whole, some)
    return put


def _unknown(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "U":
        return np.full(values.shape, "interrupted")
    return np.full_like(values, np.nan if values.dtype.kind == "f" else 0)
