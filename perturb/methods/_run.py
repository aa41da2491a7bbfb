"""From images, targets and areas to slots of the solver, and back to one record.

Every method ends here: it checks its arguments, builds a `Recipe`, and returns a `Plan`. Items are
laid out image by image, area by area, restart by restart, and pass through a fixed number of slots.
Empty slots are padded, so the last batch reuses the compiled program. Where results are to be
reproducible, every slot runs by itself, all in the same program.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, solver
from perturb import progress as progress_lib
from perturb._numerics import devices
from perturb.methods import _showing, _slots
from perturb.model import Model
from perturb.solver.entry import Given
from perturb.types import ArrayLike, Function, PyTree, Record

__all__ = ["Plan", "Result", "planned", "stream"]

MOST = 16  # slots a device by default

P = ParamSpec("P")
R = TypeVar("R")


class Result(NamedTuple):
    """Masks of `B` images at `A` areas, with the scores that say what they are worth.

    Attributes:
      masks: `[B, A, *size]` float32 in [0, 1]: 1 on the region whose area was asked (kept under
        "preserve" and "dual", removed under "delete").
      areas: `[A]` (or `[B, A]`) areas asked.
      achieved_area: `[B, A]` share of the pixels above 0.5.
      score_original: `[B]` reward of the whole image.
      score_floor: `[B]` reward with everything removed.
      score_masked: `[B, A]` reward of the image under the soft mask (under its complement for
        "delete").
      score_binary: `[B, A]` the same for `masks > 0.5`.
      probability_original: `[B]` the target's probability (`perturb.scores`) on the whole image;
        NaN where it has none.
      probability_floor: `[B]` the same with everything removed.
      probability_masked: `[B, A]` the same under the soft mask.
      probability_binary: `[B, A]` the same for `masks > 0.5`.
      converged: `[B, A]` bool: the last third of the steps brought less than 5 % of what there
        is.
      steps: `[B, A]` int32, the step whose mask was kept.
      status: `[B, A]` str: "ok", "not_converged", "nonfinite" (do not use that mask), or
        "interrupted" (Ctrl-C came first: that mask and its scores are NaN).
      scores: `[B, A, *size]` float32, what the masks are cut from: smaller and larger regions are
        its highest values. None where a method has no such map.
      agreement: `[B, A]` overlap (IoU) of the two best starts; None where there was one.
      alternatives: `[B][A]` lists of `Alternative`, other regions that keep the answer about as
        well; None unless they were asked for.
    """

    masks: np.ndarray
    areas: np.ndarray
    achieved_area: np.ndarray
    score_original: np.ndarray
    score_floor: np.ndarray
    score_masked: np.ndarray
    score_binary: np.ndarray
    probability_original: np.ndarray
    probability_floor: np.ndarray
    probability_masked: np.ndarray
    probability_binary: np.ndarray
    converged: np.ndarray
    steps: np.ndarray
    status: np.ndarray
    scores: np.ndarray | None = None
    agreement: np.ndarray | None = None
    alternatives: list[list[list[PyTree]]] | None = None

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        return _showing.as_html(self)

    @property
    def kind(self) -> str:
        """The name of what was sought: "masks"."""
        return "masks"

    def overlay(self, images: ArrayLike, *, side: int = 224) -> np.ndarray:
        """Draws every region into its picture: outlined, the rest dim and grey.

        Args:
          images: `[B, H, W, 1 or 3]`, floats in [0, 1] or uint8: those that were given to the
            method.
          side: px of the longer side of a drawing.
        Returns:
          `[B, A, h, w, 3]` uint8.
        Raises:
          ValueError: the masks are not of pictures, or not of these.
        """
        return _showing.overlay(self, images, side=side)

    def show(self, images: ArrayLike, *, side: int = 224) -> PyTree:
        """Returns one PIL picture of all regions, a row an image and a column an area; a notebook
        draws it.

        Args:
          images, side: as for `overlay`.
        """
        return _showing.show(self, images, side=side)

    def rows(self) -> list[Record]:
        """Returns a row a mask: image, areas, scores, probabilities, steps, status and
        agreement.
        """
        return _showing.rows(self)

    def to_csv(self, path: Any) -> pathlib.Path:
        """Writes `rows()` to a CSV file and returns its path.

        Args:
          path: of the file, str or Path; its folder must exist.
        """
        return _showing.to_csv(self, path)

    def to_frame(self) -> PyTree:
        """Returns `rows()` as a pandas data frame.

        Raises:
          ImportError: pandas is not installed.
        """
        return _showing.to_frame(self)

    def save(self, folder: Any, images: PyTree = None) -> pathlib.Path:
        """Writes `masks.npz` and `results.csv`, with the pictures also a drawing a mask, and
        returns the folder.

        Args:
          folder: str or Path; made where it is missing.
          images: as for `overlay`, or None.
        """
        return _showing.save(self, folder, images)


class Plan(NamedTuple, Generic[R]):
    """What a method has the slots solve for one group of images.

    Attributes:
      model, recipe: see `perturb.solver`.
      given: the group, checked.
      areas: `[B, A]` as the recipe takes them.
      counts: `[B, A]` pixels above 0.5 in the masks returned.
      answer: makes of the `Result` what the method returns.
      steps: of every mask.
      first: `(image, key, restart) -> first parameters of one item`, `image` its number; None takes
        the parametrisation's own.
      guide: `[B, ...]` what the parametrisation knows of each image.
      restarts: the best of as many is kept.
      batch_size: slots that run side by side on each device; None fits the work, 16 at most.
      reproducible: see `perturb.extremal`.
      patience: a mask ends after two thirds of its steps once its best check is so many steps old,
        and its slot takes the next one; None takes all steps.
      progress: called with (steps done, steps in all) between chunks.
    """

    model: Model
    recipe: solver.Recipe
    given: Given
    areas: np.ndarray
    counts: np.ndarray
    answer: Callable[[Result], R]
    steps: int
    first: Callable[[int, jax.Array, int], PyTree] | None = None
    guide: np.ndarray | None = None
    restarts: int = 1
    batch_size: int | None = None
    reproducible: bool | None = None
    patience: int | None = None
    progress: Callable[[int, int], None] | None = None

    @property
    def rounds(self) -> int:
        """How often the solver moves a mask: a step of its own shows several views at once."""
        return max(1, int(self.steps) // self.recipe.together)

    @property
    def views(self) -> int:
        """How many views a mask is shown in: `steps`, in whole rounds."""
        return self.rounds * self.recipe.together


def _checked(plan: Plan[R]) -> Plan[R]:
    if not isinstance(plan.steps, int | np.integer) or plan.steps < 1:
        raise ValueError(f"steps must be at least 1, got {plan.steps!r}; give a whole number")
    wide = jnp.dtype(plan.recipe.dtype) == np.float64
    # Without it JAX would compute in float32 instead.
    if wide and jnp.zeros(()).dtype != np.float64:
        raise ValueError(
            "dtype=float64 needs 64-bit arithmetic: call within `jax.enable_x64(True)`"
        )
    if plan.restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {plan.restarts}")
    if plan.batch_size is not None and plan.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {plan.batch_size}")
    if plan.patience is not None and (plan.patience < 1 or not plan.recipe.check_every):
        raise ValueError(
            f'patience must be at least 1 and needs solver="exact", got {plan.patience}'
        )
    return plan


# Methods that are plans for the slots, and those plans.
_PLANS: dict[Function, Callable[..., Plan[PyTree]]] = {}


def planned(plan: Callable[P, Plan[R]]) -> Callable[P, R]:
    """Makes a function that says what is to be solved into one that returns the solution."""

    @functools.wraps(plan)
    def method(*args: P.args, **kwargs: P.kwargs) -> R:
        made = plan(*args, **kwargs)
        under: collections.deque[_Group] = collections.deque()
        with progress_lib.shown("steps", made.progress) as tell:
            try:
                return next(_answers(iter([made]), tell, under))
            except KeyboardInterrupt:
                if not under:
                    raise
        found = under[0]
        progress_lib.give_back(found.ended(), made.areas.size, "masks")
        result: R = found.cut_short()
        return result

    _PLANS[method] = plan
    return method


def stream(
    method: Callable[..., R],
    model: Model,
    groups: Iterable[tuple[ArrayLike, ArrayLike, jax.Array]],
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> Generator[R, None, None]:
    """Yields what `method` returns for group after group of images, without a pause between them.

    A slot whose mask has ended takes one of the next group: the slots are full until the groups
    end. Results are those of one call a group, bit for bit, and come in the order of the groups.

    Args:
      method: `perturb.extremal`, `meaningful`, `channels`, with or without `functools.partial`; any
        other `(model, images, targets, keys=, progress=) -> result` is called group by group.
      model: the network, a `perturb.Model`.
      groups: `(images, targets, keys)` each, as the method takes them; asked for when slots are
        free.
      progress: called with (steps done, steps in all) of the groups under way.
      options: keyword arguments of the method.

    >>> import jax, jax.numpy as jnp, perturb
    >>> seen = perturb.Model(lambda w, x: x[:, 4:10, 4:10].mean((1, 2)), ())
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> groups = [(jnp.full((1, 16, 16, 3), level), [0], keys) for level in (0.2, 0.9)]
    >>> found = stream(perturb.extremal, seen, groups, areas=0.14, operator="fade", steps=20)
    >>> [result.masks.shape for result in found]
    [(1, 1, 16, 16), (1, 1, 16, 16)]
    """
    inner: Function = method
    if isinstance(method, functools.partial):
        inner, options = method.func, {**method.keywords, **options}
    plan = _PLANS.get(inner)
    if plan is None:
        for images, targets, keys in groups:
            yield inner(model, images, targets, keys=keys, progress=progress, **options)
        return
    plans = (plan(model, *group[:2], keys=group[2], **options) for group in groups)
    # Slots are of one shape: another begins when those of the last have all ended.
    for _, alike in itertools.groupby(plans, key=lambda p: p.given.images.shape[1:]):
        yield from _answers(alike, progress)


class _Group:
    """A plan under way: the best of each mask's restarts so far, and how many are still to come."""

    def __init__(self, plan: Plan[PyTree]):
        self.plan, self.jobs = plan, plan.areas.size * plan.restarts
        self.left = self.jobs
        self._kept: dict[tuple[int, int], tuple[float, int, PyTree]] = {}
        self._second: dict[tuple[int, int], tuple[float, int, PyTree]] = {}
        self._counted: collections.Counter[tuple[int, int]] = collections.Counter()

    def add(self, job: _Job, one: solver.Outcome) -> None:
        # A mask that is not finite may win only where no start gave a better one.
        worth = float(one.score) if one.finite else -math.inf
        place = (job.image, job.area)
        # Of equal scores the earlier start wins, in whatever order they end.
        found = (worth, -job.restart, one)
        # The best goes in and pushes the old best down to second, for `agreement`.
        for kept in (self._kept, self._second):
            if place not in kept:
                kept[place] = found
                break
            if found[:2] > kept[place][:2]:
                found, kept[place] = kept[place], found
        self._counted[place] += 1
        self.left -= 1

    def ended(self) -> int:
        """How many masks have ended, with all their restarts."""
        return sum(n == self.plan.restarts for n in self._counted.values())

    def cut_short(self) -> PyTree:
        """Returns the masks that have ended; the others are NaN, of status "interrupted"."""
        whole = {p: self._kept[p] for p, n in self._counted.items() if n == self.plan.restarts}
        images, number = self.plan.areas.shape
        some = next(iter(whole.values()))[2]
        for i in range(images):
            known = next((whole[i, j][2] for j in range(number) if (i, j) in whole), None)
            blank = _blank(some if known is None else known, known is not None)
            for j in range(number):
                whole.setdefault((i, j), (-math.inf, 0, blank))
        result = _gather(whole, images, number, self.plan)
        lost = np.isnan(result.masks.reshape(images, number, -1)[..., 0])
        result = result._replace(
            status=np.where(lost, "interrupted", result.status),
            achieved_area=np.where(lost, np.float32(np.nan), result.achieved_area),
        )
        return self.plan.answer(result._replace(agreement=self._agreement(result.masks)))

    def answer(self) -> PyTree:
        plan = self.plan
        images, number = plan.areas.shape
        result = _gather(self._kept, images, number, plan)
        return plan.answer(result._replace(agreement=self._agreement(result.masks)))

    def _agreement(self, masks: np.ndarray) -> np.ndarray | None:
        if not self._second:
            return None
        found = np.full(masks.shape[:2], np.nan, np.float32)
        for place, (_, _, one) in self._second.items():
            if np.isnan(masks[place]).any():
                continue
            a, b = masks[place] > 0.5, np.asarray(one.masks) > 0.5
            found[place] = (a & b).sum() / max((a | b).sum(), 1)
        return found


