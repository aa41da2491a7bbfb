"""Meaningful perturbations: the least of an image that must be removed to lose the answer.

Fong, Vedaldi: Interpretable Explanations of Black Boxes by Meaningful Perturbation, ICCV 2017,
equations 2 to 4. No area is asked for: a mask is penalised for its size (L1) and its roughness
(total variation), and `minimal_region` says how little of it is enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, imagenet, masks, messages, operators, rewards, solver
from perturb.methods import _run
from perturb.model import Model
from perturb.solver import entry
from perturb.types import ArrayLike, Function, PyTree

__all__ = [
    "Jitter",
    "MinimalRegion",
    "Smoothness",
    "meaningful",
    "minimal_region",
    "preset_operator",
]

PRESETS = ("default", "caffe", "pytorch_port")
STARTS = ("circle", "random", "ones")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothness:
    """L1 and total variation of a low-resolution mask (equation 4).

    Attributes:
      l1: weight of the mask's size, at least 0.
      tv: weight of its roughness, the total variation, at least 0.
      beta: exponent of the differences between neighbouring cells; 3 in the paper.
      mean: whether to average over cells rather than sum.
      isotropic: `(dx^2 + dy^2)^(beta/2)` rather than `|dx|^beta + |dy|^beta`.
    """

    l1: jax.Array | float
    tv: jax.Array | float
    beta: jax.Array | float = 3.0
    mean: bool = dataclasses.field(default=False, metadata={"static": True})
    isotropic: bool = dataclasses.field(default=True, metadata={"static": True})

    def __call__(
        self, mask: masks.Mask, area: jax.Array, step: jax.Array, steps: jax.Array
    ) -> jax.Array:
        """Returns the penalty of one mask, a scalar."""
        cells = mask.inner
        add = jnp.mean if self.mean else jnp.sum
        # As abs, but flat at 0, as it is in PyTorch; Adam makes a full step of JAX's slope of 1
        # there.
        size = add(cells * jnp.sign(cells))
        if not self.isotropic:
            rough = sum(
                add(jnp.abs(jnp.diff(cells, axis=d)) ** self.beta) for d in range(cells.ndim)
            )
            return self.l1 * size + self.tv * rough
        # The last row and column have no successor: repeating them makes their difference 0.
        square = sum(
            jnp.diff(cells, axis=d, append=jax.lax.slice_in_dim(cells, -1, None, axis=d)) ** 2
            for d in range(cells.ndim)
        )
        # The small number keeps the slope of the root finite on flat masks.
        return self.l1 * size + self.tv * add((square + 1e-12) ** (self.beta / 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter:
    """Shifts the perturbed image by 0 to `pixels - 1` px a step and adds noise, against artefacts.

    Attributes:
      pixels: number of shifts along each side; 0 or 1 shifts nothing.
      noise: standard deviation of the noise, one value a channel or one for all.
    """

    pixels: int = 0
    noise: tuple[float, ...] = (0.0,)

    def __call__(
        self, view: jax.Array, mask: jax.Array, key: jax.Array, step: jax.Array
    ) -> jax.Array:
        """Returns the jittered view `[*size, C]`."""
        if self.pixels > 1:
            # The original cuts its crop from a picture enlarged to 228 px; here the border repeats,
            # so that the picture keeps its scale.
            shift = jax.random.randint(key, (view.ndim - 1,), 0, self.pixels)
            reach = self.pixels - 1
            pads = [(0, reach)] * (view.ndim - 1) + [(0, 0)]
            padded = jnp.pad(view, pads, mode="edge")
            view = jax.lax.dynamic_slice(padded, [*shift, 0], view.shape)
        if any(self.noise):
            # A key of its own: the noise must not follow the shift.
            draw = jax.random.normal(jax.random.fold_in(key, 1), view.shape)
            view = view + draw * jnp.asarray(self.noise, jnp.float32)
        return view


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Preset:
    mask: masks.Grid
    penalty: Smoothness
    jitter: Jitter
    operator: operators.Operator
    steps: int
    start: str


def _preset(name: str, size: tuple[int, ...], channels: int) -> _Preset:
    if name not in PRESETS:
        raise messages.one_of("preset", name, PRESETS)
    short = min(size)
    # 28 cells along the shorter side, as published; small pictures get a cell for two pixels.
    cells = tuple(max(4, round(28 * n / short)) if short >= 56 else math.ceil(n / 2) for n in size)
    # The original's constants: cells of 8 px, enlarged to squares and blurred by 5 px, a gradient
    # that ignores that blur, sums and not means, a blur of 10 px as the fill.
    if name == "caffe":
        return _Preset(
            mask=masks.Grid(step=8, method="blurred", blur=5.0, straight=True, start=0.0),
            penalty=Smoothness(l1=1e-4, tv=1e-2, beta=3.0),
            jitter=Jitter(pixels=4),
            operator=operators.Blur(pixels=10.0, levels=2),
            steps=300,
            start="circle",
        )
    if name == "pytorch_port":
        # The port adds its noise of 0.2 after normalisation; in pixels that is 0.2 deviations.
        noise = tuple(0.2 * s for s in imagenet.STD) if channels == 3 else (0.2,)
        return _Preset(
            # torch's UpsamplingBilinear2d lays corners on corners.
            mask=masks.Grid(cells=cells, method="corners", start=0.0),
            penalty=Smoothness(l1=0.01, tv=0.2, beta=3.0, mean=True, isotropic=False),
            jitter=Jitter(noise=noise),
            operator=operators.Replace(function=operators.median),
            steps=500,
            start="ones",
        )
    return _Preset(
        mask=masks.Grid(cells=cells, method="bilinear", start=0.0),
        penalty=Smoothness(l1=0.5, tv=0.2, beta=2.0, mean=True, isotropic=False),
        jitter=Jitter(pixels=4),
        operator=operators.Blur(strength=10 / 224, levels=2),
        steps=150,
        # A mask that removes nothing has no slope where the network is sure of its answer: it would
        # stay there.
        start="circle",
    )


def preset_operator(preset: str, *, channels: int = 3) -> operators.Operator:
    """Returns what a preset of `meaningful` replaces the removed pixels by, where no operator is
    given.

    Args:
      preset: "default", "caffe" or "pytorch_port".
      channels: of the pictures.
    Returns:
      The operator, which does not depend on the pictures' size: "caffe" blurs by 10 pixels at any.
    Raises:
      ValueError: there is no such preset.

    >>> preset_operator("caffe").pixels
    10.0
    """
    return _preset(preset, (224, 224), channels).operator


@_run.planned
def meaningful(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    game: str = "delete",
    preset: str = "default",
    start: str | None = None,
    operator: str | operators.Operator | None = None,
    reward: str | rewards.Reward | Function = "probability",
    penalty: Smoothness | None = None,
    steps: int | None = None,
    restarts: int = 1,
    batch_size: int | None = None,
    reproducible: bool | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> _run.Plan[_run.Result]:
    """Finds the small, smooth region whose removal (or whose presence alone) decides the answer.

    A host loop around one compiled step, not itself for `jit`; `perturb.solver.init` and `update`
    are for loops of your own.

    Args:
      model: see `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what the reward takes.
      game: "delete" removes the region and punishes what is left of the score; "preserve" keeps
        only the region and rewards the score.
      preset: "default"; "caffe", the constants of the original (with an exact Gaussian and no 8-bit
        rounding of the mask); "pytorch_port", those of the widely used port (28 x 28 cells, median
        blur, noise).
      start: "ones" keeps everything, "random" draws the cells, "circle" starts from the smallest
        centred disc that takes 99 % of the score; None is the preset's.
      operator, reward, dtype, key, keys, restarts, batch_size, reproducible, progress: as for
        `extremal`.
      penalty: `Smoothness` in place of the preset's.
      steps: None is the preset's: 150, 300 or 500.
    Returns:
      `Result` with one area an image, the one achieved: `masks` is 1 on the region.
    Raises:
      ValueError: naming the argument that cannot be served.

    >>> import jax.numpy as jnp, perturb
    >>> seen = perturb.Model(lambda w, x: 9 * x[:, 4:10, 4:10].mean((1, 2)) - 4, ())
    >>> images = jnp.ones((1, 16, 16, 3)) * jnp.array([1.0, 0.2, 0.2])
    >>> meaningful(seen, images, [0], operator="fade", steps=20).masks.shape
    (1, 1, 16, 16)
    """
    if game == "dual":
        raise ValueError("game must be delete or preserve for meaningful, got 'dual'")
    bound = rewards.bind(rewards.get(reward), model)
    given = entry.check(model, images, targets, bound, game=game, key=key, keys=keys)
    size = given.images.shape[1:-1]
    chosen = _preset(preset, size, given.images.shape[-1])
    begin = chosen.start if start is None else start
    if begin not in STARTS:
        raise messages.one_of("start", begin, STARTS)
    recipe = solver.Recipe(
        # The region is the mask: absent at first when it is to be deleted, everything when kept.
        parametrisation=dataclasses.replace(chosen.mask, start=0.0 if game == "delete" else 1.0),
        operator=chosen.operator if operator is None else operators.get(operator),
        reward=bound,
        # A constant rate of 0.1 in all published versions.
        rule=solver.Adam(rate=0.1, last=1.0),
        penalty=chosen.penalty if penalty is None else penalty,
        game=game,
        augment=chosen.jitter,
        # The published result is the last mask, not the best one.
        check_every=0,
        dtype=dtype,
    )
    return _run.Plan(
        model=model,
        recipe=recipe,
        given=given,
        # No area is asked for, and no binary mask is cut: neither number is read.
        areas=np.full((len(given.images), 1), 0.5),
        counts=np.zeros((len(given.images), 1), np.int32),
        answer=lambda result: result._replace(areas=result.achieved_area),
        steps=chosen.steps if steps is None else steps,
        first=_first(model, recipe, given, begin),
        restarts=restarts,
        batch_size=batch_size,
        reproducible=reproducible,
        progress=progress,
    )


def _first(
    model: Model, recipe: solver.Recipe, given: entry.Given, start: str
) -> Callable[[int, jax.Array, int], jax.Array] | None:
    """The first cells of an item, or None for the parametrisation's own."""
    size = given.images.shape[1:-1]
    own = recipe.parametrisation.init(size)
    if start == "random":
        return lambda image, key, restart: jax.random.uniform(key, own.shape)
    if start == "ones":
        return lambda image, key, restart: (
            own if not restart else jax.random.uniform(key, own.shape)
        )
    # The discs of the original: radii of 0 to 170 px in steps of 5, at 224 px.
    short, radii = min(size), np.arange(0, 171, 5) / 224
    centre = [(np.arange(n) - (n - 1) / 2) ** 2 for n in size]
    far = np.sqrt(sum(np.ix_(*centre))) if len(size) > 1 else np.sqrt(centre[0])
    # Its edges are blurred by 10 px; here they fall off linearly over 5 % of the side.
    discs = np.stack([np.clip((r * short - far) / (0.05 * short) + 0.5, 0, 1) for r in radii])
    every = np.broadcast_to(discs.astype(np.float32), (len(given.images), *discs.shape))
    kept = _share_left(model, recipe, given, every)
    # The smallest that takes 99 % of the score, or the largest, as in the original.
    enough = [int(np.argmax(row < 0.01)) if (row < 0.01).any() else len(radii) - 1 for row in kept]
    cells = jax.image.resize(jnp.asarray(discs, jnp.float32), (len(radii), *own.shape), "linear")
    return lambda image, key, restart: (
        cells[enough[image]] if not restart else jax.random.uniform(key, own.shape)
    )


def _share_left(
    model: Model, recipe: solver.Recipe, given: entry.Given, regions: np.ndarray
) -> np.ndarray:
    """Share of the score above the floor left without `regions` `[B, R, *size]`: `[B, R]`."""
    whole = np.ones_like(regions[:, :1])
    scores = _deleted(model, recipe, given, np.concatenate([0 * whole, regions, whole], 1))
    top, floor = scores[:, :1], scores[:, -1:]
    # Where the empty picture scores as high as the whole one there is nothing to lose.
    found: np.ndarray = (scores[:, 1:-1] - floor) / np.where(top == floor, 1, top - floor)
    return found


def _deleted(
    model: Model, recipe: solver.Recipe, given: entry.Given, regions: np.ndarray
) -> np.ndarray:
    """Rewards `[B, R]` of the images without `regions` `[B, R, *size]`."""
    rows = []
    for i in range(len(given.images)):
        pair = np.stack([given.images[i]] * 2)
        target = jax.tree.map(lambda t, i=i: jnp.asarray(t[i]), given.targets)
        rows.append(_sweep(model, recipe, jnp.asarray(pair), target, given.keys[i], regions[i]))
    return np.stack([np.asarray(r) for r in rows])


@jax.jit
def _sweep(
    model: Model,
    recipe: solver.Recipe,
    pair: jax.Array,
    target: PyTree,
    key: jax.Array,
    regions: ArrayLike,
) -> jax.Array:
    reference = recipe.operator.prepare(pair[0], key)
    original = jax.tree.map(lambda y: y[0], model(pair))

    def one(region: jax.Array) -> jax.Array:
        view = recipe.operator.apply(reference, 1 - region)
        # Two rows: a batch of one rounds differently from every larger one.
        row = jax.tree.map(lambda y: y[0], model(jnp.stack([view, view])))
        found: jax.Array = recipe.reward(row, target, original)
        return found

    # One region at a time: forty views of one picture would need forty times the memory.
    result: jax.Array = jax.lax.map(one, regions)
    return result


class MinimalRegion(NamedTuple):
    """The least that must go, for `B` images.

    Attributes:
      area: `[B]` share of the image; NaN where even the largest region tried does not suffice.
      masks: `[B, *size]` float32, 1 on that region.
      areas: `[R]` areas tried.
      left: `[B, R]` share of the score above the floor that is left at each of them.
    """

    area: np.ndarray
    masks: np.ndarray
    areas: np.ndarray
    left: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def minimal_region(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    scores: ArrayLike,
    *,
    suppression: float = 0.95,
    areas: PyTree = None,
    operator: str | operators.Operator = "blur",
    reward: str | rewards.Reward | Function = "probability",
    key: jax.Array | None = None,
    keys: jax.Array | None = None,
) -> MinimalRegion:
    """Finds how little of a map must be deleted, highest scores first, to take the answer away.

    The deletion game of the paper (section 5.2) on regions of any shape rather than boxes.

    Args:
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      scores: `[B, *size]`, any map: a mask, a heat map, a disc.
      suppression: share of the score (above that of the fully perturbed image) that must be lost.
      areas: `[R]` increasing shares to try; None is 40 values from 0.2 % to 90 %.
      operator, reward, key, keys: as for `meaningful`.
    Raises:
      ValueError: if `scores` does not fit the images, or `suppression` is outside (0, 1).

    >>> import jax.numpy as jnp, perturb
    >>> seen = perturb.Model(lambda w, x: x[:, 4:8, 4:8].mean((1, 2)), ())
    >>> disc = jnp.zeros((1, 16, 16)).at[:, 4:8, 4:8].set(1.0)
    >>> found = minimal_region(seen, jnp.ones((1, 16, 16, 3)), [0], disc, reward="logit",
    ...                        operator=perturb.operators.Fade(colour=0.0),
    ...                        areas=[1 / 32, 1 / 16, 0.2])
    >>> float(found.area[0])
    0.0625
    """
    if not 0 < suppression < 1:
        raise ValueError(f"suppression must be in (0, 1), got {suppression}")
    bound = rewards.bind(rewards.get(reward), model)
    given = entry.check(model, images, targets, bound, game="delete", key=key, keys=keys)
    scores = np.asarray(scores, np.float32)
    if scores.shape != given.images.shape[:-1]:
        raise ValueError(f"scores must be [B, *size] {given.images.shape[:-1]}, got {scores.shape}")
    tried = np.geomspace(0.002, 0.9, 40) if areas is None else np.asarray(areas, np.float64)
    pixels = math.prod(scores.shape[1:])
    counts = np.maximum(1, np.floor(tried * pixels + 0.5)).astype(np.int32)
    cut = jax.jit(jax.vmap(masks.binarise, (None, 0)))
    regions = np.stack([np.asarray(cut(jnp.asarray(s), jnp.asarray(counts))) for s in scores])
    recipe = solver.Recipe(masks.Grid(), operators.get(operator), bound, game="delete")
    left = _share_left(model, recipe, given, regions)
    gone = left <= 1 - suppression
    # The first True; 0 where there is none, which `found` tells apart.
    first = gone.argmax(1)
    found = gone.any(1)
    picked = np.take_along_axis(regions, first.reshape(-1, 1, *[1] * (regions.ndim - 2)), 1)[:, 0]
    share = np.where(found, counts[first] / pixels, np.nan)
    return MinimalRegion(
        area=share,
        masks=np.where(found.reshape(-1, *[1] * (picked.ndim - 1)), picked, 0),
        areas=counts / pixels,
        left=left,
    )
