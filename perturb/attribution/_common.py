"""What attributions share: a layer's share of the score, and maps of one size; see also
`perturb.rows`.
"""

from __future__ import annotations

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, layouts, masks, taps
from perturb.inputs import keys_by_place, random_key
from perturb.model import Model
from perturb.rows import beside, checked_batch, measure, score
from perturb.taps.swapping import swap
from perturb.types import Array, Function

__all__ = [
    "beside",
    "checked_batch",
    "enlarge",
    "flow",
    "image_keys",
    "last_layer",
    "measure",
    "pull",
    "score",
]

_POOL = re.compile(r"(^|/)(max_pool|mean_to)(#\d+)?$")


def pull(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    layer: str | None = None,
    swaps: dict[str, Function] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns activation and gradient of the targets' scores at a layer, or at the pixels.

    Both are `[B, h, w, K]`, however the layer itself is laid out (`perturb.layouts`).

    Args: as for `flow`.
    Raises:
      ValueError: if it is not known where the layer's places and channels lie, or if it has no
        places.
    """
    activation, slope = flow(model, images, targets, layer, swaps)
    if layer is None:
        return activation, slope
    layout = layouts.layer_layout(model, images, layer)
    return layout.to_places(activation), layout.to_places(slope)


def flow(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    layer: str | None = None,
    swaps: dict[str, Function] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns activation and gradient of the targets' scores at a layer, in the layer's own shape.

    Args:
      layer: name of an activation, see `perturb.taps.names`; None for the images themselves.
      swaps: inner functions to exchange on the way, see `perturb.taps.swapping`.
    """
    suffix: Function
    if layer is None:
        activation, suffix = images, lambda x: model(x)
    else:
        prefix, rest = taps.split(model, layer)
        activation, live = prefix(images)

        def suffix(a: jax.Array) -> jax.Array:
            found: jax.Array = rest(a, live)
            return found

    after = swap(suffix, swaps) if swaps else suffix

    def total(a: jax.Array) -> jax.Array:
        return score(model, after(a), targets).sum()

    return activation, jax.grad(total)(activation)


def last_layer(model: Model, images: Array) -> str:
    """Returns the name of the last layer with places left, maps of places before tokens.

    Of a transformer it is the last layer of tokens, of the network's width, on which the output
    still depends: where a class token is read, the other tokens have no effect behind the last
    attention. Tokens split into heads are never read; where half of all tokens are, it is the last
    map.

    Raises:
      ValueError: if the model has none whose layout is known.
    """
    found = layouts.layouts(model, images)
    # A picture one pixel high has one row of places; a pool repeats the layer before it more
    # coarsely.
    flat = {axis for axis, n in enumerate(images.shape[1:-1]) if n == 1}
    wide = {
        name: layout
        for name, layout in found.items()
        if layout.grid
        and max(layout.grid) > 1
        and all(n > 1 or axis in flat for axis, n in enumerate(layout.grid))
        and not _POOL.search(name)
    }
    if not wide:
        raise ValueError(
            f"model {model.name} has no layer with places left that tracing can follow: give "
            "layer=NAME, one of perturb.taps.names(model, images), and Model(layouts={NAME: "
            "'BHWC'})"
        )
    maps = [n for n, layout in wide.items() if not layout.tokens]
    tokens = [n for n, layout in wide.items() if layout.tokens]
    # Within an attention tokens are split into heads; between blocks they are whole.
    whole = {n: wide[n] for n in tokens if len(wide[n].channel_axes) == 1}
    # A network of maps may flatten its last ones; a transformer has tokens nearly everywhere. One
    # of attention alone is read at its patches: its tokens are hardly more than the attention's.
    if maps and (len(maps) >= len(tokens) or 2 * len(whole) <= len(tokens)):
        # Of several outputs, or of a network that cannot be traced, the last map may belong to a
        # head that the output in question does not depend on.
        if model.select is None and not hasattr(model.apply, "letters"):
            return maps[-1]
        lives = (n for n in reversed(maps) if _alive(model, images, {n: wide[n]}))
        return next(lives, maps[-1])
    whole = whole or {n: wide[n] for n in tokens}
    width = collections.Counter(layout.channels for layout in whole.values()).most_common(1)[0][0]
    own = {n: layout for n, layout in whole.items() if layout.channels == width}
    if not any(layout.before for layout in own.values()):
        return list(own)[-1]
    alive = _alive(model, images, own)
    return alive[-1] if alive else list(own)[-1]


def _alive(model: Model, images: Array, tokens: dict[str, layouts.Layout]) -> list[str]:
    """Returns the layers at whose places the outputs have a slope that is not 0."""

    def total(probes: dict[str, jax.Array]) -> jax.Array:
        edits = {name: lambda a, name=name: a + probes[name] for name in tokens}
        # Two pictures are enough, and a batch of one would be another program.
        outputs = taps.edit(model, edits)(images[:2])
        # Of a plain sum slopes may cancel (probabilities always sum to 1); through a sine
        # they do not.
        return sum((jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)), jnp.zeros(()))

    # Zeros added at every layer: the slope at a probe is the slope at its layer, all in one pass.
    probes = {name: jnp.zeros((2, *layout.shape[1:])) for name, layout in tokens.items()}
    slopes = jax.jit(jax.grad(total))(probes)
    return [n for n, layout in tokens.items() if np.abs(layout.to_places(slopes[n])).max() > 0]


def enlarge(maps: jax.Array, size: tuple[int, ...]) -> np.ndarray:
    """Returns maps `[B, h, w]` at `size`, bilinear with half-pixel centres."""
    if maps.shape[1:] != tuple(size):
        maps = jax.vmap(lambda m: masks.upsample(m, size))(maps)
    found: np.ndarray = arrays.finished(maps.astype(jnp.float32))
    return found


def image_keys(key: jax.Array | None, number: int) -> jax.Array:
    """Returns `[number]` keys: `key` folded with the image's place, or `[B]` keys as they are.

    Keys of the images themselves make a map independent of its place in a batch.
    """
    key = random_key(key)
    if key.ndim == 0:
        return keys_by_place(key, number)
    # A single picture is run twice, and so is its key: by its place, for arrays of keys have no
    # `repeat`.
    return key[jnp.minimum(jnp.arange(number), len(key) - 1)] if len(key) < number else key
