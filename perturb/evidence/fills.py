"""Fills that a region is shown under, shifted copies of it, and the model on stacks of views."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, operators
from perturb._numerics import devices
from perturb.model import Model
from perturb.types import Array, ArrayLike, PyTree

__all__ = [
    "another_draw",
    "held_out",
    "iou",
    "names_of",
    "outputs_of",
    "sharp",
    "shifted",
    "shifts",
    "show",
    "sought",
]

ANOTHER = 0xA2E3


def sought(operator: str | operators.Operator) -> tuple[operators.Operator, ...]:
    """Returns the fills that a mask was found with, the one that scores it first; noise follows the
    key.

    Args:
      operator: an operator or its name.
    """
    made = operators.get(operator)
    turns = made.operators if isinstance(made, operators.Alternate) else (made,)
    # The noise of the default search is the same for all keys, and not what is wanted here.
    return tuple(
        dataclasses.replace(o, common=False) if isinstance(o, operators.Noise) else o for o in turns
    )


def another_draw() -> jax.Array:
    """Returns a key for what a region is shown under once it is found.

    It is no search's: a region may be answered by the chance of the noise that it was found with.
    And it is one for all: a verdict should not depend on a draw.
    """
    return jax.random.key(ANOTHER)


def held_out(operator: str | operators.Operator) -> dict[str, operators.Operator]:
    """Returns four operators that `operator` is not, nor has among its own.

    Args:
      operator: the fill that the mask was found with; of several in turn, all count.
    """
    used = sought(operator)
    blur = next((o for o in used if isinstance(o, operators.Blur)), operators.Blur())

    def scaled(by: float) -> operators.Blur:
        # A strength in px takes the place of one relative to the picture, so both are scaled.
        pixels = by * blur.pixels if blur.pixels else None
        return dataclasses.replace(blur, strength=by * blur.strength, pixels=pixels)

    found: dict[str, operators.Operator] = {
        "blur": blur,
        "half_blur": scaled(0.5),
        "double_blur": scaled(2.0),
        "mean": operators.Fade(),
        "noise": operators.Noise(),
        "fade": operators.Fade(colour=0.5),
        "black": operators.Fade(colour=0.0),
    }
    # The first four that the search has not used. The order is part of the results: of a blur the
    # same blur at half and double strength come first.
    own = [_name(o) for o in used]
    return {name: found[name] for name in [n for n in found if n not in own][:4]}


def names_of(used: tuple[operators.Operator, ...], first: str | None) -> list[str]:
    """Returns a name for each of the fills, the second of a kind called `kind_2`.

    Args:
      first: what to call the first; None is its kind.
    """
    names = [first or _name(used[0]), *map(_name, used[1:])]
    before = [names[:at].count(name) for at, name in enumerate(names)]
    return [f"{name}_{n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def _name(operator: operators.Operator) -> str:
    if isinstance(operator, operators.Fade):
        if operator.colour is None:
            return "mean"
        return "black" if np.ndim(operator.colour) == 0 and operator.colour == 0 else "fade"
    return type(operator).__name__.lower()


def sharp(operator: PyTree) -> PyTree:
    """The operator on masks of 0 and 1, which show the first and the last level of a pyramid
    only.
    """
    if isinstance(operator, operators.Blur):
        return dataclasses.replace(operator, levels=2)
    return operator


def iou(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Returns `[B, A]` intersection over union of masks `[B, A, *size]` above 0.5; 0 of nothing.

    Args:
      a: `[B, A, *size]` masks.
      b: `[B, A, *size]` masks.

    >>> float(iou(np.ones((1, 1, 2, 2)), np.eye(2)[None, None])[0, 0])
    0.5
    """
    xp = arrays.namespace(a, b)
    p, q = xp.asarray(a) > 0.5, xp.asarray(b) > 0.5
    within = tuple(range(2, p.ndim))
    found: np.ndarray = (p & q).sum(within) / xp.maximum((p | q).sum(within), 1)
    return found


def shifts(key: jax.Array, size: tuple[int, ...], number: int) -> np.ndarray:
    """Returns `[number, dims]` shifts in px, at least an eighth of every side either way round.

    Args:
      key: random key.
      size: the image's shape without channels, px.
      number: how many shifts.
    """
    # A copy that is moved by little still covers most of the region, and says nothing.
    margin = np.array([math.ceil(n / 8) for n in size])
    part = np.asarray(jax.random.uniform(key, (number, len(size))))
    found: np.ndarray = (margin + np.floor(part * (np.array(size) - 2 * margin + 1))).astype(
        np.int32
    )
    return found


def shifted(mask: jax.Array, by: jax.Array) -> jax.Array:
    """Returns copies `[N, *size]` of `mask` `[*size]`, moved by `by` `[N, dims]` px around the
    border.
    """
    axes = tuple(range(mask.ndim))
    # Rolled, not cut off: a copy has exactly the area of the region.
    return jax.vmap(lambda s: jnp.roll(mask, tuple(s[d] for d in axes), axes))(by)


@jax.jit
def views(
    operator: operators.Operator, image: jax.Array, key: jax.Array, regions: jax.Array
) -> jax.Array:
    """Returns `[N, *size, C]`: one image with `regions` `[N, *size]` kept, the rest filled."""
    reference = operator.prepare(image, key)
    return jax.vmap(lambda m: operator.apply(reference, m))(regions)


def show(
    operator: operators.Operator, image: Array, key: jax.Array, regions: ArrayLike
) -> np.ndarray:
    """Returns the views `[N, *size, C]` of one image with `regions` `[N, *size]`, 0 or 1, kept.

    Args:
      operator: what removed pixels become.
      image: `[*size, C]` in [0, 1].
      key: random key of the operator's noise.
      regions: `[N, *size]`, 1 where the picture is kept.
    """
    return np.asarray(views(sharp(sought(operator)[0]), image, key, regions))


@jax.jit
def _run_model(model: Model, views: jax.Array) -> jax.Array:
    found: jax.Array = jax.tree.map(lambda y: y.astype(jnp.float32), model(views))
    return found


def outputs_of(model: Model, views: np.ndarray) -> jax.Array:
    """Returns the outputs for `views` `[N, *size, C]`, in batches of one size.

    The batches of one image never hold another's views, so that a result does not depend on them.

    Args:
      model: the network, a `perturb.Model`.
      views: `[N, *size, C]` in [0, 1], of one image.
    """
    mesh = devices.local(1, like=model)
    # What a network makes of two pictures stays in a CPU's cache: for twelve SqueezeNet takes a
    # sixth longer.
    most = devices.least(mesh) if mesh.devices.flat[0].platform == "cpu" else 16
    number = len(views)
    batches = math.ceil(number / most)
    size = max(2, math.ceil(number / batches))
    parts = []
    for at in range(0, number, size):
        batch = views[at : at + size]
        if len(batch) < size:
            # Padded to the size of the others, so that one program serves all batches.
            batch = np.concatenate([batch, *[batch[-1:]] * (size - len(batch))])
        parts.append(jax.device_get(_run_model(model, batch)))
    found: jax.Array = jax.tree.map(lambda *p: np.concatenate(p)[:number], *parts)
    return found
