"""Fourteen cases whose answer is known without running anything."""

import numpy as np
import pytest

import perturb
from perturb import metrics
from tests import planted

SIZE = (32, 32)
SUBSETS = (1, 10, 100, 1000)


@pytest.fixture(scope="module")
def linear():
    """A linear model, three pictures, and input times weight: the exact attribution."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, *SIZE)).astype(np.float32)
    images = rng.uniform(size=(3, *SIZE, 3)).astype(np.float32)
    targets = np.array([0, 1, 0])
    return planted.linear(weights), images, targets, images.mean(-1) * weights[targets]


@pytest.mark.parametrize("n", SUBSETS)
def test_1_sensitivity_n_of_a_linear_model_is_one(linear, n):
    found = metrics.sensitivity_n(*linear, n=n)
    # What a removed pixel takes is its attribution: both sums are one number, up to float32.
    np.testing.assert_allclose(found, 1.0, atol=1e-4)


def test_2_infidelity_of_a_linear_model_is_nothing(linear):
    model, images, targets, _ = linear
    # Of the grey value, the mean of three channels: a channel's slope is a third.
    weights = np.asarray(model.variables)[targets] / 3
    found = metrics.infidelity(model, images, targets, weights, samples=20)
    assert found.max() < 1e-6


def test_3_energy_of_a_flat_map_is_the_area():
    truth = np.zeros((1, 10, 10), bool)
    truth[0, :3, :7] = True
    # 3 by 7 of 100 px.
    assert metrics.energy(np.ones((1, 10, 10)), truth)[0] == pytest.approx(0.21, abs=1e-15)
    assert metrics.energy_over_chance(np.ones((1, 10, 10)), truth)[0] == pytest.approx(1.0)
    assert metrics.cell_share(np.ones((1, 9, 9)), 3, [4])[0] == pytest.approx(1 / 9)


def test_4_a_map_of_one_point():
    point = np.zeros((1, 40, 40))
    point[0, 12, 30] = 1
    truth = np.zeros((1, 40, 40), bool)
    truth[0, 12, 30] = True
    assert metrics.points(point).tolist() == [[12, 30]]
    assert metrics.pointing(point, truth)[0] == 1
    assert metrics.energy(point, truth)[0] == 1
    assert metrics.rank_accuracy(point, truth)[0] == 1
    assert metrics.roc_area(point, truth)[0] == 1
    assert metrics.entropy(point)[0] == 0
    # All of the mass in one of N pixels: 1 - 1 / N.
    assert metrics.gini(point)[0] == pytest.approx(1 - 1 / 1600)


def test_5_ties_go_to_the_lower_index():
    flat = np.zeros((1, 4, 4))
    assert metrics.points(flat).tolist() == [[0, 0]]
    truth = np.zeros((1, 4, 4), bool)
    # The first row: four highest of equal values are the first four, in the order of memory.
    truth[0, 0] = True
    assert metrics.top_share(flat, truth, 4)[0] == 1
    assert metrics.top_share(flat, ~truth, 4)[0] == 0
    assert metrics.roc_area(flat, truth)[0] == 0.5


def test_6_no_ground_truth_is_no_hit():
    maps, none = np.random.default_rng(0).uniform(size=(2, 8, 8)), np.zeros((2, 8, 8), bool)
    for metric in (metrics.pointing, metrics.energy, metrics.rank_accuracy, metrics.roc_area):
        assert np.isnan(metric(maps, none)).all()
    assert np.isnan(metrics.box_hits(maps, [np.zeros((0, 4))] * 2)).all()
    assert metrics.by_class([1.0, np.nan, 0.0], [0, 0, 1]) == 0.5
    assert np.isnan(metrics.by_class([np.nan], [0]))


def test_7_a_map_with_nan_fails(linear):
    model, images, targets, maps = linear
    maps = maps.copy()
    maps[1, 0, 0] = np.nan
    truth = np.ones_like(maps, bool)
    truth[:, :4] = False
    for metric in (metrics.pointing, metrics.energy, metrics.rank_accuracy, metrics.roc_area):
        assert metric(maps, truth)[1] == 0
    assert metrics.cell_share(maps, 2, [0, 0, 0])[1] == 0
    assert metrics.box_hits(maps, [np.array([[0, 0, 32, 32]])] * 3, alpha=0.0)[1] == 0
    assert metrics.sufficient_area(model, images, targets, maps, areas=(0.5,))[1] == 1
    found = metrics.deletion(model, images, targets, maps, preset="xplique")
    assert np.isnan(found.area).tolist() == [False, True, False]
    assert np.isnan(metrics.average_drop(model, images, targets, maps).drop[1])


def test_8_a_map_of_negative_values_only():
    maps = -1 - np.arange(16.0).reshape(1, 4, 4)
    truth = np.zeros((1, 4, 4), bool)
    truth[0, 0, 0] = True
    assert metrics.points(maps).tolist() == [[0, 0]]
    assert metrics.energy(maps, truth)[0] == 0
    assert metrics.pointing(maps, truth)[0] == 0
    assert metrics.box_hits(maps, [np.array([[0, 0, 3, 3]])])[0] == 0
    assert metrics.cell_share(maps, 2, [0])[0] == 0
    # Ranks do not ask for a sign: the least negative pixel is the highest.
    assert metrics.rank_accuracy(maps, truth)[0] == 1


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.1])
def test_a_flat_map_has_a_score_and_never_hits(linear, value):
    model, images, targets, maps = linear
    flat = np.full_like(maps, value)
    truth = np.zeros_like(maps, bool)
    truth[:, 0, 0] = True
    assert not metrics.pointing(flat, truth).any()
    assert metrics.gini(flat) == pytest.approx(0)
    # Each pixel an equal share: the logarithm of their number, the highest entropy there is.
    assert metrics.entropy(flat) == pytest.approx(np.log(maps[0].size))
    for likeness in (metrics.pearson, metrics.spearman):
        assert (likeness(flat, maps) == 0).all()
        assert (likeness(flat, flat) == 1).all()
    assert metrics.ssim(flat, flat) == pytest.approx(1)
    assert (metrics.sensitivity_n(model, images, targets, flat, n=5) == 0).all()
    for metric in (metrics.energy, metrics.roc_area, metrics.rank_accuracy):
        assert np.isfinite(metric(flat, truth)).all()
    for metric in (metrics.deletion, metrics.insertion):
        assert np.isfinite(metric(model, images, targets, flat).area).all()


# The window has 11 px: none of these sides has a place where it fits.
@pytest.mark.parametrize("side", [1, 2, 5, 8, 10])
def test_ssim_of_maps_smaller_than_its_window(side):
    a, b = np.random.default_rng(0).random((2, 3, side, side))
    assert metrics.ssim(a, a) == pytest.approx(1)
    assert np.isfinite(metrics.ssim(a, b)).all()


def test_9_one_pixel_just_inside_and_on_the_tolerance():
    maps = np.zeros((1, 40, 40))
    maps[0, 20, 20] = 1
    inside, on = np.zeros((2, 1, 40, 40), bool)
    inside[0, 20 + 11, 20 + 10] = True  # 14.87 px
    on[0, 20 + 12, 20 + 9] = True  # 15 px
    assert metrics.pointing(maps, inside)[0] == 1
    assert metrics.pointing(maps, on)[0] == 0


def test_10_grey_and_colour_are_alike():
    rng = np.random.default_rng(1)
    # The model takes the mean of the channels, so three equal ones are one.
    weights = rng.normal(size=(2, 16, 16)).astype(np.float32)
    grey = rng.uniform(size=(1, 16, 16, 1)).astype(np.float32)
    maps = grey[..., 0] * weights[:1]
    one = perturb.Model(planted.scores, weights, channels=1)
    three = planted.linear(weights)
    for metric in (metrics.deletion, metrics.insertion):
        a = metric(one, grey, [0], maps, preset="xplique").scores
        b = metric(three, np.repeat(grey, 3, 3), [0], maps, preset="xplique").scores
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_11_the_batch_does_not_matter(linear):
    model, images, targets, maps = (
        linear[0],
        *(np.concatenate([x, x]) for x in linear[1:]),
    )
    truth = maps > 0.5
    for metric in (metrics.energy, metrics.pointing, metrics.rank_accuracy):
        whole = metric(maps, truth)
        for size in (1, 3):
            parts = [metric(maps[i : i + size], truth[i : i + size]) for i in range(0, 6, size)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)
    whole = metrics.deletion(model, images, targets, maps, preset="xplique").area
    for size in (1, 3):
        parts = [
            metrics.deletion(
                model,
                images[i : i + size],
                targets[i : i + size],
                maps[i : i + size],
                preset="xplique",
            ).area
            for i in range(0, 6, size)
        ]
        # Sums of some thousand float32 in another order: each rounds by at most 6e-8 of the
        # largest.
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-5)


def test_12_inputs_are_not_changed(linear):
    model, images, targets, maps = linear
    kept = [x.copy() for x in (images, targets, maps)]
    truth = maps > 0
    metrics.gini(maps), metrics.entropy(maps), metrics.energy(maps, truth)
    metrics.average_drop(model, images, targets, maps)
    metrics.deletion(model, images, targets, maps, preset="xplique")
    metrics.road(model, images, targets, maps, percentages=(20,))
    metrics.degrade(images, maps, 0.3)
    for before, after in zip(kept, (images, targets, maps), strict=True):
        np.testing.assert_array_equal(before, after)


def test_13_deletion_and_insertion_of_a_linear_model_add_up(linear):
    model, images, targets, maps = linear
    removed = metrics.deletion(model, images, targets, maps, preset="xplique").scores
    shown = metrics.insertion(model, images, targets, maps, preset="xplique").scores
    # At every step one picture has what the other lacks; the model is linear, so the scores add up
    # to those of the whole and of the empty picture.
    total = shown[:, -1:] + shown[:, :1]
    np.testing.assert_allclose(removed + shown, np.broadcast_to(total, shown.shape), atol=1e-3)


def test_14_areas_settle_as_steps_are_refined(linear):
    model, images, targets, maps = linear
    areas = [
        metrics.deletion(
            model,
            images,
            targets,
            maps,
            preset=metrics.Preset(name="own", steps=steps, removed=0.0, output="logit"),
        ).area
        # Each is eight times finer; a quarter of the error is asked for.
        for steps in (8, 64, 512)
    ]
    exact = _exact_area(maps)
    errors = [np.abs(a - exact).max() for a in areas]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def _exact_area(maps):
    """With one pixel a step: the mean of the suffix sums of the sorted contributions."""
    ordered = -np.sort(-maps.reshape(len(maps), -1), axis=1).astype(np.float64)
    left = ordered.sum(1, keepdims=True) - np.cumsum(ordered, 1)
    curve = np.concatenate([ordered.sum(1, keepdims=True), left], 1)
    return (curve.sum(1) - 0.5 * (curve[:, 0] + curve[:, -1])) / (curve.shape[1] - 1)


def test_a_softmax_hides_what_is_linear(linear):
    """The same map is no longer exact once the output is a probability."""
    found = metrics.sensitivity_n(*linear, n=100, output="probability")
    assert (found < 1 - 1e-4).all()


@pytest.mark.parametrize(("both", "single"), [(True, 0.0), (False, 1.0)])
def test_and_and_or_of_two_patches(both, single):
    """AND: either patch alone keeps nothing. OR: either keeps everything, removing one nothing."""
    one, two = planted.disc(SIZE, 0.05, (0.3, 0.3)), planted.disc(SIZE, 0.05, (0.7, 0.7))

    def apply(w, x):
        grey = x.mean(-1)
        a, b = ((grey * p).sum((1, 2)) / p.sum() for p in (one, two))
        import jax.numpy as jnp

        hit = jnp.minimum(a, b) if both else jnp.maximum(a, b)
        # A probability of nearly 1 with a hit, nearly 0 without, so that thresholds are not at
        # stake.
        return jnp.stack([20 * hit - 10, 0 * hit], 1)

    image = np.zeros((1, *SIZE, 3), np.float32)
    image[0, one | two] = 1
    model, black = perturb.Model(apply, ()), perturb.operators.Fade(colour=0.0)
    areas = (0.05, 0.1)
    # All of the first patch, then all of the second: each is 5 % of the picture.
    first = (2.0 * one + two)[None]
    kept = metrics.sufficient_area(model, image, [0], first, areas=areas, operator=black)
    gone = metrics.destroying_area(model, image, [0], first, areas=areas, operator=black)
    assert kept[0] == (0.05 if single else 0.1)
    assert gone[0] == (0.1 if single else 0.05)
