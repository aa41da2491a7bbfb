"""Attributions of functions whose answer is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb.attribution import get
from perturb.attribution.hsic import dependence
from perturb.attribution.sobol_indices import indices
from perturb.attribution.xrai import ranked
from tests import planted

SIZE = (16, 16)
IMAGES = np.random.default_rng(0).uniform(size=(2, *SIZE, 3)).astype(np.float32)


def test_sobol_indices_of_a_sum_are_the_shares_of_its_squares():
    weights = np.array([3.0, 2.0, 1.0, 0.0])
    first, total = indices(lambda x: x @ weights, 4, 1024, 0)
    # Independent parts: each has its own variance, w squared times that of a uniform number.
    np.testing.assert_allclose(total, weights**2 / (weights**2).sum(), atol=0.03)
    np.testing.assert_allclose(first, total, atol=0.05)


def test_sobol_indices_of_an_exclusive_or_are_all_interaction():
    def xor(x):
        return ((x[:, 0] < 0.5) ^ (x[:, 1] < 0.5)).astype(float)

    first, total = indices(xor, 3, 1024, 1)
    # Knowing one of the two, the answer is still a coin's toss; the third is not read at all.
    np.testing.assert_allclose(first, 0, atol=0.08)
    np.testing.assert_allclose(total, [1, 1, 0], atol=0.05)


@pytest.mark.slow_cases
@pytest.mark.parametrize("name", ["sobol_indices", "hsic"])
def test_black_boxes_find_the_cells_that_are_looked_at(name):
    # Cells of 4 px: the model looks at one of sixteen.
    model = perturb.Model(lambda w, x: x[:, 4:8, 8:12].mean((1, 2)) * jnp.array([9.0, 0, 0]), ())
    samples = {"sobol_indices": {"designs": 16}, "hsic": {"samples": 200}}[name]
    found = get(name)(model, np.ones((1, *SIZE, 3)), [0], cells=4, operator="fade", **samples)
    top = np.unravel_index(found[0].argmax(), SIZE)
    assert [t // 4 for t in top] == [1, 2]
    assert found[0, 5, 9] > 10 * np.abs(found[0, 12:]).max()


def test_dependence_is_nothing_for_answers_of_another_cell():
    # Of a cell that is not read the estimate is not 0 but of the order of 1 / 2,000.
    shown = (np.random.default_rng(0).random((2000, 3)) < 0.5).astype(float)
    found = dependence(shown, 2 * shown[:, 1] + 0.1)
    assert found[1] > 0.05
    np.testing.assert_allclose(found[[0, 2]], 0, atol=2e-3)


def test_expected_gradients_add_up_to_the_rise_above_the_bank():
    """Within three standard errors, which the spread of single baselines tells."""
    model = planted.small_network()
    # Random pictures as baselines: each of them has another score to rise from.
    bank = np.random.default_rng(1).uniform(size=(8, *SIZE, 3)).astype(np.float32)
    sums = [
        get("expected_gradients")(
            model, IMAGES, [0, 1], bank=bank, samples=64, key=jax.random.key(k)
        ).sum((1, 2))
        for k in range(8)
    ]
    rows = np.arange(2)
    rise = np.asarray(model(jnp.asarray(IMAGES)))[rows, [0, 1]]
    rise = rise - np.asarray(model(jnp.asarray(bank)))[:, [0, 1]].mean(0)
    error = np.std(sums, 0, ddof=1) / len(sums) ** 0.5
    assert (np.abs(np.mean(sums, 0) - rise) < 3 * error + 1e-5).all()


def test_expected_gradients_from_black_are_integrated_gradients():
    model, black = planted.small_network(), np.zeros((1, *SIZE, 3))
    ours = get("expected_gradients")(model, IMAGES, [0, 1], bank=black, samples=200)
    theirs = get("integrated_gradients")(model, IMAGES, [0, 1], steps=200)
    np.testing.assert_allclose(ours, theirs, atol=2e-2 * np.abs(theirs).max())


def test_guided_integrated_gradients_are_complete():
    model = planted.small_network()
    found = get("guided_integrated_gradients")(model, IMAGES, [0, 1], steps=300).sum((1, 2))
    rise = np.asarray(model(jnp.asarray(IMAGES)) - model(jnp.zeros((2, *SIZE, 3))))
    np.testing.assert_allclose(found, rise[np.arange(2), [0, 1]], rtol=0.05, atol=2e-3)
    # Of a linear model every path from black adds up to the same shares.
    linear = planted.linear(np.random.default_rng(3).normal(size=(2, *SIZE)))
    exact = get("integrated_gradients")(linear, IMAGES, [0, 1], steps=5)
    path = get("guided_integrated_gradients")(linear, IMAGES, [0, 1], steps=40)
    np.testing.assert_allclose(path, exact, atol=1e-2 * np.abs(exact).max())


def test_xrai_ranks_regions_by_what_they_add_per_pixel():
    attribution = np.array([[1.0, 1.0, 5.0, 5.0, 0.0, 2.0]])
    parts = np.array([[[1, 1, 1, 1, 0, 0]], [[0, 0, 1, 1, 0, 0]], [[1, 1, 0, 0, 0, 0]]], bool)
    # The two best pixels first, then what a larger segment still adds; the rest at most the lowest.
    assert ranked(attribution, parts).tolist() == [[1.0, 1.0, 5.0, 5.0, 1.0, 1.0]]
    # The class sees one of two segments and nothing of the other: the first must come first.
    seen = planted.linear(np.stack([planted.disc(SIZE, 0.1), planted.disc(SIZE, 0.2)]))
    given = [[planted.disc(SIZE, 0.1), ~planted.disc(SIZE, 0.1)]] * 2
    found = get("xrai")(seen, np.ones((2, *SIZE, 3)), [0, 0], segments=given, steps=2)
    assert (found[0][planted.disc(SIZE, 0.1)] > found[0][~planted.disc(SIZE, 0.1)].max()).all()
