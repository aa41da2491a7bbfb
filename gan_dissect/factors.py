"""Directions found without labels: from the weights (SeFa) or from what samples do (GANSpace).

>>> import numpy as np
>>> np.abs(sefa(np.diag([1.0, 3.0, 2.0]), k=2, normalise=False).directions).tolist()
[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_dissect import _components
from gan_dissect.generator import Generator, light_batch, sample
from gan_dissect.generator import layers as gan_layers
from perturb import display, taps
from perturb.types import ArrayLike, PyTree
from perturb.units import sampling

__all__ = [
    "Factors",
    "ganspace",
    "ganspace_layer",
    "layer_weight",
    "sefa",
    "sefa_weight",
    "style_layers",
]


class Factors(NamedTuple):
    """Directions in order of their strength.

    Attributes:
      directions: `[k, D]`, of length 1; the largest entry of each is positive.
      values: `[k]`: SeFa's eigenvalues, or the standard deviations of the components.
      share: `[k]`, of the whole (of the trace, or of the variance).
      mean: `[M]` of the samples, zeros for SeFa.
    """

    directions: np.ndarray
    values: np.ndarray
    share: np.ndarray
    mean: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def sefa(weight: ArrayLike, *, k: int, normalise: bool = True) -> Factors:
    """Returns the latent directions that a layer's weights enlarge most: eigenvectors of `A A^T`.

    `Shen and Zhou 2021 <https://arxiv.org/abs/2007.06600>`_. The original calls a solver for
    general matrices and returns the eigenvectors in its order; these are sorted, from a symmetric
    solver.

    Args:
      weight: A, `[D, M]`: what the layer does to a latent is `z @ A`. Several layers side by side.
      k: number of directions, up to D.
      normalise: scale each column to length 1, as the original does.
    Raises:
      ValueError: if weight is no finite matrix or k is out of range.
    """
    a = np.asarray(weight, np.float64)
    if a.ndim != 2 or not np.isfinite(a).all():
        raise ValueError(f"weight must be a finite matrix [D, M], got shape {a.shape}")
    _check_k(k, len(a))
    if normalise:
        length = np.linalg.norm(a, axis=0)
        # A column of zeros has no direction.
        a = a[:, length > 0] / length[length > 0]
    values, vectors = np.linalg.eigh(a @ a.T)
    values, vectors = values[::-1], vectors[:, ::-1]
    found = _signed(vectors.T[:k])
    return Factors(found, values[:k], values[:k] / values.sum(), np.zeros(a.shape[1]))


def layer_weight(generator: Generator, layer: str | Sequence[str]) -> np.ndarray:
    """Returns the matrix `[D, M]` of the first layer: `layer(z) = z @ A + constant`.

    Args:
      generator: of latents `[D]`, or `[layers, D]`, which then are the same in every layer.
      layer: its name, or several names, whose matrices stand side by side.
    Raises:
      ValueError: if a layer does not exist or is not an affine function of one latent vector: name
        the convolution or product before the first activation.
    """
    wanted = (layer,) if isinstance(layer, str) else tuple(layer)
    sampling.check_layers(generator, wanted)
    shape = _vector(generator, layers=True)

    def f(z: jax.Array) -> jax.Array:
        # Two rows, for a batch of one is another program.
        _, values = taps.read(generator, wanted)(jnp.broadcast_to(z, (2, *shape)))
        return jnp.concatenate([values[name][0].reshape(-1) for name in wanted])

    zero = jnp.zeros(shape[-1:])
    # An affine function has one Jacobian everywhere, and a latent has fewer numbers than a layer:
    # forward. That it is affine is then checked at a latent far from 0.
    weight = np.asarray(jax.jit(jax.jacfwd(f))(zero), np.float64).T
    there = generator.draw(jax.random.key(1)).reshape(-1, shape[-1])[0]
    start, end = (np.asarray(jax.jit(f)(z), np.float64) for z in (zero, there))
    error = np.abs(np.asarray(there, np.float64) @ weight + start - end).max()
    # Rounding in float32 stays well below a thousandth; "not <=" refuses NaN as well.
    if not error <= 1e-3 * max(np.abs(end).max(), 1e-12):
        raise ValueError(
            f"layer {layer!r} must be an affine function of the latent, got one that is off by "
            f"{error:.2g}: name the layer before the first activation"
        )
    return weight


def style_layers(generator: Generator) -> tuple[str, ...]:
    """Returns the layers of a StyleGAN whose styles are edited, in the order of W+; empty for other
    nets.

    Those of the convolutions, and of the last image.

    Args:
      generator: any `Generator`.
    """
    found = [name for name in gan_layers(generator) if name.endswith(".style")]
    # An inner image shares its style with the convolution that follows; only the last has its own.
    images = [name for name in found if ".torgb." in name]
    return tuple(name for name in found if name not in images[:-1])


def sefa_weight(generator: Generator, layers: Sequence[int] | None = None) -> np.ndarray:
    """Returns the matrix `[D, M]` that SeFa is published for: styles side by side, or the first
    layer.

    Args:
      generator: a StyleGAN of latents in "w" or "w+", or a progressively grown generator.
      layers: numbers of the layers whose styles are taken, as of W+; None is all, the published
        default.
    Raises:
      ValueError: if the generator is neither, or has no such layer.
    """
    styles = style_layers(generator)
    if styles:
        wrong = [k for k in layers or () if not 0 <= k < len(styles)]
        if wrong or (layers is not None and not len(layers)):
            raise ValueError(f"layers must be in 0 to {len(styles) - 1}, got {list(layers or ())}")
        chosen = range(len(styles)) if layers is None else layers
        try:
            return layer_weight(generator, [styles[k] for k in chosen])
        except ValueError as error:
            raise ValueError(
                "the styles must be an affine function of the latent, as they are of 'w' and 'w+': "
                f"load {generator.name} with space='w'"
            ) from error
    first = getattr(generator.apply, "first_weight", None)
    if first is None or layers is not None:
        raise ValueError(
            f"generator {generator.name} has no styles: name a layer before the first activation"
        )
    return np.asarray(first(generator.variables), np.float64)


def ganspace(samples: ArrayLike, *, k: int, latents: PyTree = None) -> Factors:
    """Returns the principal components of samples, or the latent directions that follow them.

    `Härkönen et al. 2020 <https://arxiv.org/abs/2004.02546>`_. For w of a mapping network give
    samples of w. For a layer give its activations and the latents: each component's coordinate is
    regressed on. The original leaves out the intercept of that regression; here both sides are
    centred.

    Args:
      samples: `[N, M]`, or `[N, ...]` flattened; N above k.
      k: number of components, up to `min(N - 1, M)`.
      latents: `[N, D]`, or None.
    Returns:
      `Factors`: directions `[k, M]`, or `[k, D]` where latents are given; standard deviations.
    Raises:
      ValueError: if shapes do not fit, or a number is not finite, or k is out of range.
    """
    x = np.asarray(samples)
    x = x.reshape(len(x), -1)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    # Taking the mean away takes one component away.
    _check_k(k, min(len(x) - 1, x.shape[1]))
    if not all(np.isfinite(x[:, part]).all() for part in _components.chunks(*x.shape)):
        raise ValueError("samples must be finite, got NaN or infinite values")
    z = None if latents is None else np.asarray(latents, np.float64)
    if z is not None and (z.ndim != 2 or len(z) != len(x)):
        raise ValueError(f"latents must be [{len(x)}, D] beside the samples, got shape {z.shape}")
    return _factors(_components.decompose(x, k=k, axes=z is None), z)


def ganspace_layer(
    generator: Generator,
    layer: str,
    *,
    k: int,
    samples: int = 2000,
    key: jax.Array,
    batch_size: int = 64,
    memory: float = 1.5,
) -> Factors:
    """Returns the latent directions of a layer's principal components, from samples drawn here.

    As `ganspace` of the layer's activations and their latents. Activations that would take more
    than `memory` are never held at once: incremental principal components, as published, and a
    second pass over the same samples that solves exactly within the subspace found.

    Args:
      generator: of latents `[D]`.
      layer: one of `gan_dissect.layers`.
      k: number of components, below `samples`.
      samples: number of samples drawn to fit on.
      key: random key of the samples; not consumed.
      batch_size: samples drawn at once, fewer for large images.
      memory: GiB (`2**30` bytes) that the activations may take.
    Returns:
      `Factors`: directions `[k, D]`; standard deviations of the components.
    Raises:
      ValueError: if there is no such layer, the latents are no vectors, or k components do not fit
        in `memory`.
    """
    shape = _vector(generator)
    width = math.prod(sampling.check_layers(generator, layer)[layer])
    _check_k(k, min(samples - 1, width))
    size = light_batch(generator, batch_size)
    latents = np.empty((samples, shape[0]))

    def draw() -> Iterator[np.ndarray]:
        for start in range(0, samples, size):
            # A sample is its index, so a second pass draws the same ones.
            z = sample(generator, key, size, start=start)
            values = np.asarray(_read(generator, z, layer=layer), np.float32)[: samples - start]
            latents[start : start + size] = np.asarray(z)[: samples - start]
            if not np.isfinite(values).all():
                raise ValueError(f"layer {layer!r} must be finite, got NaN or infinite values")
            yield values

    budget = int(memory * 2**30)
    if 4 * samples * width <= budget:
        held = np.empty((samples, width), np.float32)
        for start, values in zip(range(0, samples, size), draw(), strict=True):
            held[start : start + size] = values
        return _factors(_components.decompose(held, k=k, axes=False), latents)
    # The components that are kept and as many new samples; the weakest kept are not to be trusted.
    rank = min(budget // (8 * width), 64 + 4 * k, samples)
    if rank < 2 * k:
        need = 16 * k * width / 2**30
        raise ValueError(
            f"memory must be at least {need:.2g} GiB for {k} components of layer {layer!r}, "
            f"{width} numbers a sample, got {memory:g}"
        )
    return _factors(_components.incremental(draw, width, k=k, rank=rank), latents)


def _factors(found: _components.Components, latents: np.ndarray | None) -> Factors:
    deviation = found.values / np.sqrt(len(found.scores) - 1)
    share = found.values**2 / found.total
    if latents is None:
        return Factors(_signed(np.asarray(found.axes)), deviation, share, found.mean)
    # The scores are orthogonal: the least squares are one product.
    directions = found.scores.T @ (latents - latents.mean(0))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Factors(_signed(directions), deviation, share, found.mean)


@functools.partial(jax.jit, static_argnames="layer")
def _read(generator: Generator, latents: jax.Array, *, layer: str) -> jax.Array:
    _, values = taps.read(generator, layer)(latents)
    found: jax.Array = values[layer].reshape(len(values[layer]), -1)
    return found


def _vector(generator: Generator, *, layers: bool = False) -> tuple[int, ...]:
    shape = jax.eval_shape(generator.draw, jax.random.key(0))
    dimensions = (1, 2) if layers else (1,)
    if not isinstance(shape, jax.ShapeDtypeStruct) or len(shape.shape) not in dimensions:
        raise ValueError(f"latents of generator {generator.name} must be vectors [D], got {shape}")
    found: tuple[int, ...] = shape.shape
    return found


def _check_k(k: int, limit: int) -> None:
    if not 1 <= k <= limit:
        raise ValueError(f"k must be in 1 to {limit}, got {k}")


def _signed(vectors: np.ndarray) -> np.ndarray:
    # A decomposition leaves the sign open. Fixed, the same direction walks the same way on
    # every machine.
    at = np.abs(vectors).argmax(1)
    found: np.ndarray = vectors * np.sign(vectors[np.arange(len(vectors)), at])[:, None]
    return found
