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
    with pytest.raises(ValueError, match=r"layer pool has no grid of places.* \[64\]"):
        features.sample(net, "pool", image[None], key=jax.random.key(0))


@pytest.mark.parametrize("targets", [[0], 0, [0.0, 1.0]])
def test_every_picture_has_one_class(net, targets):
    images = np.zeros((2, 64, 64, 3), np.float32)
    with pytest.raises(ValueError, match=r"targets must be one a picture, integers \[2\], got"):
        features.attribute(net, "conv3", images, targets)
    with pytest.raises(ValueError, match=r"targets must be one a picture, integers \[2\], got"):
        features.transfer([net], images, targets)
    with pytest.raises(ValueError, match=r"images must be \[N, H, W, C\], got shape \[64, 64, 3\]"):
        features.attribute(net, "conv3", images[0], [0])


def test_attributions_between_layers_sum_to_the_linear_approximation(net):
    images = np.random.default_rng(2).random((2, 64, 64, 3), np.float32)
    found = features.attribute_between(net, "conv3", "conv5", images, [7, 20], place=(3, 4))

    def later(share):
        changed = taps.edit(taps.read(net, ("conv5",)), {"conv3": lambda a: share * a})
        return changed(jnp.asarray(images))[1]["conv5"][:, 3, 4]

    value, change = jax.jvp(later, (1.0,), (1.0,))
    want = np.asarray(change)[[0, 1], [7, 20]]
    assert np.abs(found.places.sum((1, 2)) - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(found.units.sum(1) - want).max() <= 1e-5 * np.abs(want).max()
    assert found.score == pytest.approx(np.asarray(value)[[0, 1], [7, 20]], rel=1e-5)
    path = features.attribute_between(net, "conv3", "conv5", images, [7, 20], points=64)
    span = path.score - path.base
    assert np.abs(path.total - span).max() <= 0.01 * np.abs(span).max()


def test_layers_units_and_places_that_do_not_exist_get_one_line(net):
    images = np.zeros((1, 64, 64, 3), np.float32)
    for options, words in (
        (("conv3", "conv9", images, [0]), "layer must be one of"),
        (("conv3", "conv5", images, [64]), "unit 64 does not exist"),
        (("conv3", "conv5", images, [0, 1]), "units must be one a picture"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            features.attribute_between(net, *options)
        assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match="place must have 2 numbers"):
        features.attribute_between(net, "conv3", "conv5", images, [0], place=(1,))
