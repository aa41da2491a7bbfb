"""A network that explains a network: two tracks beside a fixed one, which rebuild a layer above.

Zhang et al., Explaining Neural Networks Semantically and Quantitatively, 2018. The maps of one
layer go through an interpretable track (two convolutions with masks and the loss of interpretable
filters) and an ordinary one (a convolution); channels are divided by their level and
mixed, `p * interpretable + (1 - p) * ordinary` with one number p; a convolution rebuilds the maps
of a higher layer. The loss is the share of variance that is missed, minus `eta log p`, plus the
filters' loss. No labels are needed: the classes are the answers of the fixed network.

p depends on eta and means nothing alone. Report it as a curve over eta, each point with the share
of variance that is rebuilt and the accuracy of the fixed network on the rebuilt maps.

Where we differ: the decoder is a convolution, since what is rebuilt are maps; the level of a
channel is its root mean square, not its mean, which a masked map exceeds by a hundred times at its
peak.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perturb import display
from perturb.internals import interpretable
from perturb.internals._blocks import in_batches
from perturb.types import Array, ArrayLike, PyTree

__all__ = ["Explainer", "rebuild", "share_of_variance", "train_explainer"]

_MEMORY = 0.95
# One number among a hundred thousand weights: at their rate it would not arrive.
_FAST = 10.0


class Explainer(NamedTuple):
    """A trained explainer network.

    Attributes:
      weights: kernels and biases by name of the convolution; `mix` is a tenth
        of p before its sigmoid.
      level: `[2, W]` running mean square of each channel of the two tracks.
      classes: `[W]` class of each interpretable filter.
    """

    weights: dict[str, PyTree]
    level: jax.Array
    classes: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def p(self) -> float:
        """Share of the interpretable track, 0 to 1."""
        return float(jax.nn.sigmoid(_FAST * self.weights["mix"]))


def _conv(layer: PyTree, x: jax.Array) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y + layer["bias"])


def _start(key: jax.Array, lower: int, width: int, upper: int) -> dict[str, PyTree]:
    sizes = {
        "first": (lower, width),
        "second": (width, width),
        "ordinary": (lower, width),
        "decoder": (width, upper),
    }
    he = jax.nn.initializers.he_normal()
    weights: dict[str, PyTree] = {
        name: {"kernel": he(k, (3, 3, *size)), "bias": jnp.zeros(size[1])}
        for k, (name, size) in zip(jax.random.split(key, len(sizes)), sizes.items(), strict=True)
    }
    # What is rebuilt starts near the mean: from far off, the first steps would shut both tracks.
    weights["decoder"]["kernel"] *= 0.2
    return weights | {"mix": jnp.zeros(())}


def _tracks(weights: PyTree, lower: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two layers of the interpretable track before their masks, and the ordinary one."""
    first = _conv(weights["first"], lower)
    second = _conv(weights["second"], interpretable.mask_maps(first))
    return first, second, _conv(weights["ordinary"], lower)


def _levels(second: jax.Array, plain: jax.Array) -> jax.Array:
    shown = interpretable.mask_maps(second)
    return jnp.stack([(v * v).mean((0, 1, 2)) for v in (shown, plain)])


def _mixed(weights: PyTree, second: jax.Array, plain: jax.Array, level: jax.Array) -> jax.Array:
    p = jax.nn.sigmoid(_FAST * weights["mix"])
    # A channel that is nearly silent is not raised to the level of the others: it would be noise.
    level = jnp.sqrt(jnp.maximum(level, 0.1 * level.mean(1, keepdims=True)) + 1e-6)
    x: jax.Array = p * interpretable.mask_maps(second) / level[0] + (1 - p) * plain / level[1]
    return x


