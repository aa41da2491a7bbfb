"""How a picture is written down while it is optimised: pixels, frequencies, phases, a pyramid,
latents.

A parametrisation makes one picture `[H, W, C]` in [0, 1] from its parameters, which are optimised:

  init(key, size) -> params            image(params, size) -> [H, W, C]
  project(params) -> params            inverse(picture) -> params, where there is one

The choice decides which of the many pictures that excite a unit is found: steps in pixels end in
high frequencies, steps in decorrelated colours and frequencies do not (Olah et al. 2017), and with
phases alone no frequency can grow beyond what natural pictures have (MACO, Fel et al. 2023).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from perturb import display
from perturb.internals.features import spectra
from perturb.internals.features.spectra import Spectrum
from perturb.types import Array, ArrayLike, PyTree, Variables

__all__ = [
    "Alpha",
    "Fourier",
    "Latents",
    "Maco",
    "Parametrisation",
    "Pixels",
    "Pyramid",
    "Raw",
]

Size = tuple[int, int, int]
_EDGE = 1e-3  # of pixels that are taken back through the sigmoid


class Parametrisation(Protocol):
    """How one picture is written down, a record registered as a pytree. `inverse` may be left
    out.
    """

    def check(self, size: Size) -> None:
        """Refuses sizes that do not fit.

        Args:
          size: `(H, W, C)` of the picture.
        """

    def init(self, key: jax.Array, size: Size) -> PyTree:
        """Returns the first parameters, a pytree of arrays.

        Args:
          key: random key.
          size: `(H, W, C)` of the picture.
        """

    def image(self, params: PyTree, size: Size) -> jax.Array:
        """Returns the picture `[H, W, C]` in [0, 1].

        Args:
          params: pytree of arrays, what is optimised.
          size: `(H, W, C)` of the picture.
        """

    def project(self, params: PyTree) -> PyTree:
        """Returns the nearest parameters that are allowed.

        Args:
          params: pytree of arrays, what a step has made of them.
        """

    def inverse(self, picture: ArrayLike) -> PyTree:
        """Returns the parameters of a picture.

        Args:
          picture: `[H, W, C]` in [0, 1].
        """


class Untouched:
    """What most parametrisations share."""

    alpha = False

    def project(self, params: PyTree) -> PyTree:
        """Returns the nearest parameters that are allowed: here, the same."""
        return params

    def check(self, size: Size) -> None:
        """Refuses sizes that do not fit."""


def _mix(z: jax.Array, mixing: ArrayLike) -> jax.Array:
    """Decorrelated colours to channels, term by term: a matrix product rounds by the batch's
    size.
    """
    mixing = jnp.asarray(mixing)
    terms = [z[..., k, None] * mixing[:, k] for k in range(mixing.shape[1])]
    return functools.reduce(jnp.add, terms)


def _colours(mixing: ArrayLike, channels: int) -> PyTree:
    """The mixing matrix for this number of channels: photographs' for three, independent
    otherwise.
    """
    if mixing is not None:
        return mixing
    return spectra.PHOTOGRAPHS if channels == 3 else np.eye(channels, dtype=np.float32)


def _check_mixing(mixing: Array, size: Size) -> None:
    if mixing is not None and mixing.shape != (size[2], size[2]):
        raise ValueError(
            f"mixing must be [{size[2]}, {size[2]}] for pictures of {size[2]} channels, got "
            f"{mixing.shape}: features.colours(pictures) learns it"
        )


def _undo(picture: ArrayLike, mixing: ArrayLike) -> np.ndarray:
    """Pixels back to decorrelated colours `[H, W, C]`."""
    # Black and white have no finite logit.
    x = np.asarray(picture, np.float64).clip(_EDGE, 1 - _EDGE)
    found: np.ndarray = np.log(x / (1 - x)) @ np.linalg.pinv(np.asarray(mixing, np.float64)).T
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pixels(Untouched):
    """`sigmoid(p M^T)`: pixels in decorrelated colours.

    Attributes:
      mixing: `[C, C]`, see `spectra.colours`; None takes photographs', or independent channels.
      deviation: standard deviation of the random start.
    """

    mixing: PyTree = None
    deviation: jax.Array | float = 0.01

    def check(self, size: Size) -> None:
        """Refuses colours of another number of channels."""
        _check_mixing(self.mixing, size)

    def init(self, key: jax.Array, size: Size) -> jax.Array:
        """Returns random parameters."""
        return self.deviation * jax.random.normal(key, size)

    def image(self, params: jax.Array, size: Size) -> jax.Array:
        """Returns the picture."""
        return jax.nn.sigmoid(_mix(params, _colours(self.mixing, size[2])))

    def inverse(self, picture: Array) -> np.ndarray:
        """Returns the parameters of a picture."""
        return _undo(picture, _colours(self.mixing, picture.shape[-1])).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Raw(Untouched):
    """`centre + p / levels`, kept within [0, 1] by cutting, or within a norm: as before 2017.

    Attributes:
      levels: 255 steps as the Caffe networks of the time did; 1 is plain pixels.
      centre: the mean picture's colour, that `p = 0` gives.
      deviation: standard deviation of the random start, in levels.
      norm: if given, |p| is held there (Erhan 2009) and pixels are not cut.
    """

    levels: PyTree = 1.0
    centre: PyTree = 0.5
    deviation: PyTree = 0.0
    norm: PyTree = None

    def init(self, key: jax.Array, size: Size) -> jax.Array:
        """Returns random parameters, or none where the deviation is 0."""
        drawn = self.deviation * jax.random.normal(key, size)
        return self.project(drawn)

    def image(self, params: jax.Array, size: Size) -> jax.Array:
        """Returns the picture."""
        found: jax.Array = jnp.asarray(self.centre) + params / self.levels
        return found

    def project(self, params: jax.Array) -> jax.Array:
        """Cuts to [0, 1], or scales to the norm."""
        if self.norm is not None:
            found: jax.Array = params * self.norm / jnp.sqrt((params**2).sum() + 1e-20)
            return found
        centre = jnp.asarray(self.centre)
        return jnp.clip(params, -centre * self.levels, (1 - centre) * self.levels)

    def inverse(self, picture: ArrayLike) -> np.ndarray:
        """Returns the parameters of a picture."""
        return np.asarray((picture - np.asarray(self.centre)) * self.levels, np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Fourier(Untouched):
    """Frequencies scaled to natural size, in decorrelated colours (Olah et al. 2017).

    `x = sigmoid(M irfft2((p0 + i p1) sqrt(HW) / max(f, 1/max(H, W))^decay) / 4)`. Lucid makes one
    column too many for odd widths and crops; here the transform is that of the size itself.

    Attributes:
      mixing: as for `Pixels`.
      decay: slope of the scale; 1 in Lucid.
      deviation: standard deviation of the random start.
    """

    mixing: PyTree = None
    decay: jax.Array | float = 1.0
    deviation: jax.Array | float = 0.01

    def check(self, size: Size) -> None:
        """Refuses colours of another number of channels."""
        _check_mixing(self.mixing, size)

    def scale(self, size: Size) -> jax.Array:
        """Returns the factor of every frequency, `[H, W // 2 + 1]`.

        Args:
          size: `(H, W, C)` of the picture.
        """
        height, width, _ = size
        # The mean of the picture has frequency 0: it is scaled as the lowest frequency is.
        f = np.maximum(spectra.frequencies(height, width), 1 / max(height, width))
        return np.float32(np.sqrt(height * width)) / jnp.asarray(f, jnp.float32) ** self.decay

    def init(self, key: jax.Array, size: Size) -> jax.Array:
        """Returns random parameters `[2, C, H, W // 2 + 1]`."""
        height, width, channels = size
        return self.deviation * jax.random.normal(key, (2, channels, height, width // 2 + 1))

    def image(self, params: jax.Array, size: Size) -> jax.Array:
        """Returns the picture."""
        # The published quarter goes into the scale, exactly; and real and imaginary parts are
        # scaled as real numbers: a complex product costs four of those, and as much on the way
        # back.
        real, imaginary = jax.lax.split(params * (self.scale(size) / 4), (1, 1))
        z = jax.lax.complex(real[0], imaginary[0])
        plane = jnp.fft.irfft2(z, size[:2]).transpose(1, 2, 0)
        return jax.nn.sigmoid(_mix(plane, _colours(self.mixing, size[2])))

    def inverse(self, picture: PyTree) -> np.ndarray:
        """Returns the parameters of a picture."""
        plane = _undo(picture, _colours(self.mixing, picture.shape[-1])) * 4
        z = np.fft.rfft2(plane.transpose(2, 0, 1)) / np.asarray(self.scale(picture.shape))
        return np.stack([z.real, z.imag]).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Maco(Untouched):
    """Phases alone: every frequency keeps the strength that it has in natural pictures (MACO).

    Phases are standardised, the field is standardised, mixed to channels and put through a sigmoid.
    In columns 0 and W/2 of the spectrum of a real picture, entries k and -k are conjugates; with
    free phases there the published codes lose a tenth of the strength of the lowest frequencies.
    Here those phases are antisymmetric and the strength is kept exactly.

    Attributes:
      spectrum: of natural pictures, `features.learn(pictures)`; resized where needed. None:
        embedded.
    """

    spectrum: Spectrum | None = None

    def check(self, size: Size) -> None:
        """Refuses a spectrum that cannot be used for this size."""
        found = self.spectrum
        if found is None:
            return
        if not isinstance(found, Spectrum):
            raise ValueError(
                f"spectrum must be what features.learn(pictures) gives, got {type(found).__name__}"
            )
        rows = found.magnitude.shape
        if rows != (size[2], rows[1], found.width // 2 + 1):
            raise ValueError(
                f"spectrum must be [{size[2]}, H, W // 2 + 1] for pictures of {size[2]} channels, "
                f"got {rows} of width {found.width}: learn it from pictures of the model's channels"
            )

    def at(self, size: Size) -> Maco:
        """Returns it with the spectrum of this size.

        Args:
          size: `(H, W, C)` of the picture.
        """
        height, width, channels = size
        found = self.spectrum or spectra.embedded(height, width, channels)
        return Maco(spectrum=found.resized(height, width))

    def init(self, key: jax.Array, size: Size) -> jax.Array:
        """Returns random phases `[C, H, W // 2 + 1]`."""
        height, width, channels = size
        return jax.random.normal(key, (channels, height, width // 2 + 1))

    def field(self, params: jax.Array, size: Size) -> jax.Array:
        """Returns the picture `[H, W, C]` in decorrelated colours, before it is standardised.

        Args:
          params: phases `[C, H, W // 2 + 1]` in radians.
          size: `(H, W, C)` of the picture.
        """
        found = self.at(size).spectrum
        magnitude = jnp.asarray(found.magnitude)  # type: ignore[union-attr]
        # Standardised before every use, as published.
        centred = params - params.mean()
        phase = _antisymmetric(centred / (params.std() + 1e-5), size[1])
        z = jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))
        return jnp.fft.irfft2(z, size[:2]).transpose(1, 2, 0)

    def image(self, params: jax.Array, size: Size) -> jax.Array:
        """Returns the picture."""
        plane = self.field(params, size)
        # The spread of the field is fixed, so contrast cannot be what raises the objective.
        plane = (plane - plane.mean()) / (plane.std() + 1e-5)
        found = self.at(size).spectrum
        return jax.nn.sigmoid(_mix(plane, found.mixing))  # type: ignore[union-attr]

    def inverse(self, picture: PyTree) -> np.ndarray:
        """Returns the phases of a picture; its magnitudes are lost."""
        found = self.at(picture.shape).spectrum
        plane = _undo(picture, found.mixing)  # type: ignore[union-attr]
        return np.angle(np.fft.rfft2(plane.transpose(2, 0, 1))).astype(np.float32)


def _antisymmetric(phase: jax.Array, width: int) -> jax.Array:
    """Makes the phases of the columns that are their own conjugates odd in the row, keeping their
    spread.
    """

    def odd(column: jax.Array) -> jax.Array:
        # Row k's opposite is row -k: flipped, row 0 is last and has to come round to itself.
        opposite = jnp.roll(jnp.flip(column, -1), 1, -1)
        # A difference of two has twice the variance.
        return (column - opposite) / np.float32(np.sqrt(2))

    first = odd(phase[..., 0])[..., None]
    if width % 2:
        return jnp.concatenate([first, phase[..., 1:]], -1)
    last = odd(phase[..., -1])[..., None]
    return jnp.concatenate([first, phase[..., 1:-1], last], -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pyramid(Untouched):
    """A sum of pictures at whole, half, quarter and eighth size, each enlarged bilinearly.

    Attributes:
      mixing: as for `Pixels`.
      deviation: standard deviation of the random start.
      levels: number of sizes; static.
    """

    mixing: PyTree = None
    deviation: jax.Array | float = 0.01
    levels: int = dataclasses.field(default=4, metadata={"static": True})

    def check(self, size: Size) -> None:
        """Refuses colours of another number of channels."""
        _check_mixing(self.mixing, size)

    def init(self, key: jax.Array, size: Size) -> tuple[jax.Array, ...]:
        """Returns random parameters, one array a size."""
        height, width, channels = size
        sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(self.levels)]
        keys = jax.random.split(key, self.levels)
        return tuple(
            self.deviation * jax.random.normal(k, (*s, channels))
            for k, s in zip(keys, sizes, strict=True)
        )

    def image(self, params: tuple[jax.Array, ...], size: Size) -> jax.Array:
        """Returns the picture."""
        # Smooth enlargements: what is coarse can only be changed coarsely, whatever the
        # pixels' gradient.
        grown = [jax.image.resize(p, size, "bilinear") for p in params]
        return jax.nn.sigmoid(
            _mix(functools.reduce(jnp.add, grown), _colours(self.mixing, size[2]))
        )

    def inverse(self, picture: Array) -> tuple[np.ndarray, ...]:
        """Returns parameters of a picture: all of it at the whole size."""
        height, width, channels = picture.shape
        whole = _undo(picture, _colours(self.mixing, channels)).astype(np.float32)
        sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(1, self.levels)]
        return (whole, *(np.zeros((*s, channels), np.float32) for s in sizes))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Latents(Untouched):
    """Pictures that a generator draws (Nguyen et al. 2016): what is optimised is its latent.

    Attributes:
      draw: `(variables, z [1, D]) -> [1, H, W, C]` in [0, 1]; static.
      variables: of the generator.
      dimensions: the number D of latent variables; static.
      limit: latents are kept within ± this.
    """

    draw: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    variables: Variables
    dimensions: int = dataclasses.field(metadata={"static": True})
    limit: jax.Array | float = 3.0

    def __repr__(self) -> str:
        return display.summary(self)

    def init(self, key: jax.Array, size: Size) -> jax.Array:
        """Returns a normal latent."""
        return jax.random.normal(key, (self.dimensions,))

    def image(self, params: jax.Array, size: Size) -> jax.Array:
        """Returns the picture, resized where the model wants another size."""
        picture = self.draw(self.variables, params[None])[0]
        return picture if picture.shape == size else jax.image.resize(picture, size, "bilinear")

    def project(self, params: jax.Array) -> jax.Array:
        """Keeps the latent within its limit."""
        return jnp.clip(params, -self.limit, self.limit)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Alpha(Untouched):
    """Another parametrisation with one channel more: how much of each pixel matters.

    Every step the picture is laid over a random one, and the objective is multiplied by the share
    that is see-through; what does not matter fades out.

    Attributes:
      base: `Pixels`, `Fourier` or `Pyramid`.
    """

    base: PyTree = dataclasses.field(default_factory=Fourier)

    alpha = True

    def _base(self, size: Size) -> PyTree:
        mixing = np.eye(size[2] + 1, dtype=np.float32)
        # Colours are mixed among themselves, alpha is left alone.
        mixing[:-1, :-1] = _colours(self.base.mixing, size[2])
        return dataclasses.replace(self.base, mixing=mixing)

    def init(self, key: jax.Array, size: Size) -> PyTree:
        """Returns random parameters."""
        return self.base.init(key, (*size[:2], size[2] + 1))

    def image(self, params: PyTree, size: Size) -> jax.Array:
        """Returns colours and alpha, `[H, W, C + 1]`."""
        found: jax.Array = self._base(size).image(params, (*size[:2], size[2] + 1))
        return found
