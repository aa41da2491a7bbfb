"""Colours and frequencies of pictures: what natural pictures have in common, learnt or embedded.

`learn(pictures)` gives both for pictures of any number of channels; without pictures there are the
colours of photographs (Olah et al. 2017) and a spectrum measured on this project's own drawn world.

>>> import numpy as np
>>> learn(np.random.default_rng(0).random((4, 16, 16, 1), np.float32)).magnitude.shape
(1, 16, 9)
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from perturb import display
from perturb.types import Array, ArrayLike

__all__ = ["PHOTOGRAPHS", "Spectrum", "colours", "embedded", "frequencies", "high_share", "learn"]

# Square root of the covariance of ImageNet's colours, rows R, G, B (Olah et al. 2017), divided by
# its largest column norm.
_ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
PHOTOGRAPHS = (_ROOT / np.linalg.norm(_ROOT, axis=0).max()).astype(np.float32)

_FLOOR = 1e-2  # of the logit of pixels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """How strong each frequency is, and which colours go together.

    Attributes:
      magnitude: `[C, H, W // 2 + 1]`, mean of |rfft2| of decorrelated pictures.
      mixing: `[C, C]`, decorrelated colours to channels.
      width: W, which `W // 2 + 1` does not tell; static.
    """

    magnitude: Array
    mixing: Array
    width: int = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return display.summary(self)

    @property
    def size(self) -> tuple[int, int]:
        """`(H, W)` of the pictures."""
        return self.magnitude.shape[1], self.width

    def resized(self, height: int, width: int) -> Spectrum:
        """Returns the spectrum for pictures of another size, linear between its frequencies.

        Args:
          height: of the pictures in pixels.
          width: of the pictures in pixels.
        """
        if self.size == (height, width):
            return self
        there = np.array(self.magnitude, np.float64)
        # The mean of a picture says nothing about the lowest frequencies beside it.
        there[:, 0, 0] = (there[:, 0, 1] + there[:, 1, 0]) / 2
        rows, columns = np.fft.fftfreq(height), np.abs(np.fft.rfftfreq(width))
        old_rows = np.fft.fftfreq(self.size[0])
        old_columns = np.fft.rfftfreq(self.width)
        by_row = np.stack(
            [[np.interp(rows, old_rows, column, period=1) for column in plane.T] for plane in there]
        )  # [C, columns, rows]
        both = np.stack(
            [[np.interp(columns, old_columns, row) for row in plane.T] for plane in by_row]
        )
        return Spectrum(both.astype(np.float32), self.mixing, width)


def frequencies(height: int, width: int) -> np.ndarray:
    """Returns the frequency of each entry of an `rfft2`, in cycles a pixel, `[H, W // 2 + 1]`."""
    found: np.ndarray = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return found


def colours(pictures: np.ndarray) -> np.ndarray:
    """Returns the mixing matrix `[C, C]` of pictures `[B, H, W, C]`: root of their colours'
    covariance.

    Its largest column has length 1. Applied to independent numbers it gives colours that go
    together as the pictures' do.

    Args:
      pictures: `[B, H, W, C]` in [0, 1].
    """
    flat = np.asarray(pictures, np.float64).reshape(-1, np.shape(pictures)[-1])
    u, s, _ = np.linalg.svd(np.atleast_2d(np.cov(flat.T)))
    # Columns by size, the sign of each that of its largest entry; constant channels keep a little.
    root = u * np.sqrt(np.maximum(s, 1e-6 * s.max()))
    root *= np.where(root[np.abs(root).argmax(0), np.arange(len(s))] < 0, -1, 1)
    found: np.ndarray = (root / np.linalg.norm(root, axis=0).max()).astype(np.float32)
    return found


def learn(pictures: ArrayLike) -> Spectrum:
    """Returns colours and spectrum of pictures `[B, H, W, C]` in [0, 1].

    The pictures are decorrelated before their spectrum is taken, as MACO's constraint is applied
    (published code averages the spectrum of plain RGB where users bring their own pictures).

    Args:
      pictures: `[B, H, W, C]` in [0, 1].
    Raises:
      ValueError: if they are not such pictures.
    """
    pictures = np.asarray(pictures, np.float32)
    if pictures.ndim != 4 or len(pictures) < 1 or min(pictures.shape[1:3]) < 4:
        raise ValueError(f"pictures must be [B, H, W, C] of 4 px or more, got {pictures.shape}")
    if not (np.isfinite(pictures).all() and pictures.min() >= -1e-3 and pictures.max() <= 1.001):
        raise ValueError(
            f"pictures must be in [0, 1], got {pictures.min():.3g} to {pictures.max():.3g}"
        )
    mixing = colours(pictures)
    apart = np.linalg.inv(mixing.astype(np.float64)).T.astype(np.float32)
    total = np.zeros((mixing.shape[0], pictures.shape[1], pictures.shape[2] // 2 + 1))
    for picture in pictures:
        clipped = picture.clip(_FLOOR, 1 - _FLOOR)
        logits = np.log(clipped / (1 - clipped)) @ apart
        total += np.abs(np.fft.rfft2(logits.transpose(2, 0, 1)))
    return Spectrum((total / len(pictures)).astype(np.float32), mixing, pictures.shape[2])


def high_share(pictures: ArrayLike) -> np.ndarray:
    """Returns the share of each picture's energy at more than .25 cycles a pixel, `[B]`.

    Of the mean of the channels, without its mean. About .02 in photographs of 224 px.

    Args:
      pictures: `[B, H, W, C]`.
    """
    grey = np.asarray(pictures, np.float64).mean(-1)
    energy = np.abs(np.fft.rfft2(grey)) ** 2
    energy[:, 0, 0] = 0
    # All but columns 0 and W/2 stand for two entries of the full transform.
    width = grey.shape[2]
    energy[:, :, 1 : (width + 1) // 2] *= 2
    high = frequencies(*grey.shape[1:]) > 0.25
    total = energy.sum((1, 2))
    found: np.ndarray = (energy * high).sum((1, 2)) / np.where(total, total, 1)
    return found


# Relative magnitude of the three decorrelated colours of the drawn world
# (`perturb.embedded.world`, 120 pictures of 256 px) at these frequencies in cycles a
# pixel, mean over directions.
_AT = (1 / 256, 2 / 256, 4 / 256, 8 / 256, 16 / 256, 32 / 256, 64 / 256, 128 / 256, 181 / 256)
_WORLD = (
    (1.0, 0.5304, 0.23673, 0.09154, 0.03081, 0.00897, 0.00269, 0.00085, 0.00053),
    (1.98554, 1.05911, 0.49295, 0.18231, 0.06569, 0.02003, 0.00619, 0.00207, 0.0014),
    (2.14747, 1.07062, 0.53997, 0.19845, 0.07169, 0.02227, 0.00698, 0.00249, 0.00181),
)


def embedded(height: int, width: int, channels: int = 3) -> Spectrum:
    """Returns the spectrum that is used where no pictures are given.

    Three channels take the colours of photographs; any other number takes them as independent.

    Args:
      height: of the pictures in pixels.
      width: of the pictures in pixels.
      channels: number of channels.
    """
    f = np.maximum(frequencies(height, width), _AT[0])
    curves = _WORLD if channels == 3 else (_WORLD[0],) * channels
    magnitude = np.stack([np.exp(np.interp(np.log(f), np.log(_AT), np.log(c))) for c in curves])
    mixing = PHOTOGRAPHS if channels == 3 else np.eye(channels, dtype=np.float32)
    return Spectrum(magnitude.astype(np.float32), mixing, width)
