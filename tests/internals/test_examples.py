"""Top pictures: ties, shards, places, and the patches cut out of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.internals import along_range, merge_examples, patches, sparsity, top_examples


@pytest.fixture(scope="module")
def net():
    return perturb.load_model("demo", key=jax.random.key(0))


def _spikes(count=20):
    """Pictures of which some hold the same brightest pixel; the answer is known."""
    images = np.zeros((count, 4, 4, 1), np.float32)
    for i in (3, 7, 12):
        # Of the same height, so that only the order decides.
        images[i, 1, 2] = images[i, 3, 0] = 1.0  # a tie within the picture too
    images[5, 0, 0] = 0.5
    return images


def _plain(_, x):
    return taps.tag(x + 0.0, "pixels").mean((1, 2))


def test_ties_go_to_the_lower_picture_and_the_first_place():
    model = perturb.Model(_plain, jnp.zeros(1), channels=1)
    found = top_examples(model, _spikes(), layer="pixels", k=4, batch_size=8)
    assert found.indices.tolist() == [[3, 7, 12, 5]]
    assert found.places.tolist() == [[[1, 2], [1, 2], [1, 2], [0, 0]]]


# One picture, one batch and some in between: none of the cuts may show.
@pytest.mark.parametrize("cuts", [(0, 30), (0, 7, 30), (0, 1, 16, 29, 30)])
def test_shards_merge_to_the_same_bits_in_any_order(net, cuts):
    images = np.random.default_rng(0).random((30, 64, 64, 3)).astype(np.float32)
    whole = top_examples(net, images, layer="relu#3", k=5, sample=8, batch_size=8)
    parts = [
        top_examples(net, images, layer="relu#3", k=5, sample=8, batch_size=8, pictures=(a, b))
        for a, b in itertools.pairwise(cuts)
    ]
    merged = merge_examples(*reversed(parts))
    for a, b in zip(whole, merged, strict=True):
        assert np.array_equal(a, b)
    assert len(whole.sample) == 8


def test_levels_follow_the_range(net):
    images = np.random.default_rng(1).random((30, 64, 64, 3)).astype(np.float32)
    found = top_examples(net, images, layer="relu#2", sample=30, batch_size=16)
    indices, values, _ = along_range(found, 3, (1.0, 0.5, 0.0))
    assert values[0] == found.values[3, 0]
    assert indices[0] == found.indices[3, 0]
    assert values[0] >= values[1] >= values[2]


def test_a_patch_holds_all_that_moves_the_unit(net):
    images = np.random.default_rng(2).random((6, 64, 64, 3)).astype(np.float32)
    found = top_examples(net, images, layer="relu#2", k=1, batch_size=6)
    cut, boxes = patches(
        net, images, layer="relu#2", indices=found.indices[:4, 0], places=found.places[:4, 0]
    )
    read = jax.jit(lambda x: taps.read(net, "relu#2")(x)[1]["relu#2"])
    for unit, (patch, (top, left, bottom, right)) in enumerate(zip(cut, boxes, strict=True)):
        # Another picture around the patch: what the unit cannot see must not move it.
        other = np.random.default_rng(3).random((2, 64, 64, 3)).astype(np.float32)
        other[:, top:bottom, left:right] = patch
        place = tuple(found.places[unit, 0])
        # A crop's activation in another program: one rounding or two.
        np.testing.assert_allclose(read(other)[0][place][unit], found.values[unit, 0], rtol=1e-5)


def test_sparsity_of_a_known_layer():
    def f(_, x):
        a = jnp.stack([x[..., 0], jnp.zeros_like(x[..., 0])], -1)
        return taps.tag(a, "half").mean((1, 2))

    model = perturb.Model(f, jnp.zeros(1), channels=1)
    # Above 0.1, so that the live unit is never off: exactly half of all numbers are zeros.
    found = sparsity(model, np.random.default_rng(0).random((10, 2, 2, 1)) + 0.1, layers=["half"])[
        "half"
    ]
    assert found.zeros.value == 0.5
    assert found.dead.tolist() == [False, True]
    assert found.treves_rolls.value == pytest.approx(0.5)
    # One of two units does everything: as sparse as a layer of two can be.
    assert found.hoyer.value == pytest.approx(1.0)
    assert found.participation == pytest.approx(1.0)
    # Three over ten: what no picture of ten has may yet be in that share, with 95 % certainty.
    assert found.dead_bound == pytest.approx(0.3)