class _Job(NamedTuple):
    group: _Group
    image: int
    area: int
    restart: int


def _answers(
    plans: Iterator[Plan[R]],
    progress: Callable[[int, int], None] | None,
    under: collections.deque[_Group] | None = None,
) -> Iterator[R]:
    """Yields the answers of plans of one shape, in their order; `under` holds those under way."""
    under = collections.deque() if under is None else under

    def begun(plan: Plan[PyTree]) -> _Group:
        under.append(_Group(_checked(plan)))
        return under[-1]

    # As many groups as fill all slots once are planned beforehand, to know how many are needed.
    plan = begun(next(plans)).plan
    mesh = devices.local(like=plan.model)
    while sum(g.jobs for g in under) < mesh.size * (plan.batch_size or MOST):
        if (more := next(plans, None)) is None:
            break
        begun(more)
    known = sum(g.jobs for g in under)
    mesh = devices.local(max(1, min(mesh.size, known)), like=plan.model)
    # More slots than there is work would be padded at every step.
    slots = plan.batch_size or min(MOST, -(-known // mesh.size))
    beside, slots = devices.side_by_side(mesh, slots, plan.reproducible)

    def jobs() -> Iterator[_Job]:
        for group in itertools.chain(list(under), map(begun, plans)):
            images, number = group.plan.areas.shape
            places = itertools.product(range(images), range(number), range(group.plan.restarts))
            yield from (_Job(group, *place) for place in places)

    there = devices.alike((plan.model, plan.recipe), mesh)
    parts = [_slots.Part(m, r, d) for (m, r), d in zip(there, mesh.devices.flat, strict=True)]
    # Several programs beside each other on one device are that device several times.
    parts = [part for _ in range(beside) for part in parts]
    done = 0
    events = _slots.run(
        parts,
        functools.partial(_begin, slots),
        jobs(),
        slots=slots,
        steps=plan.rounds,
        patience=plan.patience,
    )
    for event in events:
        done += event.steps * plan.recipe.together
        for s, job in enumerate(event.jobs):
            job.group.add(job, jax.tree.map(lambda x, s=s: x[s], event.outcome))
        if progress is not None and event.steps:
            progress(done, sum(g.jobs for g in under) * plan.views)
        # In the order of the groups: a later one that is ready waits. Its steps leave both sides of
        # the progress, which speaks of the groups under way.
        while under and not under[0].left:
            done -= under[0].jobs * plan.views
            answer = under[0].answer()
            under.popleft()
            yield answer


def _guide_of(plan: Plan[PyTree], job: _Job) -> PyTree:
    return None if plan.guide is None else plan.guide[job.image]


def _begin(slots: int, part: _slots.Part, jobs: Sequence[_Job]) -> _slots.Slots:
    """Puts jobs into slots of a device; where there are fewer jobs, slots are padded."""
    # Copies of the first job fill the batch; with no steps to take they change nothing.
    full = [*jobs, *[jobs[0]] * (slots - len(jobs))]
    plans = [job.group.plan for job in full]

    def rows(take: Callable[[Plan[PyTree], _Job], PyTree]) -> PyTree:
        taken = [take(p, job) for p, job in zip(plans, full, strict=True)]
        return jax.tree.map(lambda *x: np.stack(x), *taken)

    keys = jnp.stack([p.given.keys[job.image] for p, job in zip(plans, full, strict=True)])
    # By restart, so that asking for more restarts leaves the first ones as they were.
    keys = jax.vmap(jax.random.fold_in)(keys, np.array([job.restart for job in full]))
    budget = np.array([plans[0].rounds] * len(jobs) + [0] * (slots - len(jobs)), np.int32)
    params = None
    if plans[0].first is not None:
        made = [
            p.first(job.image, keys[s], job.restart)  # type: ignore[misc]
            for s, (p, job) in enumerate(zip(plans, full, strict=True))
        ]
        params = jax.tree.map(lambda *x: jnp.stack(x), *made)
    given = (
        rows(lambda p, job: p.given.images[job.image]),
        rows(lambda p, job: jax.tree.map(lambda t: t[job.image], p.given.targets)),
        rows(lambda p, job: np.float32(p.areas[job.image, job.area])),
        rows(lambda p, job: np.int32(p.counts[job.image, job.area])),
        keys,
        budget,
        params,
        rows(_guide_of),
    )
    found: _slots.Slots = solver.start(part.model, part.recipe, *jax.device_put(given, part.device))
    return found


def _blank(like: solver.Outcome, known: bool) -> solver.Outcome:
    """An outcome of which nothing is known but, with `known`, the scores of the image itself."""
    empty = jax.tree.map(
        lambda x: np.full_like(x, np.nan if np.issubdtype(np.asarray(x).dtype, np.floating) else 0),
        like,
    )
    if not known:
        found: solver.Outcome = empty
        return found
    own = ("score_original", "score_floor", "probability_original", "probability_floor")
    found = empty._replace(**{name: getattr(like, name) for name in own})
    return found


def _gather(
    kept: dict[tuple[int, int], tuple[float, int, PyTree]],
    images: int,
    number: int,
    plan: Plan[PyTree],
) -> Result:
    areas = plan.areas
    rows = [[kept[i, j][2] for j in range(number)] for i in range(images)]

    def grid(name: str) -> np.ndarray:
        return np.stack([np.stack([np.asarray(getattr(one, name)) for one in row]) for row in rows])

    masks, finite, converged = grid("masks"), grid("finite"), grid("converged")
    status = np.where(finite, np.where(converged, "ok", "not_converged"), "nonfinite")
    # Scores of the whole and the empty picture do not depend on the area: one column is enough.
    within = tuple(range(2, masks.ndim))
    return Result(
        masks=masks,
        areas=np.asarray(areas[0]) if (areas == areas[:1]).all() else np.asarray(areas),
        achieved_area=(masks > 0.5).mean(within, dtype=np.float64).astype(np.float32),
        score_original=grid("score_original")[:, 0],
        score_floor=grid("score_floor")[:, 0],
        score_masked=grid("score_masked"),
        score_binary=grid("score_binary"),
        probability_original=grid("probability_original")[:, 0],
        probability_floor=grid("probability_floor")[:, 0],
        probability_masked=grid("probability_masked"),
        probability_binary=grid("probability_binary"),
        converged=converged,
        steps=grid("steps") * plan.recipe.together,
        status=status,
        scores=grid("scores"),
    )
