"""Directions of attributes in latent space: the normal of a boundary between those with and without
it.

`Shen et al. 2019 <https://arxiv.org/abs/1907.10786>`_: score samples by a predictor, take those of
the highest and lowest scores, and separate their latents by a hyperplane. Here the hyperplane keeps
its intercept, the split is seeded, and accuracy and AUC are of latents that it was not fitted on.

>>> import jax, numpy as np
>>> z = np.asarray(jax.random.normal(jax.random.key(0), (2000, 4)))
>>> d = attribute_direction(z, z[:, 2] + 0.5)
>>> bool(d.normal[2] > 0.99), bool(d.auc_test > 0.99)
(True, True)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb import arrays, display, statistics
from perturb.inputs import random_key
from perturb.types import ArrayLike, PyTree

__all__ = [
    "Direction",
    "Projection",
    "attribute_direction",
    "auc",
    "cosines",
    "project",
    "random_directions",
]

# Widths of the smoothed hinge, from easy to nearly the hinge.
_WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01)


class Direction(NamedTuple):
    """Boundaries between latents with and without an attribute. For A attributes each field has A
    rows.

    Attributes:
      normal: `[D]`, of length 1, towards those with it.
      intercept: `normal @ z + intercept` is the signed distance of `z` from the boundary.
      accuracy_train: `[A]` shares right, on the fitted extremes.
      accuracy_test: `[A]` shares right, on the extremes held out.
      auc_test: `[A]`, area under the curve on the extremes held out.
      auc_low: `[A]`, lower end of its 95 % interval (`DeLong et al. 1988
        <https://doi.org/10.2307/2531595>`_).
      auc_high: `[A]`, upper end.
      accuracy_all: `[A]` shares right on every latent that was not fitted; one has the attribute
        if its score is at least the middle of the lowest and the highest. NaN if all are on one
        side.
      auc_all: `[A]`, area under the curve on the same latents.
      extremes: share of the scored samples that were taken at either end.
      left_out: how many samples had no score.
    """

    normal: np.ndarray
    intercept: np.ndarray
    accuracy_train: np.ndarray
    accuracy_test: np.ndarray
    auc_test: np.ndarray
    auc_low: np.ndarray
    auc_high: np.ndarray
    accuracy_all: np.ndarray
    auc_all: np.ndarray
    extremes: np.ndarray = np.float64(np.nan)  # type: ignore[assignment]
    left_out: np.ndarray = np.int64(0)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return display.summary(self)


class Projection(NamedTuple):
    """A direction that leaves others unchanged.

    Attributes:
      normal: `[D]`, of length 1.
      kept: length of what was left of the unit vector before it was rescaled: near 0, the
        attribute is nearly a mixture of the others.
      condition: condition number of the others; large, they are nearly dependent and the result is
        of little use.
    """

    normal: np.ndarray
    kept: float
    condition: float

    def __repr__(self) -> str:
        return display.summary(self)


def attribute_direction(
    latents: PyTree,
    scores: ArrayLike,
    *,
    loss: str = "logistic",
    extremes: float | None = None,
    train: float = 0.7,
    penalty: float = 0.01,
    key: jax.Array | None = None,
) -> Direction:
    """Returns the boundary of an attribute, or of several at once.

    Args:
      latents: `[N, D]`.
      scores: `[N]` or `[N, A]`, higher for more of the attribute; 0 and 1 will do. A sample
        whose score is NaN, such as one in which a detector found no face, is left out and counted.
      loss: "logistic", or "hinge" (a linear support vector machine, its corner rounded over .01).
      extremes: share of the samples at either end, in (0, .5]. None follows the attribute: of two
        values all of the rarer one, else .1, or fewer where more would have one score at both ends.
        The original takes .02 of 500,000.
      train: share of these that the boundary is fitted on, in (0, 1).
      penalty: of the squared length of the normal, half of it beside the mean loss; latents are
        scaled to variance 1 on average before.
      key: of the split; key 0 if None. Consumed.
    Returns:
      a `Direction`; its fields have a leading axis A if scores have one.
    Raises:
      ValueError: if shapes or options do not fit, if anything is infinite, if all scores of an
        attribute are one, or if the extremes asked for have the same score.
    """
    x, s = np.asarray(latents, np.float32), np.asarray(scores, np.float32)
    if x.ndim != 2 or s.ndim not in (1, 2) or len(s) != len(x):
        raise ValueError(
            f"latents must be [N, D] and scores [N] or [N, A], got shapes {x.shape} and {s.shape}"
        )
    if not np.isfinite(x).all() or np.isinf(s).any():
        raise ValueError(
            "latents must be finite, and scores finite or NaN where there is none, got infinite "
            "values"
        )
    if loss not in _LOSSES:
        raise ValueError(f"loss must be 'logistic' or 'hinge', got {loss!r}")
    share = 0.1 if extremes is None else extremes
    if not 0 < share <= 0.5 or not 0 < train < 1 or penalty <= 0:
        raise ValueError(
            "extremes must be in (0, .5], train in (0, 1) and penalty above 0, got "
            f"{extremes}, {train}, {penalty}"
        )
    columns = s.reshape(len(s), -1).T
    # One scale for all dimensions: with one for each the normal would be that of another space.
    mean, scale = x.mean(0), x.std() or 1.0
    keys = jax.random.split(random_key(key), 2)
    ends = [_ends(column, extremes, train, a, keys) for a, column in enumerate(columns)]
    found: list[tuple[PyTree, ...]] = [()] * len(columns)
    # Attributes with as many extremes are one program; each count is another.
    for count in sorted({len(low) for low, _ in ends}):
        group = [a for a, (low, _) in enumerate(ends) if len(low) == count]
        fitted = round(train * count)
        chosen = np.stack([np.concatenate([e[:fitted] for e in ends[a]]) for a in group])
        signs = np.repeat(np.array([-1.0, 1.0], np.float32), fitted)
        fit = _fit_all((x[chosen] - mean) / scale, signs, np.float32(penalty), loss=loss)
        for a, w, b in zip(group, *(np.asarray(part, np.float64) for part in fit), strict=True):
            # Back from scaled latents: `w @ (z - mean) / scale + b`, taken times `scale /
            # |w|`, is a distance.
            normal = w / np.linalg.norm(w)
            intercept = b * scale / np.linalg.norm(w) - normal @ mean
            low, high = ends[a]
            facts = _score(x, columns[a], normal, intercept, low, high, fitted)
            there = int(np.isfinite(columns[a]).sum())
            found[a] = (normal, intercept, *facts, count / there, len(x) - there)
    stacked = (np.array(part) for part in zip(*found, strict=True))
    return Direction(*(part[0] if s.ndim == 1 else part for part in stacked))


def _ends(
    scores: np.ndarray, extremes: float | None, train: float, attribute: int, keys: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which samples have the lowest and the highest scores of an attribute, each
    shuffled.
    """
    there = np.flatnonzero(np.isfinite(scores))
    order = there[np.argsort(scores[there], kind="stable")]
    values = scores[order]
    n = len(order)
    if not n:
        raise ValueError(f"scores must not all be NaN, got those of attribute {attribute}")
    if values[0] == values[-1]:
        raise ValueError(
            f"scores must differ, got {values[0]:g} for every sample of attribute {attribute}: "
            "score more samples"
        )
    if extremes is not None:
        count = round(extremes * n)
        if count and values[count - 1] == values[n - count]:
            raise ValueError(
                "scores must differ between the extremes, got one score for attribute "
                f"{attribute}: take fewer extremes, or None"
            )
    else:
        least = int((values == values[0]).sum())
        # An attribute of two values: all of the rarer one can be used.
        two = values[least] == values[-1]
        count = min(least, n - least) if two else max(1, round(0.1 * n))
        # This ends, for the lowest and the highest score differ.
        while values[count - 1] == values[n - count]:
            count -= 1
    fitted = round(train * count)
    if fitted < 1 or fitted == count:
        raise ValueError(
            f"extremes of {n} latents must leave samples to fit and to hold out at either end, got "
            f"{count} of which {fitted} to fit; score more samples"
        )
    low, high = order[:count], order[n - count :]
    shuffled = (
        e[np.asarray(jax.random.permutation(k, count))]
        for e, k in zip((low, high), keys, strict=True)
    )
    return next(shuffled), next(shuffled)


