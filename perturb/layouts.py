"""Where the places and the channels of a layer lie, whatever the framework: one rule for all
methods.

A layer may be `[B, h, w, K]`, `[B, K, h, w]`, tokens `[B, 1 + h w, K]`, ... That is a property of
the layer, not of the network: the model is traced once and the axes of the picture are followed
through it (`perturb.taps.axes`); nothing is computed. What cannot be known is refused, and
`Model(layouts=...)` says it by hand: `{"blocks.3": "BNC"}`, one letter an axis, B the pictures, C
the channels, H and W (D, H and W of volumes, L of signals) places, N tokens.

>>> import jax.numpy as jnp, perturb
>>> def net(w, x):  # channels first inside
...     x = perturb.taps.tag(jnp.moveaxis(x, -1, 1), "pixels")
...     return perturb.taps.tag(x.reshape(len(x), 3, -1), "flat").mean(2)
>>> model, images = perturb.Model(net, ()), jnp.ones((2, 4, 6, 3))
>>> {name: (layout.grid, layout.channels) for name, layout in layouts(model, images).items()}
{'pixels': ((4, 6), 3), 'flat': ((4, 6), 3)}
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from perturb import taps
from perturb.model import Model
from perturb.taps import axes as _axes
from perturb.taps.cut import open_function, tapped
from perturb.taps.scopes import find_names
from perturb.types import ArrayLike, PyTree

__all__ = ["Layout", "layer_layout", "layouts"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a layer `[B, ...]` is laid out.

    Attributes:
      shape: of the layer, the batch included.
      axes: one entry an axis after the first: the axes of the picture that it runs along, outermost
        first, `()` for channels; `(0, 1)` are tokens, row by row.
      sizes: as `axes`, the steps along each.
      before: tokens ahead of the places (a class token, registers); 0 where there are none.
      grid: steps along each axis of the picture; empty where no place is left.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    before: int
    grid: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Number of channels: all axes together that are no places."""
        return math.prod(self.shape[i] for i in self.channel_axes)

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The axes of the channels; several where heads and what is in them are apart."""
        return tuple(i + 1 for i, along in enumerate(self.axes) if not along)

    @property
    def tokens(self) -> bool:
        """Whether several axes of the picture lie in one axis of the layer."""
        return any(len(along) > 1 for along in self.axes)

    def to_places(self, values: jax.Array) -> jax.Array:
        """Returns values of the layer's shape as `[B, *grid, channels]`, tokens without a place
        left out.

        The leading size may be another one.
        """
        order: dict[int, int] = {}
        split, rest = [len(values)], []
        for i, (along, sizes) in enumerate(zip(self.axes, self.sizes, strict=True), 1):
            # A class token and registers stand for no place.
            if len(along) > 1:
                start = self.before
                values = jax.lax.slice_in_dim(values, start, start + math.prod(sizes), axis=i)
            for p, n in zip(along, sizes, strict=True):
                order[p] = len(split)
                split.append(n)
            if not along:
                rest.append(len(split))
                split.append(self.shape[i])
        values = values.reshape(split)
        # Rows before columns, channels last, in whatever order the layer has them.
        values = values.transpose(0, *(order[p] for p in sorted(order)), *rest)
        return values.reshape(len(values), *self.grid, -1)

    def to_channels(self, values: jax.Array) -> jax.Array:
        """Returns `[B, channels]` in a shape that multiplies the layer, every place and token
        alike.
        """
        axes = self.channel_axes
        return values.reshape(
            len(values), *(n if i in axes else 1 for i, n in enumerate(self.shape) if i)
        )


def layouts(model: Model, images: ArrayLike) -> dict[str, Layout]:
    """Returns the layout of every layer of which it is known, by name, in execution order.

    Args:
      model: any model.
      images: `[B, H, W, C]`, or a `jax.ShapeDtypeStruct`.
    """
    return {n: found for n, found in _all(model, images).items() if isinstance(found, Layout)}


def layer_layout(model: Model, images: ArrayLike, layer: str, *, places: bool = True) -> Layout:
    """Returns where the places and channels of a layer lie.

    Args:
      model: any model.
      images: `[B, H, W, C]`, or a `jax.ShapeDtypeStruct`.
      layer: a name of `perturb.taps.names(model, images)`.
      places: whether the layer must have places.
    Raises:
      ValueError: if there is no such layer, if its axes cannot be known and `model.layouts` does
        not say them, or if it has no places.
    """
    known = _all(model, images)
    if layer not in known:
        # The names' own error knows the nearest, and what lies inside loops.
        jax.eval_shape(taps.read(model, layer), _struct(images))
        # Taps take a name with its outermost module too; here names are without it.
        root = next((n for n in known if layer.endswith("/" + n)), None)
        if root is None:
            raise ValueError(f"no layer named {layer!r} has a layout")
        layer = root
    found = known[layer]
    if isinstance(found, str):
        raise ValueError(
            f"layer {layer!r} {found}: say where its axes lie, "
            f"Model(layouts={{{layer!r}: 'BHWC'}}) or 'BCHW', 'BNC', or choose another layer"
        )
    if places and not found.grid:
        raise ValueError(
            f"layer {layer!r} of shape {list(found.shape)} has no places left: choose an earlier "
            "one"
        )
    return found


def _struct(images: PyTree) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(images), getattr(images, "dtype", jnp.float32))


def _all(model: Model, images: ArrayLike) -> dict[str, Layout | str]:
    leaves, tree = jax.tree.flatten(model)
    # Shapes alone are the key of the cache: other weights have the same layouts, and none are kept.
    types = tuple((jnp.shape(v), jnp.result_type(v)) for v in leaves)
    given = _struct(images)
    # Never a batch of one: an axis of size one runs along anything.
    shape = (max(2, given.shape[0]), *given.shape[1:])
    return _traced(tree, types, shape, given.dtype)


@functools.lru_cache(maxsize=64)
def _traced(
    tree: Any, types: Any, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> dict[str, Layout | str]:
    weights = [jax.ShapeDtypeStruct(s, d) for s, d in types]
    model = jax.tree.unflatten(tree, weights)
    images = jax.ShapeDtypeStruct(shape, dtype)
    function, bound = open_function(tapped(model, None))
    closed = jax.make_jaxpr(function)(*bound, images)
    size = len(shape) - 2
    given = [_axes.plain(s) for s, _ in types]
    followed = _axes.follow(closed, [*given, _axes.inputs(shape)])
    said = dict(model.layouts)
    # An engine outside JAX knows its layers itself.
    outside = getattr(model.apply, "letters", lambda name, shape: None)
    found: dict[str, Layout | str] = {}
    for name, (address, aval) in find_names(closed).sites.items():
        if name in said:
            found[name] = _by_hand(said[name], name, aval.shape, shape[1:-1])
        elif letters := outside(name, shape):
            try:
                found[name] = _by_hand(letters, name, aval.shape, shape[1:-1])
            except ValueError as error:  # boxes of a detector are no tokens of patches
                found[name] = f"of shape {list(aval.shape)} has no known places ({error})"
        else:
            found[name] = _read(followed.get(address), aval.shape, size)
    if unknown := [n for n in said if n not in found]:
        raise ValueError(
            f"layouts must name layers of model {model.name}, got {unknown[0]!r}: "
            "perturb.taps.names(model, images) lists them"
        )
    return found


def _read(axes: PyTree, shape: tuple[int, ...], size: int) -> Layout | str:
    """Returns the layout that the axes of a value say, or why there is none."""
    said = f"of shape {list(shape)} "
    if not shape or axes is None:
        return said + "has no axis of pictures"
    kinds = [[f.kind for f in axis] for axis in axes]
    # Attention in windows folds the windows into the batch: such rows are no pictures.
    if kinds[0] != ["b"]:
        if kinds[0] == ["?"]:
            return said + "has axes that cannot be followed"
        mixed = any(k.startswith("b") for k in kinds[0])
        return said + ("mixes pictures and places" if mixed else "does not begin with the pictures")
    along: list[tuple[int, ...]] = []
    sizes: list[tuple[int, ...]] = []
    before, windows = 0, False
    for axis in axes[1:]:
        first, alone = axis[0], _axes.place(axis)
        # Of tokens, the factors of the places alone; what stands before them is kept as a number.
        inner = first.inner if len(axis) == 1 and first.kind == "t" else axis
        if any(f.kind in ("?", "t") for f in inner):
            return said + "has axes that cannot be followed"
        names = [_axes.place((f,)) for f in inner]
        if alone:
            along.append((int(alone[1:]),))
            sizes.append((math.prod(f.size for f in axis),))
        elif all(names):
            along.append(tuple(int(n[1:]) for n in names))
            sizes.append(tuple(f.size for f in inner))
            before = first.before
        elif any(f.kind.startswith("b") for f in axis):
            return said + "mixes pictures and places"
        elif all(f.kind for f in axis):
            windows = True
            along.append((-1,))
            sizes.append((math.prod(f.size for f in axis),))
        else:
            along.append(())
            sizes.append(())
    if windows:
        # Space folded into channels: no axis is free of places, and the last one is what the
        # network reads as channels. Windows beside channels of their own cannot be told from other
        # cuts.
        if size != 2 or len(shape) != 4 or () in along:
            return said + "is cut into windows"
        along, sizes = [(0,), (1,), ()], [(shape[1],), (shape[2],), ()]
    return _layout(said, shape, along, sizes, before, size)


def _layout(
    said: str,
    shape: tuple[int, ...],
    along: Sequence[tuple[int, ...]],
    sizes: Sequence[tuple[int, ...]],
    before: int,
    size: int,
) -> Layout | str:
    flat = [p for axis in along for p in axis]
    if len(set(flat)) != len(flat):
        return said + "has every place twice, as the weights of attention do"
    steps = dict(zip(flat, (n for axis in sizes for n in axis), strict=True))
    # An axis of the picture that was averaged away has one step left.
    grid = tuple(steps.get(p, 1) for p in range(size)) if flat else ()
    return Layout(shape, tuple(along), tuple(sizes), before, grid)


def _by_hand(letters: str, name: str, shape: tuple[int, ...], picture: tuple[int, ...]) -> Layout:
    """Returns the layout that letters say."""
    places = {1: "L", 2: "HW", 3: "DHW"}.get(len(picture), "")
    fits = len(letters) == len(shape) and letters[:1] == "B"
    if not fits or set(letters) - {"B", "C", "N", *places}:
        raise ValueError(
            f"layouts must give a letter of B, C, N, {', '.join(places)} for each of the "
            f"{len(shape)} axes of {name!r}, shape {list(shape)}, B first, got {letters!r}"
        )
    along: list[tuple[int, ...]] = []
    sizes: list[tuple[int, ...]] = []
    before = 0
    for letter, n in zip(letters[1:], shape[1:], strict=True):
        grid: tuple[int, ...] = ()
        if letter == "N":
            grid, before = token_grid(n, picture, name)
        along.append(
            tuple(range(len(picture)))
            if letter == "N"
            else (places.index(letter),)
            if letter in places
            else ()
        )
        sizes.append(grid or ((n,) if letter in places else ()))
    found = _layout("", shape, along, sizes, before, len(picture))
    if isinstance(found, str):
        raise ValueError(f"layouts says that {name!r} {found}")
    return found


def token_grid(
    tokens: int, picture: tuple[int, ...], name: str = "tokens"
) -> tuple[tuple[int, ...], int]:
    """Returns the grid of patches that makes up so many tokens, and how many more come before it.

    >>> token_grid(197, (224, 224)), token_grid(8 * 12 + 5, (128, 192))
    (((14, 14), 1), ((8, 12), 5))
    """
    # From small patches to large: the first grid that leaves few tokens over. A class token and
    # four registers are common; 16 leaves room.
    for side in range(1, max(picture) + 1):
        grid = tuple(n // side for n in picture)
        rest = tokens - math.prod(grid)
        if 0 <= rest <= 16 and all(grid):
            return grid, rest
    raise ValueError(
        f"the {tokens} tokens of {name!r} are no grid of patches of a picture {list(picture)}"
    )
