"""Pictures with cells of a grid switched off, for methods that ask a black box only."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturb import masks, operators
from perturb.attribution import _common
from perturb.evidence import outputs_of
from perturb.model import Model
from perturb.types import PyTree

__all__ = ["answers", "sobol_points"]

# Views at once: what they take of memory does not grow with the design.
CHUNK = 64


def sobol_points(number: int, dims: int, seed: int) -> np.ndarray:
    """Returns `[number, dims]` points of a scrambled Sobol sequence in [0, 1)."""
    from scipy.stats import qmc

    # The sequence is even in powers of two only; the first of one are even enough.
    power = max(number - 1, 1).bit_length()
    found: np.ndarray = (
        qmc.Sobol(dims, scramble=True, rng=seed).random_base2(power)[:number].astype(np.float32)
    )
    return found


@functools.partial(jax.jit, static_argnames="size")
def _views(
    operator: operators.Operator,
    image: jax.Array,
    key: jax.Array,
    grids: jax.Array,
    size: tuple[int, ...],
) -> jax.Array:
    reference = operator.prepare(image, key)
    shown = jax.vmap(lambda g: masks.upsample(g, size, method="nearest"))(grids)
    return jax.vmap(lambda m: operator.apply(reference, m))(shown)


def answers(
    model: Model,
    image: jax.Array,
    target: PyTree,
    grids: np.ndarray,
    *,
    operator: str | operators.Operator,
    key: jax.Array,
) -> np.ndarray:
    """Returns `[N]` what a metric goes by (probability or score) under masks `grids` `[N, g, g]` in
    [0, 1].
    """
    chosen, found = operators.get(operator), []
    for at in range(0, len(grids), CHUNK):
        part = grids[at : at + CHUNK]
        # The last chunk is filled up, for another size would compile another program.
        full = np.concatenate([part, np.repeat(part[-1:], CHUNK - len(part), 0)])
        views = _views(chosen, image, key, jnp.asarray(full), tuple(image.shape[:-1]))
        number = len(part)
        rows = outputs_of(model, np.asarray(views)[:number])
        targets = _repeated(target, number)
        found.append(np.asarray(_common.measure(model, rows, targets), np.float64))
    return np.concatenate(found)


def _repeated(target: PyTree, number: int) -> jax.Array:
    found: jax.Array = jax.tree.map(lambda t: jnp.repeat(jnp.asarray(t)[None], number, 0), target)
    return found
