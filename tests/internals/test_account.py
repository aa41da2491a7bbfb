"""An account of one answer: contributions sum to the logit, and planted units come first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from launch import demo
from launch.demo import world
from perturb import taps
from perturb.internals import account, sentence


@pytest.mark.parametrize("layer", ["relu#4", "relu#6"])
def test_contributions_sum_to_the_logit(layer):
    model, picture = demo.load("demo"), world.render(7, 4)
    found = account(model, picture.image, picture.target, layer=layer)
    # A batch of two: one alone is another program, which rounds otherwise.
    logit = float(jax.jit(lambda x: model(x))(np.stack([picture.image] * 2))[0, picture.target])
    assert found.logit == pytest.approx(logit, abs=1e-4)
    total = found.baseline + found.contributions.sum()
    assert total == pytest.approx(logit, abs=1e-4)
    # The same sums in another order, in double precision.
    np.testing.assert_allclose(found.maps.sum((1, 2)), found.contributions, atol=1e-9)
    # What the points of the path miss: the pooling's floor bends it near its start, and behind
    # relu#4 are rectifiers with biases; of a logit of about ten.
    assert abs(found.residual) < (2e-3 if layer == "relu#6" else 0.2)


def test_a_rectified_linear_net_is_complete():
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.normal(size=(3, 8)),
        "b": rng.normal(size=(8, 6)),
        "c": rng.normal(size=(6, 4)),
    }
    weights = {k: jnp.asarray(v, jnp.float32) for k, v in weights.items()}

    def f(w, x):
        h = taps.tag(jax.nn.relu(x @ w["a"]), "units")
        return jax.nn.relu(h @ w["b"]).mean((1, 2)) @ w["c"]

    found = account(perturb.Model(f, weights), rng.random((5, 5, 3)), 2, layer="units", steps=1)
    # Without biases a rectified net is its gradient times its input: one point is path enough.
    assert found.baseline == 0.0
    assert abs(found.residual) < 1e-4
    np.testing.assert_allclose(found.maps.sum((1, 2)), found.contributions, rtol=1e-6)


def test_planted_units_come_first_and_are_told_by_name():
    def f(w, x):
        return taps.tag(x.mean((1, 2)), "units") @ w

    weights = np.zeros((5, 2), np.float32)
    weights[3, 1], weights[1, 1] = 4.0, -2.0
    model = perturb.Model(f, weights, channels=5)
    found = account(model, np.ones((2, 2, 5)), 1, layer="units")
    assert found.units[:2].tolist() == [3, 1]
    words = sentence(found, [None, "sky", None, "stamp", None], class_name="heart", most=2)
    assert words.startswith("heart 2.00: unit 3 (stamp) +4.00, unit 1 (sky) -2.00")
