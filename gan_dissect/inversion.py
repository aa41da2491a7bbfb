"""The latent of a given image: by optimisation, from the mean or an encoder, kept in the domain.

A latent that draws the image may lie where the generator never draws from, and edits do nothing
sensible there. `Zhu et al. 2020 <https://arxiv.org/abs/2004.00049>`_ therefore ask that an encoder
read the same latent from what is drawn. Besides the reconstruction, how far from the prior each
latent lies is reported. The learning rate rises and falls as in the projector of `Karras et al.
2020 <https://arxiv.org/abs/1912.04958>`_.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gan_dissect import _clipped, _components
from gan_dissect.directions import Direction
from gan_dissect.generator import Generator, check_generator, light_batch, sample
from gan_dissect.walks import unit_normal
from perturb import Model, display
from perturb.inputs import random_key
from perturb.types import Array, ArrayLike, PyTree, Variables

__all__ = [
    "Edited",
    "Inversion",
    "Prior",
    "edit_image",
    "invert",
    "linear_encoder",
    "prior",
    "ramp",
]


class Prior(NamedTuple):
    """Where the latents lie that a generator draws.

    Attributes:
      mean: `[D]` or `[layers, D]`, the mean of the latents.
      std: `[D]` or `[layers, D]`, their standard deviation.
      radii: `[N]`, sorted: the distances of N drawn latents, see `Inversion.radius`.
    """

    mean: np.ndarray
    std: np.ndarray
    radii: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Inversion(NamedTuple):
    """Latents of B images.

    Attributes:
      latents: `[B, D]`, or `[B, layers, D]`.
      images: `[B, H, W, C]`, what they draw.
      psnr: `[B]`, peak signal-to-noise ratio in dB, of images in [0, 1].
      start_psnr: `[B]`, before the optimisation.
      radius: `[B]`, distance from the prior's mean in its standard deviations, over sqrt(D): near 1
        for latents that the generator draws.
      percentile: `[B]` in [0, 100], of that radius among drawn latents; 0 and 100 are out of the
        domain.
      domain_gap: `[B]`, distance of the latent from what the encoder reads in its image, in
        standard deviations, over sqrt(D); NaN without encoder.
      history: `[steps, B]`, the loss.
    """

    latents: np.ndarray
    images: np.ndarray
    psnr: np.ndarray
    start_psnr: np.ndarray
    radius: np.ndarray
    percentile: np.ndarray
    domain_gap: np.ndarray
    history: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Edited(NamedTuple):
    """Images after an edit of their latents.

    Attributes:
      images: `[B, H, W, C]`.
      latents: `[B, D]`.
      change: `[B]`, mean absolute change of the pixels against the inversion's own drawing.
    """

    images: np.ndarray
    latents: np.ndarray
    change: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def ramp(step: jax.Array | float, steps: int, *, up: float = 0.05, down: float = 0.25) -> jax.Array:
    """Returns the factor of the learning rate: up in a line over the first share, down in a cosine.

    Args:
      step: number of the step, from 0; may be traced.
      steps: number of steps in all.
      up: share of the steps over which the rate rises, in (0, 1).
      down: share of the steps over which it falls, in (0, 1).

    >>> [round(float(ramp(s, 100)), 2) for s in (0, 5, 50, 87.5, 100)]
    [0.0, 1.0, 1.0, 0.5, 0.0]
    """
    t = jnp.asarray(step, jnp.float32) / steps
    falling = jnp.minimum(1.0, (1 - t) / down) if down else jnp.ones_like(t)
    rising = jnp.minimum(1.0, t / up) if up else jnp.ones_like(t)
    return (0.5 - 0.5 * jnp.cos(math.pi * falling)) * rising


def invert(
    generator: Generator,
    images: ArrayLike,
    *,
    start: PyTree = "mean",
    encoder: Model | None = None,
    domain: float = 0.0,
    features: Model | None = None,
    features_weight: float = 5e-5,
    steps: int = 300,
    rate: float = 0.1,
    up: float = 0.05,
    down: float = 0.25,
    noise: float = 0.05,
    prior_samples: int = 2000,
    key: jax.Array | None = None,
) -> Inversion:
    """Finds the latents that draw the given images, each by itself.

    The loss of an image is the mean squared error of its pixels, plus that of features if given,
    plus `domain * mean(((z - E(G(z))) / std)^2)` for an encoder E. Where the generator clips its
    image, a pixel out of the range is led back into it: a picture that starts white all over can be
    inverted.

    Args:
      generator: of latents `[D]` or `[layers, D]`, as of W+; checked first.
      images: `[B, H, W, C]` in [0, 1], of the generator's size.
      start: "mean" of the prior, "encoder", or latents `[B, D]`.
      encoder: images to latents `[B, D]`.
      domain: weight of the encoder's agreement; idinvert's 2.0 is for latents in their own units.
      features: images to features, compared by their mean squared error.
      features_weight: idinvert's is 5e-5, for VGG features.
      steps: of Adam. idinvert takes 100 at a constant .01 (`up=0, down=0`), the projector 1,000 at
        .1.
      rate: highest learning rate, in standard deviations of the prior.
      up, down: shares of the steps over which the rate rises and falls; see `ramp`.
      noise: standard deviation of what is added to the latents while the first three quarters run,
        falling to 0 there, in standard deviations of the prior.
      prior_samples: number of latents drawn to measure the prior.
      key: of noise and prior; key 0 if None.
    Raises:
      ValueError: if shapes or options do not fit.
    """
    check_generator(generator)
    goal = np.asarray(images, np.float32)
    key = random_key(key)
    about = prior(generator, prior_samples, jax.random.fold_in(key, 0))
    if goal.ndim != 4 or not len(goal) or goal.min() < 0 or goal.max() > 1:
        raise ValueError(f"images must be [B, H, W, C] in [0, 1], got shape {goal.shape}")
    if encoder is None and (domain or (isinstance(start, str) and start == "encoder")):
        raise ValueError("encoder must be given for domain above 0 or start='encoder', got None")
    if isinstance(start, str):
        if start not in ("mean", "encoder"):
            raise ValueError(f"start must be 'mean', 'encoder' or latents [B, D], got {start!r}")
        begin = np.broadcast_to(about.mean[None], (len(goal), *about.mean.shape))
    else:
        begin = np.asarray(start, np.float32)
        want = (len(goal), *about.mean.shape)
        if begin.shape != want:
            raise ValueError(f"start must be {list(want)}, got shape {list(begin.shape)}")
    if steps < 1 or rate <= 0 or domain < 0:
        raise ValueError(
            f"steps must be at least 1, rate above 0 and domain from 0 up, got {steps}, {rate}, "
            f"{domain}"
        )
    # Never a batch of one: XLA compiles that to other arithmetic than every larger batch.
    count = len(goal)
    if count == 1:
        goal, begin = np.concatenate([goal, goal]), np.concatenate([begin, begin])
    # Traced in one array: other weights run the compiled program.
    weights = np.array([domain, features_weight, rate, noise], np.float32)
    found = _solve(
        generator,
        encoder,
        features,
        goal,
        begin.astype(np.float32),
        about.mean,
        about.std,
        weights,
        key,
        read=isinstance(start, str) and start == "encoder",
        steps=steps,
        up=up,
        down=down,
    )
    z, drawn, first, gap, history = (
        np.asarray(part)[..., :count] if k == 4 else np.asarray(part)[:count]
        for k, part in enumerate(found)
    )
    goal = goal[:count]
    radius = _radius(z, about)
    order = np.searchsorted(about.radii, radius) / len(about.radii) * 100
    return Inversion(z, drawn, _psnr(drawn, goal), _psnr(first, goal), radius, order, gap, history)


def prior(generator: Generator, samples: int, key: jax.Array) -> Prior:
    """Returns mean, deviation and radii of the latents that a generator draws.

    Args:
      generator: any `Generator` whose latents are one vector, or one a layer.
      samples: number of latents that are drawn, at least 2.
      key: random key of the samples; not consumed.
    Raises:
      ValueError: if latents are not one vector or one a layer, or samples are fewer than 2.
    """
    shape = jax.eval_shape(generator.draw, jax.random.key(0))
    if not isinstance(shape, jax.ShapeDtypeStruct) or len(shape.shape) not in (1, 2):
        raise ValueError(
            f"latents of generator {generator.name} must be [D] or [layers, D], got {shape}"
        )
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    z = np.asarray(sample(generator, key, samples), np.float64)
    about = Prior(z.mean(0).astype(np.float32), z.std(0).astype(np.float32), np.zeros(0))
    return about._replace(radii=np.sort(_radius(z, about)))


def linear_encoder(
    generator: Generator,
    *,
    samples: int,
    key: jax.Array,
    penalty: float = 1.0,
    batch_size: int = 64,
) -> Model:
    """Returns the best linear reading of latents from pixels, by ridge regression on drawn samples.

    Less exact than a trained encoder, but it costs one pass, and stays within the domain: where the
    image carries little information, the estimate lies near the prior's mean.

    Args:
      generator: of latents `[D]`.
      samples: number of samples drawn to fit on.
      key: random key of the samples; not consumed.
      penalty: on the squared weights, for pixels of variance 1 on average and per sample.
      batch_size: number of samples run at once; changes memory and time only.
    Returns:
      a `Model` of output "embedding": images to latents `[B, D]`.
    """
    if samples < 2 or penalty <= 0:
        raise ValueError(
            f"samples must be at least 2 and penalty above 0, got {samples} and {penalty}"
        )
    size = light_batch(generator, batch_size)
    # Made in the first round, when the sizes are known: float32 for the pictures, which are
    # the memory.
    x, z = np.zeros((0, 0), np.float32), np.zeros((0, 0))
    for first in range(0, samples, size):
        latents = sample(generator, key, size, start=first)
        drawn = np.asarray(_draw(generator, latents)).reshape(size, -1)
        if not first:
            x = np.empty((samples, drawn.shape[1]), np.float32)
            z = np.empty((samples, latents.shape[1]))
        x[first : first + size] = drawn[: samples - first]
        z[first : first + size] = np.asarray(latents)[: samples - first]
    center = z.mean(0)
    mean, weight = _ridge(x, z - center, penalty * samples / 100)
    arrays = {"weight": weight, "bias": center - mean @ weight}
    variables = {k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()}
    return Model(_linear, variables, output="embedding", name="linear encoder")


def _ridge(x: np.ndarray, z: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of x `[N, M]` and the weights `[M, D]` from x to z, x at variance 1 on
    average.

    `(X'X + c)^-1 X' = X' (XX' + c)^-1`: an N x N system gives the weights of any number of pixels.
    """
    mean = _components.means(x)
    if x.shape[1] < len(x):
        gram = _components.covariance(x, mean)
        # The mean variance of a pixel; 1 where all pictures are the same, so that it can be
        # divided by.
        square = np.trace(gram) / x.size or 1.0
        moment = np.zeros((x.shape[1], z.shape[1]))
        for part in _components.chunks(x.shape[1], len(x)):
            moment += (x[part] - mean).T @ z[part]
        weight = np.linalg.solve(gram / square + penalty * np.eye(len(gram)), moment / square)
        return mean, weight.astype(np.float32)
    gram = _components.inner_products(x, mean)
    square = np.trace(gram) / x.size or 1.0
    inner = np.linalg.solve(gram / square + penalty * np.eye(len(gram)), z / square)
    weight = np.empty((x.shape[1], z.shape[1]), np.float32)
    for part in _components.chunks(*x.shape):
        weight[part] = (x[:, part] - mean[part]).T @ inner
    return mean, weight


