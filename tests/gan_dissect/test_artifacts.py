"""Kernel distances by hand, planted artifact units found and repaired, and rates against
counting.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import Generator, Normal, sample
from gan_dissect.artifacts import (
    _kernel,
    _Sums,
    activation_rate,
    artifact_scores,
    conditional_distance,
    kernel_distance,
    repair,
    repair_effect,
)
from perturb import Model, taps

KEY = jax.random.key(6)
UNITS = 12


def apply(variables, z):
    """Real pictures are grey with soft noise; units 4 and 9 burn a white corner into some of
    them.
    """
    x = jax.nn.relu(jnp.einsum("bd,dhwu->bhwu", z, variables["noise"]))
    # Above .8 lies a fifth of a normal distribution: rare enough to be an artifact, in 38 % of the
    # pictures.
    burn = jax.nn.relu(z[:, :2] - 0.8)[:, None, None, :] * jnp.ones((1, 4, 4, 1))
    x = taps.tag(x.at[..., jnp.array([4, 9])].set(burn), "units")
    grey = 0.4 + 0.02 * x[..., :3]
    corner = np.zeros((1, 4, 4, 1), np.float32)
    corner[:, :2, :2] = 1
    image = taps.tag(grey + corner * (x[..., 4:5] + x[..., 9:10]), "late")
    return {"image": jnp.clip(image, 0, 1)}


def planted(seed=0):
    noise = np.random.default_rng(seed).standard_normal((6, 4, 4, UNITS)).astype(np.float32)
    return Generator(apply, {"noise": jnp.asarray(noise)}, latent=Normal((6,)))


PIXELS = Model(lambda v, x: x.reshape(len(x), -1), {}, output="embedding", name="pixels")


def real(n):
    """What the generator would draw without its defect."""
    # Another key, so that no picture is compared with itself; -1 switches the two units off.
    z = sample(planted(), jax.random.key(99), n).at[:, :2].set(-1.0)
    return np.asarray(PIXELS(planted()(z)["image"]))


def test_kernel_distance_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 3)), rng.standard_normal((5, 3)) + 0.5

    def k(x, y):
        # The published kernel: a cube, divided by the number of features.
        return (x @ y / 3 + 1) ** 3

    own = np.mean([k(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    others = np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    cross = np.mean([k(x, y) for x in a for y in b])
    np.testing.assert_allclose(kernel_distance(a, b), own + others - 2 * cross)
    sums = _Sums(_kernel(a, a), _kernel(a, b), _kernel(b, b))
    np.testing.assert_allclose(sums.distance(), kernel_distance(a, b))
    np.testing.assert_allclose(sums.distance(np.ones(7)), kernel_distance(a, b))
    # Weights of 0 and 1 are a choice of samples.
    part = np.array([1, 0, 1, 1, 0, 1, 1])
    np.testing.assert_allclose(sums.distance(part), kernel_distance(a[part > 0], b))
    # No bias: of one distribution, small sets average to 0.
    # 400 of them: the mean's standard error is the spread over 20.
    none = [kernel_distance(*rng.standard_normal((2, 10, 3))) for _ in range(400)]
    assert abs(np.mean(none)) < 3 * np.std(none) / 20


@pytest.mark.slow
def test_planted_artifacts():
    generator, goal = planted(), real(200)
    common = {"layer": "units", "features": PIXELS, "real": goal, "key": KEY}
    found = conditional_distance(generator, **common, samples=400, top=30)
    assert found.shape == (UNITS,)
    assert set(np.argsort(-found)[:2]) == {4, 9}
    # On samples that the two units were not chosen by.
    held = repair_effect(generator, **common, units=[4, 9], samples=(400, 800), replicates=100)
    assert held.change_low <= held.change <= held.change_high < 0
    assert held.after < 0.1 * held.before
    assert held.before_active > held.before
    assert held.p_value < 0.1
    # Random pairs hardly ever hold one of the two.
    assert np.median(held.control_change) > 0.2 * held.change
    assert held.control_units.sum(1).tolist() == [2] * 20
    # Unit 7 draws nothing: the picture uses the first three and the two that burn.
    nothing = repair_effect(generator, **common, units=[7], samples=64, controls=3, replicates=5)
    assert nothing.image_change == 0
    np.testing.assert_allclose(nothing.change, 0, atol=1e-9)


@pytest.mark.slow
def test_rates_and_sequential_repair():
    generator = planted()
    z = sample(generator, KEY, 300)
    _, values = taps.read(generator, ["units", "late"])(z)
    rate = activation_rate(generator, layer="units", samples=300, key=KEY, batch_size=64)
    np.testing.assert_allclose(rate, (np.asarray(values["units"]) > 0).mean(0))
    rates = {"units": rate}
    scores = artifact_scores(generator, z, rates)
    want = ((np.asarray(values["units"]) > 0) & (rate <= 0.3)[None]).sum((1, 2, 3))
    np.testing.assert_array_equal(scores, want)
    # The burnt corner is rare (z above .8), so it is repaired; images without it stay.
    before, after = (
        np.asarray(generator(z)["image"]),
        np.asarray(repair(generator, z, rates)["image"]),
    )
    burnt = np.asarray((z[:, :2] > 0.8).any(1))
    assert (after[burnt, :2, :2].max((1, 2, 3)) < 0.7).all()
    np.testing.assert_allclose(after[~burnt, :2, :2], before[~burnt, :2, :2], atol=0.1)
    np.testing.assert_allclose(repair(generator, z, rates, rare=0.0)["image"], before, atol=1e-6)
    # Two layers: the later is judged by what the repaired earlier one makes of it.
    late = activation_rate(generator, layer="late", samples=300, key=KEY)
    both = repair(generator, z, {"units": rate, "late": late})["image"]
    np.testing.assert_allclose(both, after, atol=1e-6)


@pytest.mark.slow
def test_errors():
    generator, goal = planted(), real(20)
    common = {"layer": "units", "features": PIXELS, "real": goal, "samples": 20, "key": KEY}
    with pytest.raises(ValueError, match="top must be in 2 to the 20 samples, got 50"):
        conditional_distance(generator, **common)
    with pytest.raises(ValueError, match=r"real must be features \[N, 48\]"):
        conditional_distance(generator, **common | {"real": goal[:, :5]})
    with pytest.raises(ValueError, match="are 0 to 11, got 12"):
        repair_effect(generator, **common, units=[12])
    with pytest.raises(ValueError, match=r"the rate of 'units' must be \[4, 4, 12\]"):
        repair(generator, np.zeros((2, 6)), {"units": np.zeros((4, 4))})
    with pytest.raises(ValueError, match=r"rare must be in \[0, 1\], got 30"):
        artifact_scores(generator, np.zeros((2, 6)), {"units": np.zeros((4, 4, 12))}, rare=30)
    with pytest.raises(ValueError, match="no layer 'unit'"):
        activation_rate(generator, layer="unit", samples=4, key=KEY)
    with pytest.raises(ValueError, match="2 rows or more"):
        kernel_distance(goal[:1], goal)
    maps = Model(lambda v, x: x, {}, output="embedding", name="maps")
    with pytest.raises(ValueError, match=r"features must give \[B, F\], got shape .* from maps"):
        conditional_distance(generator, **common | {"features": maps})