def project(primal: PyTree, others: PyTree) -> Projection:
    """Returns the part of a direction that is orthogonal to `others`, any number of them.

    Moving along it leaves the distance from the boundaries of the others as it is.

    Args:
      primal: `[D]`.
      others: `[N, D]` or `[D]`.
    Raises:
      ValueError: if the shapes do not fit, or if primal is nothing but a mixture of the others.

    >>> project([0.6, 0.8, 0.0], [[0.0, 2.0, 0.0]]).normal.tolist()
    [1.0, 0.0, 0.0]
    """
    n, c = np.asarray(primal, np.float64), np.atleast_2d(np.asarray(others, np.float64))
    if n.ndim != 1 or c.ndim != 2 or c.shape[1] != len(n):
        raise ValueError(
            f"primal must be [D] and others [N, D], got shapes {n.shape} and {np.shape(others)}"
        )
    n, c = n / np.linalg.norm(n), c / np.linalg.norm(c, axis=1, keepdims=True)
    _, values, axes = np.linalg.svd(c, full_matrices=False)
    # Dependent directions span fewer dimensions than they are.
    axes = axes[values > 1e-10 * values[0]]
    rest = n - axes.T @ (axes @ n)
    kept = float(np.linalg.norm(rest))
    if kept < 1e-6:
        raise ValueError(
            f"primal must not be a mixture of the others, got one that keeps a length of {kept:.1g}"
        )
    with np.errstate(divide="ignore"):
        return Projection(rest / kept, kept, float(values[0] / values[-1]))


