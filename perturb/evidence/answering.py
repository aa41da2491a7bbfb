"""Is a region alone still answered? The score it keeps, the probability and the place of its class.

What cards, and the search for the smallest area that suffices, know of a region: the network is
shown the whole picture, the empty one and the region under every fill, and
`perturb.evidence.verdict` says of each whether that is an answer.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, display, operators, rewards
from perturb import scores as scores_lib
from perturb._numerics import devices
from perturb.evidence import fills, verdict
from perturb.model import Model
from perturb.solver import entry
from perturb.types import ArrayLike, Function, PyTree

__all__ = [
    "ENOUGH",
    "Answers",
    "Measured",
    "answers",
    "check_regions",
    "classes_of",
    "gain",
    "measured",
    "shares",
    "under_all",
]

# Of the score that makes an area sufficient, where the model gives no class.
ENOUGH = 0.9


class Answers(NamedTuple):
    """Whether regions of `B` images at `A` areas are still answered alone.

    Attributes:
      gain: `{operator: [B, A]}` share of the score that the region keeps ("delete": takes); NaN
        without a scale.
      probability: `{operator: [B, A]}` of the target while only the region is shown ("delete": is
        missing); NaN where there is none.
      answered: `{operator: [B, A]}` 1 where the region alone is answered ("delete": the rest is
        not), 0 where it is not, NaN where the operator has no say; see `perturb.evidence.verdict`.
      under_all: `[B, A]` bool, under all operators that have a say, at least one.
      original: `[B]` probability of the target on the whole picture; NaN where there is none.
    """

    gain: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]
    answered: dict[str, np.ndarray]
    under_all: np.ndarray
    original: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Measured(NamedTuple):
    """Rewards, probabilities and ranks of `N` views, `[N]` each; NaN and -1 where there are
    none.
    """

    score: np.ndarray
    chance: np.ndarray
    rank: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def gain(
    score: ArrayLike, original: PyTree, floor: jax.Array | float, *, delete: bool = False
) -> np.ndarray:
    """Returns the share of the way from `floor` to `original` that `score` keeps ("delete": takes).

    NaN where the way has no length: nothing left scores as high as the whole picture, within 2 %.

    Args:
      score: array of scores of the masked picture.
      original: scores of the whole picture, broadcast against `score`.
      floor: scores with everything removed, broadcast likewise.
      delete: whether the region was removed rather than kept.
    """
    given = (score, original, floor)
    xp = arrays.namespace(given)
    score, top, low = (arrays.as_float(v, given) for v in given)
    way = top - low
    # Negated, so that NaN counts as flat.
    flat = ~(way > 0.02 * xp.maximum(abs(top), abs(low)))
    kept = (score - low) / xp.where(flat, np.nan, way)
    found: np.ndarray = 1 - kept if delete else kept
    return found


@functools.partial(jax.jit, static_argnames=("reward", "output"))
def _measure(
    reward: rewards.Reward, output: str | None, rows: PyTree, target: PyTree
) -> tuple[jax.Array, jax.Array, jax.Array]:
    original = jax.tree.map(lambda y: y[0], rows)
    score = jax.vmap(lambda row: reward(row, target, original))(rows)
    if output is None:
        # A target that is no class has neither probability nor rank.
        return score, jnp.full(score.shape, jnp.nan), jnp.full(score.shape, -1)
    chance = jax.vmap(lambda row: scores_lib.probability(output, row, target))(rows)
    if output in ("multilabel", "binary") or jax.tree.leaves(rows)[0][0].size == 1:
        # Labels do not compete: the answer is whether there is one.
        return score, chance, (chance <= 0.5).astype(jnp.int32)
    return score, chance, jax.vmap(lambda row: scores_lib.rank(output, row, target))(rows)


def measured(reward: rewards.Reward, output: str | None, rows: PyTree, target: PyTree) -> Measured:
    """Returns what the model's outputs for the views of one image are worth.

    Args:
      reward: a `Reward`, bound to the model.
      output: as `classes_of` has it; None: the target is no class.
      rows: outputs `[N, ...]`; the first is that of the whole picture.
      target: of the image.
    """
    found = Measured(*map(np.asarray, _measure(reward, output, rows, target)))
    # Shares are quotients of differences, from here on in float64.
    return found._replace(score=found.score.astype(np.float64))


def classes_of(model: Model, reward: rewards.Reward, targets: PyTree) -> str | None:
    """Returns the kind of output whose classes the targets name, or None."""
    known = model.output in rewards.CLASSES
    named = reward.indexes_class or "any" in reward.accepts
    whole = isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype.kind in "iu"
    return model.output if known and named and whole else None


def shares(
    part: Measured,
    whole: Measured,
    floor: Measured,
    *,
    delete: bool,
    least: float = verdict.KEPT,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns gains of what was measured under one fill, and whether each is answered.

    Args:
      part: of regions, of any shape.
      whole: of the whole picture, `[1]`.
      floor: of the empty picture under the same fill, `[1]`.
      delete, least: see `perturb.evidence.verdict.answered`.
    """
    share = gain(part.score, whole.score[0], floor.score[0], delete=delete)
    top = (float(whole.chance[0]), int(whole.rank[0]))
    good = verdict.answered(
        share, part.chance, part.rank, top, floor.rank[0], delete=delete, least=least
    )
    return share, good


