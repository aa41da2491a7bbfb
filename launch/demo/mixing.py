"""Pictures partly blurred away, with labels only as sure as the evidence that is left.

A network trained on whole pictures alone answers arbitrarily once most of a picture is blurred, and
then a mask that keeps its answer shows its blind spots instead of its evidence. Here it learns what
masks will show it: the picture under random smooth masks, its own blur elsewhere, and a label
softened to `v * class + (1 - v) * uniform`, v being the share of the evidence still visible.

>>> import jax, jax.numpy as jnp
>>> images, evidence = jnp.ones((4, 16, 16, 3)), jnp.zeros((4, 16, 16)).at[:, 4:9, 4:9].set(1)
>>> mixed, visible = mix(jax.random.key(0), images, evidence, 0 * evidence, strength=1.0)
>>> mixed.shape, visible.shape
((4, 16, 16, 3), (4,))
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["augment", "mix", "soft_labels"]

# Of the blurs, as shares of the side: a little, and the three kinds of "gone".
_HALF = 0.02
_GONE = (0.045, 0.09, 0.125)


def soft_labels(targets: jax.Array, visible: jax.Array, classes: int) -> jax.Array:
    """Returns `[B, classes]` labels that are as sure as the evidence is `visible` `[B]`."""
    sure = visible[:, None]
    return sure * jax.nn.one_hot(targets, classes) + (1 - sure) / classes


def mix(
    key: jax.Array,
    images: jax.Array,
    evidence: jax.Array,
    tied: jax.Array,
    *,
    strength: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Blurs parts of every picture away.

    Half of the pictures are blended with their blur, half pass through a lesser blur in between, as
    in a blur pyramid. The masks: nothing hidden; a guess, of about the evidence's own area, which
    is part inside and part outside, with holes; the evidence by its outline, alone or with blobs
    elsewhere; blobs anywhere; the outline of another picture's evidence, which must not pass for an
    object of its own; everything hidden.

    Args:
      key: random key.
      images: `[B, H, W, 3]` in [0, 1], square.
      evidence: `[B, H, W]`, 1 on the pixels that tell the class.
      tied: `[B, H, W]`, 1 on pixels that are hidden as far as the evidence is.
      strength: 0 hides nothing, 1 hides something in four pictures of five.
    Returns:
      the pictures, and the visible share of each one's evidence `[B]`.
    """
    count, size = images.shape[:2]
    keys = jax.random.split(key, 10)

    def uniform(i: int, low: float, high: float) -> jax.Array:
        return jax.random.uniform(keys[i], (count, 1, 1), minval=low, maxval=high)

    def field(i: int, cells: int) -> jax.Array:
        grow = _upsampling(size, cells)
        return jnp.einsum(
            "hi,bij,wj->bhw", grow, jax.random.normal(keys[i], (count, cells, cells)), grow
        )

    def blurred(sigma: float) -> jax.Array:
        return _blur(evidence[..., None], sigma / 64)[..., 0]

    coarse, fine = field(0, 8), field(1, 16)
    sharp = jnp.exp(uniform(2, 1.4, 3.4))
    near = blurred(4.0)
    # At 1 at its highest, however small the evidence is.
    near = near / jnp.maximum(near.max((1, 2), keepdims=True), 1e-6)
    # A band along the outline keeps the edge on both sides and hides the middle.
    band = 1 - 2 * jnp.abs(near - 0.5)
    want = uniform(3, 0, 1)
    score = jnp.where(want < 0.3, band, near) + uniform(4, 0, 0.6) * (0.6 * coarse + 0.6 * fine)
    guess = jax.nn.sigmoid(3 * sharp * (score - uniform(5, 0.15, 0.85)))
    blobs = jax.nn.sigmoid(sharp * (coarse - uniform(6, -1.0, 1.5)))
    outline = jnp.where(want < 0.5, blurred(0.5), blurred(1.2))
    exact = jnp.maximum(outline, jnp.where(want > 0.6, blobs, 0.0))
    # Easy first: the evidence alone on blur. Shares of the other kinds grow with the strength.
    kind = uniform(7, 0, 1)
    mask = exact
    for below, made in (
        (0.8, jnp.ones_like(near)),
        (0.6, guess),
        (0.25, blobs),
        (0.15, jnp.roll(outline, 1, 0)),
        (0.05, jnp.zeros_like(near)),
    ):
        mask = jnp.where(kind < below * (0.4 + 0.6 * strength), made, mask)
    visible = (mask * evidence).sum((1, 2)) / jnp.maximum(evidence.sum((1, 2)), 1)

    mask = (mask * (1 - tied * (1 - visible[:, None, None])))[..., None]
    # One width for the whole batch: with one for each picture all widths would be computed.
    sigma = jax.random.randint(keys[8], (), 0, len(_GONE))
    gone = jax.lax.switch(sigma, [functools.partial(_blur, sigma=s) for s in _GONE], images)
    style = uniform(9, 0, 1)[..., None]
    gone = jnp.where(style < 0.12, images.mean((1, 2), keepdims=True), gone)
    half = _blur(images, _HALF)
    upper, lower = half + (images - half) * (2 * mask - 1), gone + (half - gone) * 2 * mask
    stepped = jnp.where(mask > 0.5, upper, lower)
    return jnp.where(style < 0.5, stepped, gone + (images - gone) * mask), visible


