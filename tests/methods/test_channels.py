"""Channels: planted ones are found under an exact budget, in every game."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from tests import planted

# Two classes share channel 4, which is right for both.
USED = np.array([[1, 4, 9, 12], [0, 4, 7, 15], [3, 5, 10, 11]])


def net(weights, images):
    """16 channels, each a patch of the image; a class adds four of them up."""
    # One channel a patch of 4 x 4 px: on a white picture every channel is worth the same.
    patches = images[..., :1].reshape(-1, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3)
    return taps.tag(patches.reshape(-1, 4, 4, 16), "features").mean((1, 2)) @ weights


MODEL = perturb.Model(net, jnp.asarray(np.eye(16)[USED].sum(1).T, jnp.float32))
IMAGES = np.ones((3, 16, 16, 3), np.float32)


@pytest.mark.slow_cases
@pytest.mark.parametrize("game", ["preserve", "delete", "dual"])
def test_planted_channels_are_found(game):
    found = perturb.channels(MODEL, IMAGES, [0, 1, 2], layer="features", counts=4, game=game)
    for row, used in zip(found.channels[:, 0], USED, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), used)
    # All four of the class's channels are worth 1 each; without them nothing is left.
    kept = 0.0 if game == "delete" else 4.0
    np.testing.assert_allclose(found.score_binary[:, 0], kept, atol=1e-5)
    np.testing.assert_allclose(found.score_original, 4, atol=1e-5)
    np.testing.assert_allclose(found.score_floor, 0, atol=1e-6)


@pytest.mark.slow
def test_budgets_are_exact_at_a_layer_of_a_network():
    """Any activation by its name; of all sets of each size hardly one scores higher."""
    model = planted.small_network()
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    # Of 8 channels: 8, 56 and 8 sets, few enough to try them all.
    counts = (1, 3, 7)
    found = perturb.channels(model, images, [0, 3], layer="conv_2", counts=counts, steps=60)
    np.testing.assert_array_equal(found.channels.sum(-1), [counts] * 2)
    np.testing.assert_array_equal(found.channels, found.weights > 0.5)
    assert found.layer == "conv_2"

    @jax.jit
    def kept(mask):
        edited = taps.edit(model.apply, {"conv_2": lambda a: a * mask})
        return edited(model.variables, images)[jnp.arange(2), jnp.array([0, 3])]

    for j, count in enumerate(counts):
        sets = [np.isin(np.arange(8), s) * 1.0 for s in itertools.combinations(range(8), count)]
        scores = np.stack([kept(s) for s in sets])
        for i in range(2):
            by_hand = kept(found.channels[i, j])[i]
            np.testing.assert_allclose(found.score_binary[i, j], by_hand, atol=1e-4)
            assert (scores[:, i] > by_hand + 1e-6).sum() <= max(1, 0.05 * len(sets))


def test_statistics_of_classes():
    found = perturb.channels(MODEL, IMAGES[[0, 0, 0]], [1, 1, 2], layer="features", counts=(4, 2))
    shares = perturb.class_statistics(found, [1, 1, 2], classes=4)
    np.testing.assert_array_equal(np.flatnonzero(shares[1, 0] == 1), USED[1])
    # Shares of the pictures in which a channel was kept: they add up to the budget.
    np.testing.assert_allclose(shares[1].sum(-1), [4, 2])
    np.testing.assert_allclose(shares[2, 0], found.channels[2, 0])
    assert np.isnan(shares[[0, 3]]).all()
    with pytest.raises(ValueError, match=r"targets must be \[B\] in 0 to 1"):
        perturb.class_statistics(found, [1, 1, 2], classes=2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layer": "feature"}, "features"),
        ({"counts": 16}, "from 1 to 15 for layer 'features' of 16 channels, got 16"),
        ({"counts": 0}, "from 1 to 15"),
        ({"counts": [2.5]}, "counts must be whole numbers"),
        ({"game": "keep"}, "game must be one of"),
    ],
)
def test_errors(options, match):
    given = {"layer": "features", "counts": 4} | options
    with pytest.raises(ValueError, match=match):
        perturb.channels(MODEL, IMAGES, [0, 1, 2], **given)


def test_channels_are_rows_of_a_table(tmp_path):
    """Of a network whose channels 2 and 5 carry a class each."""

    def net(w, x):
        return perturb.taps.tag(x.mean((1, 2)) @ w, "features") @ jnp.eye(8, 2)

    w = jnp.zeros((3, 8)).at[0, 0].set(1.0).at[1, 1].set(1.0)
    model = perturb.Model(net, w)
    found = perturb.channels(
        model, jnp.ones((2, 8, 8, 3)), [0, 1], layer="features", counts=(1, 2), steps=30
    )
    rows = found.rows()
    assert [(row["image"], row["count"], row["area"]) for row in rows] == [
        *((0, 1, 0.125), (0, 2, 0.25)),
        *((1, 1, 0.125), (1, 2, 0.25)),
    ]
    # The strongest first: the one channel of each class.
    assert [row["channels"].split()[0] for row in rows] == ["0", "0", "1", "1"]
    assert [len(row["channels"].split()) for row in rows] == [1, 2, 1, 2]
    lines = found.to_csv(tmp_path / "channels.csv").read_text().splitlines()
    assert lines[0].endswith("count,layer,channels")
    assert len(lines) == 5