def under_all(answered: np.ndarray) -> np.ndarray:
    """Returns whether all fills say yes, where `[F, ...]` has 1, 0, or NaN for one without a say.

    Fills without a say do not stand in the way, but one of them must speak.

    >>> under_all(np.array([[1.0, 1.0, np.nan], [1.0, 0.0, np.nan]])).tolist()
    [True, False, False]
    """
    silent = np.isnan(answered)
    found: np.ndarray = ((answered == 1) | silent).all(0) & ~silent.all(0)
    return found


def check_regions(result: PyTree, images: np.ndarray) -> np.ndarray:
    """Returns the regions `[B, A, *size]` bool of a result.

    Raises:
      ValueError: if it has no masks, or they do not fit the images.
    """
    if not hasattr(result, "masks"):
        raise ValueError(
            f"result must be what perturb.extremal returns, or have masks [B, A, *size], got "
            f"{type(result).__name__}: wrap masks as types.SimpleNamespace(masks=masks)"
        )
    regions: np.ndarray = np.asarray(result.masks) > 0.5
    if regions.shape[:1] + regions.shape[2:] != images.shape[:-1]:
        raise ValueError(
            f"result.masks must be [B, A, *size] for images {images.shape}, got {regions.shape}"
        )
    return regions


@functools.partial(jax.jit, static_argnames="delete")
def _views(
    own: tuple[PyTree, ...], image: jax.Array, key: jax.Array, regions: jax.Array, *, delete: bool
) -> jax.Array:
    """The whole picture, then under fill after fill the empty picture and the regions."""
    shown = regions.astype(jnp.float32)
    shown = 1 - shown if delete else shown
    size = shown.shape[1:]
    whole, none = jnp.ones((1, *size)), jnp.zeros((1, *size))
    first: tuple[list[jax.Array], ...] = [whole], []
    return jnp.concatenate(
        [
            fills.views(fill, image, key, jnp.concatenate([*first[n > 0], none, shown]))
            for n, fill in enumerate(own)
        ]
    )


def answers(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    result: PyTree,
    *,
    operator: str | operators.Operator = operators.DEFAULT,
    reward: str | rewards.Reward | Function | None = None,
    game: str = "preserve",
    least: float = ENOUGH,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
) -> Answers:
    """Shows every region alone under every fill and says whether it is still answered.

    The part of a card that says whether a region suffices: a forward pass a region and fill, and
    one more of each fill alone. Noise is drawn anew, as for a card.

    Args:
      model, images, targets, reward, game, key, keys: as given to the method that made the masks.
      result: `perturb.Result`, or anything with `masks` `[B, A, *size]`.
      operator: the fills to show regions under, an operator or names joined by "+".
      least: share of the score that must be kept, where the model gives no classes, or the empty
        picture is answered too.
    Raises:
      ValueError: if the masks do not fit the images, or as the method itself.

    >>> import types, perturb
    >>> seen = perturb.Model(lambda w, x: w * x[:, :, :4].mean((1, 2)), jnp.array([9.0, 4.5, 0.0]))
    >>> region = jnp.zeros((1, 2, 8, 8)).at[0, 0, :, :3].set(1.0).at[0, 1, :, 5:].set(1.0)
    >>> shown = types.SimpleNamespace(masks=region)  # three quarters of what it sees, and nothing
    >>> found = answers(seen, jnp.ones((1, 8, 8, 3)), [0], shown, operator="fade", reward="logit")
    >>> found.gain["fade"].round(2).tolist(), found.original.round(2).tolist()
    ([[0.75, 0.0]], [0.99])
    """
    bound = rewards.chosen(reward, model)
    given = entry.check(model, images, targets, bound, game=game, key=key, keys=keys)
    regions = check_regions(result, given.images)
    if not 0 < least <= 1:
        raise ValueError(f"least must be a share of the score in (0, 1], got {least}")
    own = fills.sought(operator)
    names = fills.names_of(own, None)
    output = classes_of(model, bound, given.targets)
    delete, areas = game == "delete", regions.shape[1]
    shown = tuple(map(fills.sharp, own))
    drawn = fills.another_draw()

    def row(model: Model, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        views = _views(shown, given.images[i], drawn, regions[i], delete=delete)
        target = jax.tree.map(lambda t: jnp.asarray(t[i]), given.targets)
        found = measured(bound, output, fills.outputs_of(model, np.asarray(views)), target)
        whole, rest = (Measured(*(v[part] for v in found)) for part in (slice(1), slice(1, None)))
        by_fill = Measured(*(v.reshape(len(own), 1 + areas) for v in rest))
        parts = [Measured(*(v[n] for v in by_fill)) for n in range(len(own))]
        judged = [
            shares(
                Measured(*(v[1:] for v in part)),
                whole,
                Measured(*(v[:1] for v in part)),
                delete=delete,
                least=least,
            )
            for part in parts
        ]
        kept, good = (np.stack(column) for column in zip(*judged, strict=True))
        return kept, np.stack([p.chance[1:] for p in parts]), good, float(whole.chance[0])

    rows = devices.spread(row, model, len(given.images))
    kept, chance, good = (np.stack(column, 1) for column in list(zip(*rows, strict=True))[:3])

    def named(values: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, values, strict=True))

    return Answers(
        gain=named(kept),
        probability=named(chance),
        answered=named(good),
        under_all=under_all(good),
        original=np.array([row[3] for row in rows]),
    )
