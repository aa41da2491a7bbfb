"""Noise and holes taken out of a picture by the deep image prior, which is stopped without the
truth.

A network that is fitted long enough copies the noise too. So some pixels are held out of the fit,
and the step is chosen at which the error on them is lowest, without the truth (self-validation,
Li et al. 2021). What is returned is the running mean of the pictures, as published.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perturb import display
from perturb.internals.features.deep import Deep
from perturb.types import ArrayLike, PyTree, Record

__all__ = ["Restored", "restore"]

_NOISE = 1 / 30  # of the input, drawn anew every step, as published
_AVERAGE = 0.99  # of the running mean of the pictures
_EVERY = 10  # steps between two measurements of the error on the held-out pixels


class Restored(NamedTuple):
    """Pictures without their noise and holes.

    Attributes:
      images: `[B, H, W, C]` in [0, 1], the running mean at the step that was chosen.
      step: `[B]` that step, the one with the lowest error on the held-out pixels.
      checked: `[L]` the steps after which the error on the held-out pixels was measured.
      held_out: `[B, L]` mean squared error on them; NaN after the last step.
      psnr: `[B, L]` dB beside the truth, where that was given; NaN otherwise.
    """

    images: np.ndarray
    step: np.ndarray
    checked: np.ndarray
    held_out: np.ndarray
    psnr: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def looks(self) -> np.ndarray:
        """The former name of `checked`."""
        return self.checked


def restore(
    images: ArrayLike,
    *,
    known: ArrayLike | None = None,
    steps: int = 2000,
    patience: int = 300,
    share: float = 0.05,
    rate: float = 0.01,
    prior: Deep | None = None,
    truth: ArrayLike | None = None,
    key: jax.Array,
) -> Restored:
    """Takes noise out of pictures, and fills what is not known of them.

    Args:
      images: `[B, H, W, C]` in [0, 1].
      known: `[B, H, W]` bool, False in holes; None is everywhere.
      steps: the most steps of a picture.
      patience: steps without a better fit of the held-out pixels after which a picture is finished.
      share: of the known pixels that are held out, in (0, .5].
      rate: learning rate of Adam, positive.
      prior: the network; None is `Deep()`.
      truth: `[B, H, W, C]`, used for `psnr` alone.
      key: random key of weights, noise and held-out pixels.
    Raises:
      ValueError: if the pictures, the holes or the share do not fit.

    >>> found = restore(np.full((1, 8, 8, 1), 0.5), steps=10, key=jax.random.key(0))
    >>> found.images.shape, found.step
    ((1, 8, 8, 1), array([10]))
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or min(images.shape[1:3]) < 4 or not np.isfinite(images).all():
        raise ValueError(
            f"images must be finite, [B, H, W, C] of 4 px or more, got shape {images.shape}"
        )
    seen = np.ones(images.shape[:3], bool) if known is None else np.asarray(known, bool)
    if seen.shape != images.shape[:3]:
        raise ValueError(f"known must be {list(images.shape[:3])}, got {list(seen.shape)}")
    if not 0 < share <= 0.5:
        raise ValueError(f"share must be above 0 and at most .5, got {share:g}")
    if steps < _EVERY:
        raise ValueError(f"steps must be at least {_EVERY}, got {steps}")
    prior = prior or Deep()
    prior.check(images.shape[1:])
    checked = np.arange(_EVERY, steps + 1, _EVERY)
    kept, chosen = np.zeros_like(images), np.zeros(len(images), int)
    errors = np.full((2, len(images), len(checked)), np.nan)
    for b, image in enumerate(images):
        # By its place in the call and not by its pixels: the same picture may be given twice.
        own = jax.random.fold_in(key, b)
        held = np.array(jax.random.uniform(jax.random.fold_in(own, 0), image.shape[:2]) < share)
        held &= seen[b]
        if not held.any() or not (seen[b] & ~held).any():
            raise ValueError(f"share {share:g}: no pixels of picture {b} to fit and to hold out")
        state = _begin(prior, image.shape, rate, jax.random.fold_in(own, 1))
        weight = jnp.asarray(seen[b] & ~held, jnp.float32)[..., None]
        best = np.inf
        for at, step in enumerate(checked):
            for _ in range(_EVERY):
                state = _step(prior, rate, state, jnp.asarray(image), weight)
            mean = np.asarray(state["mean"])
            errors[0, b, at] = ((mean - image)[held] ** 2).mean()
            if truth is not None:
                square = ((mean - np.asarray(truth)[b]) ** 2).mean()
                errors[1, b, at] = -10 * np.log10(max(square, 1e-20))
            if errors[0, b, at] < best:
                best, kept[b], chosen[b] = errors[0, b, at], mean, step
            elif step - chosen[b] >= patience:
                break
    return Restored(kept, chosen, checked, errors[0], errors[1])


def _begin(prior: Deep, size: tuple[int, ...], rate: float, key: jax.Array) -> Record:
    params = prior.init(jax.random.fold_in(key, 0), size)  # type: ignore[arg-type]
    return {
        "step": jnp.int32(0),
        "params": params,
        "rule": optax.adam(rate).init(params),
        "mean": jnp.zeros(size),
        "key": jax.random.fold_in(key, 1),
    }


@functools.partial(jax.jit, static_argnums=1, donate_argnums=2)
def _step(prior: Deep, rate: float, state: Record, image: jax.Array, weight: jax.Array) -> Record:
    params, step = state["params"], state["step"]
    height, width, channels = image.shape
    shaken = jax.random.normal(jax.random.fold_in(state["key"], step), params["noise"].shape)

    def loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
        noisy = params | {"noise": params["noise"] + _NOISE * shaken}
        made = prior.image(noisy, (height, width, channels))
        return (weight * (made - image) ** 2).sum() / (weight.sum() * channels), made

    slopes, made = jax.grad(loss, has_aux=True)(params)
    updates, rule = optax.adam(rate).update(slopes, state["rule"], params)
    # The first picture begins the mean, which would else come out of black.
    mean = jnp.where(step == 0, made, _AVERAGE * state["mean"] + (1 - _AVERAGE) * made)
    return {
        "step": step + 1,
        "params": optax.apply_updates(params, updates),
        "rule": rule,
        "mean": mean,
        "key": state["key"],
    }
