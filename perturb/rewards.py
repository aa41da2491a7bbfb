"""What a mask is paid for: a number taken from the model's outputs on the perturbed image.

A reward is written for one image: `reward(outputs, target, original)`, where `outputs` is the row of
this image, `target` whatever was passed for it (a class index, a class and a region, a vector), and
`original` the row of the unperturbed image. Higher is better for "preserve"; "delete" is paid for its
fall. Each reward names the kinds of output that it can take, and is checked against the model.

>>> import jax.numpy as jnp
>>> margin()(jnp.array([1.0, 5.0, 3.0]), 1, None)
Array(2., dtype=float32)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from perturb.model import Model

__all__ = [
    "NAMES",
    "Reward",
    "check",
    "contrastive",
    "detection",
    "embedding",
    "get",
    "kl",
    "label",
    "labels",
    "log_probability",
    "logit",
    "margin",
    "probability",
    "region",
    "regression",
    "similarity",
    "user",
    "value",
]

Row = Any


@dataclasses.dataclass(frozen=True)
class Reward:
    """A named reward; hashable, so that it is part of a compiled program.

    Attributes:
      function: `(outputs row, target, original row) -> scalar`.
      accepts: the kinds of `Model.output` it can take; "any" stands for all.
      name: for records.
      indexes_class: whether `target` is a class index, to be checked against the number of classes.
    """

    function: Callable[[Row, Any, Row], jax.Array]
    accepts: tuple[str, ...]
    name: str
    indexes_class: bool = True

    def __call__(self, outputs: Row, target: Any, original: Row) -> jax.Array:
        """Returns the reward of one image, a scalar."""
        return self.function(outputs, target, original)


def _log_softmax(outputs: Row) -> jax.Array:
    return jax.nn.log_softmax(outputs.astype(jnp.float32))


def _logit(outputs: Row, target: Any, original: Row) -> jax.Array:
    return outputs[target]


def _log_probability(outputs: Row, target: Any, original: Row) -> jax.Array:
    return _log_softmax(outputs)[target]


def _probability(outputs: Row, target: Any, original: Row) -> jax.Array:
    return jnp.exp(_log_softmax(outputs)[target])


def _rival(outputs: Row, target: Any) -> jax.Array:
    return jnp.where(jnp.arange(outputs.shape[-1]) == target, -jnp.inf, outputs).max()


def _margin(outputs: Row, target: Any, original: Row) -> jax.Array:
    return outputs[target] - _rival(outputs, target)


def _kl(outputs: Row, target: Any, original: Row) -> jax.Array:
    p, q = _log_softmax(original), _log_softmax(outputs)
    return -(jnp.exp(p) * (p - q)).sum()


def _embedding(outputs: Row, target: Any, original: Row) -> jax.Array:
    a, b = outputs.reshape(-1), original.reshape(-1)
    return (a * b).sum() / jnp.sqrt((a**2).sum() * (b**2).sum() + 1e-12)


def _region(outputs: Row, target: Any, original: Row) -> jax.Array:
    wanted, where = target
    log_p = jax.nn.log_softmax(outputs, axis=-1)[..., wanted]
    return (log_p * where).sum() / jnp.maximum(where.sum(), 1e-12)


def _regression(outputs: Row, target: Any, original: Row) -> jax.Array:
    return -((outputs - original) ** 2).sum()


def _label(outputs: Row, target: Any, original: Row) -> jax.Array:
    return jax.nn.sigmoid(outputs.astype(jnp.float32))[target]


def _labels(outputs: Row, target: Any, original: Row) -> jax.Array:
    log_p = jax.nn.log_sigmoid(outputs.astype(jnp.float32))
    return (log_p * target).sum() / jnp.maximum(target.sum(), 1e-12)


def _similarity(outputs: Row, target: Any, original: Row) -> jax.Array:
    return _embedding(outputs, target, original=target)


def _value(outputs: Row, target: Any, original: Row) -> jax.Array:
    return outputs.reshape(-1)[target]


def _detection(outputs: Row, target: Any, original: Row) -> jax.Array:
    (boxes, scores), (wanted, box) = outputs, target
    low, high = jnp.maximum(boxes[:, :2], box[:2]), jnp.minimum(boxes[:, 2:], box[2:])
    shared = jnp.maximum(high - low, 0).prod(-1)
    areas = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)
    union = areas + (box[2:] - box[:2]).prod() - shared
    return (shared / jnp.maximum(union, 1e-12) * scores[:, wanted]).max()


CLASSES = ("logits", "probabilities", "multilabel")


def logit() -> Reward:
    """The target's raw output: logits, or whatever the network gives last (the papers' choice)."""
    return Reward(_logit, CLASSES, "logit")


def log_probability() -> Reward:
    """The log of the target's softmax probability."""
    return Reward(_log_probability, ("logits",), "log_probability")


