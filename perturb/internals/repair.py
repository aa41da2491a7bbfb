"""What to do about a shortcut: the units that carry it found, then switched off, edited out, or
trained away.

A shortcut is a mark that gives the class away. `units_for` takes the units that dissection believes
to answer to it; `circuits.exchange_units` switches them off; `edit_out` takes the directions of the
mark out of the weights that read the layer; `fine_tune` goes on training on pictures whose marks
say nothing. `judge` tells what each did to pictures with the mark and without, the same pictures
before and after.

>>> from perturb import Model, taps
>>> from perturb.internals.circuits import exchange_units
>>> weights = jnp.array([[0.0, 1.0], [5.0, 0.0]])
>>> net = Model(lambda w, x: taps.tag(x.mean((1, 2)), "units") @ w, weights, channels=2)
>>> plain = np.ones((4, 2, 2, 2), np.float32) * [1, 0]  # unit 0 is the thing, unit 1 the mark
>>> marked = plain + [0, 1]
>>> groups = {"marked": (marked, [0] * 4), "unmarked": (plain, [1] * 4)}
>>> found = judge(net, exchange_units(net, "units", [1]), groups)
>>> [(name, o.before, o.after) for name, o in found.items()]
[('marked', 1.0, 0.0), ('unmarked', 1.0, 1.0)]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import messages
from perturb.internals._blocks import blocks
from perturb.internals.circuits.edits import Change, compare
from perturb.internals.codes import layer_codes
from perturb.internals.dissection import Verdicts
from perturb.model import Model
from perturb.types import Array, ArrayLike, Function, ImageSource, PyTree, Variables

__all__ = ["Outcome", "edit_out", "fine_tune", "judge", "mark_directions", "units_for"]


class Outcome(NamedTuple):
    """What a repair did to one group of pictures.

    Attributes:
      before, after: accuracies.
      change: pictures lost and gained, the difference with its interval, McNemar's p-value.
    """

    before: float
    after: float
    change: Change


def units_for(found: Verdicts, concept: str) -> np.ndarray:
    """Returns the units that pass and whose best concept this is, those that stand out most first.

    Args:
      found: `Verdicts` of the layer, see `dissect_pictures`.
      concept: name of one of its concepts.
    """
    names = found.table.concepts
    if concept not in names:
        raise ValueError(f"concept must be one of {', '.join(names)}, got {concept!r}"[:290])
    chosen = np.flatnonzero(found.passes & (found.table.best == names.index(concept)))
    return chosen[np.argsort(-found.score[chosen], kind="stable")]


def judge(
    before: Model,
    after: Model,
    groups: Mapping[str, tuple[ImageSource, ArrayLike]],
    *,
    batch_size: int = 32,
) -> dict[str, Outcome]:
    """Compares the answers of a network before and after a repair, group by group.

    Args:
      before, after: their outputs are logits `[B, classes]`.
      groups: for each name pictures `[N, H, W, C]` and true classes `[N]`, as
        `{"marked": (..., ...), "unmarked": (..., ...)}`.
      batch_size: pictures run at once.
    """
    found = {}
    for name, (images, targets) in groups.items():
        targets = np.asarray(targets)
        a, b = (_answers(net, images, batch_size) for net in (before, after))
        was, now = (float((x.argmax(1) == targets).mean()) for x in (a, b))
        found[name] = Outcome(was, now, compare(a, b, targets))
    return found


def mark_directions(
    model: Model,
    marked: Array,
    unmarked: Array,
    *,
    layer: str,
    share: float = 0.99,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns the directions in which a mark moves the mean activations of a layer, `[R, units]`,
    orthonormal.

    As few as hold a share of the squared change, over the same scenes with the mark and without.

    Args:
      model: whose layer is read.
      marked, unmarked: `[N, H, W, C]`, scene by scene the same but for the mark.
      layer: a name of `perturb.taps.names(model, images)`.
      share: in (0, 1].
      batch_size: pictures run at once.
    """
    if len(marked) != len(unmarked) or not 0 < share <= 1:
        raise ValueError(
            f"marked and unmarked must be the same scenes and share in (0, 1], got {len(marked)} "
            f"and {len(unmarked)} pictures and share {share}"
        )
    a, b = (
        layer_codes(model, images, layer=layer, batch_size=batch_size).astype(np.float64)
        for images in (marked, unmarked)
    )
    # Not centred: what moves all scenes alike is the strongest trace of a mark.
    _, sizes, rows = np.linalg.svd(a - b, full_matrices=False)
    held = np.cumsum(sizes**2)
    if held[-1] == 0:
        return np.zeros((0, a.shape[1]))
    # A hair below the share, or rounding of the cumulated sum would add a direction at share 1.
    return rows[: int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1]


