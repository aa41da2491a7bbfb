"""Symmetric relevance gain and the conciseness-preciseness score against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from perturb import metrics
from tests import planted

SIZE = (8, 8)


def linear():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, *SIZE))
    images = rng.uniform(0.2, 1, size=(3, *SIZE, 3)).astype(np.float32)
    contributions = images.mean(-1) * weights[0].astype(np.float32)
    return planted.linear(weights), images, contributions


def gain(model, images, maps, **given):
    options = {"fills": [0.0], "steps": 16, "output": "logit"} | given
    return metrics.relevance_gain(model, images, [0] * len(images), maps, **options).value


def test_of_a_linear_model_the_gain_is_exact():
    """Removed to black, a pixel takes its contribution: the curves are running sums."""
    model, images, contributions = linear()
    found = gain(model, images, contributions)
    for value, one in zip(found, contributions.reshape(3, -1).astype(np.float64), strict=True):
        # 16 steps over 64 px: every fourth of the running sums, one for each order.
        falling = np.concatenate([[0], np.cumsum(-np.sort(-one))])[::4]
        rising = np.concatenate([[0], np.cumsum(np.sort(one))])[::4]
        between = falling - rising
        assert value == pytest.approx((between.sum() - between[[0, -1]].mean()) / 16, abs=1e-4)


def test_the_reversed_map_has_the_opposite_gain_with_ties_too():
    model = planted.small_network()
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(2, 16, 16, 3)).astype(np.float32)
    # Three values over 256 px: nearly all tie, and the reversed order must be the same ties.
    for maps in (rng.normal(size=(2, 16, 16)), rng.integers(0, 3, (2, 16, 16))):
        given = {"fills": ["mean", "blur", 0.0], "output": "probability"}
        there, back = gain(model, images, maps, **given), gain(model, images, -maps, **given)
        np.testing.assert_allclose(there, -back, atol=1e-6)
        # Opposites of nothing would agree as well.
        assert np.abs(there).max() > 1e-5
    np.testing.assert_allclose(gain(model, images, np.zeros((2, 16, 16))), 0, atol=1e-6)


def test_random_orders_have_none():
    model, images, _ = linear()
    maps = np.random.default_rng(2).normal(size=(60, *SIZE))
    found = gain(model, np.repeat(images[:1], 60, 0), maps)
    assert abs(found.mean()) < 3 * found.std(ddof=1) / len(found) ** 0.5


def test_a_map_that_is_not_finite_has_no_gain():
    model, images, contributions = linear()
    contributions[1, 0, 0] = np.nan
    found = gain(model, images, contributions)
    assert np.isnan(found).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="fills must be at least one"):
        gain(model, images, contributions, fills=[])


def test_conciseness_of_masks():
    from perturb import Model

    seen = Model(lambda w, x: x[:, :, :2].mean((1, 2)), (), output="probabilities")
    masks = np.zeros((3, 4, 4))
    masks[0, :, :1], masks[1, :, 2:] = 1, 1
    images = np.full((3, 4, 4, 3), 0.5)
    found = metrics.conciseness_preciseness(seen, images, [0, 0, 0], masks)
    # Half of what is looked at in a quarter of the picture; nothing of it; nothing shown at all.
    np.testing.assert_allclose(found, [2, 0, np.nan])
    with pytest.raises(ValueError, match=r"masks must lie in \[0, 1\]"):
        metrics.conciseness_preciseness(seen, images, [0, 0, 0], 2 * masks)
    assert jnp.asarray(found).shape == (3,)
