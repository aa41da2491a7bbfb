"""Attribution to places and units sums to what it should; grids are refused where there are no
places.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.internals import features


@pytest.fixture(scope="module")
def net():
    return perturb.load_model("demo", key=jax.random.key(0))


def test_attributions_sum_to_the_linear_approximation(net):
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    found = features.attribute(net, "conv4", images, [3, 7])
    prefix, suffix = taps.split(net, "conv4")
    value, live = prefix(jnp.asarray(images))
    # The slope along the activations themselves, which is what the products add up to.
    _, change = jax.jvp(lambda a: suffix(a, live), (value,), (value,))
    want = np.asarray(change)[[0, 1], [3, 7]]
    assert np.abs(found.places.sum((1, 2)) - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(found.units.sum(1) - want).max() <= 1e-5 * np.abs(want).max()


def test_the_path_from_nothing_is_complete(net):
    images = np.random.default_rng(1).random((2, 64, 64, 3), np.float32)
    found = features.attribute(net, "conv4", images, [1, 5], points=64)
    span = found.score - found.base
    # 64 points of a path through rectifiers: a hundredth of the whole is missed at the most.
    assert np.abs(found.total - span).max() <= 0.01 * np.abs(span).max()


def test_a_grid_needs_places(net):
    image = np.zeros((64, 64, 3), np.float32)
    with pytest.raises(ValueError, match="layer pool has no grid of places"):
        features.activation_grid(net, "pool", image, key=jax.random.key(0))
