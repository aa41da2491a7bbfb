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

from perturb.metrics.similarity import spearman, ssim
from perturb.model import Model

__all__ = ["Cascade", "Likeness", "cascade", "compare", "layers", "randomised"]

PASS = 0.2


class Likeness(NamedTuple):
    """Each `[B]`: rank correlation, the same of absolute values, structural similarity."""

    spearman: np.ndarray
    spearman_absolute: np.ndarray
    ssim: np.ndarray


class Cascade(NamedTuple):
    """`names` of the layers in the order drawn anew, and a `Likeness` of `[L, B]` arrays."""

    names: tuple[str, ...]
    likeness: Likeness

    @property
    def passed(self) -> bool:
        """Whether the mean rank correlation with everything drawn anew is at most `PASS`."""
        return bool(abs(np.nanmean(self.likeness.spearman[-1])) <= PASS)


def compare(a: Any, b: Any) -> Likeness:
    """Returns how alike two stacks of maps `[B, H, W]` are."""
    return Likeness(spearman(a, b), spearman(a, b, absolute=True), ssim(a, b))


def layers(variables: Any) -> dict[str, list[Any]]:
    """Returns the paths of the leaves of each layer, in the order of the pytree.

    A layer is what lies below one dictionary key that holds arrays: `params/features.0`.
    """
    found: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if jnp.ndim(leaf):
            found.setdefault(jax.tree_util.keystr(path[:-1]), []).append(path)
    return found


def randomised(variables: Any, names: Sequence[str], key: jax.Array) -> Any:
    """Returns the variables with these layers drawn anew.

    Kernels are drawn from a normal with their own mean square, so that activations keep their size;
    vectors (biases, scales) are shuffled.
    """
    chosen = {
        jax.tree_util.keystr(path): n
        for n, name in enumerate(names)
        for path in layers(variables)[name]
    }

    def draw(path: Any, leaf: Any) -> Any:
        where = jax.tree_util.keystr(path)
        if where not in chosen:
            return leaf
        own = jax.random.fold_in(key, list(chosen).index(where))
        if jnp.ndim(leaf) < 2:
            return jax.random.permutation(own, leaf)
        size = jnp.sqrt((leaf.astype(jnp.float32) ** 2).mean())
        return (size * jax.random.normal(own, leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def cascade(
    attribution: Callable[[Model, Any, Any], np.ndarray],
    model: Model,
    images: Any,
    targets: Any,
    *,
    order: Sequence[str] | None = None,
    stages: int | None = None,
    key: jax.Array | None = None,
) -> Cascade:
    """Draws the layers anew from the output to the input and compares the maps.

    Args:
      attribution: `(model, images, targets) -> [B, H, W]`.
      order: layers, the output's first; None is the reverse of the pytree's own order, which is that
        of the network where layers are numbered.
      stages: compare after this many even parts of the layers only; the last is always all of them.
      key: decides the new weights.
    """
    names = list(layers(model.variables))[::-1] if order is None else list(order)
    unknown = [n for n in names if n not in layers(model.variables)]
    if unknown:
        known = ", ".join(layers(model.variables))
        raise ValueError(f"order must name layers of the model ({known}), got {unknown[0]!r}")
    key = jax.random.key(0) if key is None else key
    trained = attribution(model, images, targets)
    count = len(names) if stages is None else min(stages, len(names))
    stops = np.unique(np.ceil(np.linspace(0, len(names), count + 1)[1:]).astype(int))
    found = []
    for stop in stops:
        drawn = randomised(model.variables, names[:stop], key)
        other = attribution(dataclasses.replace(model, variables=drawn), images, targets)
        found.append(compare(trained, other))
    stacked = Likeness(*(np.stack(column) for column in zip(*found, strict=True)))
    return Cascade(tuple(names[s - 1] for s in stops), stacked)
