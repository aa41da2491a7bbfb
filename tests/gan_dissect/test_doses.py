"""Dose and response on the planted generator, and false discoveries by simulation."""

import jax
import numpy as np
import pytest

from perturb.units.doses import discoveries, dose_response
from tests.gan_dissect import planted

KEY = jax.random.key(3)


@pytest.mark.slow
def test_dose_of_a_planted_unit():
    generator = planted.generator()
    common = {"layer": "units", "samples": 64, "key": KEY, "replicates": 20}
    found = dose_response(generator, order=[0, 3, 5, 1], sizes=(1, 2, 4), controls=5, **common)
    square = generator.label_names.index("square")
    # The first unit does nothing to the square, the second is all of it.
    assert found.ratio[:, square].tolist() == [1, 0, 0]
    assert found.half[square] == 2
    assert found.half[0] == 0
    assert (found.control_low <= found.control_high).all()
    assert found.effects.control_sizes.tolist() == [1, 2, 4]
    for options, match in (
        ({"sizes": (2, 1)}, r"sizes must rise within 1 to 2, got \[2, 1\]"),
        ({"sizes": (1, 3)}, "within 1 to 2"),
        ({"controls": 0, "sizes": (1,)}, "controls must be at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            dose_response(generator, order=[0, 3], **common | options)


def test_false_discoveries():
    rng = np.random.default_rng(0)
    # By its definition, one threshold after another.
    p = rng.random(50) ** 3
    k = max(i + 1 for i in range(50) if np.sort(p)[i] <= 0.1 * (i + 1) / 50)
    np.testing.assert_array_equal(discoveries(p, rate=0.1), p <= np.sort(p)[k - 1])
    # 900 null effects, 100 real ones: few of those believed are null, and most real ones are.
    wrong, found = [], []
    for _ in range(200):
        p = np.concatenate([rng.random(900), rng.random(100) * 1e-4]).reshape(10, 100)
        believed = discoveries(p, rate=0.1).ravel()
        wrong.append(believed[:900].sum() / max(believed.sum(), 1))
        found.append(believed[900:].mean())
    assert np.mean(wrong) < 0.1
    assert np.mean(found) > 0.99
    assert not discoveries([np.nan, 0.9]).any()
    assert discoveries([[np.nan, 0.001]]).tolist() == [[False, True]]
    assert discoveries([]).size == 0
    for bad in ({"p_values": [2.0]}, {"p_values": [0.1], "rate": 1.0}):
        with pytest.raises(ValueError, match=r"rate must be in \(0, 1\) and p_values in"):
            discoveries(**bad)
