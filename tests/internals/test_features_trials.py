"""Trials of pictures whose answer is known: a colour is looked for."""

import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.internals import features


def _apply(weights, x):
    return taps.tag(x.mean((1, 2)), "colour") @ weights


@pytest.fixture(scope="module")
def judge():
    return perturb.Model(_apply, jnp.eye(3))


def _plain(colours):
    colours = np.asarray(colours, np.float32)
    return np.broadcast_to(colours[..., None, None, :], (*colours.shape[:-1], 8, 8, 3))


def test_a_picture_of_what_a_unit_looks_for_tells_which_excites_it_more(judge):
    rng = np.random.default_rng(0)
    natural = _plain(rng.uniform(0, 1, (40, 3)))
    right, wrong = _plain([[1, 0.5, 0], [0, 0.5, 1]])
    for picture, low, high in ((right, 0.9, 1), (wrong, 0, 0.5)):
        found = features.two_choices(
            judge, features.logit(0), picture[None], natural, judge=judge, layer="colour"
        )
        assert low <= found.right[0] <= high
        assert found.natural[0] > 0.6
    with pytest.raises(ValueError, match="count must be 1 to 19 for 40 natural"):
        features.two_choices(
            judge, features.logit(0), right[None], natural, judge=judge, layer="colour", count=20
        )


def test_other_networks_answer_with_rank_and_probability(judge):
    turned = perturb.Model(_apply, jnp.asarray([[0.0, 9, 0], [0, 0, 9], [9, 0, 0]]))
    found = features.transfer([judge, turned], _plain([[1, 0, 0], [0.1, 1, 0.2]]), [0, 1])
    assert found.rank.tolist() == [[0, 0], [1, 2]]
    assert found.probability[0, 0] == pytest.approx(np.e / (np.e + 2))


def test_seeds_agree_where_their_pictures_do(judge):
    rng = np.random.default_rng(1)
    colours = np.array([[[0.9, 0.5, 0.1]] * 3, [[0.1, 0.5, 0.9]] * 3]) + rng.uniform(
        0, 0.1, (2, 3, 3)
    )
    found = features.seed_agreement(judge, "colour", _plain(colours))
    assert found == pytest.approx(1)
    with pytest.raises(ValueError, match="N and S at least 2"):
        features.seed_agreement(judge, "colour", _plain(colours[:1]))
