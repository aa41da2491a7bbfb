"""LibraGrad with FullGrad+: a transformer's answer shared out exactly (Mehri et al. 2025).

Gradients of a transformer do not say what its inputs gave: a product of two values counts twice, a
layer norm next to nothing. LibraGrad keeps the forward pass and changes the derivative: gates,
denominators and attention weights are constants, factors of a product share. Then input times
gradient, plus bias times gradient over all biases, is the answer, exactly (`full_gradient`).
FullGrad+ adds up, token by token, the same product at every skip connection and every bias
(Srinivas, Fleuret 2019, and the paper's equation 2); `positive` counts only what speaks for the
class at each of them, which ranks patches better (docs/results/transformers.md).

Where we differ: what counts as a bias is whatever a trace adds that does not depend on the image,
position embeddings and class token too; the layers are the skip connections, two a block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, layouts
from perturb.attribution import _common, _transformers
from perturb.model import Model
from perturb.taps.swapping import Inner
from perturb.types import ArrayLike, PyTree, Record

__all__ = ["FullGradient", "full_gradient", "libragrad"]

# Where a value that does not depend on the image joins one that does; the rest of a piecewise
# linear function.
_JOINED = ("add", "sub", "concatenate", "pad")
_PIECEWISE = ("max", "min", "clamp", "select_n")


class FullGradient(NamedTuple):
    """`score` `[B]`; `inputs` `[B, H, W]` input times gradient; `biases` `[B]` all biases times
    theirs.

    Balanced, `inputs.sum((1, 2)) + biases` is the score; how far it is off says what a network does
    that is neither affine, gate, denominator, softmax nor product.
    """

    score: np.ndarray
    inputs: np.ndarray
    biases: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def libragrad(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    balanced: bool = True,
    positive: bool = False,
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: FullGrad+ of each patch under LibraGrad.

    Args:
      model: a transformer with tokens `[B, N, C]`.
      images, targets: as for `gradient`.
      balanced: False is FullGrad+ of the plain gradient.
      positive: of every layer and bias only what a token gives to the score, not what it takes; the
        map has no sign then.
    Raises:
      ValueError: if the model has no tokens, or lies in a loop that cannot be followed.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    layout = _transformers.token_layout(model, pixels)
    known = _shapes(model, pixels)
    found = _plus(model, pixels, classes, layout, known, balanced, positive)
    return _common.enlarge(found[:number], pixels.shape[1:-1])


def full_gradient(
    model: Model, images: ArrayLike, targets: PyTree, *, balanced: bool = True
) -> FullGradient:
    """Returns what the pixels and all biases together gave to the target's score.

    Args: as for `libragrad`; the model may be any.

    >>> model = Model(lambda w, x: jax.nn.gelu(x.mean((1, 2)) @ w + 1), jnp.ones((3, 2)))
    >>> found = full_gradient(model, np.ones((1, 4, 4, 3), np.float32), [0])
    >>> bool(np.allclose(found.inputs.sum() + found.biases, found.score))
    True
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    score, inputs, biases = _whole(model, pixels, classes, balanced)
    return FullGradient(*(np.asarray(v)[:number] for v in (score, inputs, biases)))


class _Site(NamedTuple):
    """A value within the network and the derivative of the score with respect to it."""

    value: jax.Array
    slope: jax.Array


