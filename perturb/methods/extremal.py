"""Extremal perturbations: the region of a given area that keeps (or, removed, kills) the answer
best.

Fong, Patrick, Vedaldi: Understanding Deep Networks via Extremal Perturbations and Smooth Masks,
ICCV 2019. Two solvers share one loop: `"exact"` (ours) and `"torchray"` (the published one). What
the default does differently from both is `steady`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturb import guided, imagenet, masks, messages, operators, rewards
from perturb import solver as loop
from perturb.methods import _alternatives, _run
from perturb.model import Model
from perturb.solver import entry
from perturb.types import ArrayLike, Function, PyTree, Record

__all__ = ["RankArea", "extremal"]

SOLVERS = ("exact", "torchray")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RankArea:
    """The published area penalty: squared distance of the sorted mask to a step (equation 6).

    Taken on the padded mask, as the original does, so that the visible area comes out larger than
    asked: 0.14 for 0.10 at 224 px. The weight grows every step.

    Attributes:
      weight: of the first step.
      growth: factor a step.
    """

    weight: jax.Array | float = 300.0
    growth: jax.Array | float = 1.0035

    def __call__(
        self, mask: masks.Mask, area: jax.Array, step: jax.Array, steps: jax.Array
    ) -> jax.Array:
        """Returns the weighted penalty of one mask, a scalar."""
        ordered = jnp.sort(mask.inner.reshape(-1))
        # float32 can land on either side of a whole number: `_rank_areas` hands over areas for
        # which it does not matter.
        low = jnp.floor(ordered.size * (1 - area)).astype(jnp.int32)
        wanted = (jnp.arange(ordered.size) >= low).astype(ordered.dtype)
        growth = self.growth ** step.astype(ordered.dtype)
        return self.weight * growth * ((ordered - wanted) ** 2).mean()


@_run.planned
def extremal(
    model: Model,
    images: PyTree,
    targets: PyTree,
    *,
    areas: Sequence[float] | float | np.ndarray = (0.05, 0.1, 0.2),
    game: str = "preserve",
    solver: str = "exact",
    operator: str | operators.Operator | None = None,
    reward: str | rewards.Reward | Function | None = None,
    mask: PyTree = None,
    within: PyTree = None,
    groups: PyTree = None,
    mirror: bool | None = None,
    steps: int | None = None,
    restarts: int = 1,
    alternatives: int = 0,
    batch_size: int | None = None,
    reproducible: bool | None = None,
    patience: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> _run.Plan[_run.Result]:
    """Finds, for every image and area, the region the model needs (or cannot spare) most.

    A host loop around one compiled step, not itself for `jit`; `perturb.solver.init` and `update`
    are for loops of your own.

    Args:
      model: see `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1]; `[B, L, C]` and `[B, D, H, W, C]` work the same way.
      targets: `[B]` class indices, or what the reward takes.
      areas: shares of the visible image in (0, 1): a number, `[A]`, or `[B, A]`.
      game: "preserve" keeps the region and perturbs the rest; "delete" perturbs the region; "dual"
        asks for both at once.
      solver: "exact": the area is exact on the visible image, the mask is near binary, the best
        binarised iterate is returned. "torchray": the published optimisation, number by number,
        with its penalty on a padded canvas; its visible area exceeds what was asked.
      operator: name or operator; None is `operators.DEFAULT`, three fills in turn, of which the
        first, the blur pyramid, is what scores are taken under; for "torchray" the blur of the
        original.
      reward: name, `perturb.rewards.Reward`, or a function `(outputs row, target, original row)`;
        None is `rewards.answer` where the model gives classes, for "torchray" the logit as
        published.
      mask: parametrisation in place of the solver's own, for example `masks.Blobs(blob=0.2)`.
      within: `[*size]` or `[B, *size]`, 1 where masks may lie ("exact" only).
      groups: `[*size]` or `[B, *size]` whole numbers from 0: masks are made of whole groups of
        pixels (superpixels), the last one cut so that the area is exact ("exact" only).
      mirror: show every other step in the mirror, as the original does; a mask that must serve both
        ways lives less on artefacts. None does so for class scores of pictures; say False for a
        model that tells left from right.
      steps: how often the model is shown a view; None is 100 for "exact", 800 for "torchray". 40 of
        "exact" still win against 800 of the original on most pictures, by less
        (docs/results/masks.md). From 60 on the default takes eight views a step, see `steady`.
      restarts: further starts an item; the best binarised score, the mean under all fills, wins.
      alternatives: how many other regions to look for that keep the answer about as well, each a
        further run of all steps for the items that had one so far ("exact" and "preserve" only);
        see `Result`.
      batch_size: slots side by side on each of the process's devices; None fits the work, 16 at
        most.
      reproducible: work every mask out in a program of one slot, the same whatever runs beside it:
        then a mask's bits do not depend on batch_size, on the other images or their order. None
        does so on a CPU, where it costs little; a GPU is faster with many slots in one program,
        whose masks are only close (docs/reproducibility.md).
      patience: end a mask after two thirds of its steps once its best check is this many steps old,
        and give its slot to the next; None takes all steps ("exact" only).
      dtype: of the network's arithmetic; masks stay float32, but for float64 under
        `jax.enable_x64`.
      key: one key for the call; image `i` uses `fold_in(key, i)`.
      keys: `[B]` keys of the items themselves, in place of `key`.
      progress: called with (steps done, steps in all).
    Returns:
      `Result`.
    Raises:
      ValueError: naming the argument that cannot be served.

    >>> import jax.numpy as jnp, perturb
    >>> seen = perturb.Model(lambda w, x: x[:, 4:10, 4:10].mean((1, 2)), ())
    >>> images = jnp.ones((1, 16, 16, 3)) * jnp.linspace(0, 1, 16)[:, None]
    >>> result = extremal(seen, images, [0], areas=0.14, operator="fade", steps=30)
    >>> result.masks.shape, round(float(result.achieved_area[0, 0]), 2)
    ((1, 1, 16, 16), 0.14)
    """
    if solver not in SOLVERS:
        raise messages.one_of("solver", solver, SOLVERS)
    if reward is None and solver == "torchray":
        reward = "logit"
    bound = rewards.chosen(reward, model)
    given = entry.check(model, images, targets, bound, game=game, key=key, keys=keys)
    size = given.images.shape[1:-1]
    wanted = entry.check_areas(areas, len(given.images), size)
    # Half a pixel rounds up; NumPy's round would take halves to even.
    counts = np.floor(wanted * math.prod(size) + 0.5).astype(np.int32)
    exact = solver == "exact"
    guide = None
    # All that is the default's own; what was asked for otherwise is done view by view.
    plain = exact and game == "preserve" and mask is None and groups is None
    plain = plain and operator in (None, operators.DEFAULT)
    asked = mask
    if within is not None or groups is not None:
        mask, guide = _guided(within, groups, given.images, counts, mask=mask, exact=exact)
    recipe = (exact_recipe if exact else torchray_recipe)(
        size,
        channels=given.images.shape[-1],
        game=game,
        operator=operator,
        reward=bound,
        mask=mask,
        dtype=dtype,
    )
    if mirror is None:
        # Segmentation, boxes and numbers may change with the mirror; classes of pictures mostly do
        # not.
        mirror = len(size) == 2 and model.output in rewards.CLASSES
    if not mirror:
        recipe = dataclasses.replace(recipe, augment=loop.no_change)
    steps = (100 if exact else 800) if steps is None else steps
    if plain and mirror and patience is None and _enough(steps):
        recipe = steady(recipe, size)
    inside = wanted
    if not exact:
        inside = _rank_areas(recipe.parametrisation, size, wanted)
    first = None
    if restarts > 1:

        def first(image: int, key: jax.Array, restart: int) -> PyTree:
            # The first start is flat, as without restarts: more of them never change its result.
            flat = recipe.parametrisation.init(size)
            return flat if not restart else flat + jax.random.normal(key, flat.shape)

    # Other regions are compared by what they keep, at the same exact area.
    if alternatives < 0 or (alternatives and not (exact and game == "preserve")):
        raise ValueError(
            'alternatives must be at least 0 and need solver="exact" and game="preserve", '
            f"got {alternatives} with {solver!r} and {game!r}"
        )
    # `within` is what closes off the regions found before.
    if alternatives and (within is not None or groups is not None):
        raise ValueError("alternatives cannot be combined with within or groups: leave one out")

    def seek(
        images: PyTree, targets: PyTree, areas: PyTree, room: PyTree, keys: PyTree
    ) -> _run.Result:
        # The same search, but for where it may look and for further alternatives of its own.
        again: Record = {"reward": bound, "operator": operator, "mask": asked}
        again |= {"mirror": mirror, "steps": steps, "batch_size": batch_size, "dtype": dtype}
        again |= {"reproducible": reproducible}
        return extremal(model, images, targets, areas=areas, within=room, keys=keys, **again)

    def answer(result: _run.Result) -> _run.Result:
        result = result._replace(areas=shown)
        if not alternatives or (result.status == "interrupted").any():
            return result
        others = _alternatives.find(model, given, result, wanted, recipe, alternatives, seek)
        return result._replace(alternatives=others)

    # Areas asked once are returned once, `[A]`.
    shown = np.asarray(wanted[0] if (wanted == wanted[:1]).all() else wanted, np.float32)
    return _run.Plan(
        model=model,
        recipe=recipe,
        given=given,
        areas=inside,
        counts=counts,
        answer=answer,
        steps=steps,
        first=first,
        guide=guide,
        restarts=restarts,
        batch_size=batch_size,
        reproducible=reproducible,
        patience=patience,
        progress=progress,
    )


def _guided(
    within: ArrayLike,
    groups: ArrayLike,
    images: np.ndarray,
    counts: np.ndarray,
    *,
    mask: ArrayLike,
    exact: bool,
) -> tuple[PyTree, np.ndarray]:
    """The parametrisation that keeps to a region or to groups, and what it knows of each image."""
    if not exact:
        raise ValueError('within and groups need solver="exact": the published area is a penalty')
    if within is not None and groups is not None:
        raise ValueError("within and groups were both given: give one group to what is left out")
    if within is not None:
        where = guided.check_within(within, images, counts)
        return guided.Inside(masks.Blobs() if mask is None else mask), where
    if mask is not None:
        raise ValueError("groups are themselves a mask's parametrisation: leave out mask")
    labels = guided.check_groups(groups, images)
    return guided.Groups(int(labels.max()) + 1), labels


def exact_recipe(
    size: Sequence[int],
    *,
    channels: int = 3,
    game: str = "preserve",
    operator: str | operators.Operator | None = None,
    reward: rewards.Reward | None = None,
    mask: PyTree = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> loop.Recipe:
    """Returns our default: exact area, blob-sized smoothing, temperature annealed to near
    binary.
    """
    return loop.Recipe(
        parametrisation=masks.Blobs() if mask is None else mask,
        operator=operators.get(operators.DEFAULT if operator is None else operator),
        reward=reward or rewards.logit(),
        rule=loop.Normalised(),
        game=game,
        augment=loop.flip_on_even_steps,
        dtype=dtype,
    )


# Views of one step, and the fewest steps that as many are taken together for.
TOGETHER, LEAST = 8, 60


def _enough(steps: int) -> bool:
    # What is no number of steps is refused where all plans are.
    return isinstance(steps, int | np.integer) and steps >= LEAST


def steady(recipe: loop.Recipe, size: Sequence[int]) -> loop.Recipe:
    """Returns the default's course: few steps, each of many views, and the mean of the last.

    A search of a hundred steps of one view is chaotic: pixels that differ by 1e-6 end in regions
    that overlap by half. An eighth of the steps, each of eight views (all fills, as they are and in
    the mirror, at four areas of the whole range, which narrow to the one asked), costs about as
    much, keeps the answer more often, and comes back to the same region
    (docs/results/verdicts.md). Nothing of it depends on the key. Areas up to a fifth apart, as .09
    and .1, are cut from the same scores: the search is for the nearest of .05, .071, .1, .141, .2
    and so on.

    It is what `extremal` does where nothing is asked that decides the course: "preserve", the
    default fills and mask, mirrored views, no patience, 60 steps or more.

    Args:
      recipe: of `exact_recipe`, with the mirror.
      size: the image's shape without channels, px.
    """
    short = min(size)
    # Of less than two pixels it is no blob: a mask of single pixels deceives a network.
    least = max(0.018, 2 / short)
    fine = masks.Narrowing(cells=min(56, short), narrowest=least, widest=max(0.05, least))
    kept_in = isinstance(recipe.parametrisation, guided.Inside)
    # Noise that does not depend on the key: what two keys differ by would be luck alone.
    noise = operators.Noise(draws=8, common=True)
    # Of eight views two are under noise, which no two draws of agree about.
    turns = (operators.Blur(), operators.Fade(), noise, operators.Fade())
    return dataclasses.replace(
        recipe,
        operator=operators.Alternate(operators=turns),
        parametrisation=guided.Inside(fine) if kept_in else fine,
        rule=loop.Normalised(rate=0.5, b1=0.7),
        together=TOGETHER,
        average=1 / 3,
    )


def torchray_recipe(
    size: Sequence[int],
    *,
    channels: int = 3,
    game: str = "preserve",
    operator: str | operators.Operator | None = None,
    reward: rewards.Reward | None = None,
    mask: PyTree = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> loop.Recipe:
    """Returns the published optimisation with its constants."""
    # The original pads its normalised picture with zeros, which is the mean colour.
    border = imagenet.MEAN if channels == 3 else 0.0
    return loop.Recipe(
        parametrisation=masks.SmoothMax() if mask is None else mask,
        operator=operators.Blur(pixels=20.0, padding=border)
        if operator is None
        else operators.get(operator),
        reward=reward or rewards.logit(),
        rule=loop.Momentum(),
        penalty=RankArea(),
        game=game,
        augment=loop.flip_on_even_steps,
        # The published result is the last mask, not the best one.
        check_every=0,
        dtype=dtype,
    )


def _rank_areas(mask: masks.SmoothMax, size: Sequence[int], areas: np.ndarray) -> np.ndarray:
    """Areas whose float32 rank is the one that the original computes in Python's float64."""
    shape = jax.eval_shape(
        lambda p: mask.mask(p, size, jnp.float32(0), jnp.float32(0)).inner, mask.init(size)
    ).shape
    pixels = math.prod(shape)
    low = np.floor(pixels * (1 - areas))
    # Half a rank further in, where rounding to float32 cannot change the whole number.
    found: np.ndarray = 1 - (low + 0.5) / pixels
    return found
