"""Ties between layers, and the verdict of agreement."""

import numpy as np
import pytest

from perturb.internals import agreement, strongest_ties


def test_a_copied_unit_is_the_strongest_tie_and_a_dead_one_has_none():
    rng = np.random.default_rng(0)
    below = rng.normal(size=(60, 5))
    # A copy, a constant, and a copy with its sign turned.
    above = np.stack([below[:, 3] * 7 + 1, np.ones(60), -below[:, 0]], 1)
    found = strongest_ties(
        {"below": below, "above": above, "far": rng.normal(size=(60, 2))}, "above"
    )
    assert found.keys() == {"below", "far"}
    units, r = found["below"]
    assert units[0] == 3
    assert r[0] == pytest.approx(1)
    # A constant has no correlation; 0 says so without a NaN.
    assert r[1] == 0
    assert abs(r[2]) < 0.5


def test_what_cannot_be_asked_is_not_counted():
    everywhere = np.ones(30, bool)
    # Where all pictures hold it, none can tell.
    found = agreement(everywhere, np.arange(30.0), top=[29], cost_low=0.1)
    assert found.checks == {"top": None, "range": None, "cost": True, "ties": None}
    assert found.verdict == "not known"
    # Half of the top pictures hold it, but so do half of all: chance.
    half = np.arange(40) % 2 == 0
    noise = np.random.default_rng(0).normal(size=40)
    assert agreement(half, noise, top=[0, 1], ties=[False, True]).checks["top"] is False
    with pytest.raises(ValueError, match="both be"):
        agreement(half, noise[:3], top=[0])
