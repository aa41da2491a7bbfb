"""Heat maps that tell attacked pictures from clean ones, and what they showed before the attack.

An attack moves the answer, but the network then looks elsewhere, or everywhere. A small network
that sees only heat maps learns to tell (Vedaldi's lecture on extremal perturbations shows it as a
defence): of the answer alone, or better of every class, where what the picture showed still has its
own. Beside it, the same network on the pixels themselves says what heat maps add.

>>> import jax.numpy as jnp
>>> seen = Model(lambda w, x: jnp.stack([x.mean((1, 2, 3)), 0.5 + 0 * x[:, 0, 0, 0]], 1), ())
>>> clean = np.full((2, 8, 8, 3), 0.52, np.float32)
>>> attacked = fgsm(seen, clean, [0, 0], epsilon=0.05)
>>> np.asarray(seen(clean)).argmax(1), np.asarray(seen(attacked)).argmax(1)
(array([0, 0]), array([1, 1]))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perturb import display, scores, statistics
from perturb.attribution import grad_cam
from perturb.inputs import random_key
from perturb.model import Model, check_inputs
from perturb.types import Array, ArrayLike, PyTree, Variables

__all__ = ["Detector", "Verdict", "area_under_roc", "class_maps", "fgsm", "pgd", "predict", "train"]

CELLS = 32  # side that inputs are scaled to
_ADAM = optax.scale_by_adam()


def fgsm(model: Model, images: Array, targets: PyTree, *, epsilon: float = 4 / 255) -> np.ndarray:
    """Returns `[B, H, W, C]`: one step along the sign of the gradient (Goodfellow et al. 2015).

    Args:
      model: says classes or labels.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` true classes.
      epsilon: the most that a channel moves.
    """
    return pgd(model, images, targets, epsilon=epsilon, steps=1, rate=epsilon, key=None)


def pgd(
    model: Model,
    images: Any,
    targets: PyTree,
    *,
    epsilon: float = 4 / 255,
    steps: int = 10,
    rate: float | None = None,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Returns `[B, H, W, C]` attacked pictures, within `epsilon` of the originals and in [0, 1].

    Projected gradient ascent on the cross-entropy of the true class (Madry et al. 2018).

    Args:
      model, images, targets, epsilon: as for `fgsm`.
      steps: number of steps of ascent.
      rate: length of a step, in units of the pixels; None is `2.5 epsilon / steps`.
      key: of a random start within `epsilon`, image `i` with `fold_in(key, i)`; None starts at
        the image.
    """
    if epsilon <= 0 or steps < 1:
        raise ValueError(f"epsilon must be above 0 and steps at least 1, got {epsilon} and {steps}")
    x, classes, _ = check_inputs(model, images, targets)
    if not scores.has_probability(model.output):
        raise ValueError(
            f"model {model.name} must say classes to be attacked, it returns {model.output}"
        )
    number = len(x)
    if number == 1:  # a batch of one rounds differently from every larger one
        x, classes = np.repeat(x, 2, 0), np.repeat(classes, 2)
    start = x
    if key is not None:
        keys = [jax.random.fold_in(key, i) for i in range(len(x))]
        noise = [jax.random.uniform(k, x.shape[1:], minval=-epsilon, maxval=epsilon) for k in keys]
        start = np.clip(x + np.stack(noise), 0, 1)
    by = 2.5 * epsilon / steps if rate is None else rate
    for _ in range(steps):
        start = _ascend(model, x, start, classes, jnp.float32(epsilon), jnp.float32(by))
    return np.asarray(start)[:number]


@jax.jit
def _ascend(
    model: Model,
    images: jax.Array,
    x: jax.Array,
    targets: jax.Array,
    epsilon: jax.Array,
    rate: jax.Array,
) -> jax.Array:
    def loss(x: jax.Array) -> jax.Array:
        read = functools.partial(scores.log_probability, model.output)
        # Summed, and only the sign is used: no picture's step depends on the others.
        return -jax.vmap(read)(model(x), targets).sum()

    x = x + rate * jnp.sign(jax.grad(loss)(x))
    # Back within epsilon of the original first, then into [0, 1], which cannot lead out again.
    return jnp.clip(jnp.clip(x, images - epsilon, images + epsilon), 0, 1)


def class_maps(
    model: Model,
    images: Array,
    *,
    classes: Sequence[int],
    attribution: Callable[..., np.ndarray] = grad_cam,
) -> np.ndarray:
    """Returns `[B, H, W, K]`: a heat map for each of `K` classes, for `train` and `predict`.

    Args:
      model: returns logits.
      images: `[B, H, W, C]` in [0, 1], as many as the model takes at once.
      classes: whose maps are made.
      attribution: function `(model, images, targets) -> [B, H, W]`.

    A picture's maps are divided by the largest value among them, so that how the classes compare is
    kept and how sure the network is of all of them is not.

    Raises:
      ValueError: if there is no class; and what the attribution raises.

    >>> from perturb.attribution import gradient
    >>> seen = Model(lambda w, x: x.mean(3).reshape(len(x), -1) @ w, np.eye(4, 2, dtype=np.float32))
    >>> class_maps(seen, np.ones((2, 2, 2, 3)), classes=(0, 1), attribution=gradient)[0, 0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if len(classes) == 0:
        raise ValueError("classes must name at least one class, got none")
    x = np.asarray(images, np.float32)
    maps = [attribution(model, x, np.full(len(x), c, np.int32)) for c in classes]
    found = np.stack(maps, -1)
    # One scale for all classes of a picture: how they compare is the evidence.
    result: np.ndarray = found / np.maximum(np.abs(found).max((1, 2, 3), keepdims=True), 1e-12)
    return result


def _net(classes: int) -> PyTree:
    # flax, for those who train one: importing `perturb` does not bring it.
    from perturb.nets.heat_net import HeatNet

    return HeatNet(classes)


class Detector(NamedTuple):
    """A trained detector: its variables, the number of classes, and how its inputs are scaled.

    Attributes:
      variables: pytree of the detector's own weights.
      classes: number of classes.
      mean: `[K]`, taken off its inputs.
      deviation: `[K]`, by which they are divided then.
    """

    variables: Variables
    classes: int
    mean: np.ndarray
    deviation: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Verdict(NamedTuple):
    """What the detector says of `B` pictures.

    Attributes:
      attacked: `[B]` probabilities that the picture was attacked.
      label: `[B]` class indices, what the picture showed before.
    """

    attacked: np.ndarray
    label: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def _small(inputs: PyTree) -> np.ndarray:
    """`[B, H, W]` maps or `[B, H, W, K]` to `[B, 32, 32, K]`."""
    x = np.asarray(inputs, np.float32)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4:
        raise ValueError(f"inputs must be maps [B, H, W] or stacks [B, H, W, K], got {x.shape}")
    shape = (len(x), CELLS, CELLS, x.shape[-1])
    return np.asarray(jax.image.resize(x, shape, "linear", antialias=True))


def train(
    inputs: PyTree,
    answers: Array,
    attacked: Array,
    labels: ArrayLike,
    *,
    classes: int,
    steps: int = 400,
    batch: int = 32,
    rate: float = 2e-3,
    key: jax.Array | None = None,
) -> Detector:
    """Trains the small network on heat maps (or, for comparison, on pixels).

    Args:
      inputs: `[N, H, W]` or `[N, H, W, K]`, heat maps of the network's answer on each picture.
      answers: `[N]` class indices, what the network said.
      attacked: `[N]` booleans.
      labels: `[N]` class indices, what the pictures show.
      classes: number of classes.
      steps: number of steps of Adam.
      batch: maps a step.
      rate: learning rate of Adam.
      key: random key of start and order; None is `jax.random.key(0)`.
    """
    x = _small(inputs)
    said, marks, shown = (np.asarray(v) for v in (answers, attacked, labels))
    if not len(x) == len(said) == len(marks) == len(shown):
        raise ValueError("inputs, answers, attacked and labels must be of the same pictures")
    # A channel that never changes has no deviation to divide by.
    mean, deviation = x.mean((0, 1, 2)), x.std((0, 1, 2)) + 1e-6
    x = (x - mean) / deviation
    key = random_key(key)
    variables = _net(classes).init(key, x[:2], said[:2])
    moments = _ADAM.init(variables)
    # All batches drawn beforehand, so that the loop below only reads them.
    order = jax.random.randint(key, (steps, batch), 0, len(x))
    data = (jnp.asarray(x), jnp.asarray(said), jnp.asarray(marks, jnp.float32), jnp.asarray(shown))
    # A loop out here: inside a compiled one XLA's convolutions are ten times slower on a CPU.
    for rows in order:
        variables, moments = _step(variables, moments, data, rows, jnp.float32(rate), classes)
    return Detector(variables, classes, mean, deviation)


@functools.partial(jax.jit, static_argnames="classes")
def _step(
    variables: Variables,
    moments: PyTree,
    data: PyTree,
    rows: jax.Array,
    rate: jax.Array,
    classes: int,
) -> PyTree:
    def loss(v: Array) -> jax.Array:
        x, said, marks, shown = (a[rows] for a in data)
        mark, label = _net(classes).apply(v, x, said)
        detection = optax.sigmoid_binary_cross_entropy(mark, marks).mean()
        found: jax.Array = (
            detection + optax.softmax_cross_entropy_with_integer_labels(label, shown).mean()
        )
        return found

    update, moments = _ADAM.update(jax.grad(loss)(variables), moments)
    return jax.tree.map(lambda p, u: p - rate * u, variables, update), moments


def predict(detector: Detector, inputs: PyTree, answers: Array) -> Verdict:
    """Returns whether each picture was attacked, and what it showed.

    Args:
      detector: what `train` returned.
      inputs: `[N, H, W]` or `[N, H, W, K]` heat maps, made as those for `train`.
      answers: `[N]` class indices, what the network said.
    """
    x = (_small(inputs) - detector.mean) / detector.deviation
    found: PyTree = _net(detector.classes).apply(detector.variables, x, np.asarray(answers))
    mark, label = found
    return Verdict(np.asarray(jax.nn.sigmoid(mark)), np.asarray(label.argmax(-1)))


def area_under_roc(
    scores: Sequence[float] | np.ndarray, attacked: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the area under the ROC curve and its 95 % bootstrap interval.

    Args:
      scores: `[N]`, higher where an attack is likelier.
      attacked: `[N]` booleans.
      draws: number of bootstrap copies.
      seed: a whole number; the same seed gives the same draws.

    >>> area_under_roc([0.9, 0.8, 0.3, 0.1], [True, True, False, False])
    (1.0, 1.0, 1.0)
    """
    scores, marks = np.asarray(scores, np.float64), np.asarray(attacked, bool)
    if scores.shape != marks.shape or marks.all() or not marks.any():
        raise ValueError("scores and attacked must be [B], with pictures of both kinds")
    found = statistics.auc_interval(scores, marks, draws=draws, seed=seed)
    return found.value, found.low, found.high
