"""Pictures with cells of a grid switched off, for methods that only query a black box."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from perturb import masks, operators, progress
from perturb.attribution import _common
from perturb.evidence import outputs_of
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["answers", "cell_maps", "sobol_points"]

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


def cell_maps(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    find: Callable[[Callable[[np.ndarray], np.ndarray], int, int], np.ndarray],
    *,
    cells: int,
    operator: str | operators.Operator,
    key: jax.Array | None,
) -> np.ndarray:
    """Returns `[B, H, W]`: a number for each cell of a grid over each picture, enlarged.

    Args:
      model, images, targets: as for `gradient`.
      find: `(ask, dims, seed) -> [dims]` of one picture; `ask` takes how far each cell is shown,
        `[N, dims]` in [0, 1], and returns the `[N]` answers.
      cells: number of cells along each side.
      operator: what a cell that is not shown becomes.
      key: decides the seeds, or `[B]` keys of the images.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    keys = _common.image_keys(key, len(pixels))
    grid = (cells,) * (pixels.ndim - 2)
    maps = []
    for i in progress.each(range(number), "maps"):
        target = jax.tree.map(lambda t, i=i: t[i], classes)

        def ask(shown: np.ndarray, i: int = i, target: PyTree = target) -> np.ndarray:
            grids = shown.reshape(-1, *grid)
            return answers(model, pixels[i], target, grids, operator=operator, key=keys[i])

        # SciPy's sequence is seeded by a number, not by a key.
        seed = int(np.asarray(jax.random.bits(keys[i])))
        maps.append(find(ask, math.prod(grid), seed).reshape(grid))
    return _common.enlarge(jnp.asarray(np.stack(maps), jnp.float32), pixels.shape[1:-1])


def _repeated(target: PyTree, number: int) -> jax.Array:
    found: jax.Array = jax.tree.map(lambda t: jnp.repeat(jnp.asarray(t)[None], number, 0), target)
    return found
