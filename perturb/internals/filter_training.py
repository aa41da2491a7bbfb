"""Filters trained to be read: a network fine-tuned with the loss of `interpretable`.

Any `perturb.Model` whose variables are weights: the layer is named as `perturb.taps.names` names
it, its maps are cut to their peaks, and the loss of each filter is added to the cross-entropy. With
weight 0 and without masks it is ordinary fine-tuning, which is what to compare with.

Where we differ from Zhang et al. 2018: no convolution is added on top, the class of a filter is
that of its highest mean peak on the training images, counted anew now and then, maps are divided by
the filter's running maximum, and on images of other classes the peak is pulled down, not the mean.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perturb import display, taps
from perturb.internals import interpretable
from perturb.internals._blocks import in_batches
from perturb.model import Model
from perturb.types import Array, ArrayLike, Function, PyTree

__all__ = ["Trained", "filter_maps", "train_filters"]

_MEMORY = 0.9


class Trained(NamedTuple):
    """A network after fine-tuning.

    Attributes:
      model: with the masks inside, if it was trained with masks.
      classes: `[C]` class of each filter of the layer.
      losses: `[steps]` cross-entropy of each step's batch.
    """

    model: Model
    classes: np.ndarray
    losses: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def filter_maps(model: Model, images: Array, layer: str, *, batch: int = 100) -> np.ndarray:
    """Returns `[N, n, n, C]`: a layer's activations, before masks, in batches.

    Args:
      model: of images.
      images: `[N, H, W, C]`.
      layer: name of an activation.
      batch: images at a time.
    """
    prefix = taps.split(_open(model), layer)[0]
    read = jax.jit(lambda variables, x: prefix(variables, x)[0])
    found: np.ndarray = in_batches(functools.partial(read, model.variables), images, batch)
    return found


def _open(model: Model) -> Function:
    """The model as a function of its weights too."""

    def run(variables: PyTree, images: jax.Array) -> PyTree:
        return dataclasses.replace(model, variables=variables)(images)

    return run


def train_filters(
    model: Model,
    images: Array,
    labels: ArrayLike,
    *,
    layer: str,
    weight: float = 5.0,
    halving: float = 240.0,
    others: str = "peak",
    masked: bool = True,
    steps: int = 240,
    batch: int = 32,
    rate: float = 1e-3,
    beta: float = 4.0,
    counted: int = 80,
    seed: int = 0,
) -> Trained:
    """Fine-tunes all weights of a model, with the loss of interpretable filters on one layer.

    Args:
      model: of class scores, whose variables are weights (normalisation folded).
      images: `[N, H, W, C]` in [0, 1].
      labels: `[N]` class indices.
      layer: name of an activation `[B, n, n, C]` after relu.
      weight: of the filters' loss at the start, from 0 on.
      halving: steps after which that weight is half; twice as many, and it is a third.
      others: what is pulled down on images of other classes, see `interpretable.filter_loss`.
      masked: whether the maps are cut to the surroundings of their peaks on the way.
      steps: number of steps of Adam.
      batch: number of images a step, at most N.
      rate: highest learning rate, which falls to 0 by a cosine.
      beta: number: how fast the templates fall with distance.
      counted: steps between two counts of the filters' classes.
      seed: a whole number, of the order of the images.
    Raises:
      ValueError: if there are no steps, fewer images than a batch, `halving` is not positive, or
        the layer has no square maps.
    """
    labels = np.asarray(labels)
    if steps < 1 or not 1 <= batch <= len(images):
        raise ValueError(
            f"steps must be at least 1 and batch 1 to the {len(images)} images given, got "
            f"steps={steps}, batch={batch}"
        )
    if not halving > 0:
        raise ValueError(f"halving must be a positive number of steps, got {halving}")

    prefix, suffix = taps.split(_open(model), layer)
    # One program for all counts; other weights do not compile it again.
    read = jax.jit(lambda variables, x: prefix(variables, x)[0])
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def losses(
        variables: PyTree, x: jax.Array, y: jax.Array, classes: jax.Array, top: PyTree, w: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        maps, live = prefix(variables, x)
        logits = suffix(interpretable.mask_maps(maps, beta=beta) if masked else maps, live)
        plain = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        # Of the maps as they are: behind the masks there is nothing left to push down.
        peaks = jnp.maximum(_MEMORY * top, maps.max((0, 1, 2)))
        if not weight:
            return plain, (plain, peaks)
        extra = interpretable.filter_loss(maps, y, classes, peaks, beta=beta, others=others)
        return plain + w * extra, (plain, peaks)

    @jax.jit
    def step(
        variables: PyTree, state: PyTree, top: jax.Array, x: jax.Array, y: PyTree, *rest: PyTree
    ) -> tuple[PyTree, ...]:
        slope, (plain, top) = jax.grad(losses, has_aux=True)(variables, x, y, rest[0], top, rest[1])
        update, state = optimiser.update(slope, state, variables)
        return optax.apply_updates(variables, update), state, top, plain

    number = int(labels.max()) + 1
    # Enough images to find the filters' classes; all of them would cost as much as the training.
    some = slice(0, min(len(images), 1000))

    def count(variables: PyTree) -> np.ndarray:
        maps = in_batches(functools.partial(read, variables), images[some], 100)
        if maps.ndim != 4 or maps.shape[1] != maps.shape[2]:
            raise ValueError(
                f"layer must be one of square maps [B, n, n, C], {layer} is {maps.shape}"
            )
        return interpretable.filter_classes(maps, labels[some], number)

    variables = jax.tree.map(jnp.asarray, model.variables)
    classes = count(variables)
    state, top, history = optimiser.init(variables), jnp.zeros(len(classes)), []
    for i, rows in enumerate(_orders(len(images), batch, steps, seed)):
        if i and i % counted == 0:
            classes = count(variables)
        w = jnp.float32(weight / (1 + i / halving))
        x, y = jnp.asarray(images[rows], jnp.float32), jnp.asarray(labels[rows])
        variables, state, top, plain = step(variables, state, top, x, y, jnp.asarray(classes), w)
        history.append(plain)
    apply = model.apply
    if masked:
        apply = taps.edit(apply, {layer: lambda a: interpretable.mask_maps(a, beta=beta)})
    found = dataclasses.replace(model, apply=apply, variables=variables)
    return Trained(found, count(variables), np.asarray(jax.device_get(history)))


def _orders(number: int, batch: int, steps: int, seed: int) -> PyTree:
    """Rows of each step: every image once before any comes twice."""
    rng, left = np.random.default_rng(seed), np.empty(0, int)
    for _ in range(steps):
        if len(left) < batch:
            left = np.concatenate([left, rng.permutation(number)])
        # Sorted: images on disk are read in order.
        yield np.sort(left[:batch])
        left = left[batch:]
