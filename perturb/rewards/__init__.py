"""What the search maximises: a number taken from the model's outputs on the perturbed image.

A reward is written for one image: `reward(outputs, target, original)`, where `outputs` is the row
of this image, `target` whatever was passed for it (a class index, a class and a region, a vector),
and `original` the row of the unperturbed image. Higher is better for "preserve"; "delete" maximises
its fall. Each reward names the kinds of output that it can take, and is checked against the model.

>>> import jax.numpy as jnp
>>> margin()(jnp.array([1.0, 5.0, 3.0]), 1, None)
Array(2., dtype=float32)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perturb import messages, registry, scores
from perturb.model import Model
from perturb.types import Function, PyTree

__all__ = [
    "NAMES",
    "Reward",
    "answer",
    "bind",
    "check",
    "chosen",
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
    "score",
    "similarity",
    "to_lose",
    "user",
    "value",
]

Row = PyTree


def _as_it_is(reward: jax.Array) -> jax.Array:
    return reward


@dataclasses.dataclass(frozen=True)
class Reward:
    """A named reward; hashable, so that it is part of a compiled program.

    Attributes:
      function: `(outputs row, target, original row) -> scalar`.
      accepts: the kinds of `Model.output` it can take; "any" stands for all.
      name: for records.
      indexes_class: whether `target` is one of the model's own (`perturb.scores`), a class mostly,
        and checked against how many there are.
      compare: of rewards under several fills the mean of this decides which mask is kept: of
        log-probabilities their exponent, or one fill that no region holds under would decide alone.
    """

    function: Callable[[Row, PyTree, Row], jax.Array]
    accepts: tuple[str, ...]
    name: str
    indexes_class: bool = True
    compare: Callable[[jax.Array], jax.Array] = _as_it_is

    def __call__(self, outputs: Row, target: PyTree, original: Row) -> jax.Array:
        """Returns the reward of one image, a scalar."""
        return self.function(outputs, target, original)


@dataclasses.dataclass(frozen=True)
class _Read:
    """A reward by `perturb.scores`; equal by value, so that another call does not compile again.

    Attributes:
      kind: which of the rewards below.
      output: how the model's outputs are read.
    """

    kind: str
    output: str = "logits"

    def __call__(self, row: Row, target: PyTree, original: Row) -> jax.Array:
        if self.kind == "kl":
            return -_divergence(self.output, original, row)
        if self.kind == "margin":
            return scores.score(self.output, row, target) - _rival(self.output, row, target)
        found: jax.Array = getattr(scores, self.kind)(self.output, row, target)
        return found


def _rival(output: str, row: Row, target: PyTree) -> jax.Array:
    # Yes against no differ by the log-odds, which are the score; a label has no rival, nor has one
    # number.
    if output in ("binary", "multilabel") or row.size == 1:
        return jnp.zeros(())
    return scores.rival(output, row, target)[1]


def _divergence(output: str, original: Row, row: Row) -> jax.Array:
    """Kullback and Leibler's divergence of the row's class distribution from the original's."""
    p, q = (_log_distribution(output, r) for r in (original, row))
    # From logarithms: p log(p / q) of a tiny p is 0, where a quotient of probabilities is 0 / 0.
    return (jnp.exp(p) * (p - q)).sum()


def _log_distribution(output: str, row: Row) -> jax.Array:
    """`[K]`, or `[L, 2]` of labels of their own, each present or absent."""
    row = row.astype(jnp.promote_types(row.dtype, jnp.float32))
    if output == "probabilities":
        # A softmax in float32 may have underflowed to 0, whose logarithm has no slope.
        return jnp.log(jnp.maximum(row, 1e-30))
    if output in ("binary", "multilabel") or row.size == 1:
        # Labels do not compete: each is a distribution of its own over yes and no.
        return jax.nn.log_sigmoid(jnp.stack([row, -row], -1))
    return jax.nn.log_softmax(row)


def _embedding(outputs: Row, target: PyTree, original: Row) -> jax.Array:
    return scores.score("embedding", outputs, original)


def _region(outputs: Row, target: PyTree, original: Row) -> jax.Array:
    return scores.log_probability("segmentation", outputs, tuple(target))


def _regression(outputs: Row, target: PyTree, original: Row) -> jax.Array:
    # Minus, because rewards are maximised: the output is to stay where it was.
    found: jax.Array = -((outputs - original) ** 2).sum()
    return found


def _labels(outputs: Row, target: PyTree, original: Row) -> jax.Array:
    log_p = jax.nn.log_sigmoid(outputs.astype(jnp.float32))
    # No label asked for gives 0, not NaN.
    found: jax.Array = (log_p * target).sum() / jnp.maximum(target.sum(), 1e-12)
    return found