def edit_image(
    generator: Generator,
    inversion: Inversion,
    direction: Direction | ArrayLike,
    *,
    distance: float,
    rest: PyTree = None,
) -> Edited:
    """Moves inverted images along a direction.

    Args:
      generator: the `Generator` of the inversion.
      inversion: of B images.
      direction: a `Direction` of one attribute, or `[D]`, taken at length 1; in every layer if
        there are layers (`gan_dissect.move` edits in some).
      distance: how far, in units of the latents.
      rest: the original images `[B, H, W, C]`: what the inversion missed of them is added back, and
        the result clipped to [0, 1]. None leaves it out.
    Raises:
      ValueError: if shapes do not fit.
    """
    normal, _ = unit_normal(direction, inversion.latents.shape[-1:])
    moved = (inversion.latents + distance * normal).astype(np.float32)
    # Never a batch of one, see `invert`.
    batch = np.concatenate([moved, moved]) if len(moved) == 1 else moved
    drawn = np.asarray(_draw(generator, jnp.asarray(batch)))[: len(moved)]
    change = np.abs(drawn - inversion.images).mean((1, 2, 3))
    if rest is not None:
        rest = np.asarray(rest, np.float32)
        if rest.shape != drawn.shape:
            raise ValueError(
                f"rest must be images {list(drawn.shape)}, got shape {list(rest.shape)}"
            )
        drawn = np.clip(drawn + rest - inversion.images, 0, 1)
    return Edited(drawn, moved, change)


