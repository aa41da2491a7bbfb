"""Which units carried one answer, and by how much: contributions that add up to the logit.

Integrated gradients along the straight path from a layer switched off to the layer as it is
(`Sundararajan et al. 2017 <https://arxiv.org/abs/1703.01365>`_, at an inner layer): the
contributions of the units sum to the logit less what is left with all of them off. Where everything
after the layer is rectified linear without biases inside, every step of the path has the same
gradient and one would do. Elsewhere the points of the path miss a little, at the kinks between
them: that is shared out in proportion to size, so that contributions always add up, and `residual`
says how much it was.

>>> import jax.numpy as jnp
>>> from perturb import Model, taps
>>> weights = jnp.array([[1.0, 0.0], [2.0, 1.0]])
>>> net = Model(lambda w, x: taps.tag(x.mean((1, 2)), "units") @ w, weights, channels=2)
>>> found = account(net, jnp.ones((4, 4, 2)), 0, layer="units")
>>> found.units.tolist(), found.contributions.round(3).tolist(), found.logit
([1, 0], [2.0, 1.0], 3.0)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display, taps
from perturb.internals._layers import check_layer
from perturb.model import Model

__all__ = ["Account", "account", "sentence"]


class Account(NamedTuple):
    """What the units of a layer gave to one logit.

    Attributes:
      layer: its name.
      target: index of the class.
      logit: number, the logit of that class.
      units: `[U]`, the largest contribution in size first.
      contributions: `[U]`, in that order, in units of the logit.
      maps: `[U, ...]`, the same by place of the layer.
      baseline: the logit with the whole layer off.
      residual: what the points of the path missed of `logit - baseline`, before it was shared out.
    """

    layer: str
    target: int
    logit: float
    units: np.ndarray
    contributions: np.ndarray
    maps: np.ndarray
    baseline: float
    residual: float

    def __repr__(self) -> str:
        return display.summary(self)


def account(model: Model, image: jax.Array, target: int, *, layer: str, steps: int = 32) -> Account:
    """Returns what each unit of a layer gave to the logit of a class, for one picture.

    Args:
      model: its output is logits `[B, classes]`.
      image: `[H, W, C]` in [0, 1].
      target: the class.
      layer: a name of `perturb.taps.names(model, images)`.
      steps: points of the path (Gauss and Legendre).
    """
    # Never a batch of one: XLA compiles that to other arithmetic.
    batch = np.stack([np.asarray(image, np.float32)] * 2)
    check_layer(model, layer, batch)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    # Nodes lie on [-1, 1]; the path runs over [0, 1]. With n nodes Gauss's rule is exact for
    # polynomials up to degree 2n - 1, and n even steps only for far lower ones.
    at, weight = np.polynomial.legendre.leggauss(steps)
    gradient, logit, baseline = _path(
        model,
        batch,
        (at + 1).astype(np.float32) / 2,
        weight.astype(np.float32) / 2,
        target,
        layer=layer,
    )
    # One picture of the pair: its axes are those of a batch, less the first.
    axis = model.channel_axis(jax.ShapeDtypeStruct((2, *gradient.shape), jnp.float32)) - 1
    maps = np.moveaxis(np.asarray(gradient, np.float64), axis, 0)
    left = float(logit) - float(baseline) - float(maps.sum())
    size = np.abs(maps)
    if size.sum() > 0:
        maps = maps + left * size / size.sum()
    each = maps.reshape(len(maps), -1).sum(1)
    order = np.argsort(-np.abs(each), kind="stable")
    return Account(
        layer, int(target), float(logit), order, each[order], maps[order], float(baseline), left
    )


def sentence(found: Account, names: Sequence[str | None], *, class_name: str, most: int = 3) -> str:
    """Returns the account in words: the units that gave most, by their names.

    Args:
      found: an `Account`.
      names: `[U]` by number of the unit, as of `name_units`; None where a unit has none.
      class_name: name of the target in words.
      most: number of units that are named.
    """
    parts = []
    for unit, share in zip(found.units[:most], found.contributions[:most], strict=True):
        name = names[int(unit)]
        parts.append(f"unit {unit} ({name or 'no name'}) {share:+.2f}")
    rest = found.contributions[most:].sum()
    return (
        f"{class_name} {found.logit:.2f}: {', '.join(parts)}, the other {len(found.units) - most} "
        f"units {rest:+.2f}, without the layer {found.baseline:+.2f}"
    )


@functools.partial(jax.jit, static_argnames="layer")
def _path(
    model: Model, batch: jax.Array, at: jax.Array, weight: jax.Array, target: int, *, layer: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    prefix, suffix = taps.split(model, layer)
    activation, live = prefix(batch)

    def logit(a: jax.Array) -> jax.Array:
        # The first row; the second is its copy and only keeps the batch from being one.
        found: jax.Array = suffix(a, live)[0, target]
        return found

    def step(total: jax.Array, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, w = point
        return total + w * jax.grad(logit)(t * activation), None

    total, _ = jax.lax.scan(step, jnp.zeros_like(activation), (at, weight))
    return (total * activation)[0], logit(activation), logit(0 * activation)
