"""Relevance propagation: what its rules come to on networks where that is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model, attribution
from perturb.attribution.lrp import Epsilon, Gamma, lrp
from tests import relunet

TARGETS = np.array([1, 3])


def images():
    return np.random.default_rng(0).uniform(0, 1, (2, 24, 24, 3)).astype(np.float32)


def without_biases():
    weights = relunet.random_weights()
    # Biases take a share of the relevance, so it is conserved where there are none.
    return {name: (kernel, 0 * bias) for name, (kernel, bias) in weights.items()}


def test_epsilon_zero_is_input_times_gradient():
    """Of a network with relu and biases, as the paper of Ancona et al. 2018 shows."""
    model = relunet.model(relunet.random_weights())
    found = lrp(model, images(), TARGETS, rule=Epsilon(epsilon=0.0))
    wanted = attribution.input_gradient(model, images(), TARGETS)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("first", [None, "box"])
@pytest.mark.parametrize("rule", ["zplus", "gamma"])
def test_relevance_is_conserved_without_biases(rule, first):
    model = relunet.model(without_biases())
    x = images()
    scores = np.asarray(model(x))
    # A score below 0 has no positive share to hand on: z+ begins with one above.
    targets = scores.argmax(1)
    assert (scores.max(1) > 0).all()
    found = lrp(model, x, targets, rule=rule, first=first).sum((1, 2))
    np.testing.assert_allclose(found, scores.max(1), rtol=1e-4)


def test_gamma_lies_between_epsilon_and_zplus():
    model = relunet.model(without_biases())
    x = images()
    targets = np.asarray(model(x)).argmax(1)
    ends = [lrp(model, x, targets, rule=rule) for rule in ("epsilon", "zplus")]
    # Positive weights count 1 + gamma times: 0 is the epsilon rule, and 1e5 is the rule of positive
    # weights but for 1e-5.
    found = [lrp(model, x, targets, rule=Gamma(gamma=g)) for g in (0.0, 1e5)]
    for wanted, got in zip(ends, found, strict=True):
        assert np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_one_rule_a_layer():
    model = relunet.model(relunet.random_weights())
    # Three layers have a kernel: two convolutions and the last product.
    same = lrp(model, images(), TARGETS, rule=["gamma"] * 3)
    np.testing.assert_array_equal(same, lrp(model, images(), TARGETS, rule="gamma"))
    with pytest.raises(ValueError, match="3 layers"):
        lrp(model, images(), TARGETS, rule=["gamma"] * 2)
    with pytest.raises(ValueError, match="first="):
        lrp(model, images(), TARGETS, rule="box")


def test_a_product_with_the_weights_on_the_left():
    """The layer is found either way round; an image that lies on its side is refused, not
    guessed.
    """
    x = images()
    right = Model(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((24 * 24 * 3, 4)))
    # Weights of 1 throughout: a pixel's share of the score is its own sum of channels.
    np.testing.assert_allclose(lrp(right, x, TARGETS), x.sum(-1), rtol=1e-4)
    left = Model(lambda w, x: (w @ x.reshape(len(x), -1).T).T, jnp.ones((4, 24 * 24 * 3)))
    with pytest.raises(ValueError, match="own size"):
        lrp(left, x, TARGETS)


def test_a_model_without_kernels_is_refused():
    with pytest.raises(ValueError, match="no convolution or product"):
        lrp(Model(lambda w, x: x.mean((1, 2)), ()), images(), [0, 1])