def _similarity(outputs: Row, target: PyTree, original: Row) -> jax.Array:
    return scores.score("embedding", outputs, target)


def _value(outputs: Row, target: PyTree, original: Row) -> jax.Array:
    found: jax.Array = outputs.reshape(-1)[target]
    return found


def _detection(outputs: Row, target: PyTree, original: Row) -> jax.Array:
    return scores.score("detection", outputs, tuple(target))


CLASSES = ("logits", "probabilities", "binary", "multilabel")


def logit() -> Reward:
    """The target's raw output: logits, or whatever the network gives last (the papers' choice)."""
    return Reward(_Read("score"), CLASSES, "logit")


def score() -> Reward:
    """The target's score, whatever the model returns: a label's logit, a regression's number, the
    cosine with a vector, the mean over a segmented region (`perturb.scores`)."""
    return Reward(_Read("score"), ("any",), "score")


def log_probability() -> Reward:
    """The log of the target's probability, as the model's output has it (`perturb.scores`)."""
    return Reward(_Read("log_probability"), CLASSES, "log_probability", compare=jnp.exp)


# Below a probability of `LOST` there is nothing more to lose; `DIRECTION` is the weight of the
# score's gradient. See `answer`.
LOST, DIRECTION = 0.02, 0.01


@dataclasses.dataclass(frozen=True)
class _Answer:
    """A class, so that the reward of another call is equal and nothing compiles again."""

    read: _Read

    def __call__(self, outputs: Row, target: PyTree, original: Row) -> jax.Array:
        value = jnp.logaddexp(self.read(outputs, target, original), math.log(LOST))
        # Where a probability is 1, or 0, to float32 the score still says where to go; the value is
        # unchanged.
        score = scores.score(self.read.output, outputs, target)
        return value + DIRECTION * (score - jax.lax.stop_gradient(score))


def answer() -> Reward:
    """The log of the target's probability plus 2 %: what is lost anyway costs nothing more.

    A logit may stay high while another class comes first. A log-probability falls without end under
    a fill that no region of this area holds under, and that fill would decide alone.
    """
    return Reward(_Answer(_Read("log_probability")), CLASSES, "answer", compare=jnp.exp)


# Below this the chance of any other class is rounding: there the score's own slope is that of the
# log odds.
_SURE = 1e-6


@dataclasses.dataclass(frozen=True)
class _Odds:
    """As `_Answer`, of the log odds."""

    read: _Read

    def __call__(self, outputs: Row, target: PyTree, original: Row) -> jax.Array:
        log_p = self.read(outputs, target, original)
        other = -jnp.expm1(log_p)
        value = jnp.logaddexp(log_p, math.log(LOST)) - jnp.log(jnp.maximum(other, _SURE))
        score = scores.score(self.read.output, outputs, target)
        weight = jnp.where(other > _SURE, DIRECTION, 1.0)
        return value + weight * (score - jax.lax.stop_gradient(score))


def to_lose(reward: Reward) -> Reward:
    """Returns what a removal should lower: of `answer` the log of (p + 2 %) / (1 - p), else the
    reward itself.

    While an answer is all but certain its log-probability hardly moves, though more and more of
    what it hangs on goes; the log odds do.

    Args:
      reward: a `Reward`, bound to a model.

    >>> sure, two = jnp.array([9.0, 0.0]), to_lose(answer())
    >>> slope = jax.grad(lambda row, reward: reward(row, 0, row))
    >>> round(float(slope(sure, answer())[0]), 2), round(float(slope(sure, two)[0]), 2)
    (0.01, 1.01)
    """
    if not isinstance(reward.function, _Answer):
        return reward
    return dataclasses.replace(reward, function=_Odds(reward.function.read))


def probability() -> Reward:
    """The target's probability, as the model's output has it (`perturb.scores`)."""
    return Reward(_Read("probability"), CLASSES, "probability")


def margin() -> Reward:
    """The target's output above that of its strongest rival."""
    return Reward(_Read("margin"), CLASSES, "margin")


@dataclasses.dataclass(frozen=True)
class _Contrastive:
    """Equal for equal rivals, unlike a partial function: another call must not compile again."""

    rival: int

    def __call__(self, outputs: Row, target: PyTree, original: Row) -> jax.Array:
        found: jax.Array = outputs[target] - outputs[self.rival]
        return found


def contrastive(rival: int) -> Reward:
    """The target's output above that of one named class: why this and not that?

    Args:
      rival: index of the other class.
    """
    accepts = ("logits", "probabilities", "multilabel")
    return Reward(_Contrastive(int(rival)), accepts, f"contrastive:{rival}")