def edit_out(
    model: Model,
    directions: ArrayLike,
    *,
    kernel: str,
    bias: str | None = None,
    around: PyTree = None,
    axis: int = -2,
) -> Model:
    """Returns the model with directions of a layer taken out of the weights that read it.

    What reads the layer no longer sees it move in these directions: `W - D^T D W` along the inputs.

    Args:
      model: whose weights are edited; the one given stays as it is.
      directions: `[R, units]`, orthonormal, as of `mark_directions`.
      kernel: path of the weights, `"params/classes/kernel"`, or the end of it.
      bias: path of the offset that goes with them, `[outputs]`, to keep what `around` gave.
      around: `[units]`, mean activations without the mark; with `bias` only.
      axis: of the units among the axes of the kernel: -2 of linen and Keras.
    """
    directions = np.asarray(directions, np.float64)
    at = _leaf(model.variables, kernel)
    old = np.asarray(_get(model.variables, at), np.float64)
    rows = np.moveaxis(old, axis, 0)
    if directions.ndim != 2 or directions.shape[1] != len(rows):
        raise ValueError(
            f"directions must be [R, {len(rows)}], as many as units along axis {axis} of "
            f"{kernel!r}, got shape {list(directions.shape)}"
        )
    # The projection onto the directions: what the weights read along them.
    taken = np.tensordot(directions.T @ directions, rows, 1)
    new = {at: np.moveaxis(rows - taken, 0, axis)}
    if bias is not None:
        where = _leaf(model.variables, bias)
        # What the directions gave on unmarked pictures goes into the bias, so that those
        # keep their answers.
        offset = np.asarray(_get(model.variables, where), np.float64)
        gave = np.tensordot(np.asarray(around, np.float64), taken, 1)
        new[where] = offset + gave.reshape(-1, *offset.shape).sum(0)
    return dataclasses.replace(model, variables=_with(model.variables, new))


def fine_tune(
    model: Model,
    images: Array,
    targets: PyTree,
    *,
    leaves: Sequence[str] = (),
    steps: int = 200,
    rate: float = 1e-3,
    batch_size: int = 32,
    key: jax.Array,
) -> Model:
    """Returns the model trained on, by Adam on the cross-entropy of its logits.

    Args:
      model: its outputs are logits `[B, classes]`; the one given stays as it is.
      images: `[N, H, W, C]` in [0, 1], or anything with `len()` that takes arrays of indices.
      targets: `[N]` classes.
      leaves: what is trained: leaves whose path holds one of these words; none is all of them (of a
        collection `params`, where there is one: statistics of normalisation stay).
      steps: of the descent.
      rate: of Adam, above 0; it falls to 0 along a cosine.
      batch_size: pictures a step.
      key: of the batches; not consumed.
    """
    import optax

    paths = [_path(p) for p, _ in jax.tree_util.tree_flatten_with_path(model.variables)[0]]
    wanted = leaves or (["params/"] if any(p.startswith("params/") for p in paths) else [""])
    trained = jax.tree_util.tree_map_with_path(
        lambda p, leaf: (
            any(word in _path(p) for word in wanted) and jnp.issubdtype(leaf.dtype, jnp.floating)
        ),
        model.variables,
    )
    if not any(jax.tree.leaves(trained)):
        raise ValueError(f"leaves must name some of {', '.join(paths)}, got {list(leaves)}"[:290])
    optimiser = optax.masked(optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1))), trained)
    targets = np.asarray(targets, np.int32)
    variables, state = model.variables, optimiser.init(model.variables)
    for step in range(steps):
        # By the number of the step: more steps begin with the same batches.
        own = np.asarray(jax.random.key_data(jax.random.fold_in(key, step)))
        at = np.random.default_rng(own).permutation(len(targets))[:batch_size]
        batch = np.asarray(images[at], np.float32)
        variables, state = _step(
            dataclasses.replace(model, variables=variables),
            state,
            batch,
            targets[at],
            update=optimiser.update,
            # Static, so that which leaves move is part of the program and not traced.
            trained=_Frozen(trained),
        )
    return dataclasses.replace(model, variables=variables)


class _Frozen:
    """A tree of booleans, fixed: a static argument of a program."""

    def __init__(self, tree: PyTree):
        self.tree = tree
        self._key = tuple(jax.tree.leaves(tree)), jax.tree.structure(tree)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self._key == other._key


@functools.partial(jax.jit, static_argnames=("update", "trained"))
def _step(
    model: Model,
    state: PyTree,
    images: jax.Array,
    targets: jax.Array,
    *,
    update: Function,
    trained: _Frozen,
) -> tuple[PyTree, PyTree]:
    def loss(variables: Variables) -> jax.Array:
        logits = dataclasses.replace(model, variables=variables)(images)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets].mean()

    gradient = jax.grad(loss)(model.variables)
    moves, state = update(gradient, state, model.variables)
    # `masked` passes the gradient of untrained leaves on as it is; it must not be added to them.
    new = jax.tree.map(lambda yes, v, m: v + m if yes else v, trained.tree, model.variables, moves)
    return new, state


def _answers(model: Model, images: ImageSource, batch_size: int) -> np.ndarray:
    return np.concatenate(
        [np.asarray(_run(model, b.images))[b.inside] for b in blocks(images, batch_size)]
    )


@jax.jit
def _run(model: Model, images: jax.Array) -> jax.Array:
    found: jax.Array = model(images)
    return found


def _path(path: tuple[object, ...]) -> str:
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def _leaf(variables: Variables, asked: str) -> str:
    known = [_path(p) for p, _ in jax.tree_util.tree_flatten_with_path(variables)[0]]
    # The end of a path is enough where it names one leaf only.
    fits = [name for name in known if name == asked or name.endswith("/" + asked)]
    if len(fits) != 1:
        raise ValueError(
            f"weights must name one leaf, {messages.short(asked)} names {len(fits)}; nearest: "
            f"{messages.most_alike(asked, known)}"
        )
    return fits[0]


def _get(variables: Variables, path: str) -> PyTree:
    pairs = jax.tree_util.tree_flatten_with_path(variables)[0]
    return next(leaf for p, leaf in pairs if _path(p) == path)


def _with(variables: Variables, new: Mapping[str, np.ndarray]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda p, leaf: jnp.asarray(new[_path(p)], leaf.dtype) if _path(p) in new else leaf,
        variables,
    )
