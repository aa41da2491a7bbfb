"""Names: planted units are named, random ones are not, and no unit knows of another."""

import numpy as np
import pytest

from perturb.internals import name_units
from perturb.statistics import auc


def _planted(seed, units=100, pictures=2000, concepts=20):
    """Concepts of yes and no, and units that are one of them plus noise of the same variance (SNR
    1).
    """
    rng = np.random.default_rng(seed)
    scores = (rng.random((pictures, concepts)) < rng.uniform(0.1, 0.5, concepts)).astype(float)
    which = rng.integers(0, concepts, units)
    signal = scores[:, which]
    # Noise as strong as the signal.
    return signal + rng.normal(size=signal.shape) * signal.std(0), scores, which, rng


@pytest.mark.parametrize("method", ["auc", "iou", "wpmi"])
def test_planted_units_are_named_and_random_ones_are_not(method):
    activations, scores, which, rng = _planted(0)
    found = name_units(activations, scores, method=method)
    right = np.mean([name == str(k) for name, k in zip(found.names, which, strict=True)])
    assert right >= 0.99
    # None of these two hundred is a concept: each name is a false alarm.
    noise = name_units(rng.normal(size=(2000, 200)), scores, method=method)
    assert np.mean([name is not None for name in noise.names]) <= 0.05


def test_other_units_change_nothing():
    activations, scores, _, _ = _planted(1, units=12)
    whole = name_units(activations, scores)
    some = name_units(activations[:, [7, 3]], scores)
    assert some.names == (whole.names[7], whole.names[3])
    for field in ("score", "auc", "auc_low", "p_value"):
        # Bit for bit: a name must not depend on which other units were asked for.
        assert np.array_equal(getattr(some, field), getattr(whole, field)[[7, 3]])


def test_p_values_of_chance_are_uniform():
    rng = np.random.default_rng(2)
    scores = (rng.random((400, 5)) < 0.3).astype(float)
    p = np.sort(name_units(rng.normal(size=(400, 500)), scores).p_value)
    gap = np.abs(p - (np.arange(500) + 0.5) / 500).max()
    assert gap < 1.63 / np.sqrt(500)  # Kolmogorov and Smirnov at .01


def test_formulas_are_found():
    _, scores, _, rng = _planted(3)
    either = np.maximum(scores[:, 0], scores[:, 1]) + 0.3 * rng.normal(size=2000)
    without = np.minimum(scores[:, 2], 1 - scores[:, 3]) + 0.3 * rng.normal(size=2000)
    found = name_units(np.stack([either, without], 1), scores, length=2)
    # OR knows no order.
    assert found.names[0] in ("(0 OR 1)", "(1 OR 0)")
    assert found.names[1] == "(2 AND NOT 3)"
    single = name_units(scores[:, :1] + 0.3 * rng.normal(size=(2000, 1)), scores, length=3)
    assert single.names[0] == "0"


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(4)
    values, present = rng.integers(0, 5, 60), rng.random((60, 3)) < 0.4
    for k, found in enumerate(auc(values, present)):
        a, b = values[present[:, k], None], values[~present[:, k]]
        assert found == pytest.approx(np.mean((a > b) + 0.5 * (a == b)))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="activations must be"):
        name_units(np.zeros((10, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="method must be one of"):
        name_units(np.zeros((10, 2)), np.zeros((10, 2)), method="cosine")
