"""Models whose answer is known: linear in the pixels, with weights laid where we like."""

import jax
import jax.numpy as jnp
import numpy as np

from perturb import Model


def scores(weights, images):
    """Grey value times weight, summed over the image: `[B, *size, C]` to `[B, K]`."""
    # The mean of the channels: the slope to one channel of three is a third of the weight.
    grey = images.mean(-1)[:, None]
    return (grey * weights).sum(tuple(range(2, grey.ndim)))


def linear(weights, **kwargs):
    """A model with one weight a class and pixel, `[K, *size]`."""
    return Model(scores, jnp.asarray(weights, jnp.float32), **kwargs)


def convolve(variables, images):
    """Two small convolutions, so that pixels interact; `[B, H, W, 3]` to `[B, K]`."""
    one, two, last = variables
    numbers = ("NHWC", "HWIO", "NHWC")
    # Stride 2 and tanh: smooth everywhere, so that slopes agree with finite differences.
    x = jax.lax.conv_general_dilated(images - 0.5, one, (2, 2), "SAME", dimension_numbers=numbers)
    x = jax.lax.conv_general_dilated(jnp.tanh(x), two, (1, 1), "SAME", dimension_numbers=numbers)
    # The mean over places keeps scores of one size, whatever the size of the picture.
    return (jnp.tanh(x)[..., None] * last).mean((1, 2)).sum(1)


def small_network(seed=0, classes=4):
    """Random weights for `convolve`."""
    rng = np.random.default_rng(seed)
    shapes = ((5, 5, 3, 8), (3, 3, 8, 8), (8, classes))
    # Scaled by the channels that come in, so that tanh does not saturate.
    variables = [jnp.asarray(rng.normal(size=s) / s[-2] ** 0.5, jnp.float32) for s in shapes]
    return Model(convolve, variables)


def disc(size, area, centre=(0.5, 0.5)):
    """The round(area * pixels) pixels nearest to a centre given in shares of the sides, bool."""
    axes = [(np.arange(n) + 0.5 - c * n) ** 2 for n, c in zip(size, centre, strict=True)]
    # Sorted stably: among pixels as far from the centre the lower index goes first, everywhere
    # alike.
    order = sum(np.ix_(*axes)).reshape(-1).argsort(kind="stable")
    inside = np.zeros(order.size, bool)
    inside[order[: round(area * order.size)]] = True
    return inside.reshape(size)


def iou(a, b):
    """Intersection over union of two bool masks."""
    return (a & b).sum() / (a | b).sum()
