"""Weights between units, edits and hand-built detectors, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model, load_model, taps
from perturb.internals import circuits
from tests import relunet

NUMBERS = ("NHWC", "HWIO", "NHWC")


def convolve(x, kernel, padding="VALID"):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NUMBERS)


def stack(pool):
    """Convolution, relu, a pool, convolution; kernels drawn at random."""
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 3, 3, 6), (3, 3, 6, 4))]

    def apply(w, x):
        x = taps.tag(convolve(x, w[0]), "one")
        x = pool(jax.nn.relu(x))
        return taps.tag(convolve(x, w[1]), "two")

    return Model(apply, weights), weights


def images(size=16, number=2):
    return np.random.default_rng(1).uniform(0, 1, (number, size, size, 3)).astype(np.float32)


def test_a_linear_stack_is_the_composed_kernel():
    """Weights from the image through both convolutions, against kernels composed by hand."""
    model, (one, two) = stack(lambda x: x)
    tagged = Model(lambda w, x: model.apply(w, taps.tag(x + 0, "image")), model.variables)
    found = circuits.expanded_weights(tagged, images(), lower="image", upper="two", unit=2)
    # Unit 2 at the middle of its map reads 5 x 5 pixels: each path is a product of two kernels.
    wanted = np.zeros((16, 16, 3))
    for dy in range(3):
        for dx in range(3):
            for ey in range(3):
                for ex in range(3):
                    path = np.asarray(one[ey, ex], np.float64) @ np.asarray(two[dy, dx, :, 2])
                    wanted[6 + dy + ey, 6 + dx + ex] += path
    # Two float32 convolutions against a sum in double precision.
    assert np.abs(found.weights - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.slow_cases
@pytest.mark.parametrize("kind", ["slices", "window"])
def test_a_maximum_becomes_the_mean(kind):
    from flax import linen

    from perturb.nets._pool import max_pool

    pool = {
        "slices": lambda x: max_pool(x, 3, 2, padding=1, ceil=True),
        "window": lambda x: linen.max_pool(x, (2, 2), (2, 2)),
    }[kind]
    mean = {
        "slices": lambda x: linen.avg_pool(
            x, (3, 3), (2, 2), [(1, 1), (1, 1)], count_include_pad=False
        ),
        "window": lambda x: linen.avg_pool(x, (2, 2), (2, 2)),
    }[kind]
    side = 15 if kind == "slices" else 16
    model, (_, two) = stack(pool)
    found = circuits.expanded_weights(model, images(side), lower="one", upper="two", unit=1)
    lower = taps.read(model, "one")(images(side))[1]["one"]
    upper = taps.read(model, "two")(images(side))[1]["two"]
    assert mean(lower).shape == pool(lower).shape
    y, x = (n // 2 for n in upper.shape[1:3])
    # With the maximum replaced by the mean, what is left is linear.
    wanted = jax.grad(lambda a: convolve(mean(a), two)[0, y, x, 1])(lower)[0]
    np.testing.assert_allclose(found.weights, wanted, atol=1e-6)


def test_pools_of_our_networks_have_names():
    model = load_model("squeezenet1_1", key=jax.random.key(0))
    shown = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    assert "max_pool" in taps.names(model, shown)


def test_what_cancels_and_what_is_true():
    """Two paths of opposite sign: the weights are 0, the index too, and the gradient is not."""

    def apply(w, x):
        x = taps.tag(x + 0, "lower")
        middle = taps.tag(jax.nn.relu(x @ jnp.array([[1.0, 1.0], [0.0, 1.0]])), "middle")
        return taps.tag(middle @ jnp.array([[1.0], [-1.0]]) + 1, "upper")

    found = circuits.expanded_weights(
        Model(apply, ()),
        np.array([[1.0, -2.0], [1.0, 3.0]], np.float32),
        lower="lower",
        upper="upper",
        unit=0,
        through="middle",
    )
    np.testing.assert_allclose(found.weights, [0, -1])
    np.testing.assert_allclose(found.cancellation, [0, 1])
    # Of the second image the unit is 1 + 1 - 4 < 0; of the first its second path is shut.
    assert found.active == 1
    np.testing.assert_allclose(found.gradient, [1, 0])


def test_an_edit_is_compared_image_by_image():
    right = np.eye(2)[[0] * 90 + [1] * 10]
    worse = np.eye(2)[[0] * 70 + [1] * 30]
    labels = np.zeros(100, int)
    change = circuits.compare(right, worse, labels)
    assert (change.lost, change.gained) == (20, 0)
    # Twenty of a hundred lost and none gained.
    assert change.difference.value == pytest.approx(-0.2)
    assert change.difference.high < 0
    # The sign test: all twenty changes in one direction, on either side.
    assert change.p_value == pytest.approx(2 / 2**20)
    half = circuits.restored(right, worse, np.eye(2)[[0] * 80 + [1] * 20], labels)
    # Ten of twenty come back.
    assert half.value == pytest.approx(0.5)
    assert half.low < 0.5 < half.high


def test_units_are_exchanged():
    model = relunet.model(relunet.random_weights())
    x = images(24)
    off = circuits.exchange_units(model, "low", [1, 4])
    kept = taps.read(off, "high")(x)[0]
    wanted = taps.edit(model, {"low": lambda a: a.at[..., jnp.array([1, 4])].set(0)})(x)
    # One network run in two ways, whose products round differently.
    np.testing.assert_allclose(kept, wanted, atol=1e-6)
    # Put back what the layer itself says, and nothing has changed.
    same = circuits.exchange_units(
        model, "low", [1, 4], lambda x: taps.read(model, "low")(x)[1]["low"][..., [1, 4]]
    )
    np.testing.assert_allclose(same(jnp.asarray(x)), model(jnp.asarray(x)), atol=1e-6)
    families = circuits.random_families(8, 2, without=[1, 4], number=5)
    assert families.shape == (5, 2)
    assert not np.isin(families, [1, 4]).any()


@pytest.fixture(scope="module")
def tuning():
    """The bank, and what its units say of arcs at every 5 degrees: `[72, curves]`."""
    bank = circuits.curves()
    size = bank.arcs.shape[0] + bank.lines.shape[0] - 1
    arcs = np.stack([circuits.arc(size, radius=14, angle=a) for a in range(0, 360, 5)])
    found = np.asarray(circuits.respond(bank, arcs[..., None]))
    assert found.shape[1:3] == (1, 1)
    return bank, found[:, 0, 0]


def test_curve_units_are_tuned(tuning):
    """The peak lies where it should, by the mean direction of what lies above half of it."""
    bank, found = tuning
    angles = np.deg2rad(np.arange(0, 360, 5))
    for unit, nominal in enumerate(bank.angles):
        response = found[:, unit]
        assert response.max() > 0
        high = np.where(response > response.max() / 2, response, 0)
        mean = np.rad2deg(np.angle((high * np.exp(1j * angles)).sum()))
        # Angles are asked at every 5 degrees, so half a step is as well as a peak can be placed.
        assert abs((mean - nominal + 180) % 360 - 180) <= 2.5, (unit, mean, nominal)
        # The echo: what the curve that bends the other way gives.
        away = np.abs((np.arange(0, 360, 5) - nominal + 180) % 360 - 180)
        assert response[away > 120].max() <= 0.2 * response.max(), unit


def test_a_quarter_turn_turns_the_answer_bit_for_bit(tuning):
    bank, _ = tuning
    rng = np.random.default_rng(0)
    # Multiples of 1/256, whose sums are exact: only then can two orders give the same bits.
    picture = (rng.integers(0, 256, (1, 48, 48, 1)) / 256).astype(np.float32)
    found = np.asarray(circuits.respond(bank, picture))
    # Images have y down: `np.rot90(..., -1)` turns clockwise, by +90 degrees.
    turned = np.asarray(circuits.respond(bank, np.rot90(picture, -1, (1, 2))))
    wanted = np.roll(np.rot90(found, -1, (1, 2)), len(bank.angles) // 4, -1)
    np.testing.assert_array_equal(turned, wanted)
