"""The median filter of the `pytorch_port` preset against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import perturb  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def median(image: np.ndarray, side: int = 11) -> np.ndarray:
    """Median filter of `[H, W, C]` with repeated borders."""
    reach = side // 2
    padded = np.pad(image, [(reach, reach)] * 2 + [(0, 0)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1))
    return np.median(windows, axis=(-2, -1))


def test_median_operator():
    """The median filter of the preset, even over images smaller than a photograph."""
    image = np.random.default_rng(0).uniform(0, 1, (17, 23, 3)).astype(np.float32)
    np.testing.assert_array_equal(perturb.operators.median(jnp.asarray(image)), median(image))
