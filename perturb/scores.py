"""What a model's outputs say about a target: its score, its probability, its rank.

Masks, attributions, metrics, evidence and pages all ask here, so that one network is read one way
everywhere. `output` is `Model.output`; a row is the output for one image, without the batch axis.

| output | row | target | score | probability |
|---|---|---|---|---|
| logits | `[K]` | class | its logit | softmax |
| logits of one number | `[]`, `[1]` | 0, that number | its logit | sigmoid |
| binary | `[]`, `[1]` | 1 yes, 0 no | log-odds: the logit, or minus it | sigmoid |
| probabilities | `[K]` | class | its probability | as it is |
| multilabel | `[L]` | label | its logit | sigmoid |
| regression, any | `[D]` | which number | the number | none |
| embedding | `[D]` | which number, or a vector `[D]` | the number, or the cosine | none |
| segmentation | `[H, W, K]` | class, or class and region | mean logit over it | mean softmax |
| detection | boxes, scores `[N, K]` | class, or class and box | best score, times IoU | none |

>>> import jax.numpy as jnp
>>> round(float(probability("logits", jnp.array([0.0, 0.0, 0.0, 0.0]), 2)), 3)
0.25
>>> float(probability("binary", jnp.array([0.0]), 1)), float(score("binary", jnp.array([3.0]), 0))
(0.5, -3.0)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perturb.types import PyTree

__all__ = [
    "OUTPUTS",
    "has_probability",
    "iou",
    "log_probability",
    "measure",
    "number_of_targets",
    "predicted",
    "probability",
    "rank",
    "rival",
    "score",
    "top",
]

OUTPUTS = (
    *("logits", "probabilities", "binary", "multilabel", "embedding", "regression"),
    *("segmentation", "detection", "any"),
)
_CLASSES = ("logits", "probabilities", "binary", "multilabel")
# The smallest probability that has a logarithm: a softmax in float32 may underflow to 0.
_TINY = 1e-30


def has_probability(output: str) -> bool:
    """Returns whether targets of this output have a probability.

    Args:
      output: the kind of output, see `perturb.Model`.
    """
    return output in (*_CLASSES, "segmentation")


def score(output: str, row: PyTree, target: PyTree) -> jax.Array:
    """Returns the target's score, a scalar: what the network itself says, higher is more of it.

    Args:
      output: see `perturb.Model`.
      row: output for one image.
      target: the class, label, number or box that is meant, see the table of this module; may
        be traced.
    """
    if output == "detection":
        return _detected(row, target)
    row = _wide(row)
    if output == "segmentation":
        wanted, region = _class_and_region(row, target)
        return _mean(row[..., wanted], region)
    if output == "embedding" and jnp.ndim(target) > 0:
        a, b = row.reshape(-1), jnp.asarray(target, row.dtype).reshape(-1)
        # The small number keeps the slope of the root finite for a vector of zeros.
        result: jax.Array = (a * b).sum() / jnp.sqrt((a**2).sum() * (b**2).sum() + 1e-12)
        return result
    if output == "binary":
        # Selected rather than branched on: the target may be traced.
        return jnp.where(jnp.asarray(target) == 1, row.reshape(()), -row.reshape(()))
    found = row.reshape(-1)[target]
    result = found
    return result


def log_probability(output: str, row: PyTree, target: PyTree) -> jax.Array:
    """Returns the log of the target's probability, a scalar. Raises: as for `probability`.

    Args:
      output: the kind of output, see `perturb.Model`.
      row: output for one image, an array or a dict of arrays.
      target: the class, label, number or box that is meant, see the table of this module; may
        be traced.
    """
    _require(output)
    row = _wide(row)
    if output == "segmentation":
        wanted, region = _class_and_region(row, target)
        return _mean(jax.nn.log_softmax(row)[..., wanted], region)
    if output == "probabilities":
        return jnp.log(jnp.maximum(score(output, row, target), _TINY))
    if output in ("multilabel", "binary") or _size(row) == 1:
        # The softmax of one number is 1 whatever the network says.
        return jax.nn.log_sigmoid(score(output, row, target))
    # By the odds against all others: a softmax in float32 is 1, and has no gradient, from odds of
    # e^17.
    row = row.reshape(-1)
    others = jnp.where(jnp.arange(row.size) == target, -jnp.inf, row)
    return jax.nn.log_sigmoid(row[target] - jax.nn.logsumexp(others))


def probability(output: str, row: PyTree, target: PyTree) -> jax.Array:
    """Returns the target's probability, a scalar in [0, 1].

    Args:
      output, row, target: see `score`.
    Raises:
      ValueError: if targets of this output have none (`has_probability`).
    """
    _require(output)
    if output == "probabilities":
        return score(output, row, target)
    if output == "segmentation":
        row = _wide(row)
        wanted, region = _class_and_region(row, target)
        return _mean(jax.nn.softmax(row)[..., wanted], region)
    return jnp.exp(log_probability(output, row, target))


def measure(output: str, row: PyTree, target: PyTree) -> jax.Array:
    """Returns what a metric goes by: the probability where there is one, else the score.

    Args:
      output: the kind of output, see `perturb.Model`.
      row: output for one image, an array or a dict of arrays.
      target: the class, label, number or box that is meant, see the table of this module; may
        be traced.
    """
    return (probability if has_probability(output) else score)(output, row, target)


def rival(output: str, row: PyTree, target: PyTree) -> tuple[jax.Array, jax.Array]:
    """Returns the strongest other class and its score; -1 and NaN where classes do not compete.

    Args:
      output: the kind of output, see `perturb.Model`.
      row: output for one image, an array or a dict of arrays.
      target: the class, label, number or box that is meant, see the table of this module; may
        be traced.
    """
    if output == "binary":
        other = 1 - jnp.asarray(target)
        return other, score(output, row, other)
    if output not in ("logits", "probabilities") or _size(row) == 1:
        return jnp.int32(-1), jnp.float32(jnp.nan)
    row = _wide(row).reshape(-1)
    others = jnp.where(jnp.arange(row.size) == target, -jnp.inf, row)
    return others.argmax(), others.max()


def rank(output: str, row: PyTree, target: PyTree) -> jax.Array:
    """Returns how many other targets score higher, 0 for the highest.

    Args:
      output: the kind of output, see `perturb.Model`.
      row: output for one image, an array or a dict of arrays.
      target: the class, label, number or box that is meant, see the table of this module; may
        be traced.
    Raises:
      ValueError: if the targets of this output have no order.
    """
    if output in ("segmentation", "detection"):
        raise ValueError(f"targets of output {output!r} have no rank, only rows of numbers have")
    if output == "binary":
        return (score(output, row, target) < 0).astype(jnp.int32)
    row = _wide(row).reshape(-1)
    # Strictly higher: ties count for the target.
    found: jax.Array = (row > row[target]).sum()
    return found


def top(output: str, row: PyTree) -> jax.Array:
    """Returns the target with the highest score, an index; of a yes or no 1 or 0.

    Args:
      output: the kind of output, see `perturb.Model`.
      row: output for one image, an array or a dict of arrays.
    Raises:
      ValueError: if this output says no classes.
    """
    if output not in (*_CLASSES, "any"):
        raise ValueError(f"output {output!r} has no top class: say which target you mean")
    row = _wide(row).reshape(-1)
    found: jax.Array = ((row[0] > 0) if output == "binary" else row.argmax()).astype(jnp.int32)
    return found


def predicted(output: str, row: PyTree, target: PyTree) -> jax.Array:
    """Returns 1 where the network says the target: its class wins, or its label is likelier than
    not.

    For segmentation the share of the region where the class wins.

    Args:
      output: the kind of output, see `perturb.Model`.
      row: output for one image, an array or a dict of arrays.
      target: the class, label, number or box that is meant, see the table of this module; may
        be traced.
    Raises:
      ValueError: if this output says no classes.
    """
    _require(output)
    if output == "segmentation":
        row = _wide(row)
        wanted, region = _class_and_region(row, target)
        return _mean((row.argmax(-1) == wanted).astype(row.dtype), region)
    if output in ("multilabel", "binary") or _size(row) == 1:
        # Labels do not compete, so each is said or not by itself.
        return (probability(output, row, target) > 0.5).astype(jnp.float32)
    found: jax.Array = (top(output, row) == target).astype(jnp.float32)
    return found


def number_of_targets(output: str, row: PyTree) -> int:
    """Returns how many targets an integer may name; `row` may be a shape without values.

    Args:
      output: the kind of output, see `perturb.Model`.
      row: output for one image, or its shapes alone (`jax.ShapeDtypeStruct`).
    """
    if output == "detection":
        return int(row[1].shape[-1])
    if output == "binary":
        return 2
    return int(row.shape[-1]) if output == "segmentation" else _size(row)


def _require(output: str) -> None:
    if not has_probability(output):
        raise ValueError(f"targets of output {output!r} have a score but no probability")


def _size(row: PyTree) -> int:
    size = 1
    for n in row.shape:
        size *= n
    return size


def _wide(row: PyTree) -> jax.Array:
    row = jnp.asarray(row)
    # Half precision ties many logits and overflows a sum of exponentials.
    found: jax.Array = row.astype(jnp.promote_types(row.dtype, jnp.float32))
    return found


def _mean(values: jax.Array, region: jax.Array | None) -> jax.Array:
    if region is None:
        return values.mean()
    # An empty region has mean 0, not NaN.
    return (values * region).sum() / jnp.maximum(region.sum(), 1e-12)


def _class_and_region(row: jax.Array, target: PyTree) -> tuple[PyTree, jax.Array | None]:
    if not isinstance(target, tuple):
        return target, None
    wanted, region = target
    return wanted, jnp.asarray(region, row.dtype)


def iou(boxes: jax.Array, box: jax.Array) -> jax.Array:
    """Returns `[N]` intersections over union of `boxes` `[N, 4]` (x0, y0, x1, y1) with one `box`.

    Args:
      boxes: `[N, 4]`, corners `(x0, y0, x1, y1)`.
      box: `[4]`, likewise.
    """
    low, high = jnp.maximum(boxes[:, :2], box[:2]), jnp.minimum(boxes[:, 2:], box[2:])
    shared = jnp.maximum(high - low, 0).prod(-1)
    areas = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)
    union = areas + (box[2:] - box[:2]).prod() - shared
    return shared / jnp.maximum(union, 1e-12)


def _detected(row: PyTree, target: PyTree) -> jax.Array:
    boxes, found = row
    if not isinstance(target, tuple):
        return _wide(found)[:, target].max()
    wanted, box = target
    return (iou(boxes, jnp.asarray(box)) * _wide(found)[:, wanted]).max()
