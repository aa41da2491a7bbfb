"""What a picture is optimised for: a number read from the layers, the outputs or the picture
itself.

An objective is a pytree: its layer and its formula are static, its unit, place, direction and
weight are arrays. So a hundred units of one layer are one program, and
`channel("conv4", jnp.arange(48))` is forty-eight pictures. Objectives add, subtract and take
weights:

>>> wanted = channel("conv4", 17) - 0.5 * channel("conv4", 3) - 0.01 * total_variation()
>>> wanted.layers
('conv4',)

Every objective is maximised. The value that a layer gives has its channels last: `[V, h, w, C]` for
maps, `[V, T, C]` for tokens, `[V, C]` for features without places, V pictures or views of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.types import Array, PyTree

__all__ = [
    "Objective",
    "Seen",
    "Sum",
    "Term",
    "activation_difference",
    "alignment",
    "blur",
    "caricature",
    "channel",
    "contrast",
    "direction",
    "diversity",
    "interpolation",
    "l1",
    "l2",
    "layer",
    "logit",
    "neuron",
    "picture_difference",
    "probability",
    "total_variation",
]


class Seen(NamedTuple):
    """What an objective sees: the V views of one item.

    Attributes:
      pictures: `[P, H, W, C]` in [0, 1], as they are, before any transform.
      outputs: of the model, leaves `[V, ...]`.
      values: by layer, channels last, `[V, ..., C]`.
    """

    pictures: jax.Array
    outputs: PyTree
    values: dict[str, jax.Array]

    def __repr__(self) -> str:
        return display.summary(self)


class Objective:
    """Something to maximise: `objective(seen) -> scalar`; see `Term` and `Sum`."""

    def terms(self) -> Iterator[Term]:
        """Yields the single terms."""
        raise NotImplementedError

    def __call__(self, seen: Seen) -> jax.Array:
        """Returns the value, a scalar."""
        raise NotImplementedError

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read, each once."""
        return tuple(dict.fromkeys(t.layer for t in self.terms() if t.layer is not None))

    def __add__(self, other: PyTree) -> Sum:
        if isinstance(other, Objective):
            return Sum((self, other), (1.0, 1.0))
        if np.ndim(other) == 0 and other == 0:  # so that sum([...]) works
            return Sum((self,), (1.0,))
        raise ValueError(f"an objective adds to an objective, got {type(other).__name__}")

    __radd__ = __add__

    def __sub__(self, other: Objective) -> Sum:
        return Sum((self, other), (1.0, -1.0))

    def __mul__(self, weight: jax.Array | float) -> Sum:
        return Sum((self,), (weight,))

    __rmul__ = __mul__

    def __neg__(self) -> Sum:
        return Sum((self,), (-1.0,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Term(Objective):
    """One formula over one layer, over the outputs (`layer=None`), or over the pictures.

    Attributes:
      numbers: arrays that the formula takes, each with an axis of items in front or without.
      formula: `(seen, value, *numbers) -> scalar`, static; `value` is the layer's, or the outputs.
      layer: name of the layer, static.
      ranks: axes of each number for one item, static.
      indexes: whether the first number is a unit, or a class, that has to exist; static.
    """

    numbers: tuple[PyTree, ...]
    formula: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    layer: str | None = dataclasses.field(default=None, metadata={"static": True})
    ranks: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    indexes: bool = dataclasses.field(default=False, metadata={"static": True})

    def terms(self) -> Iterator[Term]:
        """Yields itself."""
        yield self

    def __call__(self, seen: Seen) -> jax.Array:
        """Returns the value, a scalar."""
        value = seen.outputs if self.layer is None else seen.values[self.layer]
        return self.formula(seen, value, *self.numbers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sum(Objective):
    """A weighted sum of objectives.

    Attributes:
      parts: the objectives.
      weights: one each, a number or `[items]`.
    """

    parts: tuple[Objective, ...]
    weights: tuple[PyTree, ...]

    def terms(self) -> Iterator[Term]:
        """Yields the terms of all parts."""
        for part in self.parts:
            yield from part.terms()

    def __call__(self, seen: Seen) -> jax.Array:
        """Returns the value, a scalar."""
        found: jax.Array = sum(
            (w * part(seen) for w, part in zip(self.weights, self.parts, strict=True)),
            start=jnp.float32(0),
        )
        return found


def per_item(objective: Objective) -> tuple[Objective, int]:
    """Returns the objective with an axis of items in front of every number, and how many items.

    Raises:
      ValueError: if two numbers have different numbers of items.
    """
    found: set[int] = set()

    def look(number: PyTree, rank: int) -> jax.Array:
        number = np.asarray(number) if not isinstance(number, jax.Array) else number
        if number.ndim == rank + 1:
            # A further axis in front means one number an item.
            found.add(number.shape[0])
        elif number.ndim != rank:
            raise ValueError(
                f"objective: a number of shape {number.shape} must have {rank} axes, or {rank + 1} "
                "with one of items in front"
            )
        result: jax.Array = number
        return result

    def walk(o: Objective, change: Callable[[PyTree, int], PyTree]) -> Objective:
        if isinstance(o, Term):
            numbers = tuple(change(n, r) for n, r in zip(o.numbers, o.ranks, strict=True))
            return dataclasses.replace(o, numbers=numbers)
        if not isinstance(o, Sum):
            raise ValueError(f"objective must be made by features.channel and the like, got {o!r}")
        parts = tuple(walk(p, change) for p in o.parts)
        return Sum(parts, tuple(change(w, 0) for w in o.weights))

    objective = walk(objective, look)
    if len(found) > 1:
        raise ValueError(f"objective: numbers for {' and '.join(map(str, sorted(found)))} items")
    count = found.pop() if found else 1

    def spread(number: PyTree, rank: int) -> jax.Array:
        number = jnp.asarray(number)
        # One type for all numbers: float64 ones would compile another program.
        if jnp.issubdtype(number.dtype, jnp.floating):
            number = number.astype(jnp.float32)
        if number.ndim == rank:
            number = jnp.broadcast_to(number, (count, *number.shape))
        found: jax.Array = number
        return found

    return walk(objective, spread), count


def channel(layer: str, unit: PyTree) -> Term:
    """Returns the mean of a unit over its places: what a feature detector looks for anywhere.

    Args:
      layer: name of the layer, one of `perturb.taps.names(model, images)`.
      unit: its number, or `[items]` for a picture each.
    """
    return Term((unit,), _channel, layer, (0,), True)


def neuron(layer: str, unit: PyTree, place: PyTree = None) -> Term:
    """Returns a unit at one place.

    Args:
      layer: name of the layer.
      unit: its number, or `[items]`.
      place: `(y, x)` in cells of the layer, `(t,)` for tokens; None is the middle (of an even
        number of cells the one right of and below it, as in Lucid).
    """
    if place is None:
        return Term((unit,), _middle_neuron, layer, (0,), True)
    return Term((unit, np.asarray(place)), _neuron, layer, (0, 1), True)


def direction(layer: str, vector: PyTree, place: PyTree = None, *, power: PyTree = 0.0) -> Term:
    """Returns the mean of `(a·v) max(.1, cos(a, v))^power` over places.

    Args:
      layer: name of the layer.
      vector: `[C]`, or `[items, C]`.
      place: only there; None is everywhere.
      power: 0 is the plain dot product, in which the longest activations win; 2 wants the right
        direction too (Carter et al. 2019, Activation Atlas).
    """
    if place is None:
        return Term((vector, power), _direction, layer, (1, 0))
    return Term((vector, power, np.asarray(place)), _direction_at, layer, (1, 0, 1))


def layer(layer: str) -> Term:
    """Returns the mean square of a whole layer: DeepDream.

    Args:
      layer: name of the layer.
    """
    return Term((), _square, layer)


def logit(target: PyTree) -> Term:
    """Returns the score of a class, before the softmax.

    Args:
      target: class number, or `[items]`.
    """
    return Term((target,), _logit, None, (0,), True)


def contrast(target: PyTree) -> Term:
    """Returns the score of a class less the mean score of all: what speaks for this class alone.

    A softmax does not see a number added to all scores; neither does this.

    Args:
      target: class number, or `[items]`.
    """
    return Term((target,), _contrast, None, (0,), True)


def probability(target: PyTree) -> Term:
    """Returns the probability of a class by softmax.

    It often rises by lowering the other classes: `logit` makes the better pictures (Simonyan 2013).

    Args:
      target: index of the class, or `[N]` indices for a picture each.
    """
    return Term((target,), _probability, None, (0,), True)


def activation_difference(layer: str, reference: Array) -> Term:
    """Returns `-mean |a - reference|^2`: pictures that the layer cannot tell from another one.

    Args:
      layer: name of the layer.
      reference: its value on the other picture without the axis of pictures, `[..., C]`, channels
        last.
    """
    reference = np.asarray(reference)
    return Term((reference,), _difference, layer, (reference.ndim,))


def caricature(
    layer: str, reference: Array, *, power: jax.Array | float = 1.0, each: bool = False
) -> Term:
    """Returns `a·r max(.1, cos)^power`: what the layer sees in a picture, drawn larger.

    Args:
      layer: name of the layer.
      reference: the layer's value on the picture, `[h, w, C]`, `[T, C]` or `[C]`, channels last.
      power: as for `direction`.
      each: whether an axis of items stands in front, one reference a picture.
    """
    reference = np.asarray(reference)
    return Term((reference, power), _caricature, layer, (reference.ndim - each, 0))


def interpolation(layer: str, first: PyTree, second: PyTree) -> Term:
    """Returns one unit mixed into another over the pictures of an item (`variants`), in even steps.

    Args:
      layer: name of the layer.
      first: index of the unit that the first picture shows alone.
      second: index of the unit that the last one shows alone.
    """
    return Term((first, second), _interpolation, layer, (0, 0), True)


def alignment(layer: str) -> Term:
    """Returns `-sum_d mean|a_i - a_{i+d}|^2 / 2^d`: neighbours among an item's pictures stay alike.

    Args:
      layer: name of the layer.
    """
    return Term((), _alignment, layer)


def diversity(layer: str) -> Term:
    """Returns minus the mean likeness of the Gram matrices of an item's pictures (`variants` above
    1).

    Olah et al. 2017: likeness is the cosine of two Gram matrices of channels over places.

    Args:
      layer: name of the layer.
    """
    return Term((), _diversity, layer)


def l1(centre: jax.Array | float = 0.5) -> Term:
    """Returns `sum |x - centre|` of the picture; subtract it.

    Args:
      centre: number or colour `[C]` in [0, 1].
    """
    return Term((centre,), _l1, None, (0,))


def l2(centre: jax.Array | float = 0.5) -> Term:
    """Returns `sqrt(1e-6 + sum (x - centre)^2)` of the picture; subtract it.

    Args:
      centre: number or colour `[C]` in [0, 1].
    """
    return Term((centre,), _l2, None, (0,))


def total_variation() -> Term:
    """Returns the sum of absolute differences between neighbouring pixels; subtract it."""
    return Term((), _total_variation)


def blur() -> Term:
    """Returns `.5 sum (x - blurred x)^2` where the blurred picture is held: subtract it to blur a
    little every step (kernel of 3 x 3: 1 in the middle, .5 around).
    """
    return Term((), _blur)


def picture_difference(reference: jax.Array) -> Term:
    """Returns the mean squared distance to a picture `[H, W, C]`; subtract it to stay near.

    Args:
      reference: `[H, W, C]` in [0, 1].
    """
    return Term((np.asarray(reference),), _picture_difference, None, (3,))


def _places(value: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, value.ndim - 1))


def _channel(seen: Seen, value: jax.Array, unit: jax.Array) -> jax.Array:
    # The mean before the choice: a gather of one of C numbers, whose gradient costs next to
    # nothing.
    return value.mean(_places(value))[:, unit].mean()


def _at(value: jax.Array, place: Sequence[PyTree]) -> jax.Array:
    """`[V, C]`: a layer's value at one place."""
    for coordinate in place:
        value = jax.lax.dynamic_index_in_dim(value, coordinate, 1, keepdims=False)
    return value


def _neuron(seen: Seen, value: jax.Array, unit: jax.Array, place: jax.Array) -> jax.Array:
    return _at(value, [place[i] for i in range(value.ndim - 2)])[:, unit].mean()


def _middle_neuron(seen: Seen, value: jax.Array, unit: jax.Array) -> jax.Array:
    middle = [n // 2 for n in value.shape[1:-1]]
    return _at(value, middle)[:, unit].mean()


def _along(value: jax.Array, vector: jax.Array, power: jax.Array) -> jax.Array:
    dot = (value * vector).sum(-1)
    # The floor inside the root keeps the slope finite where a layer is silent.
    length = jnp.sqrt((value**2).sum(-1) + 1e-8) * jnp.sqrt((vector**2).sum() + 1e-8)
    return dot * jnp.maximum(0.1, dot / length) ** power


def _direction(seen: Seen, value: jax.Array, vector: jax.Array, power: jax.Array) -> jax.Array:
    return _along(value, vector, power).mean()


def _direction_at(
    seen: Seen, value: jax.Array, vector: jax.Array, power: jax.Array, place: jax.Array
) -> jax.Array:
    here = _at(value, [place[i] for i in range(value.ndim - 2)])
    return _along(here, vector, power).mean()


def _square(seen: Seen, value: jax.Array) -> jax.Array:
    return (value**2).mean()


def _logit(seen: Seen, outputs: jax.Array, target: jax.Array) -> jax.Array:
    return outputs[:, target].mean()


def _contrast(seen: Seen, outputs: jax.Array, target: jax.Array) -> jax.Array:
    return (outputs[:, target] - outputs.mean(-1)).mean()


def _probability(seen: Seen, outputs: jax.Array, target: jax.Array) -> jax.Array:
    return jax.nn.softmax(outputs)[:, target].mean()


def _difference(seen: Seen, value: jax.Array, reference: jax.Array) -> jax.Array:
    return -((value - reference) ** 2).mean()


def _caricature(seen: Seen, value: jax.Array, reference: jax.Array, power: jax.Array) -> jax.Array:
    axes = tuple(range(1, value.ndim))
    dot = (value * reference).sum(axes)
    length = jnp.sqrt((value**2).sum(axes) + 1e-8) * jnp.sqrt((reference**2).sum() + 1e-8)
    return (dot * jnp.maximum(0.1, dot / length) ** power).mean()


def _interpolation(seen: Seen, value: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    # A picture may have several views: each has the share of its picture.
    share = jnp.repeat(jnp.linspace(0, 1, len(seen.pictures)), len(value) // len(seen.pictures))
    means = value.mean(_places(value))
    return ((1 - share) * means[:, first] + share * means[:, second]).mean()


def _alignment(seen: Seen, value: jax.Array) -> jax.Array:
    # Farther neighbours count half as much each; beyond four it no longer shows.
    terms = [((value[d:] - value[:-d]) ** 2).mean() / 2**d for d in range(1, min(5, len(value)))]
    found: jax.Array = -sum(terms, start=jnp.float32(0))
    return found


def _diversity(seen: Seen, value: jax.Array) -> jax.Array:
    flat = value.reshape(len(value), -1, value.shape[-1])
    gram = jnp.einsum("vpc,vpd->vcd", flat, flat)
    # At length 1, so that a product is a cosine; a silent layer has none.
    gram = gram / jnp.sqrt((gram**2).sum((1, 2), keepdims=True) + 1e-12)
    likeness = (gram[:, None] * gram[None]).sum((2, 3))
    return -(likeness.sum() - jnp.trace(likeness)) / len(value)


def _l1(seen: Seen, outputs: PyTree, centre: jax.Array) -> jax.Array:
    return jnp.abs(seen.pictures - centre).sum((1, 2, 3)).mean()


def _l2(seen: Seen, outputs: PyTree, centre: jax.Array) -> jax.Array:
    # Lucid's constant: a root has no slope at 0, where a grey picture starts.
    return jnp.sqrt(1e-6 + ((seen.pictures - centre) ** 2).sum((1, 2, 3))).mean()


def _total_variation(seen: Seen, outputs: PyTree) -> jax.Array:
    x = seen.pictures
    down, right = jnp.abs(x[:, 1:] - x[:, :-1]), jnp.abs(x[:, :, 1:] - x[:, :, :-1])
    return (down.sum((1, 2, 3)) + right.sum((1, 2, 3))).mean()


def blurred(pictures: jax.Array) -> jax.Array:
    """Returns pictures `[..., H, W, C]` under a kernel of 3 x 3, 1 in the middle and .5 around."""
    wide = jnp.pad(pictures, [(0, 0)] * (pictures.ndim - 3) + [(1, 1), (1, 1), (0, 0)], mode="edge")
    height, width = pictures.shape[-3:-1]
    total = sum(
        (1.0 if (dy, dx) == (1, 1) else 0.5) * wide[..., dy : dy + height, dx : dx + width, :]
        for dy in range(3)
        for dx in range(3)
    )
    return jnp.asarray(total) / 5


def _blur(seen: Seen, outputs: PyTree) -> jax.Array:
    # Held, a step goes towards the blurred picture, as one step of blurring would.
    held = jax.lax.stop_gradient(blurred(seen.pictures))
    return 0.5 * ((seen.pictures - held) ** 2).sum((1, 2, 3)).mean()


def _picture_difference(seen: Seen, outputs: PyTree, reference: jax.Array) -> jax.Array:
    return ((seen.pictures - reference) ** 2).mean()


# Formulas over the picture itself: they steer the optimisation and are no part of what is reported.
PENALTIES = frozenset({_l1, _l2, _total_variation, _blur, _picture_difference})