def probability() -> Reward:
    """The target's softmax probability."""
    return Reward(_probability, ("logits",), "probability")


def margin() -> Reward:
    """The target's output above that of its strongest rival."""
    return Reward(_margin, CLASSES, "margin")


@dataclasses.dataclass(frozen=True)
class _Contrastive:
    """Equal for equal rivals, unlike a partial function: another call must not compile again."""

    rival: int

    def __call__(self, outputs: Row, target: Any, original: Row) -> jax.Array:
        return outputs[target] - outputs[self.rival]


def contrastive(rival: int) -> Reward:
    """The target's output above that of one named class: why this and not that?"""
    return Reward(_Contrastive(int(rival)), CLASSES, f"contrastive:{rival}")


def kl() -> Reward:
    """Minus the divergence from the original's class distribution; the target is not used."""
    return Reward(_kl, ("logits",), "kl", indexes_class=False)


def label() -> Reward:
    """The probability (sigmoid) of one of several independent labels."""
    return Reward(_label, ("multilabel",), "label")


def labels() -> Reward:
    """Mean log-probability of several independent labels at once; the target is `[labels]` of 0 and 1."""
    return Reward(_labels, ("multilabel",), "labels", indexes_class=False)


def similarity() -> Reward:
    """Cosine between the embedding and another one (a reference picture's); the target is `[D]`."""
    return Reward(_similarity, ("embedding", "logits"), "similarity", indexes_class=False)


def value() -> Reward:
    """One of the numbers that a regression gives; the target is its index (0 where there is one)."""
    return Reward(_value, ("regression",), "value", indexes_class=False)


def detection() -> Reward:
    """The best box's overlap (IoU) with the target's times its score of the target's class.

    The outputs of an image are `(boxes [N, 4], scores [N, classes])`, the target `(class, box [4])`;
    boxes are `x0, y0, x1, y1`, in any one unit. After `Petsiuk et al. 2021
    <https://arxiv.org/abs/2006.03204>`_, equation 5, with the class's score in place of the cosine
    between vectors of class scores.
    """
    return Reward(_detection, ("detection",), "detection", indexes_class=False)


def embedding() -> Reward:
    """Cosine between the embedding and the original's; the target is not used."""
    return Reward(_embedding, ("embedding", "logits"), "embedding", indexes_class=False)


def region() -> Reward:
    """Mean log-probability of a class over a region; the target is `(class, region [H, W])`."""
    return Reward(_region, ("segmentation",), "region", indexes_class=False)


def regression() -> Reward:
    """Minus the squared distance to the original's output; the target is not used."""
    return Reward(_regression, ("regression",), "regression", indexes_class=False)


def user(function: Callable[[Row, Any, Row], jax.Array], *, name: str = "user") -> Reward:
    """A reward of the user's own: `(outputs row, target, original row) -> scalar`, in JAX."""
    return Reward(function, ("any",), name, indexes_class=False)


_NAMED = {
    "logit": logit,
    "log_probability": log_probability,
    "probability": probability,
    "margin": margin,
    "kl": kl,
    "label": label,
    "labels": labels,
    "embedding": embedding,
    "similarity": similarity,
    "region": region,
    "regression": regression,
    "value": value,
    "detection": detection,
}
NAMES = tuple(_NAMED)


def get(reward: str | Reward | Callable[..., Any]) -> Reward:
    """Returns the reward of that name, a reward as it is, or a user's function wrapped as one.

    Raises:
      ValueError: if the name is unknown.
    """
    if isinstance(reward, Reward):
        return reward
    if callable(reward):
        return user(reward, name=getattr(reward, "__name__", "user"))
    if reward not in _NAMED:
        raise ValueError(f"reward must be one of {', '.join(NAMES)}, got {reward!r}")
    return _NAMED[reward]()


def check(reward: Reward, model: Model) -> None:
    """Refuses a reward that cannot read this model's outputs.

    Raises:
      ValueError: naming what the model gives and what the reward takes.
    """
    if "any" in reward.accepts or model.output == "any" or model.output in reward.accepts:
        return
    raise ValueError(
        f"reward {reward.name} takes {' or '.join(reward.accepts)}, but model {model.name} "
        f"returns {model.output}; choose another reward"
    )
