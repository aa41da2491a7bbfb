"""Small changes of the view, drawn anew every step and for every picture: what survives them is no
artefact.

A transform draws its numbers, `draw(key, size, progress)` with progress from 0 to 1, and gives the
view of a picture `[H, W, C]` under them, `view(drawn, picture)`; in a preset they follow one
another. Every picture has its own draws from its own key, so that it does not depend on its
neighbours. With all ranges 0 a transform returns the picture bit for bit. Drawing is apart from the
view because a compiler that sees both draws the numbers again for every pixel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from perturb.types import PyTree

__all__ = ["Crop", "Jitter", "Mirror", "Noise", "Roll", "Transform", "apply"]


class Transform(Protocol):
    """A change of the view, with numbers that are drawn anew every step."""

    def draw(self, key: jax.Array, size: tuple[int, ...], progress: PyTree) -> PyTree:
        """Returns the numbers of one view, a pytree of arrays.

        Args:
          key: random key of the step and the picture.
          size: `(H, W, C)` of the picture.
          progress: from 0, the first step, to 1, the last.
        """

    def view(self, drawn: PyTree, picture: jax.Array) -> jax.Array:
        """Returns the picture as it is shown, `[H, W, C]`.

        Args:
          drawn: pytree of arrays, what `draw` returned.
          picture: `[H, W, C]` in [0, 1].
        """


def draw(
    transforms: tuple[Transform, ...], key: jax.Array, size: tuple[int, ...], progress: PyTree
) -> tuple[PyTree, ...]:
    """Returns the numbers of all transforms, those of the i-th under the key `fold_in(key, i)`."""
    return tuple(
        t.draw(jax.random.fold_in(key, i), size, progress) for i, t in enumerate(transforms)
    )


def apply(
    transforms: tuple[Transform, ...], drawn: tuple[PyTree, ...], picture: jax.Array
) -> jax.Array:
    """Returns the picture after all transforms."""
    for transform, numbers in zip(transforms, drawn, strict=True):
        picture = transform.view(numbers, picture)
    return picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter:
    """Shift, scale and rotation in one step.

    Lucid pads, shifts, scales, rotates and shifts again, each with its own interpolation; here the
    whole is one affine map, read once by bilinear interpolation. Shifts are whole numbers before
    the rotation, as many up as down, so that their mean is 0.

    Attributes:
      first: px, the largest shift before scale and rotation.
      last: px, the largest shift after them.
      scales: factors to draw from, positive numbers.
      degrees: angles to draw from, in degrees.
      fill: value outside the picture.
    """

    first: int = 4
    last: int = 2
    scales: tuple[float, ...] = (1.0,)
    degrees: tuple[float, ...] = (0.0,)
    fill: float = 0.5

    def draw(self, key: jax.Array, size: tuple[int, ...], progress: PyTree) -> tuple[PyTree, ...]:
        """Returns matrix `[2, 2]` and offset `[2]` of the map from a view's pixels to the
        picture's.
        """
        first, last, scale, angle = jax.random.split(key, 4)
        s = jax.random.choice(scale, jnp.asarray(self.scales, jnp.float32))
        a = jax.random.choice(angle, jnp.asarray(np.deg2rad(self.degrees), jnp.float32))
        matrix = jnp.stack([jnp.cos(a), -jnp.sin(a), jnp.sin(a), jnp.cos(a)]).reshape(2, 2) / s
        before = jax.random.randint(first, (2,), -self.first, self.first + 1)
        after = jax.random.randint(last, (2,), -self.last, self.last + 1).astype(jnp.float32)
        # The later shift passes through the matrix; one offset then holds both.
        moved = matrix[:, 0] * after[0] + matrix[:, 1] * after[1]
        return matrix, before.astype(jnp.float32) + moved

    def view(self, drawn: tuple[PyTree, ...], picture: jax.Array) -> jax.Array:
        """Returns the view."""
        turn = np.deg2rad(min(45.0, max(map(abs, self.degrees))))
        # How many pixels of the view can read one pixel of the picture, for the transpose below.
        reach = max(self.scales) * (np.cos(turn) + np.sin(turn))
        return _affine(picture, *drawn, self.fill, math.ceil(reach - 0.5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roll:
    """A shift of whole pixels, what leaves on one side enters on the other (DeepDream).

    Attributes:
      pixels: the largest shift along each side, px.
    """

    pixels: int = 32

    def draw(self, key: jax.Array, size: tuple[int, ...], progress: PyTree) -> jax.Array:
        """Returns the shift `[2]`."""
        return jax.random.randint(key, (2,), -self.pixels, self.pixels + 1)

    def view(self, drawn: jax.Array, picture: jax.Array) -> jax.Array:
        """Returns the view."""
        height, width, _ = picture.shape
        # The same part of a picture laid twice beside itself: a roll by a traced number, without a
        # gather.
        tall = jnp.concatenate([picture, picture], 0)
        rows = jax.lax.dynamic_slice_in_dim(tall, -drawn[0] % height, height, 0)
        wide = jnp.concatenate([rows, rows], 1)
        return jax.lax.dynamic_slice_in_dim(wide, -drawn[1] % width, width, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
    """A square crop, enlarged to the whole (MACO).

    Attributes:
      side: mean side as a share of the picture at the first step, and at the last.
      spread: standard deviation of the side.
      smallest: least side, as a share of the picture.
      centre: standard deviation of the crop's middle around .5.
    """

    side: tuple[float, float] = (0.5, 0.05)
    spread: float = 0.05
    smallest: float = 0.05
    centre: float = 0.15

    def draw(self, key: jax.Array, size: tuple[int, ...], progress: PyTree) -> tuple[PyTree, ...]:
        """Returns the weights of rows `[H, H]` and of columns `[W, W]`."""
        where, how = jax.random.split(key)
        mean = self.side[0] + (self.side[1] - self.side[0]) * progress
        side = jnp.clip(mean + self.spread * jax.random.normal(how), self.smallest, 1.0)
        middle = 0.5 + self.centre * jax.random.normal(where, (2,))
        # The crop stays within the picture: nothing outside has to be made up.
        middle = jnp.clip(middle, side / 2, 1 - side / 2)
        return _stretch(size[0], middle[0], side), _stretch(size[1], middle[1], side)

    def view(self, drawn: tuple[PyTree, ...], picture: jax.Array) -> jax.Array:
        """Returns the view."""
        rows, columns = drawn
        # Two products, one an axis: their gradient is two products again, where that of a
        # gather scatters.
        tall = jnp.einsum("oh,hwc->owc", rows, picture, precision="highest")
        return jnp.einsum("pw,owc->opc", columns, tall, precision="highest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """Adds normal and uniform noise.

    Attributes:
      normal: standard deviation of the normal noise, in units of the pixels.
      uniform: half the width of the uniform noise, likewise.
    """

    normal: float = 0.08
    uniform: float = 0.04

    def draw(self, key: jax.Array, size: tuple[int, ...], progress: PyTree) -> jax.Array:
        """Returns the noise `[H, W, C]`."""
        first, second = jax.random.split(key)
        drawn = self.uniform * jax.random.uniform(second, size, minval=-1.0)
        return drawn + self.normal * jax.random.normal(first, size)

    def view(self, drawn: jax.Array, picture: jax.Array) -> jax.Array:
        """Returns the view."""
        return picture + drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirror:
    """Left and right exchanged, half of the time."""

    def draw(self, key: jax.Array, size: tuple[int, ...], progress: PyTree) -> jax.Array:
        """Returns whether."""
        return jax.random.bernoulli(key)

    def view(self, drawn: jax.Array, picture: jax.Array) -> jax.Array:
        """Returns the view."""
        return jnp.where(drawn, picture[:, ::-1], picture)


def _stretch(size: int, middle: jax.Array, side: jax.Array) -> jax.Array:
    """Weights `[size, size]` of a linear enlargement of the part of `side` around `middle`."""
    # In pixels around the middle: halves and whole numbers, so that the whole picture is read
    # exactly.
    source = (middle * size - 0.5) + (jnp.arange(size) + 0.5 - size / 2) * side
    source = jnp.clip(source, 0, size - 1)
    return jnp.maximum(0, 1 - jnp.abs(source[:, None] - jnp.arange(size)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _affine(
    picture: jax.Array, matrix: jax.Array, offset: jax.Array, fill: float, reach: int
) -> jax.Array:
    """Reads the picture at `matrix (q - middle) + middle + offset` for every pixel q,
    bilinearly.
    """
    height, width, channels = picture.shape
    y, x = _positions(height, width, matrix, offset)
    top, left = jnp.floor(y), jnp.floor(x)
    row, column = top.astype(jnp.int32), left.astype(jnp.int32)
    outside = jnp.ones_like(y)
    places = []
    for dy in (0, 1):
        for dx in (0, 1):
            inside = _within(row + dy, height) & _within(column + dx, width)
            weight = jnp.where(inside, _tent(y - top - dy) * _tent(x - left - dx), 0)
            outside = outside - weight
            places.append((jnp.where(inside, (row + dy) * width + column + dx, 0), weight))
    return _gathered(picture.reshape(-1, channels), places) + (fill * outside)[..., None]


def _within(place: jax.Array, size: int) -> jax.Array:
    return (place >= 0) & (place < size)


def _gathered(flat: jax.Array, places: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The weighted sum of rows of `flat` `[n, C]` at these places, all within, `[H, W, C]`."""
    # Worked out once: fused with the reading, the pixels that are read, with all that leads to
    # them, would be worked out again for every place.
    flat, places = jax.lax.optimization_barrier((flat, places))
    terms = [w[..., None] * flat.at[at].get(mode="promise_in_bounds") for at, w in places]
    return functools.reduce(jnp.add, terms)