@jax.jit
def _rebuild(weights: PyTree, level: jax.Array, lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, second, plain = _tracks(weights, lower)
    return _conv(weights["decoder"], _mixed(weights, second, plain, level)), second


def rebuild(
    explainer: Explainer, lower: Array, *, batch: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rebuilt maps `[N, n, n, C]` of the upper layer, and those of the interpretable
    filters before their masks, `[N, n, n, W]`.

    Args:
      explainer: see `train_explainer`.
      lower: `[N, n, n, L]` maps of the lower layer.
      batch: images at a time.
    """
    read = functools.partial(_rebuild, explainer.weights, explainer.level)
    found: tuple[np.ndarray, np.ndarray] = in_batches(read, lower, batch)
    return found


def share_of_variance(found: ArrayLike, wanted: ArrayLike) -> float:
    """Returns R²: 1 less the squared error over the variance, each unit around its own mean.

    Args:
      found: `[N, ...]` as rebuilt.
      wanted: `[N, ...]` as they are; units are all axes but the first.

    >>> wanted = np.array([[0.0, 5.0], [2.0, 5.0]])
    >>> share_of_variance(wanted, wanted), share_of_variance(np.array([[1.0, 5.0]] * 2), wanted)
    (1.0, 0.0)
    """
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(1 - ((a - b) ** 2).sum() / max(((b - b.mean(0)) ** 2).sum(), 1e-30))


@functools.partial(jax.jit, static_argnames=("steps", "rate"))
def _step(
    weights: PyTree,
    state: PyTree,
    running: tuple[jax.Array, jax.Array],
    data: tuple[jax.Array, ...],
    prices: tuple[jax.Array, jax.Array],
    *,
    steps: int,
    rate: float,
) -> tuple[PyTree, ...]:
    lower, upper, labels, classes, variance = data
    eta, weight = prices

    def loss(weights: PyTree) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        first, second, plain = _tracks(weights, lower)
        here = _levels(second, plain)
        level = _MEMORY * running[0] + (1 - _MEMORY) * here
        top = jnp.stack([v.max((0, 1, 2)) for v in (first, second)])
        top = jnp.maximum(_MEMORY * running[1], top)
        # Normalised by the levels of this batch, with their gradient: else a track could be scaled
        # towards 0 at the start, and p would be a share of nothing.
        found = _conv(weights["decoder"], _mixed(weights, second, plain, here))
        missed = ((found - upper) ** 2).sum((1, 2, 3)).mean() / variance
        filters = [
            interpretable.filter_loss(v, labels, classes, m)
            for v, m in ((first, top[0]), (second, top[1]))
        ]
        mixing = -eta * jax.nn.log_sigmoid(_FAST * weights["mix"])
        return missed + mixing + weight * sum(filters), (level, top)

    slope, running = jax.grad(loss, has_aux=True)(weights)
    optimiser = _optimiser(steps, rate)
    update, state = optimiser.update(slope, state, weights)
    return optax.apply_updates(weights, update), state, running


def _optimiser(steps: int, rate: float) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def train_explainer(
    lower: Array,
    upper: Array,
    labels: ArrayLike,
    *,
    eta: float = 0.1,
    weight: float = 0.1,
    width: int = 64,
    steps: int = 600,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
) -> Explainer:
    """Trains an explainer network between two layers of a fixed network.

    Args:
      lower: `[N, n, n, L]` maps of a layer.
      upper: `[N, n, n, C]` maps of a later one with as many places, after relu.
      labels: `[N]` classes that the fixed network answers.
      eta: price of a small p, from 0 on.
      weight: of the filters' loss.
      width: channels of each track.
      steps: number of steps of Adam.
      batch: images a step, at most N.
      rate: highest learning rate, which falls to 0 by a cosine.
      seed: a whole number, of first weights and order.
    Raises:
      ValueError: if the layers differ in their number of images or places, or there are fewer
        images than a batch.
    """
    if lower.shape[:3] != upper.shape[:3] or len(lower) < batch:
        raise ValueError(
            f"lower and upper must be maps [N, n, n, C] of the same {batch} or more images and "
            f"places, got shapes {lower.shape} and {upper.shape}"
        )
    labels = np.asarray(labels)
    number = int(labels.max()) + 1
    weights = _start(jax.random.key(seed), lower.shape[-1], width, upper.shape[-1])
    whole = np.asarray(upper, np.float64)
    weights["decoder"]["bias"] = jnp.asarray(whole.mean((0, 1, 2)), jnp.float32)
    state = _optimiser(steps, rate).init(weights)
    # Of one image: what a batch misses is a share of it.
    variance = jnp.float32(((whole - whole.mean(0)) ** 2).sum() / len(whole))
    some = min(len(lower), 500)

    def count() -> np.ndarray:
        maps = _tracks(weights, jnp.asarray(lower[:some], jnp.float32))[1]
        return interpretable.filter_classes(maps, labels[:some], number)

    _, second, plain = _tracks(weights, jnp.asarray(lower[:batch], jnp.float32))
    running = (
        _levels(second, plain),
        jnp.zeros((2, width)),
    )
    classes, rng = count(), np.random.default_rng(seed)
    prices = jnp.float32(eta), jnp.float32(weight)
    for i in range(steps):
        if i and i % 100 == 0:
            classes = count()
        rows = np.sort(rng.permutation(len(lower))[:batch])
        data = (
            *(jnp.asarray(v[rows], jnp.float32) for v in (lower, upper)),
            jnp.asarray(labels[rows]),
            jnp.asarray(classes),
            variance,
        )
        weights, state, running = _step(
            weights,
            state,
            running,
            data,
            prices,
            steps=steps,
            rate=rate,
        )
    return Explainer(weights, running[0], count())
