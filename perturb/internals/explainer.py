"""How much of a layer a set of units explains: measures that mean something by themselves.

A network that explains a network (Zhang et al. 2018) reports one mixing scalar p, which a weight in
its loss buys. What a set of units carries is measured here without training: how much of another
layer can be read from them on images held out, which share of the score flows through them, and how
few of them keep the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, taps
from perturb.model import Model
from perturb.types import Array, ArrayLike, PyTree

__all__ = ["Explained", "explained", "held_out_r2", "score_share", "smallest_set"]


class Explained(NamedTuple):
    """What a set of units carries.

    Attributes:
      r2: share of the upper layer's variance that is read from them, on images held out.
      share: `[B]` of the target's score that flows through them, of what flows through all.
      kept: `[B]` probability with those units alone on, over that with all.
    """

    r2: float
    share: np.ndarray
    kept: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def held_out_r2(x: Array, y: Array, *, ridge: float = 1e-4) -> float:
    """Returns the share of variance of `y` `[N, D]` read linearly from `x` `[N, K]`: second half
    from first.

    Args:
      x: `[N, K]`, what is read from.
      y: `[N, D]`, what is read.
      ridge: penalty on the squared weights, as a share of the mean variance of `x`.

    >>> x = np.random.default_rng(0).normal(size=(400, 4))
    >>> round(held_out_r2(x[:, :2], x @ np.ones((4, 1))), 1)
    0.5
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    half = len(x) // 2
    if half < 2:
        raise ValueError(f"x must hold at least 4 images to hold half of them out, got {len(x)}")
    # Nothing is read from no units.
    if not x.shape[1]:
        return 0.0
    mean_x, mean_y = x[:half].mean(0), y[:half].mean(0)
    a = x[:half] - mean_x
    gram = a.T @ a
    # Relative to the units' variance, so that the same ridge serves any layer.
    gram += ridge * max(np.trace(gram) / len(gram), 1e-30) * np.eye(len(gram))
    weights = np.linalg.solve(gram, a.T @ (y[:half] - mean_y))
    rest = y[half:] - mean_y - (x[half:] - mean_x) @ weights
    return float(1 - (rest**2).sum() / max(((y[half:] - mean_y) ** 2).sum(), 1e-30))


@jax.jit
def _at(
    suffix: PyTree, activation: jax.Array, live: PyTree, targets: jax.Array
) -> tuple[PyTree, PyTree]:
    def score(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = suffix(a, live)
        return jnp.take_along_axis(outputs, targets[:, None], 1).sum(), outputs

    # The sum over images has each image's own gradient in its row.
    (_, outputs), gradient = jax.value_and_grad(score, has_aux=True)(activation)
    return outputs, gradient


def _flow(model: Model, images: ArrayLike, targets: PyTree, layer: str) -> tuple[PyTree, ...]:
    prefix, suffix = taps.split(model, layer)
    activation, live = prefix(jnp.asarray(images))
    _, gradient = _at(jax.tree_util.Partial(suffix), activation, live, jnp.asarray(targets))
    axis = model.channel_axis(activation)
    others = tuple(i for i in range(activation.ndim) if i not in (0, axis))
    return activation, suffix, live, np.asarray((activation * gradient).sum(others)), axis


def score_share(
    model: Model, images: ArrayLike, targets: PyTree, layer: str, units: Sequence[int]
) -> PyTree:
    """Returns `[B]`: what the units bring to the target's score, as a share of what the layer
    brings.

    Activation times gradient, which is exact where the network above is linear but for relu.

    Args:
      model: of class scores.
      images, targets: `[B, H, W, C]` and `[B]`.
      layer: name of an activation.
      units: channels of it.
    """
    flow = _flow(model, images, targets, layer)[3]
    total = flow.sum(1)
    return np.divide(
        flow[:, list(units)].sum(1), total, out=np.full(len(total), np.nan), where=total != 0
    )


def _alone(
    model: Model,
    activation: Array,
    suffix: PyTree,
    live: PyTree,
    targets: PyTree,
    units: PyTree,
    axis: int,
) -> np.ndarray:
    shape = [1] * activation.ndim
    shape[axis] = -1
    on = np.zeros(activation.shape[axis], np.float32)
    on[list(units)] = 1
    p = jax.nn.softmax(suffix(activation * on.reshape(shape), live), -1)
    return np.asarray(p)[np.arange(len(targets)), targets]


def explained(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    layer: str,
    units: Sequence[int],
    upper: str,
) -> Explained:
    """Returns what a set of units carries; all units give 1, none 0 (but for `kept`: a floor).

    Args:
      model, images, targets, layer, units: as for `score_share`.
      upper: name of a later activation, read from the units' means over places.
    """
    targets = np.asarray(targets)
    activation, suffix, live, flow, axis = _flow(model, images, targets, layer)
    above = taps.read(model, upper)(jnp.asarray(images))[1][upper]
    x, y = (_means(v, model.channel_axis(v)) for v in (activation, above))
    total = flow.sum(1)
    share = np.divide(
        flow[:, list(units)].sum(1), total, out=np.full(len(total), np.nan), where=total != 0
    )
    whole = np.asarray(jax.nn.softmax(model(jnp.asarray(images)), -1))[
        np.arange(len(targets)), targets
    ]
    kept = _alone(model, activation, suffix, live, targets, units, axis) / whole
    return Explained(held_out_r2(x[:, list(units)], y), share, kept)


def _means(a: Array, axis: int) -> np.ndarray:
    others = tuple(i for i in range(a.ndim) if i not in (0, axis))
    return np.asarray(a.mean(others))


def smallest_set(
    model: Model, images: ArrayLike, targets: PyTree, *, layer: str, keep: float = 0.9
) -> tuple[np.ndarray, float]:
    """Returns the units, strongest first, of the smallest set that keeps a share of the
    probability.

    Units are ranked by what they bring to the score, mean over the images; of sets in that order
    the smallest is found by halving, so it is an upper bound of the smallest of all sets.

    Args:
      model, images, targets, layer: as for `score_share`.
      keep: mean kept share of the probability, 0 to 1.
    """
    targets = np.asarray(targets)
    activation, suffix, live, flow, axis = _flow(model, images, targets, layer)
    order = np.argsort(-flow.mean(0), kind="stable")
    # With all units on, through the same program as the smaller sets.
    whole = _alone(model, activation, suffix, live, targets, order, axis)

    def kept(number: int) -> float:
        p = _alone(model, activation, suffix, live, targets, order[:number], axis)
        return float((p / whole).mean())

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        # Halving assumes that more units keep more; where they do not, the set found still keeps
        # enough.
        low, high = (low, middle) if kept(middle) >= keep else (middle, high)
    return order[:high], kept(high)