def cosines(directions: ArrayLike) -> np.ndarray:
    """Returns the cosine of each pair of directions `[N, D]`: `[N, N]`.

    Compare with chance: of random directions the absolute cosine is about `.8 / sqrt(D)`.

    Args:
      directions: `[N, D]`.
    """
    d = arrays.as_float(directions)
    if d.ndim != 2:
        raise ValueError(f"directions must be [N, D], got shape {d.shape}")
    d = d / arrays.namespace(d).linalg.norm(d, axis=1, keepdims=True)
    found: np.ndarray = d @ d.T
    return found


def random_directions(key: jax.Array, n: int, size: int) -> jax.Array:
    """Returns `n` directions `[n, size]` of length 1, uniform on the sphere: the control of every
    edit.

    Args:
      key: random key.
      n: number of directions.
      size: their number D of dimensions.
    """
    x = jax.random.normal(key, (n, size))
    found: jax.Array = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return found


def auc(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float, float]:
    """Returns the area under the ROC curve and its 95 % interval (DeLong et al. 1988), ties half.

    Args:
      scores: `[N]`, higher where the attribute is likelier.
      labels: `[N]`, 1 where it is there, 0 where not.

    >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])[0]
    0.75
    """
    found = statistics.auc_normal(scores, labels)
    return found.value, found.low, found.high


