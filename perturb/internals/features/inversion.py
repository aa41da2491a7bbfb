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
from perturb.internals.features.deep import Deep
from perturb.internals.features.images import Parametrisation
from perturb.internals.features.loop import layer_value, visualise
from perturb.internals.features.objectives import Objective, Seen, Term
from perturb.internals.features.presets import Preset
from perturb.internals.features.rules import Adam
from perturb.internals.features.spectra import Spectrum
from perturb.model import Model
from perturb.types import ArrayLike, PyTree

__all__ = ["PRIORS", "Inversion", "feature_error", "invert"]

PRIORS = ("pixels", "tv", "fourier", "maco", "deep")

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
    prior: str | Parametrisation = "tv",
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
        Vedaldi; the steps are Adam's, not their momentum), "fourier", "maco" (`spectrum` of natural
        pictures) or "deep" (an untrained network, `Deep`); or a parametrisation of its own, such as
        `Latents`, a generator's.
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
    if isinstance(prior, str) and prior not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {prior!r}")
    wanted = _read(model, images, layer)
    found = visualise(
        model,
        _objective(layer, wanted, prior),
        preset=_recipe(prior, steps, spectrum),
        size=images.shape[1:3],
        batch_size=batch_size,
        key=key,
    )
    distance, length, usual = _distances(_read(model, found.images, layer), wanted)
    square = ((found.images.clip(0, 1).astype(np.float64) - images) ** 2).mean((1, 2, 3))
    return Inversion(
        found.images,
        distance / usual,
        distance / np.where(length > 0, length, np.nan),
        -10 * np.log10(np.maximum(square, 1e-20)),
    )


def feature_error(model: Model, layer: str, images: ArrayLike, made: ArrayLike) -> np.ndarray:
    """Returns `[B]`, how far other pictures are from the given ones in a layer.

    In units of the mean distance of the given ones from each other, as `Inversion.error`: what an
    inversion has to be compared with is the mean picture, or the inversion of a random network.

    Args:
      model: the network, a `perturb.Model`.
      layer: name of the layer.
      images: `[B, H, W, C]` in [0, 1].
      made: `[B, H, W, C]`, one for each of them.
    """
    images, made = np.asarray(images, np.float32), np.asarray(made, np.float32)
    if images.shape != made.shape or images.ndim != 4:
        raise ValueError(f"made must be like images, {images.shape}, got shape {made.shape}")
    distance, _, usual = _distances(_read(model, made, layer), _read(model, images, layer))
    found: np.ndarray = distance / usual
    return found


def _distances(got: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """How far apart, how long the features wanted are, and how far apart those are in general."""
    flat, reference = (x.reshape(len(x), -1).astype(np.float64) for x in (got, wanted))
    # How far features of different pictures lie apart: the scale that an error is read on.
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(reference) for b in reference[:i]]
    usual = float(np.mean(pairs)) if pairs else 0.0
    distance: np.ndarray = np.linalg.norm(flat - reference, axis=1)
    return distance, np.linalg.norm(reference, axis=1), usual or np.nan


def _recipe(prior: str | Parametrisation, steps: int, spectrum: Spectrum | None) -> Preset:
    if not isinstance(prior, str):
        return Preset(parametrisation=prior, rule=Adam(rate=0.05, decay_steps=steps), steps=steps)
    if prior == "deep":
        return Preset(parametrisation=Deep(), rule=Adam(rate=0.01, decay_steps=steps), steps=steps)
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
        found.append(np.asarray(layer_value(model, jnp.asarray(full), layer))[: len(part)])
    return np.concatenate(found)


def _objective(layer: str, wanted: np.ndarray, prior: str | Parametrisation) -> Objective:
    """What a picture has to do whose features in a layer are to be those of each row."""
    objective: Objective = _reconstruction(layer, wanted)
    return objective - _smooth() if prior == "tv" else objective


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
