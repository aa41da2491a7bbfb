"""Directions of concepts: planted unions, merging to the bit, and the picture world."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from launch import demo
from launch.demo import world
from perturb import taps
from perturb.internals import vectors as cv


def _planted(count=120, split=2):
    """Pictures whose channels are the units; the concept is the union of the first `split` of
    five.
    """
    rng = np.random.default_rng(0)
    # Rare elsewhere, so that other units hold next to nothing of it by chance.
    images = (rng.random((count, 8, 8, 5)) < 0.004).astype(np.float32)
    for i in range(count):
        y, x = rng.integers(0, 8, 2)
        images[i, ..., :split] = 0
        images[i, y, x, i // 2 % split] = 1.0
    masks = images[..., :split].any(-1)[..., None]
    model = perturb.Model(
        lambda _, x: taps.tag(x + 0.0, "units").mean((1, 2)), jnp.zeros(1), channels=5
    )
    return model, images, masks


@pytest.mark.parametrize("split", [2, 3])
def test_the_curve_of_a_union_saturates_at_its_number_of_units(split):
    model, images, masks = _planted(split=split)
    found = cv.concept_vectors(
        model, images, masks, layer="units", concepts=["union"], binarise=0.9, sizes=(1, 2, 3, 4)
    )
    assert found.iou[0].value == 1.0
    assert found.single_iou[0].value == pytest.approx(1 / split, abs=0.02)
    # Each unit more brings its own share until all of the union is there.
    expected = [min(n, split) / split for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(found.curve[:, 0], expected, atol=0.02)
    assert np.ptp(found.weights[:split, 0]) < 0.05


def test_sums_of_parts_give_the_same_weights_to_the_bit():
    rng = np.random.default_rng(1)
    # Whole numbers, whose sums are exact in any order.
    levels, under = rng.integers(0, 256, (500, 12)), rng.integers(0, 65, (500, 3))
    whole = cv.moments(levels, under, 64)
    parts = [
        cv.moments(levels[a:b], under[a:b], 64) for a, b in itertools.pairwise((0, 13, 400, 500))
    ]
    merged = cv.merge_moments(*reversed(parts))
    assert np.array_equal(cv.fit(whole), cv.fit(merged))
    assert cv.lasso_order(whole, 1) == cv.lasso_order(merged, 1)


def test_least_squares_is_numpys():
    rng = np.random.default_rng(2)
    levels, under = rng.integers(0, 256, (300, 6)), rng.integers(0, 65, (300, 2))
    x = np.concatenate([levels / 255, np.ones((300, 1))], 1)
    # With a column of ones for the bias.
    expected = np.linalg.lstsq(x, under / 64, rcond=None)[0]
    np.testing.assert_allclose(
        cv.fit(cv.moments(levels, under, 64), ridge=0.0), expected, atol=1e-8
    )


def test_the_published_fit_leans_to_the_units_of_the_concept():
    rng = np.random.default_rng(3)
    # The concept is unit 2 itself.
    active = rng.random((40, 6, 6, 4)) < 0.2
    weights = cv.net2vec(active, active[..., 2], key=jax.random.key(0), steps=400, rate=1e-2)
    assert weights.argmax() == 2


@pytest.mark.slow
def test_combined_units_find_every_class_of_the_world_better_than_the_best_alone():
    drawn = world.render_batch(21, range(1200))
    masks = drawn.label[..., None] == 1 + np.arange(10)
    found = cv.concept_vectors(
        demo.load("demo"), drawn.image, masks, layer="relu#6", concepts=world.class_names
    )
    assert all(g.low > 0 for g in found.gain)
    assert np.mean([i.value for i in found.iou]) >= 0.50
    assert np.mean([i.value for i in found.single_iou]) < 0.30
