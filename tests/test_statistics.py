"""Statistics against SciPy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from perturb import statistics


def test_ranks_and_correlations_are_scipys():
    rng = np.random.default_rng(0)
    # Six values among forty: ties, of which every one takes the mean of its ranks.
    a, b = rng.integers(0, 6, (2, 4, 40)).astype(float)
    for i in range(4):
        assert statistics.spearman(a, b)[i] == pytest.approx(stats.spearmanr(a[i], b[i])[0])
        assert statistics.pearson(a, b)[i] == pytest.approx(stats.pearsonr(a[i], b[i])[0])
    assert np.isnan(statistics.spearman([1, 1, 1], [1, 2, 3]))


def test_area_under_the_curve_is_mann_and_whitneys():
    rng = np.random.default_rng(1)
    values, present = rng.integers(0, 5, 60), rng.random((60, 3)) < 0.4
    for k, found in enumerate(statistics.auc(values, present)):
        u = stats.mannwhitneyu(values[present[:, k]], values[~present[:, k]]).statistic
        pairs = present[:, k].sum() * (~present[:, k]).sum()
        assert found == pytest.approx(u / pairs)
    assert np.isnan(statistics.auc([1.0, 2.0], [1, 1]))


def test_discoveries_are_those_of_benjamini_and_hochberg():
    # Cubed, many are small: 0.1 discovers some and not all.
    p = np.random.default_rng(2).random(200) ** 3
    np.testing.assert_array_equal(
        statistics.discoveries(p, rate=0.1), stats.false_discovery_control(p) <= 0.1
    )
    with_nothing = np.append(p, np.nan)
    assert not statistics.discoveries(with_nothing)[-1]
    np.testing.assert_array_equal(
        statistics.discoveries(with_nothing, rate=0.1)[:-1], statistics.discoveries(p, rate=0.1)
    )


def test_intervals_of_a_mean_cover_it_nineteen_times_of_twenty():
    # 400 experiments of 40 items: the share covered is within 4 standard errors (1.1 % each) of 94
    # %, a point below 95 because the interval ignores Student's tails.
    rng = np.random.default_rng(3)
    found = [statistics.mean_interval(rng.normal(1, 2, 40), draws=400) for _ in range(400)]
    covered = np.mean([f.low <= 1 <= f.high for f in found])
    assert 0.94 - 0.045 < covered < 0.94 + 0.045


def test_columns_are_resampled_together():
    values = np.random.default_rng(4).normal(size=30)
    found = statistics.bootstrap(lambda a, b: (a - b).mean(-1), values, values, draws=200)
    # Two columns of one thing: drawn apart, their difference would have a spread.
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_p_values_count_the_observed_one():
    null = np.arange(9.0)
    # Above all nine, one-sided (1 + 0) / (1 + 9), two-sided twice as much.
    assert statistics.p_value(100.0, null) == pytest.approx(0.2)
    assert statistics.p_value(100.0, null, sides=1) == pytest.approx(0.1)
    assert statistics.p_value(4.0, null) == 1
    assert np.isnan(statistics.p_value(4.0, np.zeros(0)))
    # Under the null the p-value is uniform: one-sided, a value is at most 1/10 with probability
    # 1/10.
    rng = np.random.default_rng(5)
    draws = rng.normal(size=(10, 4000))
    small = (statistics.p_value(draws[0], draws[1:], sides=1) <= 0.1).mean()
    assert abs(small - 0.1) < 4 * np.sqrt(0.09 / 4000)


def test_without_copies_there_is_no_interval():
    low, high = statistics.percentiles(np.zeros((3, 0)))
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == (3,)


def test_weights_of_copies_sum_to_one():
    weights = statistics.resampled(7, 20)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights.std(0) > 0).all()