def augment(key: jax.Array, images: jax.Array, *maps: jax.Array) -> tuple[jax.Array, ...]:
    """Mirrors half of the pictures, swaps their colour channels, varies contrast and brightness.

    Args:
      key: random key.
      images: `[B, H, W, 3]` in [0, 1].
      *maps: `[B, H, W]`, mirrored along.
    Returns:
      the pictures, then the maps.
    """
    count = len(images)
    mirror, swap, stretch, shift = jax.random.split(key, 4)
    flip = jax.random.bernoulli(mirror, 0.5, (count, 1, 1))
    images = jnp.where(flip[..., None], images[:, :, ::-1], images)
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    permutations = jnp.asarray(np.eye(3, dtype=np.float32)[orders])
    chosen = permutations[jax.random.randint(swap, (count,), 0, 6)]
    images = jnp.einsum("bhwc,bdc->bhwd", images, chosen)
    gain = jax.random.uniform(stretch, (count, 1, 1, 1), minval=0.8, maxval=1.2)
    offset = jax.random.uniform(shift, (count, 1, 1, 1), minval=-0.08, maxval=0.08)
    images = jnp.clip((images - 0.5) * gain + 0.5 + offset, 0, 1)
    return images, *(jnp.where(flip, m[:, :, ::-1], m) for m in maps)


def _blur(images: jax.Array, sigma: float) -> jax.Array:
    band = _band(images.shape[1], sigma)
    return jnp.einsum("hi,bijc,wj->bhwc", band, images, band)


@functools.cache
def _band(size: int, sigma: float) -> np.ndarray:
    """Gaussian blur of a line of `size` px with its edge repeated, as a matrix."""
    pixels = sigma * size
    reach = math.ceil(4 * pixels)
    offsets = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (offsets / pixels) ** 2)
    band = np.zeros((size, size))
    for offset, tap in zip(offsets, taps / taps.sum(), strict=True):
        np.add.at(band, (np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)), tap)
    return band.astype(np.float32)


@functools.cache
def _upsampling(size: int, cells: int) -> np.ndarray:
    """Smooth interpolation from `cells` random values to `size` px, of the same variance."""
    at = (np.arange(size) + 0.5) / size * cells - 0.5
    weights = np.exp(-0.5 * ((at[:, None] - np.arange(cells)) / 0.55) ** 2)
    # By the root of the sum of squares: it is the variance that must stay, not the mean.
    weights /= np.sqrt((weights**2).sum(1, keepdims=True))
    return weights.astype(np.float32)
