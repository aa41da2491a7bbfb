"""Sanity checks: a map must change when the network forgets (Adebayo et al. 2018).

The layers are drawn anew one after another from the output to the input, each map is compared with
that of the trained network; a method whose maps stay alike does not explain the network. The same
comparison with a network trained on random labels is `compare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from perturb import display, progress
from perturb.inputs import random_key
from perturb.metrics.similarity import spearman, ssim
from perturb.model import Model
from perturb.types import ArrayLike, PyTree, Variables

__all__ = ["Cascade", "Likeness", "cascade", "compare", "data_flow", "layers", "randomised"]

PASS = 0.2


class Likeness(NamedTuple):
    """How alike two stacks of `B` maps are.

    Attributes:
      spearman: `[B]`, rank correlation.
      spearman_absolute: `[B]`, rank correlation of the absolute values.
      ssim: `[B]`, structural similarity.
    """

    spearman: np.ndarray
    spearman_absolute: np.ndarray
    ssim: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


class Cascade(NamedTuple):
    """How maps change as `L` layers, one after the other, are drawn anew.

    Attributes:
      names: `[L]` layers in the order in which they were drawn anew.
      likeness: `Likeness` of `[L, B]` arrays, one row a stage.
    """

    names: tuple[str, ...]
    likeness: Likeness

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def passed(self) -> bool:
        """Whether the mean rank correlation with everything drawn anew is at most `PASS`."""
        return bool(abs(np.nanmean(self.likeness.spearman[-1])) <= PASS)


def compare(a: ArrayLike, b: ArrayLike) -> Likeness:
    """Returns how alike two stacks of maps `[B, H, W]` are.

    Args:
      a: `[B, H, W]` maps.
      b: `[B, H, W]` maps of the same pictures.
    """
    return Likeness(spearman(a, b), spearman(a, b, absolute=True), ssim(a, b))


def layers(variables: Variables) -> dict[str, list[PyTree]]:
    """Returns the paths of the leaves of each layer, in the order of the pytree.

    A layer is what lies below one key that holds arrays, `params/features.0`. Names with dots or
    slashes, as torch and Keras have them, say their layer themselves: `layer1.0.conv1.weight` is of
    `layer1.0.conv1`. Arrays at the top, without a name for what they belong to, are a layer each.
    """
    found: dict[str, list[PyTree]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if jnp.ndim(leaf):
            found.setdefault(_layer(path), []).append(path)
    return found


def _layer(path: Any) -> str:
    # Flax NNX and the like keep an array as the value of its variable.
    while len(path) > 1 and getattr(path[-1], "name", None) in ("value", "raw_value"):
        path = path[:-1]
    last = getattr(path[-1], "key", None) if path else None
    for sign in ("/", "."):
        if isinstance(last, str) and sign in last:
            return jax.tree_util.keystr((*path[:-1], type(path[-1])(last.rpartition(sign)[0])))
    return jax.tree_util.keystr(path[:-1] or path)


def data_flow(model: Model, images: PyTree) -> list[str]:
    """Returns the layers in the order in which the pictures meet them, the input's first.

    Layers that the outputs do not depend on come first.
    """
    # Traced as it will run: never a batch of one.
    shape = (max(2, len(images)), *np.shape(images)[1:])
    given = jax.ShapeDtypeStruct(shape, jnp.float32)
    closed = jax.make_jaxpr(lambda v, x: model.apply(v, x))(model.variables, given)
    leaves = jax.tree.leaves(model.variables)
    met: dict[int, int] = {}
    sources: list[PyTree] = [({i}, False) for i in range(len(leaves))]
    _meet(closed.jaxpr, [*sources, (set(), True)], met)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(model.variables)]
    # A callback meets all of them at once: then the adapter knows.
    run = {name: i for i, name in enumerate(getattr(model.apply, "order", lambda shape: ())(shape))}
    when: dict[str, tuple[int, int]] = {}
    for i, path in enumerate(paths):
        if jnp.ndim(leaves[i]):
            name = _layer(path)
            here = met.get(i, -1), run.get(name.strip("[]'\""), -1)
            when[name] = min(here, when.get(name, here))
    return sorted(when, key=lambda name: when[name])


def _meet(
    jaxpr: core.Jaxpr, given: list[tuple[set[int], bool]], met: dict[int, int]
) -> list[PyTree]:
    """Notes when each leaf first meets a value that depends on the pictures."""
    env: dict[PyTree, tuple[set[int], bool]] = dict(zip(jaxpr.invars, given, strict=True))

    def read(atom: core.Var | core.Literal) -> tuple[set[int], bool]:
        return (set(), False) if isinstance(atom, core.Literal) else env.get(atom, (set(), False))

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inside = [b for b in core.jaxprs_in_params(eqn.params) if len(b.invars) <= len(operands)]
        moves = any(seen for _, seen in operands)
        for body in inside:
            # A cond's first operand is the choice; the last ones are always the body's own.
            results = _meet(body, operands[len(operands) - len(body.invars) :], met)
        # The outputs of a scan are stacked: they are not those of its body.
        if inside and len(results) == len(eqn.outvars) and eqn.primitive.name != "scan":
            env.update(zip(eqn.outvars, results, strict=True))
            continue
        sources = set().union(*(own for own, _ in operands))
        if moves:
            now = len(met)
            for leaf in sources:
                met.setdefault(leaf, now)
        # What a leaf has met is noted; from there on the value depends on the pictures, and
        # only that counts.
        env.update(dict.fromkeys(eqn.outvars, (set() if moves else sources, moves)))
    return [read(atom) for atom in jaxpr.outvars]


def randomised(variables: Variables, names: Sequence[str], key: jax.Array) -> PyTree:
    """Returns the variables with these layers drawn anew.

    Kernels are drawn from a normal with their own mean square, so that activations keep their size;
    vectors (biases, scales) are shuffled.

    Args:
      variables: pytree of the model's weights.
      names: of layers, as in `layers(variables)`.
      key: random key of the new weights.
    """
    known = layers(variables)
    chosen = {jax.tree_util.keystr(path): n for n, name in enumerate(names) for path in known[name]}

    def draw(path: Any, leaf: PyTree) -> PyTree:
        where = jax.tree_util.keystr(path)
        if where not in chosen:
            return leaf
        # The names of a later stage begin with those of the earlier: a layer stays what it
        # was drawn as.
        own = jax.random.fold_in(key, list(chosen).index(where))
        if jnp.ndim(leaf) < 2:
            return jax.random.permutation(own, leaf)
        size = jnp.sqrt((leaf.astype(jnp.float32) ** 2).mean())
        return (size * jax.random.normal(own, leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def cascade(
    attribution: Callable[[Model, PyTree, PyTree], np.ndarray],
    model: Model,
    images: ArrayLike,
    targets: Any,
    *,
    order: Sequence[str] | None = None,
    stages: int | None = None,
    key: jax.Array | None = None,
) -> Cascade:
    """Draws the layers anew from the output to the input and compares the maps.

    Args:
      attribution: `(model, images, targets) -> [B, H, W]`.
      model: the network, a `perturb.Model`.
      images: `[B, H, W, C]` in [0, 1].
      targets: `[B]` class indices, or what else the model's outputs take.
      order: layers, the output's first; None is the reverse of the order in which the pictures meet
        them (`data_flow`).
      stages: compare after this many even parts of the layers only; the last is always all of
        them.
      key: decides the new weights.
    """
    names = data_flow(model, images)[::-1] if order is None else list(order)
    unknown = [n for n in names if n not in layers(model.variables)]
    if unknown:
        known = ", ".join(layers(model.variables))
        raise ValueError(f"order must name layers of the model ({known}), got {unknown[0]!r}")
    key = random_key(key)
    trained = attribution(model, images, targets)
    count = len(names) if stages is None else min(stages, len(names))
    stops = np.unique(np.ceil(np.linspace(0, len(names), count + 1)[1:]).astype(int))
    found = []
    for stop in progress.each(stops, "networks"):
        drawn = randomised(model.variables, names[:stop], key)
        other = attribution(dataclasses.replace(model, variables=drawn), images, targets)
        found.append(compare(trained, other))
    stacked = Likeness(*(np.stack(column) for column in zip(*found, strict=True)))
    return Cascade(tuple(names[s - 1] for s in stops), stacked)
