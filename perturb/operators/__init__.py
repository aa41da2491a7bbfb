"""What a masked pixel becomes: blurred, faded, replaced by a colour, by noise or by another image.

An operator prepares a reference from the image once, then blends image and reference under a mask:
`apply(prepare(image, key), mask)` is the image where the mask is 1 and fully perturbed where it is
0. Everything acts on one image `[H, W, C]` in [0, 1] (or `[L, C]`, `[D, H, W, C]`), in pixel space.

>>> import jax, jax.numpy as jnp
>>> image = jax.random.uniform(jax.random.key(0), (32, 32, 3))
>>> operator = Blur()
>>> bool((operator.apply(operator.prepare(image, None), jnp.ones((32, 32))) == image).all())
True
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from perturb import display, inputs, messages, registry
from perturb._numerics.xla import by_platform
from perturb.operators._blurs import median, pyramid
from perturb.types import ArrayLike, PyTree

__all__ = [
    "DEFAULT",
    "NAMES",
    "Alternate",
    "Blur",
    "Fade",
    "Noise",
    "Operator",
    "Replace",
    "Shuffled",
    "at_step",
    "get",
    "median",
    "one_step_each",
    "parts",
    "pyramid",
]


class Operator(Protocol):
    """How pixels are removed; registered as a pytree so that its arrays are traced.

    Where an operator also has `at(reference, mask, step)`, a step of an optimisation uses that; the
    checks of binary masks, scores and floors use `apply`.
    """

    def prepare(self, image: jax.Array, key: jax.Array | None) -> PyTree:
        """Returns what `apply` needs of one `image` `[*size, C]`.

        Args:
          image: `[*size, C]` in [0, 1].
          key: random key of the operator's noise; None where it needs none.
        """

    def apply(self, reference: PyTree, mask: jax.Array) -> jax.Array:
        """Returns the image `[*size, C]` perturbed where `mask` `[*size]` is 0.

        Args:
          reference: pytree of arrays, what `prepare` returned.
          mask: `[*size]` in [0, 1], 1 where the image is kept.
        """


class _Place(NamedTuple):
    """Levels `first`, `first + stride`, and `top` such steps on: numbers, or scalars that are
    traced.
    """

    first: PyTree
    stride: jax.Array | float
    top: jax.Array | float


@jax.custom_vjp
def _between(levels: jax.Array, mask: jax.Array, place: _Place) -> jax.Array:
    """Linear interpolation between those of the levels `[L, *size, C]` that `place` names, from
    mask 0 to 1.

    As a sum over all levels rather than a gather, and with the slopes of a gather: a mask of
    exactly 1 has slope zero, every other integer the slope towards the next level.
    """
    return _between_forward(levels, mask, place)[0]


def _between_forward(levels: jax.Array, mask: jax.Array, place: _Place) -> tuple[jax.Array, PyTree]:
    kept = levels, mask, place
    return by_platform(_of_two_levels, _over_levels(_shown), *kept), kept


def _over_levels(way: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns `way(levels, numbers, mask, place, ...)` over all levels, or over two of them.

    Two are enough where every slot blends just two. What is left out has no weight, so no bit
    depends on it. But a CPU waits for memory: it would read ten pictures where a blend shows two.
    """

    def of_all(levels: jax.Array, *rest: object) -> jax.Array:
        return way(levels, range(len(levels)), *rest)

    def of_two(levels: jax.Array, mask: jax.Array, place: _Place, *rest: object) -> jax.Array:
        ends = place.first, place.first + place.stride
        low, high = jnp.minimum(*ends), jnp.maximum(*ends)
        # The sum begins with a level without weight, number -1, as that of all does unless it
        # begins with `low`: of two products alone a compiler may round whichever it likes before it
        # adds the other.
        shown = [levels[low], levels[low], levels[high]]
        return way(shown, (place.top - 2, low, high), mask, place, *rest)

    # The choice is made for a batch of slots as a whole, which only a batching rule can see.
    one = jax.custom_batching.custom_vmap(of_all)

    @one.def_vmap
    def slots(_: int, batched: PyTree, *args: PyTree) -> tuple[jax.Array, bool]:
        axes = jax.tree.map(lambda each: 0 if each else None, tuple(batched))
        every, fewer = (jax.vmap(of, axes) for of in (of_all, of_two))
        # The same operator in all slots, as in `apply`: nothing to choose.
        if not batched[2].top:
            return every(*args), True
        first, stride, top = args[2]
        # Neither of the two may be level 0: only then does the full sum begin with a weightless
        # term as well. One choice for all slots, so that a branch is a branch; under vmap it would
        # be both.
        two = (top == 1) & (first > 0) & (first + stride > 0)
        return jax.lax.cond(two.all(), fewer, every, *args), True

    return one


