"""Filters and explainers trained on maps small enough to know what must come out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model, taps
from perturb.internals import explainer_net, filter_training, interpretable

SIDE = 6


def scenes(number=96, seed=0):
    """A bright cell of one of two colours, which is the class, at any place, and noise."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 0.4, (number, SIDE, SIDE, 2)).astype(np.float32)
    labels = np.arange(number) % 2
    y, x = rng.integers(0, SIDE, (2, number))
    images[np.arange(number), y, x, labels] = 1
    return images, labels


def network():
    rng = np.random.default_rng(1)
    weights = {
        "kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 8)) / 3, jnp.float32),
        "last": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
    }

    def apply(w, x):
        y = jax.lax.conv_general_dilated(
            x, w["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return taps.tag(jax.nn.relu(y), "maps").max((1, 2)) @ w["last"]

    return Model(apply, weights, channels=2)


@pytest.fixture(scope="module")
def trained():
    images, labels = scenes()
    options = {"layer": "maps", "steps": 60, "rate": 1e-2}
    return {
        name: filter_training.train_filters(network(), images, labels, **options, **more)
        for name, more in {
            "ordinary": {"weight": 0.0, "masked": False},
            "loss": {"weight": 2.0},
        }.items()
    }


def test_the_loss_makes_filters_answer_one_class(trained):
    images, labels = scenes(64, seed=2)
    ratio = {}
    for name, found in trained.items():
        maps = filter_training.filter_maps(found.model, images, "maps")
        ratio[name] = np.nanmean(
            interpretable.own_class_ratio(maps, labels, np.asarray(found.classes))
        )
        assert found.losses.shape == (60,)
        # Two colours are told apart with or without it; half of the answers would be chance.
        assert (np.asarray(found.model(images)).argmax(1) == labels).mean() > 0.7
    # 2 is the most that there can be of two classes.
    assert ratio["loss"] > 1.1 * ratio["ordinary"]


def test_masks_are_part_of_the_trained_model(trained):
    images, _ = scenes(8, seed=3)
    found = trained["loss"].model
    maps = filter_training.filter_maps(found, images, "maps")
    wanted = np.asarray(interpretable.mask_maps(maps)).max((1, 2)) @ found.variables["last"]
    np.testing.assert_allclose(found(images), wanted, atol=1e-5)


def test_what_cannot_be_trained_is_refused():
    images, labels = scenes(16)
    with pytest.raises(ValueError, match="batch"):
        filter_training.train_filters(network(), images, labels, layer="maps", batch=17)
    inner = network()
    flat = Model(lambda w, x: taps.tag(inner.apply(w, x), "scores"), inner.variables, channels=2)
    with pytest.raises(ValueError, match="square maps"):
        filter_training.train_filters(flat, images, labels, layer="scores", batch=8)


@pytest.mark.slow
def test_an_explainer_rebuilds_what_a_convolution_makes():
    """A price on a small p moves p, and what is rebuilt pays for it; nothing is 0, the mean."""
    images, labels = scenes(128)
    rng = np.random.default_rng(4)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 6)) / 3, jnp.float32)
    upper = np.asarray(explainer_net._conv({"kernel": kernel, "bias": 0.0}, images))
    found = {
        eta: explainer_net.train_explainer(
            images, upper, labels, eta=eta, width=8, steps=150, rate=1e-2, batch=32
        )
        for eta in (0.0, 1.0)
    }
    rebuilt, filters = explainer_net.rebuild(found[0.0], images)
    assert rebuilt.shape == upper.shape
    assert filters.shape == (128, SIDE, SIDE, 8)
    # Above the mean by far; all of it takes longer than a test should.
    assert explainer_net.share_of_variance(rebuilt, upper) > 0.4
    assert found[1.0].p > found[0.0].p + 0.1
    with pytest.raises(ValueError, match="same 64 or more images"):
        explainer_net.train_explainer(images, upper[:, :3], labels)
