"""What of a picture does a layer still know? Pictures that the layer cannot tell from it.

Mahendran and Vedaldi 2015: minimise `|F(x) - F(x0)|^2 / |F(x0)|^2`, with a prior for all that the
layer has lost. Where the layer keeps everything the picture comes back; where it does not, the
prior chooses.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals.features import images as images_lib
from perturb.internals.features.loop import activations, visualise
from perturb.internals.features.objectives import Objective, Seen, Term
from perturb.internals.features.presets import Preset
from perturb.internals.features.rules import Adam
from perturb.internals.features.spectra import Spectrum
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["PRIORS", "Inversion", "invert"]

PRIORS = ("pixels", "tv", "fourier", "maco")

# Of Mahendran and Vedaldi's code, for pixels 0..255 around their mean.
_TV, _POWER, _SPREAD = 10.0, 8e-10, 0.24 * 255


class Inversion(NamedTuple):
    """Pictures made from a layer's value alone.

    Attributes:
      images: `[B, H, W, C]` in [0, 1].
      error: `[B]` `|F(x) - F(x0)|` over the mean distance between the features of the pictures
        given; 1 is as far as another picture. NaN for a single picture.
      relative: `[B]` `|F(x) - F(x0)| / |F(x0)|`.
      psnr: `[B]` dB, beside the picture itself.
    """

    images: np.ndarray
    error: np.ndarray
    relative: np.ndarray
    psnr: np.ndarray

    def __repr__(self) -> str:
        return display.summary(self)


def invert(
    model: Model,
    layer: str,
    images: ArrayLike,
    *,
    prior: str = "tv",
    steps: int = 400,
    spectrum: Spectrum | None = None,
    batch_size: int = 16,
    key: jax.Array,
) -> Inversion:
    """Reconstructs pictures from what a layer holds of them.

    Args:
      model: the network, a `perturb.Model`.
      layer: name of the layer.
      images: `[B, H, W, C]` in [0, 1].
      prior: "pixels" (none), "tv" (smooth and of moderate size, the weights of Mahendran and
        Vedaldi; the steps are Adam's, not their momentum), "fourier" or "maco" (`spectrum` of
        natural pictures).
      steps: of each picture.
      spectrum: for "maco"; None takes the embedded one.
      batch_size: pictures side by side.
      key: random key, of the starts.
    Raises:
      ValueError: if there is no such layer or prior.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] != model.channels:
        raise ValueError(f"images must be [B, H, W, {model.channels}], got shape {images.shape}")
    if prior not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {prior!r}")
    wanted = _read(model, images, layer)
    objective: Objective = _reconstruction(layer, wanted)
    if prior == "tv":
        objective = objective - _smooth()
    found = visualise(
        model,
        objective,
        preset=_recipe(prior, steps, spectrum),
        size=images.shape[1:3],
        batch_size=batch_size,
        key=key,
    )
    got = _read(model, found.images, layer)
    flat, reference = (x.reshape(len(x), -1).astype(np.float64) for x in (got, wanted))
    distance = np.linalg.norm(flat - reference, axis=1)
    length = np.linalg.norm(reference, axis=1)
    # How far features of different pictures lie apart: the scale that an error is read on.
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(reference) for b in reference[:i]]
    usual = float(np.mean(pairs)) if pairs else np.nan
    square = ((found.images.clip(0, 1).astype(np.float64) - images) ** 2).mean((1, 2, 3))
    return Inversion(
        found.images,
        distance / usual if usual else np.full(len(images), np.nan),
        distance / np.where(length > 0, length, np.nan),
        -10 * np.log10(np.maximum(square, 1e-20)),
    )


def _recipe(prior: str, steps: int, spectrum: Spectrum | None) -> Preset:
    if prior == "maco":
        kind: PyTree = images_lib.Maco(spectrum=spectrum)
        return Preset(
            parametrisation=kind, rule=Adam(rate=1.0, nesterov=True, decay_steps=steps), steps=steps
        )
    rate = 0.05
    kind = images_lib.Fourier() if prior == "fourier" else images_lib.Raw(deviation=0.01)
    # The rate falls to 0: the last steps of a reconstruction are small.
    return Preset(parametrisation=kind, rule=Adam(rate=rate, decay_steps=steps), steps=steps)


def _read(model: Model, images: np.ndarray, layer: str) -> np.ndarray:
    block = 16
    found = []
    for at in range(0, len(images), block):
        part = images[at : at + block]
        # Never a batch of one.
        full = part if len(images) > 1 else np.concatenate([part, part])
        found.append(np.asarray(_activation(model, jnp.asarray(full), layer))[: len(part)])
    return np.concatenate(found)


def _activation_of(model: Model, images: jax.Array, layer: str) -> jax.Array:
    found: jax.Array = activations(model, images, (layer,))[1][layer]
    return found


_activation = jax.jit(_activation_of, static_argnums=2)


def _reconstruction(layer: str, reference: np.ndarray) -> Term:
    rank = reference.ndim - 1
    return Term((reference,), _near, layer, (rank,))


def _near(seen: Seen, value: jax.Array, reference: jax.Array) -> jax.Array:
    square = ((value - reference) ** 2).sum(tuple(range(1, value.ndim)))
    # Relative to the reference, so that the weights of the prior serve any layer.
    return -(square / ((reference**2).sum() + 1e-12)).mean()


def _smooth() -> Term:
    return Term((), _smoothness)


def _smoothness(seen: Seen, outputs: PyTree) -> jax.Array:
    x = 255 * (seen.pictures - 0.5)
    down = (x[:, 1:, :-1] - x[:, :-1, :-1]) ** 2
    right = (x[:, :-1, 1:] - x[:, :-1, :-1]) ** 2
    variation = (down + right).sum((1, 2, 3))
    power = (x**6).sum((1, 2, 3))
    size = x[0].size * _SPREAD**2
    return ((_TV * variation + _POWER * power) / (2 * size)).mean()