@functools.partial(jax.jit, static_argnames=("read", "steps", "up", "down"))
def _solve(
    generator: Generator,
    encoder: Model | None,
    features: Model | None,
    goal: PyTree,
    begin: PyTree,
    mean: Array,
    std: Array,
    weights: PyTree,
    key: jax.Array,
    *,
    read: bool,
    steps: int,
    up: float,
    down: float,
) -> tuple[jax.Array, ...]:
    domain, features_weight, rate, noise = weights
    # Deviations from the mean are what is optimised: one rate for every prior.
    start = ((encoder(goal) if encoder and read else begin) - mean[None]) / std[None]

    def draw(u: jax.Array) -> jax.Array:
        image = _clipped.passing(lambda u: generator(mean[None] + u * std[None])["image"])(u)
        if image.shape != goal.shape:
            raise ValueError(
                f"images must be {list(image.shape[1:])} as the generator's, got "
                f"{list(goal.shape[1:])}"
            )
        return image

    def gap(u: jax.Array, image: jax.Array) -> jax.Array:
        if encoder is None:
            return jnp.full((len(u),), jnp.nan)
        found = encoder(image)
        if found.shape != u.shape:
            raise ValueError(f"encoder must give {list(u.shape)}, got {list(found.shape)}")
        result: jax.Array = _rows(jnp.square(u - (found - mean[None]) / std[None])).mean(1)
        return result

    wanted = features(goal) if features else None

    def loss(u: jax.Array, shake: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = draw(u + shake)
        each = jnp.square(image - goal).mean((1, 2, 3))
        if features is not None:
            far = jnp.square(features(image) - wanted)
            each += features_weight * _rows(far).mean(1)
        if encoder is not None:
            each += domain * gap(u + shake, image)
        # A sum, not a mean: the gradient of an image is then its own, however many there
        # are beside it.
        return each.sum(), each

    # Adam's direction only: the rate follows the ramp.
    optimiser = optax.scale_by_adam()

    def step(carry: PyTree, t: jax.Array) -> tuple[PyTree, jax.Array]:
        u, state = carry
        # The square of a falling line, as in the projector.
        fade = jnp.square(jnp.maximum(0.0, 1 - t / (0.75 * steps)))
        # Numbers from 1 on, for the key folded with 0 draws the prior.
        shake = noise * fade * jax.random.normal(jax.random.fold_in(key, t + 1), u.shape)
        gradient, each = jax.grad(loss, has_aux=True)(u, shake)
        update, state = optimiser.update(gradient, state)
        u = u - rate * ramp(t, steps, up=up, down=down) * update
        return (u, state), each

    (u, _), history = lax.scan(step, (start, optimiser.init(start)), jnp.arange(steps))
    image = draw(u)
    return mean[None] + u * std[None], image, draw(start), jnp.sqrt(gap(u, image)), history


@jax.jit
def _draw(generator: Generator, latents: jax.Array) -> jax.Array:
    return generator(latents)["image"]


def _linear(variables: Variables, images: jax.Array) -> jax.Array:
    flat = images.reshape(len(images), -1)
    found: jax.Array = flat @ variables["weight"] + variables["bias"][None]
    return found


def _radius(z: np.ndarray, about: Prior) -> np.ndarray:
    # A dimension in which all latents are equal has no deviation to divide by.
    scaled = (z - about.mean[None]) / np.where(about.std > 0, about.std, 1)[None]
    found: np.ndarray = np.sqrt(_rows(np.square(scaled.astype(np.float64))).mean(1))
    return found


def _rows(x: jax.Array) -> PyTree:
    return x.reshape(len(x), -1)


def _psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    # An error below 1e-12 is rounding: 120 dB is as good as equal.
    found: np.ndarray = -10 * np.log10(np.maximum(error, 1e-12))
    return found