def kl() -> Reward:
    """Minus the divergence from the original's class distribution; the target is not used."""
    return Reward(_Read("kl"), CLASSES, "kl", indexes_class=False)


def label() -> Reward:
    """The probability (sigmoid) of one of several independent labels."""
    return Reward(_Read("probability", "multilabel"), ("multilabel",), "label")


def labels() -> Reward:
    """Mean log-probability of several independent labels at once; the target is `[labels]` of 0 and
    1.
    """
    return Reward(_labels, ("multilabel",), "labels", indexes_class=False)


def similarity() -> Reward:
    """Cosine between the embedding and another one (a reference picture's); the target is `[D]`."""
    return Reward(_similarity, ("embedding", "logits"), "similarity", indexes_class=False)


def value() -> Reward:
    """One of the numbers that a regression gives; the target is its index (0 where there is
    one).
    """
    return Reward(_value, ("regression",), "value", indexes_class=False)


def detection() -> Reward:
    """The best box's overlap (IoU) with the target's times its score of the target's class.

    The outputs of an image are `(boxes [N, 4], scores [N, classes])`, the target
    `(class, box [4])`; boxes are `x0, y0, x1, y1`, in any one unit. After `Petsiuk et al. 2021
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


def user(function: Callable[[Row, PyTree, Row], jax.Array], *, name: str = "user") -> Reward:
    """A reward of the user's own: `(outputs row, target, original row) -> scalar`, in JAX.

    Args:
      function: `(outputs row, target, original row) -> scalar`, in JAX.
      name: printed where the reward is named.
    """
    # What a user's function does with the target is not known, so nothing is checked of it.
    return Reward(function, ("any",), name, indexes_class=False)


# One line a name: what makes the reward, or where it is (see `perturb.registry`).
_NAMED: dict[str, Callable[[], Reward] | str] = {
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
    "score": score,
    "value": value,
    "detection": detection,
    "answer": answer,
}
NAMES = tuple(_NAMED)


def get(reward: str | Reward | Function) -> Reward:
    """Returns the reward of that name, a reward as it is, or a user's function wrapped as one.

    Args:
      reward: a name, a `Reward`, or a function `(outputs row, target, original row) -> scalar`.
    Raises:
      ValueError: if the name is unknown.
    """
    if isinstance(reward, Reward):
        return reward
    if callable(reward):
        return user(reward, name=getattr(reward, "__name__", "user"))
    if reward not in _NAMED:
        raise messages.one_of("reward", reward, NAMES)
    made: Reward = registry.resolve(_NAMED[reward])()
    return made


def bind(reward: Reward, model: Model) -> Reward:
    """Returns the reward that reads the outputs as this model means them.

    Args:
      reward: a `Reward`.
      model: the network, a `perturb.Model`.
    Raises:
      ValueError: if the reward cannot read them, naming what the model gives and what it takes.
    """
    check(reward, model)
    # `answer` wraps another reward: that one is bound, and wrapped again.
    if isinstance(reward.function, _Answer):
        read = bind(dataclasses.replace(reward, function=reward.function.read), model).function
        return dataclasses.replace(reward, function=_Answer(read))  # type: ignore[arg-type]
    if not isinstance(reward.function, _Read) or model.output == reward.function.output:
        return reward
    # Of numbers of any meaning nothing is known: rewards of classes take them for logits.
    known = model.output in CLASSES or reward.function.kind == "score"
    output = model.output if known else "logits"
    return dataclasses.replace(reward, function=dataclasses.replace(reward.function, output=output))


def chosen(reward: str | Reward | Function | None, model: Model) -> Reward:
    """Returns the reward asked for, or the one for the model's answer, bound to the model.

    None is `answer` where the model gives classes. Else it is "logit", which such a model refuses.

    Args:
      reward: a name, a `Reward`, a function `(outputs row, target, original row) -> scalar`, or
        None.
      model: the network, a `perturb.Model`.
    """
    if reward is None:
        # "logit" then fails with the list of what this model takes: better than a guess at what
        # matters in a regression or an embedding.
        reward = "answer" if model.output in CLASSES else "logit"
    return bind(get(reward), model)


def check(reward: Reward, model: Model) -> None:
    """Refuses a reward that cannot read this model's outputs.

    Args:
      reward: a `Reward`.
      model: the network, a `perturb.Model`.
    Raises:
      ValueError: naming what the model gives and what the reward takes.
    """
    if "any" in reward.accepts or model.output == "any" or model.output in reward.accepts:
        return
    raise ValueError(
        f"reward {reward.name} takes {' or '.join(reward.accepts)}, but model {model.name} "
        f"returns {model.output}; reward='score' takes any output"
    )