def _score(
    x: np.ndarray,
    scores: np.ndarray,
    normal: np.ndarray,
    intercept: float,
    low: np.ndarray,
    high: np.ndarray,
    fitted: int,
) -> tuple[float, ...]:
    distance = x @ normal + intercept

    def accuracy(at: np.ndarray, labels: np.ndarray) -> float:
        return float(((distance[at] > 0) == labels).mean())

    parts = []
    for part in (slice(0, fitted), slice(fitted, None)):
        at = np.concatenate([low[part], high[part]])
        parts.append((at, np.arange(len(at)) >= len(at) // 2))
    # The middle included: the extremes alone are the easy cases.
    rest = np.setdiff1d(np.flatnonzero(np.isfinite(scores)), parts[0][0])
    has = scores[rest] >= (np.nanmax(scores) + np.nanmin(scores)) / 2
    everywhere = np.nan if has.all() or not has.any() else accuracy(rest, has)
    held = auc(distance[parts[1][0]], parts[1][1])
    return accuracy(*parts[0]), accuracy(*parts[1]), *held, everywhere, auc(distance[rest], has)[0]


def _logistic(margin: jax.Array, width: jax.Array) -> jax.Array:
    return jax.nn.softplus(-margin)


def _hinge(margin: jax.Array, width: jax.Array) -> jax.Array:
    """`max(0, 1 - margin)`, its corner a parabola over `2 width`."""
    gap = 1 - margin
    corner = jnp.square(jnp.clip(gap + width, 0, 2 * width)) / (4 * width)
    return corner + jnp.maximum(gap - width, 0)


_LOSSES: dict[str, tuple[Callable[..., jax.Array], tuple[float, ...]]] = {
    "logistic": (_logistic, (0.0,)),
    "hinge": (_hinge, _WIDTHS),
}


@functools.partial(jax.jit, static_argnames="loss")
def _fit_all(
    x: jax.Array, signs: jax.Array, penalty: jax.Array, *, loss: str
) -> tuple[jax.Array, jax.Array]:
    """The hyperplanes of `[A, n, D]` latents with signs `[n]`: `[A, D]`, `[A]`."""
    return jax.vmap(lambda one: _fit(one, signs, penalty, loss))(x)


def _fit(
    x: jax.Array, signs: jax.Array, penalty: jax.Array, loss: str
) -> tuple[jax.Array, jax.Array]:
    """Newton's method with a search along each step; the intercept is not penalised."""
    pointwise, widths = _LOSSES[loss]
    ones = jnp.ones_like(x[:, :1])
    features = jnp.concatenate([x, ones], 1) * signs[:, None]
    weight = jnp.full((features.shape[1],), penalty).at[-1].set(0)
    # A step of length 0 is among those tried, so the objective never rises.
    lengths = jnp.concatenate([jnp.zeros(1), 2.0 ** -jnp.arange(0, 12)])
    slope, bend = (
        jax.vmap(d, (0, None)) for d in (jax.grad(pointwise), jax.grad(jax.grad(pointwise)))
    )

    def solve(w: jax.Array, width: jax.Array) -> jax.Array:
        def objective(v: jax.Array) -> jax.Array:
            return pointwise(features @ v, width).mean() + (weight * v * v).sum() / 2

        def gradient(v: jax.Array) -> jax.Array:
            found: jax.Array = features.T @ slope(features @ v, width) / len(x) + weight * v
            return found

        def newton(v: jax.Array) -> jax.Array:
            bends = bend(features @ v, width)[:, None]
            curved = features.T @ (features * bends) / len(x)
            # Where no sample lies in the corner the intercept has no curvature of its own.
            found: jax.Array = jnp.linalg.solve(curved + jnp.diag(weight + 1e-6), gradient(v))
            return found

        def search(v: jax.Array, _: None) -> tuple[jax.Array, None]:
            tries = v[None] - lengths[:, None] * newton(v)[None]
            return tries[jnp.argmin(jax.vmap(objective)(tries))], None

        def polish(v: jax.Array, _: None) -> tuple[jax.Array, None]:
            # Near the end the objective no longer resolves a step; its gradient does.
            new = v - newton(v)
            better = jnp.abs(gradient(new)).max() < jnp.abs(gradient(v)).max()
            return jnp.where(better, new, v), None

        w = lax.scan(search, w, None, length=20)[0]
        return lax.scan(polish, w, None, length=4)[0]

    start = jnp.zeros(features.shape[1])
    # Each corner starts from the solution for the wider one: outside of a narrow corner the hinge
    # has no curvature that Newton's method could use.
    w, _ = lax.scan(lambda v, width: (solve(v, width), None), start, jnp.asarray(widths))
    return w[:-1], w[-1]