def _affine_forward(
    picture: jax.Array, matrix: jax.Array, offset: jax.Array, fill: float, reach: int
) -> tuple[jax.Array, PyTree]:
    return _affine(picture, matrix, offset, fill, reach), (matrix, offset)


def _affine_backward(fill: float, reach: int, kept: PyTree, g: jax.Array) -> tuple[PyTree, ...]:
    """The transpose, read and not written: of an affine map the pixels that read a place lie
    together, and a scatter is ten times as slow on a CPU.
    """
    matrix, offset = kept
    height, width, channels = g.shape
    cy, cx = (height - 1) / 2, (width - 1) / 2
    a, b, c, d = matrix.reshape(-1)
    # The inverse map finds the view's pixel nearest to each pixel of the picture.
    det = a * d - b * c
    rows, columns = jnp.arange(height, dtype=g.dtype)[:, None], jnp.arange(width, dtype=g.dtype)
    y, x = rows - cy - offset[0], columns - cx - offset[1]
    exact_y, exact_x = (d * y - b * x) / det + cy, (a * x - c * y) / det + cx
    near_y, near_x = jnp.round(exact_y), jnp.round(exact_x)
    # How far from here that pixel reads, of which its neighbours' places follow.
    off_y = a * (near_y - exact_y) + b * (near_x - exact_x)
    off_x = c * (near_y - exact_y) + d * (near_x - exact_x)
    # Zeros around the slopes in place of a test at every read: pixels farther out are as good as
    # those that read nothing of the picture.
    rim = 2 * reach + 1
    wide = width + 2 * rim
    flat = jnp.pad(g, ((rim, rim), (rim, rim), (0, 0))).reshape(-1, channels)
    row = jnp.clip(near_y.astype(jnp.int32), -reach - 1, height + reach) + rim
    column = jnp.clip(near_x.astype(jnp.int32), -reach - 1, width + reach) + rim
    places = []
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = _tent(off_y + (a * dy + b * dx)) * _tent(off_x + (c * dy + d * dx))
            places.append((row * wide + column + (dy * wide + dx), weight))
    return _gathered(flat, places), None, None


def _tent(distance: jax.Array) -> jax.Array:
    return jnp.maximum(0, 1 - jnp.abs(distance))


def _positions(
    height: int, width: int, matrix: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    cy, cx = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height, dtype=matrix.dtype)[:, None] - cy
    x = jnp.arange(width, dtype=matrix.dtype) - cx
    return (
        matrix[0, 0] * y + matrix[0, 1] * x + cy + offset[0],
        matrix[1, 0] * y + matrix[1, 1] * x + cx + offset[1],
    )


_affine.defvjp(_affine_forward, _affine_backward)
