"""iGOS++: two masks, descended along integrated gradients (Khorram et al. 2021).

A deleting and an inserting mask, `[28, 28]` each, and their product share four terms (equation 8):
the score without the region must fall, that of the region alone must rise, each averaged over the
scaled masks `s / S`. The regulariser is the mask's size and a total variation that is cheap across
edges of the picture (equation 9).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, masks, operators, scores
from perturb.attribution import _common
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["igos"]


def igos(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    cells: int = 28,
    steps: int = 15,
    integration: int = 20,
    size_weight: float = 10.0,
    rough_weight: float = 20.0,
    rate: float = 1000.0,
    operator: str | operators.Operator = "blur",
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]` in [0, 1]: one minus the product of the two masks.

    Differs from the published code in the picture that is faded to (our blur, 20 px at 224, instead
    of 50) and in the line search, one an image and on the mean over four scales of the mask.

    Args:
      model, images, targets: as for `gradient`.
      cells: of a mask along each side.
      steps: number of steps of descent.
      integration: number of points of each integral.
      size_weight, rough_weight: prices of the mask's size and roughness.
      rate: first step length of the backtracking line search.
      operator: name or operator: what a masked pixel becomes.
      key: decides the noise that the integrals see, standard deviation .2 of the pixels' own; `[B]`
        keys are those of the images.
    """
    if steps < 1 or integration < 1:
        raise ValueError(f"steps and integration must be at least 1, got {steps}, {integration}")
    pixels, classes, number = _common.checked_batch(model, images, targets)
    keys = _common.image_keys(key, len(pixels))
    weights = jnp.array([size_weight, rough_weight, rate], jnp.float32)
    operator = operators.get(operator)
    shape = tuple(min(cells, n) for n in pixels.shape[1:-1])
    found = _map(model, operator, pixels, classes, weights, keys, shape, steps, integration)
    result: np.ndarray = arrays.finished(found[:number])
    return result


@functools.partial(jax.jit, static_argnames=("shape", "steps", "integration"))
def _map(
    model: Model,
    operator: PyTree,
    images: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    keys: jax.Array,
    shape: tuple[int, ...],
    steps: int,
    integration: int,
) -> jax.Array:
    size = images.shape[1:-1]
    size_weight, rough_weight, rate = weights
    # A plain blend with the removed picture: a pyramid of blurs has no slope at a mask of 1.
    none = jnp.zeros(size, images.dtype)
    removed = jax.vmap(lambda x: operator.apply(operator.prepare(x, None), none))(images)
    inner = tuple(range(1, images.ndim))
    noise = 0.2 * images.std(inner, keepdims=True)
    small = jax.image.resize(images, (len(images), *shape, images.shape[-1]), "linear")
    # Near 0 across an edge of the picture, 1 where it is flat: so roughness costs only there.
    steep = [jnp.exp(-(jnp.diff(small, axis=a) ** 2).sum(-1) / 0.01**2) for a in inner[:-1]]

    low, high = jnp.zeros(len(images)), jnp.ones(len(images))
    if not scores.has_probability(model.output):
        # The terms are weighed against the price of a mask: a score counts as its share of the way.
        low, high = (_common.score(model, model(x), targets) for x in (removed, images))
    span = jnp.where(jnp.abs(high - low) > 1e-12, jnp.abs(high - low), 1.0)

    def chance(mask: jax.Array, draw: PyTree) -> jax.Array:
        """Probability of the target with `mask` `[B, h, w]` kept."""
        large = jax.vmap(lambda m: masks.upsample(m, size))(mask)[..., None]
        views = large * images + (1 - large) * removed
        if draw is not None:
            one = images.shape[1:], images.dtype
            views = views + noise * jax.vmap(lambda k: jax.random.normal(draw(k), *one))(keys)
        return (_common.measure(model, model(views), targets) - low) / span

    def terms(pair: jax.Array, scale: jax.Array | float, draw: PyTree) -> jax.Array:
        """Deletion minus insertion, of each mask and of their product; `pair` `[2, B, h, w]`."""
        both = pair[0] * pair[1]
        lost = chance(pair[0] * scale, draw) + chance(both * scale, draw)
        kept = chance(1 - pair[1] * scale, draw) + chance(1 - both * scale, draw)
        return lost - kept

    def price(pair: jax.Array) -> jax.Array:
        total = jnp.zeros(pair.shape[1], pair.dtype)
        for m in (pair[0], pair[1]):
            total += size_weight * jnp.abs(1 - m).mean(inner[:-1])
            for axis, edge in zip(inner[:-1], steep, strict=True):
                rough = edge * jnp.diff(m, axis=axis) ** 2
                # An axis of one cell has no differences, whose mean is no number.
                total += rough_weight * rough.mean(inner[:-1]) if rough.size else 0.0
        return total

    def worth(pair: jax.Array) -> jax.Array:
        """What the line search goes by: where the score saturates, the whole mask alone is flat."""
        return sum(terms(pair, s / 4, None) for s in (1, 2, 3, 4)) / 4 + price(pair)

    def step(pair: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
        def add(total: jax.Array, s: jax.Array) -> tuple[jax.Array, None]:
            scale = ((s + 1) / integration).astype(images.dtype)

            def draw(key: jax.Array) -> jax.Array:
                # The same noise for all terms of a step, so that it cancels in their difference.
                return jax.random.fold_in(jax.random.fold_in(key, t), s)

            return total + jax.grad(lambda p: terms(p, scale, draw).sum())(pair), None

        slope, _ = jax.lax.scan(add, jnp.zeros_like(pair), jnp.arange(integration))
        slope = slope / integration + jax.grad(lambda p: price(p).sum())(pair)
        now = worth(pair)
        square = (slope**2).sum((0, *range(2, slope.ndim)))

        def shorter(state: PyTree) -> PyTree:
            length, found, n = state
            trial = jnp.clip(pair - _common.beside(length, pair[0]) * slope, 0, 1)
            # Armijo's rule with its usual constant: a share of what the slope promises.
            good = worth(trial) <= now - 1e-4 * length * square
            return jnp.where(found | good, length, length * 0.2), found | good, n + 1

        start = (
            jnp.full(len(images), rate, images.dtype),
            jnp.zeros(len(images), bool),
            jnp.int32(0),
        )
        length, found, _ = jax.lax.while_loop(lambda s: ~s[1].all() & (s[2] < 10), shorter, start)
        # Where ten lengths fail the picture's masks stay as they are in this step.
        length = jnp.where(found, length, 0.0)
        return jnp.clip(pair - _common.beside(length, pair[0]) * slope, 0, 1), None

    # Of the pictures' kind, here and above: 64-bit arithmetic would make float64 of it.
    pair = jnp.ones((2, len(images), *shape), images.dtype)
    pair, _ = jax.lax.scan(step, pair, jnp.arange(steps))
    return 1 - jax.vmap(lambda m: masks.upsample(m, size))(pair[0] * pair[1])
