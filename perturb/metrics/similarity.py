"""How alike two maps are: Pearson's and Spearman's correlation, SSIM, and overlap of areas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays, statistics
from perturb.metrics import _common
from perturb.types import ArrayLike, PyTree

__all__ = ["overlap", "pearson", "spearman", "ssim"]


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a = _common.maps_of(a)
    return a, _common.maps_of(b, a.shape)


def _defined(found: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A flat map goes along with nothing, except another flat one."""
    flat_a, flat_b = (x.max(1) == x.min(1) for x in (a, b))
    xp = arrays.namespace(found)
    result: np.ndarray = xp.where(flat_a | flat_b, xp.where(flat_a & flat_b, 1.0, 0.0), found)
    return result


def pearson(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Returns `[B]` correlations; with a flat map 0, of two flat ones 1.

    Args:
      a: `[B, H, W]` maps.
      b: `[B, H, W]` maps of the same pictures.
    """
    a, b = (x.reshape(len(x), -1) for x in _pair(a, b))
    return _defined(statistics.pearson(a, b), a, b)


def spearman(a: ArrayLike, b: ArrayLike, *, absolute: bool = False) -> np.ndarray:
    """Returns `[B]` rank correlations, ties at their mean rank; with a flat map 0, of two 1.

    Args:
      a: `[B, H, W]` maps.
      b: `[B, H, W]` maps of the same pictures.
      absolute: whether to rank the absolute values, as sanity checks report beside the signed
        ones.
    """
    a, b = (x.reshape(len(x), -1) for x in _pair(a, b))
    if absolute:
        a, b = abs(a), abs(b)
    return _defined(statistics.spearman(a, b), a, b)


def _blurred(maps: PyTree, sigma: float, reach: int) -> PyTree:
    """A Gaussian cut at `reach` px; the border is mirrored, the outermost pixel twice."""
    if not arrays.traced(maps):
        # On the host SciPy's filter, that of scikit-image's figure; it cannot be traced, so under
        # jit the same taps are summed.
        from scipy import ndimage

        return ndimage.gaussian_filter(maps, (0, sigma, sigma), truncate=3.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        padded, length = jnp.pad(maps, pad, mode="symmetric"), maps.shape[axis]
        parts = (jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(len(taps)))
        maps = sum(w * part for w, part in zip(taps, parts, strict=True))
    return maps


def ssim(a: ArrayLike, b: ArrayLike, *, sigma: float = 1.5) -> np.ndarray:
    """Returns `[B]` structural similarity of the maps scaled to [0, 1] (Wang et al. 2004).

    Gaussian weights of `sigma` px cut at 3.5 sigma, borders of that width left out (of maps too
    small for that, all but the middle), constants .01² and .03²; what scikit-image gives with
    `gaussian_weights=True, use_sample_covariance=False`.

    Args:
      a: `[B, H, W]` maps.
      b: `[B, H, W]` maps of the same pictures.
      sigma: standard deviation in pixels of the window's weights.
    """
    a, b = _pair(a, b)
    xp, edge = arrays.namespace(a, b), int(3.5 * sigma + 0.5)

    def scaled(m: np.ndarray) -> np.ndarray:
        low, high = m.min((1, 2), keepdims=True), m.max((1, 2), keepdims=True)
        # Attributions have no common scale, and the constants of the index are those of
        # values in [0, 1].
        found: np.ndarray = (m - low) / xp.maximum(high - low, 1e-12)
        return found

    def smooth(m: np.ndarray) -> np.ndarray:
        found: np.ndarray = _blurred(m, sigma, edge)
        return found

    a, b = scaled(a), scaled(b)
    ma, mb = smooth(a), smooth(b)
    va, vb, both = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    value = ((2 * ma * mb + c1) * (2 * both + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    # Within `edge` of the border the window reaches beyond it, and mirrored values would count.
    rows, columns = (min(edge, (n - 1) // 2) for n in a.shape[1:])
    inner = value[:, rows : a.shape[1] - rows, columns : a.shape[2] - columns]
    found: np.ndarray = inner.mean((1, 2))
    return found


def overlap(a: ArrayLike, b: ArrayLike, area: float) -> np.ndarray:
    """Returns `[B]`: intersection over union of the highest share `area` of both maps.

    Args:
      a: `[B, H, W]` maps.
      b: `[B, H, W]` maps of the same pictures.
      area: share of the pixels that count as high, in (0, 1).
    """
    a, b = _pair(a, b)
    count = max(1, round(area * a[0].size))
    p, q = _common.top(a, count), _common.top(b, count)
    found: np.ndarray = (p & q).sum((1, 2)) / (p | q).sum((1, 2))
    return found