def _shown(
    levels: Sequence[jax.Array], numbers: Sequence[PyTree], mask: jax.Array, place: _Place
) -> jax.Array:
    return _blend(levels, _weights(numbers, mask, place))


def _of_two_levels(levels: jax.Array, mask: jax.Array, place: _Place) -> jax.Array:
    """Blends by a gather: a GPU is limited by memory, and a pixel needs two levels of eight."""
    low, high, part = _neighbours(levels, mask, place)
    return (1 - part[..., None]) * low + part[..., None] * high


def _neighbours(
    levels: jax.Array, mask: jax.Array, place: _Place
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The level below and above every pixel, and how far between them it lies; the last has none
    above.
    """
    first, stride, top = place
    k = jnp.clip(jnp.floor(mask * top), 0, top)
    at = k.astype(jnp.int32)
    low, high = (
        jnp.take_along_axis(levels, (first + stride * n)[None, ..., None], 0, mode="clip")[0]
        for n in (at, jnp.minimum(at + 1, top))
    )
    return low, high, mask * top - k


def _between_backward(kept: PyTree, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    """One more blend, of the slopes; left to autodiff, every level is multiplied and summed by
    itself.
    """
    levels, mask, place = kept
    weights = _weights(range(len(levels)), mask, place)
    slopes = place.top * by_platform(_slope_of_two, _over_levels(_slope), *kept, g)
    return jnp.stack([w[..., None] * g for w in weights]), slopes, None


def _slope(
    levels: Sequence[jax.Array],
    numbers: Sequence[PyTree],
    mask: jax.Array,
    place: _Place,
    g: jax.Array,
) -> jax.Array:
    first, stride, top = place
    k = jnp.floor(mask * top)
    low, high = first + stride * k, first + stride * (k + 1)
    slopes = [jnp.where(k >= top, 0.0, (high == n) * 1.0 - (low == n) * 1.0) for n in numbers]
    return (g * _blend(levels, slopes)).sum(-1)


def _slope_of_two(levels: jax.Array, mask: jax.Array, place: _Place, g: jax.Array) -> jax.Array:
    # Gathered again: kept from the forward pass the two would be written out and read, six times
    # the mask.
    levels, mask = jax.lax.optimization_barrier((levels, mask))
    low, high, _ = _neighbours(levels, mask, place)
    return (g * (high - low)).sum(-1)


def _weights(numbers: Sequence[PyTree], mask: jax.Array, place: _Place) -> list[jax.Array]:
    first, stride, top = place
    k = jnp.floor(mask * top)
    part = mask * top - k
    low, high = first + stride * k, first + stride * (k + 1)
    inside = [jnp.where(low == n, 1 - part, 0) + jnp.where(high == n, part, 0) for n in numbers]
    last = first + stride * top
    return [
        jnp.where((n == last) & (k >= top), 1.0, w) for n, w in zip(numbers, inside, strict=True)
    ]


def _blend(levels: Sequence[jax.Array], weights: Sequence[jax.Array]) -> jax.Array:
    total = weights[0][..., None] * levels[0]
    for w, level in zip(weights[1:], levels[1:], strict=True):
        total = total + w[..., None] * level
    return total


_between.defvjp(_between_forward, _between_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur:
    """A pyramid of Gaussian blurs; the mask says which level a pixel shows (Fong et al. 2019, 3.1).

    Attributes:
      strength: sigma of the strongest blur as a share of the shorter side; 20 px at 224 by
        default.
      levels: number of levels, sigmas evenly spaced down to 0. Two levels blend image and blur.
      padding: "edge", or the colour beyond the border, a number or `[C]`. The original pads with
        zeros after normalisation, which is the data set's mean colour.
      pixels: sigma of the strongest blur in px, in place of `strength` (the paper's 20).
      aspect: factors of sigma, one an axis, such as `(0, 1, 1)` for clips that are blurred frame by
        frame; the shorter side is then that of `size / aspect`. None is 1 along all.
    """

    strength: float = dataclasses.field(default=20 / 224, metadata={"static": True})
    levels: int = dataclasses.field(default=8, metadata={"static": True})
    padding: ArrayLike = dataclasses.field(default="edge", metadata={"static": True})
    pixels: float | None = dataclasses.field(default=None, metadata={"static": True})
    aspect: tuple[float, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def prepare(self, image: jax.Array, key: jax.Array | None) -> jax.Array:
        """Returns the levels `[L, *size, C]`, most blurred first."""
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        size = image.shape[:-1]
        # An axis that is not blurred has no say in how strong the blur is.
        sides = [n / a for n, a in zip(size, self.aspect or (1,) * len(size), strict=True) if a]
        strongest = self.pixels or self.strength * min(sides)
        sigmas = [strongest * (1 - i / (self.levels - 1)) for i in range(self.levels)]
        return pyramid(image, sigmas, padding=self.padding, aspect=self.aspect)

    def apply(self, reference: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns `[*size, C]` at the levels that `mask` `[*size]` names."""
        return _between(reference, mask, _Place(0, 1, self.levels - 1))


class _Blend:
    """Operators that blend the image with one other picture: `m x + (1 - m) r`."""

    def apply(self, reference: tuple[jax.Array, jax.Array], mask: jax.Array) -> jax.Array:
        """Returns `[*size, C]`: the image where `mask` is 1, the other picture where it is 0."""
        image, other = reference
        # Not `other + m (image - other)`, which misses the image by a rounding where the mask is 1.
        return mask[..., None] * image + (1 - mask[..., None]) * other


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fade(_Blend):
    """Fades to one colour.

    Attributes:
      colour: `[C]` or a number in [0, 1]; None is the mean colour of the image at hand.
    """

    colour: PyTree = None

    def prepare(self, image: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the image and the colour, both `[*size, C]`."""
        # Broadcast to a picture, so that all operators of this kind blend two arrays of one shape.
        colour = image.mean(tuple(range(image.ndim - 1))) if self.colour is None else self.colour
        return image, jnp.broadcast_to(jnp.asarray(colour, image.dtype), image.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(_Blend):
    """Replaces pixels by noise around the image's mean colour.

    Attributes:
      deviation: standard deviation of the noise, in units of the image's own deviation.
      draws: pictures of noise that `Alternate` shows step by step; alone, or as the first operator,
        it shows one.
      common: the same patterns whatever the key, for all pictures.
    """

    deviation: jax.Array | float = 1.0
    draws: int = dataclasses.field(default=1, metadata={"static": True})
    common: bool = dataclasses.field(default=False, metadata={"static": True})

    def prepare(self, image: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the image and its noise; `key` decides the noise."""
        return image, self.pictures(image, key)[0]

    def pictures(self, image: jax.Array, key: jax.Array | None) -> jax.Array:
        """Returns `[draws, *size, C]`: a noise, its mirror image, both with their sign turned, then
        the next.

        Args:
          image: `[*size, C]` in [0, 1].
          key: decides the noise.
        """
        axes = tuple(range(image.ndim - 1))
        mean, std = image.mean(axes), image.std(axes)
        key = inputs.random_key(None if self.common else key)
        drawn: list[jax.Array] = []
        for n in range(0, self.draws, 4):
            # The first is that of the key itself, however many there are.
            own = jax.random.fold_in(key, n) if n else key
            # Of the picture's kind: where 64-bit arithmetic is on, it would be float64 for itself.
            noise = jax.random.normal(own, image.shape, mean.dtype)
            # What a mask gains from one picture's chance it loses in its opposite. With the mirror
            # image a search shows the same views of a picture and of its mirror image.
            drawn += [noise, jnp.flip(noise, -2), -noise, jnp.flip(-noise, -2)]
        # Clipped, for models expect pixels in [0, 1]; near black and white that takes some of the
        # noise.
        return jnp.clip(mean + self.deviation * std * jnp.stack(drawn[: self.draws]), 0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shuffled(_Blend):
    """Replaces pixels by those of another picture, drawn by key from a bank.

    Attributes:
      bank: `[N, *size, C]` pictures of the same data.
    """

    bank: jax.Array

    def __repr__(self) -> str:
        return display.summary(self)

    def prepare(self, image: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the image and the picture drawn for it."""
        i = 0 if key is None else jax.random.randint(key, (), 0, len(self.bank))
        return image, self.bank[i]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replace(_Blend):
    """Replaces pixels by what a user's function makes of the image (inpainting, another blur).

    Attributes:
      function: `image [*size, C] -> picture [*size, C]`, written in JAX.
    """

    function: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})

    def prepare(self, image: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the image and its replacement."""
        return image, jnp.broadcast_to(self.function(image), image.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternate:
    """Uses several operators in turn during the search: a mask must not rely on one fill alone.

    Attributes:
      operators: at least two of this module; the first is the one that masks are scored with.
    """

    operators: tuple[Operator, ...]

    def prepare(self, image: jax.Array, key: jax.Array | None) -> jax.Array:
        """Returns the levels `[L, *size, C]` of all: what the first needs, and what each further
        one adds.
        """
        if len(self.operators) < 2:
            raise ValueError(f"operators must be at least two, got {self.operators}")
        for operator in self.operators:
            # Levels of all operators are laid into one array, which needs to know how each uses its
            # own.
            if not isinstance(operator, (Blur, _Blend)):
                raise ValueError(
                    f"operators in turn must be of perturb.operators, got {operator!r}"
                )
        levels = []
        for n, operator in enumerate(self.operators):
            if n and isinstance(operator, Noise):
                levels.append(operator.pictures(image, key))
                continue
            reference = operator.prepare(image, key)
            if isinstance(operator, _Blend):
                # The picture itself is there already, as the last level of the first.
                reference = jnp.stack(reference[::-1])[: 1 if n else 2]
            levels.append(reference)
        return jnp.concatenate(levels)

    def apply(self, reference: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns `[*size, C]` as the first shows it."""
        place = self._places()[0]
        # Scores use the first operator alone: the other levels are not read.
        return _between(reference[: place.top + 1], mask, place)

    def at(self, reference: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        """Returns `[*size, C]` under the operator of this step.

        Each operator has two steps in a row, because every other step is shown in the mirror.

        Args:
          reference: `[L, *size, C]`, what `prepare` returned.
          mask: `[*size]` in [0, 1].
          step: number of the step, from 0; may be traced.
        """
        places = self._steps()
        turn = step % len(places)
        # Levels of all operators lie in one array: choosing one is choosing a place in it, by
        # numbers that may be traced. A branch under vmap would compute every operator.
        columns = (jnp.asarray(column)[turn] for column in zip(*places, strict=True))
        return _between(reference, mask, _Place(*columns))

    def _steps(self) -> list[_Place]:
        """The places of all steps until they repeat: of a noise each step shows the next draw."""
        draws = [o.draws if n and isinstance(o, Noise) else 1 for n, o in enumerate(self.operators)]
        found = []
        for shown in range(0, 2 * math.lcm(*draws), 2):
            for place, number in zip(self._places(), draws, strict=True):
                for draw in (shown % number, (shown + 1) % number):
                    # The picture stays where it is.
                    first, stride = place.first + draw, place.stride - draw
                    found.append(place._replace(first=first, stride=stride))
        return found

    def _places(self) -> list[_Place]:
        places, start, image = [], 0, 0
        for n, operator in enumerate(self.operators):
            depth = operator.levels if isinstance(operator, Blur) else 1 if n else 2
            # A blend goes from its own level to the picture, wherever that lies.
            stride, top = (1, depth - 1) if depth > 1 else (image - start, 1)
            places.append(_Place(start, stride, top))
            # The picture is the last level of the first operator; blends further on point back to
            # it.
            image = image or depth - 1
            start += operator.draws if n and isinstance(operator, Noise) else depth
        return places


def at_step(operator: Operator, reference: PyTree, mask: jax.Array, step: jax.Array) -> jax.Array:
    """Returns `[*size, C]` as a step sees it: by `at` where the operator changes with the step.

    Args:
      operator: any operator.
      reference: pytree of arrays, what its `prepare` returned.
      mask: `[*size]` in [0, 1].
      step: number of the step, from 0; may be traced.
    """
    if hasattr(operator, "at"):
        found: jax.Array = operator.at(reference, mask, step)
        return found
    return operator.apply(reference, mask)


def one_step_each(operator: Operator) -> tuple[int, ...]:
    """Returns numbers of steps at which `at_step` shows each of the fills once.

    Args:
      operator: any operator.
    """
    if isinstance(operator, Alternate):
        return tuple(2 * turn for turn in range(len(operator.operators)))
    return (0,)


# One line a name: what makes the operator, or where it is (see `perturb.registry`).
_NAMED: dict[str, Callable[[], Operator] | str] = {
    "blur": Blur,
    "fade": functools.partial(Fade, colour=0.5),
    "mean": Fade,
    "noise": Noise,
}
NAMES = tuple(_NAMED)
# The default of the search: a region found under one fill alone relies on that fill's quirks.
DEFAULT = "blur+mean+noise"


def parts(operator: str) -> tuple[str, ...]:
    """Returns the names in `operator`, one or several joined by "+", the one that scores masks
    first.

    Args:
      operator: a name, or several joined by "+".

    >>> parts(DEFAULT)
    ('blur', 'mean', 'noise')
    """
    return tuple(operator.split("+"))


def get(operator: str | Operator) -> Operator:
    """Returns the operator of that name: "blur", "fade" (to grey), "mean" (colour) or "noise".

    Several names joined by "+", as in `DEFAULT`, are those operators in turn: `Alternate`.

    Args:
      operator: a name, several joined by "+", or an operator, which is returned as it is.
    Raises:
      ValueError: if a name is unknown or given twice.

    >>> [type(turn).__name__ for turn in get(DEFAULT).operators]
    ['Blur', 'Fade', 'Noise']
    """
    if not isinstance(operator, str):
        return operator
    several = parts(operator)
    if not set(several) <= set(NAMES) or len(set(several)) < len(several):
        raise ValueError(
            f"operator must be one of {', '.join(NAMES)}, or some of them in turn, as in "
            f"{DEFAULT}, got {messages.short(operator, 40)}{messages.did_you_mean(operator, NAMES)}"
        )
    if len(several) > 1:
        return Alternate(operators=tuple(get(name) for name in several))
    made: Operator = registry.resolve(_NAMED[operator])()
    return made
