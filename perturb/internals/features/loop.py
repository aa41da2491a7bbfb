"""The loop: many pictures side by side, one compiled step.

`State` is what changes and `Items` what differs between pictures; `step` moves all of them once. A
picture does not depend on its neighbours, nor on how many there are: its key comes from its own
objective, its transforms are its own draws, and nothing in the loop adds up over pictures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perturb import display, taps
from perturb import progress as progress_lib
from perturb.internals._layers import units_last
from perturb.internals.features import objectives as objectives_lib
from perturb.internals.features import presets as presets_lib
from perturb.internals.features import transforms as transforms_lib
from perturb.internals.features.given import check, item_keys, size_of, starts_of
from perturb.internals.features.objectives import Objective, Seen
from perturb.internals.features.presets import Preset
from perturb.internals.features.start import redirected
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["Features", "Items", "State", "activations", "evaluate", "layer_value", "visualise"]


class Items(NamedTuple):
    """What differs between the S items of a batch.

    Attributes:
      objective: its numbers `[S, ...]`.      key: `[S]` random keys.
      steps: how many steps there are, a scalar.
    """

    objective: PyTree
    key: jax.Array
    steps: jax.Array

    def __repr__(self) -> str:
        return display.summary(self)


class State(NamedTuple):
    """What changes.

    Attributes:
      step: steps taken, a scalar.
      params: of the parametrisation, `[S, V, ...]`, V pictures an item.
      rule: state of the step rule, `[S, V, ...]`.
      value: `[S]` objective of the last step's views.
      important: `[S, V, H, W]` sum over steps of |slope of the objective at each pixel of the
        views|.
      finite: `[S]` False once a value or slope was not finite; such an item stands still.
    """

    step: jax.Array
    params: PyTree
    rule: PyTree
    value: jax.Array
    important: jax.Array
    finite: jax.Array

    def __repr__(self) -> str:
        return display.summary(self)


class Features(NamedTuple):
    """Pictures, one after the other: all variants of the first item, then those of the second.

    Attributes:
      images: `[N, H, W, C]` in [0, 1]; with `Alpha` `[N, H, W, C + 1]`.
      values: `[N]` the objective on the picture as it is, without transforms or penalties.
      start: `[N]` the same on the first picture.
      started: `[N]` bool: the picture moved off its start, `value` above `start`.
      finite: `[N]` bool: no value or slope was NaN or infinite.
      important: `[N, H, W]` where the objective's slope was, over all steps, largest 1: MACO's
        transparency.
    """

    images: np.ndarray
    values: np.ndarray
    start: np.ndarray
    started: np.ndarray
    finite: np.ndarray
    important: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    def _repr_html_(self) -> str:
        from perturb import drawing

        names = [
            f"{v:.3g}{'' if s else ', not started'}"
            for v, s in zip(self.values, self.started, strict=True)
        ]
        return drawing.tiles(list(drawing.levels(self.images[..., :3])), names)


def activations(
    model: Model, images: jax.Array, layers: tuple[str, ...]
) -> tuple[PyTree, dict[str, jax.Array]]:
    """Returns outputs and layers of a batch, channels last."""
    outputs, values = taps.read(model, layers)(images) if layers else (model(images), {})
    last = {n: units_last(model, v) for n, v in values.items()}
    return outputs, last


@functools.partial(jax.jit, static_argnums=2)
def layer_value(model: Model, images: jax.Array, layer: str) -> jax.Array:
    """Returns a layer of a batch of at least two pictures, channels last."""
    found: jax.Array = activations(model, images, (layer,))[1][layer]
    return found


def visualise(
    model: Model,
    objective: Objective,
    *,
    preset: str | Preset = "lucid",
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    variants: int = 1,
    start: PyTree = None,
    batch_size: int = 16,
    key: jax.Array,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Finds pictures that a unit, a class or any other objective answers most to.

    Args:
      model: the network, a `perturb.Model`.
      objective: from `channel`, `neuron`, `direction`, `layer`, `logit` and so on, or a sum of
        them. With an array of units, `channel("conv4", jnp.arange(48))`, a picture for each.
      preset: a name of `PRESETS`, or a `Preset`.
      size: of the pictures in px, one number or `(H, W)`; default is the model's own.
      steps: number of steps; None takes the preset's.
      variants: pictures an item, for `diversity`, `interpolation` and `alignment`.
      start: pictures `[N, H, W, C]`, or `[H, W, C]` for all, to start from instead of noise.
      batch_size: pictures that are optimised at once, at least 2; changes no picture.
      key: random key; the picture of an objective follows from it alone.
      progress: called with items done, in steps' shares, and items in all.
    Raises:
      ValueError: if there is no such layer, unit or class, a size or spectrum does not fit, or the
        model gives NaN.

    >>> from perturb.internals.features import channel
    >>> from perturb.nets import load_model
    >>> net = load_model("demo", key=jax.random.key(0))
    >>> found = visualise(net, channel("conv4", 3), steps=2, key=jax.random.key(1))
    >>> found.images.shape
    (1, 64, 64, 3)
    """
    recipe = presets_lib.preset(preset)
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=steps)
    if recipe.steps < 1 or variants < 1 or recipe.views < 1:
        raise ValueError(
            f"steps, variants and views must be at least 1, got {recipe.steps}, {variants} and "
            f"{recipe.views}"
        )
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    shape = (*size_of(model, size, start), model.channels)
    items, count = objectives_lib.per_item(objective)
    check(model, items, shape)
    recipe.parametrisation.check(shape)
    recipe = _at(recipe, shape)
    keys = item_keys(key, items, count)
    starts = starts_of(start, count * variants, shape)

    # The variants of an item stay together: objectives over them need all at once.
    block = max(1, batch_size // variants)
    done: list[tuple[PyTree, ...]] = []
    with progress_lib.shown("pictures", progress) as tell, progress_lib.until_interrupted(done):
        for at in range(0, count, block):
            chosen = np.arange(at, min(at + block, count))
            # Never a batch of one: XLA compiles it to other arithmetic than every larger batch.
            full = np.resize(chosen, max(2, len(chosen)) if count <= block else max(2, block))
            picked = jax.tree.map(lambda x, full=full: x[full], items)
            first = None if starts is None else starts.reshape(count, variants, *shape)[full]

            def share(part: float, at: int = at, n: int = len(chosen)) -> None:
                tell(round(at + part * n), count)

            batch = Items(picked, keys[full], jnp.int32(recipe.steps))
            found = _batch(model, recipe, shape, batch, variants, first, share)
            done.append(tuple(np.asarray(x)[: len(chosen)] for x in found))
    joined = [np.concatenate(x) for x in zip(*done, strict=True)]
    images, values, before, finite, important = progress_lib.completed(joined, count, "pictures")
    images = images.reshape(-1, *images.shape[2:])
    values, before, finite = (np.repeat(x, variants, 0) for x in (values, before, finite))
    important = important.reshape(-1, *important.shape[2:])
    top = important.max((1, 2), keepdims=True)
    return Features(
        images,
        values,
        before,
        # A silent unit stays at 0, where it began. One without a ReLU may begin, and end, below.
        finite & (values > before),
        finite,
        important / np.where(top > 0, top, 1),
    )


def filling(count: int, size: int = 2) -> np.ndarray:
    """Returns `[max(2, size)]` indices below `count`, over and over, that fill a batch.

    Never a batch of one: XLA compiles it to different arithmetic than every larger batch.

    >>> filling(1).tolist(), filling(3).tolist(), filling(2, 5).tolist()
    ([0, 0], [0, 1, 2], [0, 1, 0, 1, 0])
    """
    return np.resize(np.arange(count), max(2, count, size))


def evaluate(
    model: Model, objective: Objective, images: ArrayLike, *, batch_size: int = 16
) -> np.ndarray:
    """Returns the objective of each item on each picture, `[items, B]`: how photographs do, say.

    Args:
      model, objective: as for `visualise`.
      images: `[B, H, W, C]` in [0, 1].
      batch_size: pictures at once.
    """
    images = np.asarray(images, np.float32)
    items, _ = objectives_lib.per_item(objective)
    check(model, items, images.shape[1:])
    found = []
    size = max(2, min(batch_size, len(images)))
    for at in range(0, len(images), size):
        block = images[at : at + size]
        full = filling(len(block), size)
        found.append(np.asarray(_evaluate(model, items, block[full]))[:, : len(block)])
    return np.concatenate(found, 1)


@jax.jit
def _evaluate(model: Model, objective: Objective, images: jax.Array) -> jax.Array:
    outputs, values = activations(model, images, objective.layers)

    def one(o: Objective) -> jax.Array:
        def at(image: jax.Array, outputs: PyTree, values: PyTree) -> jax.Array:
            row = jax.tree.map(lambda x: x[None], (image, outputs, values))
            return _without_penalties(o)(Seen(*row))

        return jax.vmap(at)(images, outputs, values)

    # Objectives over pictures: the network runs once, outside of both maps.
    return jax.vmap(one)(objective)


def _without_penalties(objective: Objective) -> Objective:
    """The objective without the terms over the pictures themselves."""
    if isinstance(objective, objectives_lib.Sum):
        pairs = [
            (w, _without_penalties(p))
            for w, p in zip(objective.weights, objective.parts, strict=True)
            if not all(t.formula in objectives_lib.PENALTIES for t in p.terms())
        ]
        return objectives_lib.Sum(tuple(p for _, p in pairs), tuple(w for w, _ in pairs))
    return objective


def _batch(
    model: Model,
    recipe: Preset,
    shape: tuple[int, int, int],
    items: Items,
    variants: int,
    start: np.ndarray | None,
    tell: Callable[[float], None],
) -> tuple[PyTree, ...]:
    """Runs one batch through all octaves; returns images, values before and after, finite,
    important.
    """
    size = _octave(shape, recipe, 0)
    given = None if start is None else _resize(start, size)
    state = begin(recipe, size, items, variants, _inverse(recipe, given))
    before = _values(model, recipe, size, items, state)
    # Before the first step: a broken model shows here, and not after a whole run of NaN.
    if not np.isfinite(np.asarray(before)).all():
        raise ValueError(
            f"model {model.name} gave NaN or infinite values on the first pictures: check its "
            "weights and preprocessing with perturb.check_model"
        )
    total = recipe.octaves * recipe.steps
    for octave in range(recipe.octaves):
        if octave:
            smaller, size = size, _octave(shape, recipe, octave)
            grown = _resize(np.asarray(_images(recipe, smaller, state.params)), size)
            if start is not None:  # the photograph's own detail comes back at every size
                lost = _resize(np.asarray(given), size)
                given = _resize(start, size)
                grown = grown + given - lost
            state = begin(recipe, size, items, variants, _inverse(recipe, grown))
        for i in range(recipe.steps):
            state = step(model, recipe, size, items, state, i < recipe.redirect)
            # Not at every step: reporting must not hold the device up.
            if i % 8 == 7:
                tell((octave * recipe.steps + i + 1) / total)
    return (
        _images(recipe, size, state.params),
        _values(model, recipe, size, items, state),
        before,
        state.finite,
        state.important,
    )


@functools.partial(jax.jit, static_argnums=(1, 3))
def _begin(parametrisation: PyTree, size: PyTree, items: Items, variants: int) -> jax.Array:
    def one(key: jax.Array, v: jax.Array) -> jax.Array:
        # Far from the numbers of steps, which the same key is folded with.
        found: jax.Array = parametrisation.init(
            jax.random.fold_in(jax.random.fold_in(key, 2**30), v), size
        )
        return found

    each = jax.vmap(one, (None, 0))
    return jax.vmap(each, (0, None))(items.key, jnp.arange(variants))


def begin(
    recipe: Preset, size: tuple[int, int, int], items: Items, variants: int, params: PyTree = None
) -> State:
    """Returns the first state: random parameters, or those given, `[S, V, ...]`."""
    if params is None:
        params = _begin(recipe.parametrisation, size, items, variants)
    params = jax.tree.map(jnp.asarray, params)
    slots = len(items.key)
    return State(
        step=jnp.int32(0),
        params=params,
        # A state for every picture, so that an optimiser's step size is the picture's own.
        rule=jax.vmap(jax.vmap(recipe.rule.transform().init))(params),
        value=jnp.zeros(slots),
        important=jnp.zeros((slots, variants, *size[:2])),
        finite=jnp.ones(slots, bool),
    )


def step(
    model: Model,
    recipe: Preset,
    size: tuple[int, int, int],
    items: Items,
    state: State,
    early: bool,
) -> State:
    """Moves every picture once; `early` redirects the slopes of silent ReLUs."""
    # A parametrisation may hold arrays, such as a spectrum: it is traced, and the rest is static.
    written, options = recipe.parametrisation, dataclasses.replace(recipe, parametrisation=None)
    variants = state.important.shape[1]
    drawn = _drawn(options, size, variants, written.alpha, items.key, state.step, items.steps)
    # Programs of their own: in one, a CPU's compiler works out pixels again wherever a transform
    # reads them, and slopes of views wherever a colour does. What the way back needs of the way
    # there is handed on.
    pictures, to_params = _pictures(written, size, state.params)
    views, to_pictures = _views(written, options, drawn, pictures)
    value, slopes, by_view = _slopes(model, early, items.objective, pictures, views)
    slopes = _back(to_pictures, by_view, slopes)
    found: State = _move(written, options, to_params, (value, slopes, by_view), state)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _drawn(
    recipe: Preset,
    size: tuple[int, int, int],
    variants: int,
    alpha: bool,
    keys: jax.Array,
    step: jax.Array,
    steps: jax.Array,
) -> PyTree:
    """The random numbers of every view, `[S * V * K, ...]`: those of its transforms, and its
    background.
    """
    progress = step / jnp.maximum(steps - 1, 1)

    def one(key: jax.Array) -> PyTree:
        numbers = transforms_lib.draw(recipe.transforms, key, size, progress)
        # Far from the numbers of the transforms, which the same key is folded with.
        behind = 2 * jax.random.normal(jax.random.fold_in(key, 2**20), size) if alpha else None
        return numbers, behind

    return jax.vmap(one)(_view_keys(keys, step, variants, recipe.views))


@functools.partial(jax.jit, static_argnums=1)
def _pictures(
    parametrisation: PyTree, size: tuple[int, int, int], params: PyTree
) -> tuple[jax.Array, PyTree]:
    """Pictures `[S, V, H, W, C]`, and what takes their slopes back to the parameters."""
    each = jax.vmap(jax.vmap(functools.partial(parametrisation.image, size=size)))
    return jax.vjp(each, params)


@functools.partial(jax.jit, static_argnums=1)
def _views(
    parametrisation: PyTree, recipe: Preset, drawn: PyTree, pictures: jax.Array
) -> tuple[jax.Array, PyTree]:
    """Views `[S, V * K, H, W, C]` of pictures, and what takes their slopes back to these."""

    def view(drawn: PyTree, picture: jax.Array) -> jax.Array:
        numbers, behind = drawn
        if parametrisation.alpha:
            cover = picture[..., -1:]
            picture = cover * picture[..., :-1] + (1 - cover) * jax.nn.sigmoid(behind)
        return transforms_lib.apply(recipe.transforms, numbers, picture)

    def every(pictures: jax.Array) -> jax.Array:
        shown = pictures.reshape(-1, *pictures.shape[2:])
        if recipe.views > 1:
            # Views of a picture lie side by side, in the order of the keys.
            shown = jnp.repeat(shown, recipe.views, 0)
        shown = jax.vmap(view)(drawn, shown)
        return shown.reshape(len(pictures), -1, *shown.shape[1:])

    return jax.vjp(every, pictures)


# Summed where the slopes of views are read: three channels are no vector, and a sum of its own
# takes as long.
_back = jax.jit(lambda pull, by_view, slopes: pull(by_view)[0] + slopes)


@functools.partial(jax.jit, static_argnums=1)
def _slopes(
    model: Model, early: bool, objective: Objective, pictures: jax.Array, views: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The objective of each item, and its slopes for the pictures themselves and for their
    views.
    """
    slots, channels = len(views), views.shape[-1]

    def loss(pictures: jax.Array, flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        layers = objective.layers

        def network(x: jax.Array) -> PyTree:
            return activations(model, x, layers)

        if early:
            network = redirected(network, jnp.ones(len(flat), bool))
        outputs, values = jax.tree.map(lambda x: x.reshape(slots, -1, *x.shape[1:]), network(flat))
        value = jax.vmap(lambda o, *seen: o(Seen(*seen)))(
            objective, pictures[..., :channels], outputs, values
        )
        if pictures.shape[-1] > channels:
            # Rewarded for being see-through: what does not matter fades.
            value = value * (1 - pictures[..., -1].mean((1, 2, 3)))
        # Summed over items, each of which has its own gradient.
        return -value.sum(), value

    flat = views.reshape(-1, *views.shape[2:])
    slopes, value = jax.grad(loss, (0, 1), has_aux=True)(pictures, flat)
    return value, slopes[0], slopes[1].reshape(views.shape)


@functools.partial(jax.jit, static_argnums=1)
def _move(
    parametrisation: PyTree,
    recipe: Preset,
    to_params: PyTree,
    found: tuple[jax.Array, jax.Array, jax.Array],
    state: State,
) -> State:
    slots, variants = state.important.shape[:2]
    value, slopes, by_view = found
    (grads,) = to_params(slopes)
    each = jnp.abs(by_view).sum(-1).reshape(slots, variants, -1, *by_view.shape[2:4])
    important = each.mean(2)
    if recipe.penalty:
        grads = jax.tree.map(lambda g, p: g + 2 * recipe.penalty * p, grads, state.params)
    # An item that has failed keeps its last picture; NaN must not spread, nor stop the others.
    whole = [jnp.isfinite(g).reshape(slots, -1).all(1) for g in jax.tree.leaves(grads)]
    finite = state.finite & jnp.isfinite(value) & functools.reduce(jnp.logical_and, whole)

    updates, rule = jax.vmap(jax.vmap(recipe.rule.transform().update))(
        grads, state.rule, state.params
    )

    def move(params: PyTree, update: PyTree, grad: PyTree) -> jax.Array:
        moved = optax.apply_updates(params, update)
        moved = recipe.rule.after(moved, jax.tree.map(jnp.negative, grad), state.step)
        found: jax.Array = parametrisation.project(moved)
        return found

    moved = jax.vmap(jax.vmap(move))(state.params, updates, grads)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(finite.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return State(
        step=state.step + 1,
        params=jax.tree.map(keep, moved, state.params),
        rule=jax.tree.map(keep, rule, state.rule),
        value=keep(value, state.value),
        important=keep(state.important + important, state.important),
        finite=finite,
    )


def _view_keys(keys: jax.Array, step: jax.Array, variants: int, views: int) -> jax.Array:
    """`[S * V * K]`: of every view, from the item's key, the step, and its place within the
    item.
    """

    def one(key: jax.Array) -> jax.Array:
        now = jax.random.fold_in(key, step)
        return jax.vmap(jax.random.fold_in, (None, 0))(now, jnp.arange(variants * views))

    return jax.vmap(one)(keys).reshape(-1)


@functools.partial(jax.jit, static_argnums=1)
def _draw(parametrisation: PyTree, size: tuple[int, int, int], params: PyTree) -> jax.Array:
    each = functools.partial(parametrisation.image, size=size)
    found: jax.Array = jax.vmap(jax.vmap(each))(params)
    return found


def _images(recipe: Preset, size: tuple[int, int, int], params: PyTree) -> jax.Array:
    found: jax.Array = _draw(recipe.parametrisation, size, params)
    return found


def _values(
    model: Model, recipe: Preset, size: tuple[int, int, int], items: Items, state: State
) -> jax.Array:
    pictures = _images(recipe, size, state.params)
    if recipe.parametrisation.alpha:
        # Over grey, not noise: the value reported must not be a draw's.
        pictures = pictures[..., :-1] * pictures[..., -1:] + 0.5 * (1 - pictures[..., -1:])
    found: jax.Array = _score(model, items.objective, pictures)
    return found


@jax.jit
def _score(model: Model, objective: Objective, pictures: jax.Array) -> jax.Array:
    slots, variants = pictures.shape[:2]
    flat = pictures.reshape(-1, *pictures.shape[2:])
    outputs, values = activations(model, flat, objective.layers)
    outputs, values = jax.tree.map(
        lambda x: x.reshape(slots, variants, *x.shape[1:]), (outputs, values)
    )
    plain = _without_penalties(objective)
    found: jax.Array = jax.vmap(lambda o, *seen: o(Seen(*seen)))(plain, pictures, outputs, values)
    return found


def _at(recipe: Preset, shape: tuple[int, int, int]) -> Preset:
    """The recipe with a spectrum of the pictures' own size, found once and not in every program."""
    at = getattr(recipe.parametrisation, "at", None)
    if at is None or recipe.octaves > 1:
        return recipe
    return dataclasses.replace(recipe, parametrisation=at(shape))


def _inverse(recipe: Preset, pictures: np.ndarray | None) -> PyTree:
    if pictures is None:
        return None
    inverse = getattr(recipe.parametrisation, "inverse", None)
    if inverse is None:
        kind = type(recipe.parametrisation).__name__
        raise ValueError(f"start: a picture cannot be written as {kind}")
    flat = [inverse(p) for p in pictures.reshape(-1, *pictures.shape[2:])]
    lead = pictures.shape[:2]
    return jax.tree.map(lambda *x: np.stack(x).reshape(*lead, *np.shape(x[0])), *flat)


def _octave(shape: tuple[int, int, int], recipe: Preset, octave: int) -> tuple[int, int, int]:
    scale = recipe.octave_scale ** (recipe.octaves - 1 - octave)
    return (max(4, round(shape[0] / scale)), max(4, round(shape[1] / scale)), shape[2])


def _resize(pictures: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    if pictures.shape[2:] == size:
        return pictures
    return np.asarray(jax.image.resize(pictures, (*pictures.shape[:2], *size), "bilinear"))
