"""Filters made to be read: one part of one class each, by a loss on the maps of the last layer.

Zhang et al., Interpretable Convolutional Neural Networks, 2018. Every filter's map is compared with
templates, one a place, and one of nothing; the loss is minus the mutual information between maps
and templates. The paper's equation 4 lacks the minus sign, and its gradient the baseline that comes
from all maps sharing one normaliser; `mutual_information` is exact and differentiated as it is.
What trains well is the released code's rule, `filter_loss`, on maps that are divided by the
filter's running maximum: the loss is linear in the maps, so without that they grow until it
overflows.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb.types import Array, ArrayLike, PyTree

__all__ = [
    "concentration",
    "filter_classes",
    "filter_loss",
    "mask_maps",
    "mutual_information",
    "own_class_ratio",
    "templates",
]

_SHARP = 4.0


@functools.lru_cache
def _templates(n: int, beta: float) -> np.ndarray:
    cells = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
    apart = np.abs(cells[:, None] - cells[None]).sum(-1)
    found: np.ndarray = np.maximum(1 - beta * apart / n, -1).reshape(n * n, n, n)
    return found


def templates(n: int, *, beta: float = 4.0) -> np.ndarray:
    """Returns `[n², n, n]`: for each place 1 there, falling by L1 distance, -1 beyond `2 n / beta`.

    Args:
      n: number of places along each side.
      beta: number: how fast a template falls with distance.

    >>> templates(4)[5].astype(int).tolist()
    [[-1, 0, -1, -1], [0, 1, 0, -1], [-1, 0, -1, -1], [-1, -1, -1, -1]]
    """
    return _templates(n, float(beta))


def mask_maps(maps: jax.Array, *, beta: float = 4.0) -> jax.Array:
    """Returns maps `[B, n, n, C]` cut to the surroundings of their peak; one place keeps its value.

    Args:
      maps: `[B, n, n, C]`, at least 0.
      beta: number: how fast the template falls with distance; 4 as published.
    """
    n, channels = maps.shape[1], maps.shape[3]
    return jnp.maximum(maps * _masks(maps, n, channels, beta), 0)


def _masks(maps: jax.Array, n: int, channels: int, beta: float) -> jax.Array:
    # No gradient through the place of the peak: the template is chosen, not moved.
    peak = maps.reshape(len(maps), n * n, channels).argmax(1)
    return jnp.asarray(templates(n, beta=beta), maps.dtype)[peak].transpose(0, 2, 3, 1)


def mutual_information(maps: jax.Array, *, scale: float = 1.0, beta: float = 4.0) -> jax.Array:
    """Returns `[C]`, the mutual information in nats between each filter's maps and the templates.

    Templates are those of the paper, `tau = scale * 0.5 / n²` high, with probability `alpha / n²`
    each for `alpha = n² / (1 + n²)`, and one of nothing. The maps of the batch are the population.

    Args:
      maps: `[B, n, n, C]` from 0 on.
      scale: factor of the templates' height, positive.
      beta: number: how fast the templates fall with distance.
    """
    n = maps.shape[1]
    tau = scale * 0.5 / n**2
    all_of = np.concatenate([tau * templates(n, beta=beta), -tau * np.ones((1, n, n))])
    alpha = n * n / (1 + n * n)
    # In logs throughout: the exponentials of a template's fit over a map would overflow.
    prior = np.log(np.array([alpha / n**2] * (n * n) + [1 - alpha]))
    trace = jnp.einsum("bijc,tij->cbt", maps, jnp.asarray(all_of, maps.dtype))
    given = jax.nn.log_softmax(trace, axis=1)
    marginal = jax.scipy.special.logsumexp(given + prior, axis=2, keepdims=True)
    return (jnp.exp(prior + given) * (given - marginal)).sum((1, 2))


def filter_loss(
    maps: jax.Array,
    labels: jax.Array,
    classes: jax.Array,
    maxima: PyTree = None,
    *,
    beta: float = 4.0,
    others: str = "mean",
) -> jax.Array:
    """Returns the loss that makes every filter fire at one place, for its own class alone.

    Its gradient is the released rule: images of the filter's class are pulled towards the template
    of their peak, others down, each with a weight that grows exponentially with how well it fits
    already. With `others="peak"`, where we differ, it is the peak of the others that is pulled
    down, all alike: the mean of a large map hardly knows of the one place that the mask lets on.

    Args:
      maps: `[B, n, n, C]` after relu.
      labels: `[B]` classes.
      classes: `[C]` the class of each filter, see `filter_classes`.
      maxima: `[C]` running maximum of each filter; None takes the batch's.
      beta: number: how fast the templates fall with distance; 4 as published.
      others: what is pulled down on images of other classes, "mean" or "peak" of a map.
    Raises:
      ValueError: if `others` is neither.
    """
    if others not in ("mean", "peak"):
        raise ValueError(f'others must be "mean" or "peak", got {others!r}')
    n, channels = maps.shape[1], maps.shape[3]
    top = maps.max((0, 1, 2)) if maxima is None else maxima
    # Held constant, or a filter could lower its loss by raising its maximum.
    x = maps / (jax.lax.stop_gradient(top) + 1e-6) * _SHARP
    masks = _masks(x, n, channels, beta)
    own = labels[:, None] == classes[None]
    # Masks of other images and other filters stand for "any template" in the normaliser.
    fit, other = (x * masks).mean((1, 2)), (x * masks[::-1, :, :, ::-1]).mean((1, 2))
    level, heat = x.mean((1, 2)), 0.5
    count = jnp.log(float(len(x)))

    def weigh(s: jax.Array, normaliser: jax.Array, chosen: jax.Array) -> jax.Array:
        log_mean = jax.scipy.special.logsumexp(normaliser / heat, axis=0) - count
        w = jnp.exp(s / heat) * (s - heat * log_mean + heat) * chosen
        mean = w.sum(0) / jnp.maximum(chosen.sum(0), 1)
        # Weights of mean 1: the exponential decides who is pulled, not how far all are.
        return jax.lax.stop_gradient(w / jnp.maximum(mean, 1e-6))

    # Both sides count for half, however rare the filter's own class is in the batch.
    share = jnp.clip(own.mean(0), 1 / len(x), 1 - 1 / len(x))
    up = weigh(fit, other, own) * fit * 0.5 / share
    if others == "peak":
        # By about what the mean of a map is that has the shape of a template.
        fall = x.max((1, 2)) * (0.5 / beta**2) * ~own
    else:
        fall = weigh(-level, -level, ~own) * level
    return (fall * 0.5 / (1 - share) - up).mean()


def filter_classes(maps: ArrayLike, labels: ArrayLike, number: int) -> np.ndarray:
    """Returns `[C]`: the class on whose images each filter's maximum is highest on average.

    Args:
      maps: `[B, n, n, C]`, at least 0.
      labels: `[B]` class indices.
      number: of classes.
    """
    peaks, labels = np.asarray(maps).max((1, 2)), np.asarray(labels)
    means = [peaks[labels == k].mean(0) for k in range(number) if (labels == k).any()]
    present = [k for k in range(number) if (labels == k).any()]
    found: np.ndarray = np.array(present)[np.stack(means).argmax(0)]
    return found


def own_class_ratio(maps: ArrayLike, labels: ArrayLike, classes: Array) -> np.ndarray:
    """Returns `[C]`: mean peak on the filter's own class over that on all images; NaN where dead.

    Args:
      maps: `[B, n, n, C]`, at least 0.
      labels: `[B]` class indices.
      classes: `[C]` class of each filter, see `filter_classes`.
    """
    peaks, labels = np.asarray(maps, np.float64).max((1, 2)), np.asarray(labels)
    mean = peaks.mean(0)
    own = np.array(
        [
            peaks[labels == k, c].mean() if (labels == k).any() else np.nan
            for c, k in enumerate(classes)
        ]
    )
    found: np.ndarray = np.divide(own, mean, out=np.full(mean.shape, np.nan), where=mean > 1e-3)
    return found


def concentration(maps: ArrayLike) -> np.ndarray:
    """Returns `[C]`: mean share of a map's sum that lies at its peak, over images with any.

    Args:
      maps: `[B, n, n, C]`, at least 0.
    """
    maps = np.asarray(maps, np.float64)
    total, peak = maps.sum((1, 2)), maps.max((1, 2))
    share = np.divide(peak, total, out=np.zeros_like(total), where=total > 0)
    count = (total > 0).sum(0)
    found: np.ndarray = np.divide(
        share.sum(0), count, out=np.full(count.shape, np.nan), where=count > 0
    )
    return found