def _sites(
    model: Model, images: jax.Array, targets: PyTree, balanced: bool, layers: bool
) -> tuple[jax.Array, jax.Array, list[_Site]]:
    """Returns scores, the images' gradient, and all biases, with `layers` the skip connections
    too.
    """

    def total(given: tuple[jax.Array, list[jax.Array]]) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
        pixels, probes = given
        left = iter(probes)
        values: list[jax.Array] = []

        def site(out: jax.Array, value: jax.Array) -> jax.Array:
            values.append(value)
            probe = next(left, None)
            return out if probe is None else out + probe

        def joined(old: Inner, varied: tuple[bool, ...], *operands: jax.Array) -> jax.Array:
            out = old(*operands)
            if all(varied) or not jnp.issubdtype(out.dtype, jnp.floating):
                found: jax.Array = out
                return found
            # With the moving operands at 0 what is left is the part that does not depend on the
            # image: the bias, laid out as in the result.
            rest = [
                jnp.zeros_like(v) if moves else v for v, moves in zip(operands, varied, strict=True)
            ]
            return site(out, old(*rest))

        def piece(old: Inner, varied: tuple[bool, ...], *operands: jax.Array) -> jax.Array:
            out = old(*operands)
            floats = [
                i
                for i, moves in enumerate(varied)
                if moves and jnp.issubdtype(operands[i].dtype, jnp.floating)
            ]
            if not floats or not jnp.issubdtype(out.dtype, jnp.floating):
                found: jax.Array = out
                return found

            def of(*moving: jax.Array) -> jax.Array:
                there = dict(zip(floats, moving, strict=True))
                found: jax.Array = old(*(there.get(i, v) for i, v in enumerate(operands)))
                return found

            at = tuple(operands[i] for i in floats)
            # A piecewise linear function is f'(x) x and a constant, which is the bias of its piece.
            return site(out, out - jax.jvp(of, at, at)[1])

        rules: Record = _transformers.balanced() if balanced else {}
        rules.update(dict.fromkeys(_JOINED, joined))
        rules.update(dict.fromkeys(_PIECEWISE, piece))
        skips = (lambda number, y: site(y, y)) if layers else None
        run = _transformers.threaded(lambda x: model(x), skips=skips, rules=rules)
        scores = _common.score(model, run(pixels), targets)
        return scores.sum(), (scores, values)

    # Traced once without probes, to learn how many values there are and of which shapes.
    _, (_, shapes) = jax.eval_shape(total, (images, []))
    probes = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    slopes, (scores, values) = jax.grad(total, has_aux=True)((images, probes))
    return scores, slopes[0], [_Site(v, g) for v, g in zip(values, slopes[1], strict=True)]


@functools.partial(jax.jit, static_argnames="balanced")
def _whole(
    model: Model, images: jax.Array, targets: PyTree, balanced: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    scores, slope, sites = _sites(model, images, targets, balanced, False)
    biases = sum(
        (site.slope * site.value).reshape(len(images), -1).sum(1)
        for site in sites
        if site.value.shape[:1] == images.shape[:1]
    )
    return scores, (images * slope).sum(-1), jnp.zeros(len(images)) + biases


def _shapes(model: Model, images: jax.Array) -> PyTree:
    """The layouts of all layers with places, by shape; hashable."""
    found = {v.shape[1:]: v for v in layouts.layouts(model, images).values() if v.grid}
    return tuple(found.items())


@functools.partial(jax.jit, static_argnames=("layout", "known", "balanced", "positive"))
def _plus(
    model: Model,
    images: jax.Array,
    targets: PyTree,
    layout: PyTree,
    known: PyTree,
    balanced: bool,
    positive: bool,
) -> jax.Array:
    _, slope, sites = _sites(model, images, targets, balanced, True)
    by_shape, grid = dict(known), layout.grid
    total = jnp.zeros((len(images), *grid))
    for site in [_Site(images, slope), *sites]:
        shape = site.value.shape
        share = site.value * site.slope
        if shape == images.shape:
            given = _pooled(share.sum(-1), grid)
        elif (found := by_shape.get(shape[1:])) is not None and found.grid == grid:
            given = found.to_places(share).sum(-1)
        else:
            continue
        total = total + (jnp.maximum(given, 0) if positive else given)
    return total


def _pooled(values: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Sums of pixels `[B, H, W]` by patch."""
    sides = [n // g for n, g in zip(values.shape[1:], grid, strict=True)]
    cut = values[(slice(None), *(slice(0, s * g) for s, g in zip(sides, grid, strict=True)))]
    split = [v for s, g in zip(sides, grid, strict=True) for v in (g, s)]
    return cut.reshape(len(values), *split).sum(tuple(range(2, 1 + 2 * len(grid), 2)))
