"""Cases of other libraries' tests, made again from their stated expectations (numbers, no code).

xplique's fidelity tests, Quantus' localisation and similarity tests, saliency's PIC tests, captum's
infidelity and sensitivity tests, ROAD's imputer.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import attribution, metrics
from perturb.metrics.information import entropy, interpolated

SUM = perturb.Model(lambda w, x: jnp.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1), ())


@pytest.fixture(scope="module")
def pictures():
    """Pictures whose exact attribution under the sum of all pixels is themselves."""
    return np.random.default_rng(0).uniform(size=(10, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 4, 9, 10])
@pytest.mark.parametrize("sign", [1, -1])
def test_xplique_fidelity_of_a_sum(pictures, batch, sign):
    images = pictures[:batch]
    found = metrics.sensitivity_n(
        SUM, images, np.zeros(batch, int), sign * images.sum(-1), n=0.2, subsets=20
    )
    np.testing.assert_allclose(found, sign, atol=1e-4)


def test_xplique_perfect_deletion_and_insertion():
    """Everything that counts goes, or comes, in the first of many steps."""
    images = np.zeros((2, 20, 20, 3), np.float32)
    # One pixel of 400 has all of the score, and is the first to go or come.
    images[:, 5, 5] = 1.0
    model = perturb.Model(lambda w, x: x.sum((1, 2)), ())
    fine = metrics.Preset(name="fine", steps=100, removed=0.0, start=0.0, output="logit")
    maps = images.sum(-1)
    targets = np.zeros(2, int)
    np.testing.assert_allclose(
        metrics.deletion(model, images, targets, maps, preset=fine).area, 0, atol=1e-2
    )
    np.testing.assert_allclose(
        metrics.insertion(model, images, targets, maps, preset=fine).area, 1, atol=1e-2
    )


def quantus(inside):
    """224 px, the object from 50 to 150; a map of ones on all, none or half of it."""
    truth = np.zeros((4, 224, 224), bool)
    truth[:, 50:150, 50:150] = True
    maps = np.zeros((4, 224, 224))
    if inside == "all":
        maps[:, 50:150, 50:150] = 1
    elif inside == "none":
        maps[:, :50] = 1
    elif inside == "half":
        maps[:, 50:100, 50:150] = 1
        # As many pixels outside as inside, of one value.
        maps[:, 0:50, 50:150] = 1
    return maps, truth


@pytest.mark.parametrize(
    ("inside", "mass", "top", "hit"),
    [("all", 1.0, 1.0, 1.0), ("none", 0.0, 0.0, 0.0), ("half", 0.5, 0.5, None)],
)
def test_quantus_localisation(inside, mass, top, hit):
    maps, truth = quantus(inside)
    np.testing.assert_allclose(metrics.energy(maps, truth), mass)
    np.testing.assert_allclose(metrics.rank_accuracy(maps, truth), top)
    np.testing.assert_allclose(metrics.top_share(maps, truth, 10_000), top)
    if hit is not None:
        np.testing.assert_allclose(metrics.pointing(maps, truth, tolerance=1e-9), hit)
        # 10,000 pixels of the object among the 40,000 highest.
    if inside == "all":
        np.testing.assert_allclose(metrics.roc_area(maps, truth), 1.0)


def test_quantus_top_k_larger_than_the_object():
    maps, truth = quantus("all")
    ramp = maps + 1e-9 * np.arange(224 * 224).reshape(224, 224)
    # 10,000 px of the object among the 40,000 highest; the ramp breaks ties among the rest.
    np.testing.assert_allclose(metrics.top_share(ramp, truth, 40_000)[0], 0.25)


def test_quantus_localisation_of_any_batch():
    """Where the batch's length was taken for the picture's size, numbers moved with it."""
    maps, truth = quantus("half")
    # The object is 100 x 100 of 224 x 224 px, 19.93 %.
    for n in (1, 2, 4):
        np.testing.assert_allclose(
            metrics.energy_over_chance(maps[:n], truth[:n]), 0.5 / 0.1993, rtol=1e-3
        )


def test_quantus_similarity():
    a = np.arange(9.0).reshape(1, 3, 3)
    assert metrics.pearson(a, a)[0] == pytest.approx(1)
    assert metrics.pearson(a, 3 * a + 1)[0] == pytest.approx(1)
    assert metrics.pearson(a, -a)[0] == pytest.approx(-1)
    assert metrics.spearman(a, a**3)[0] == pytest.approx(1)
    assert metrics.spearman(a, -a)[0] == pytest.approx(-1)
    # Means are 0, lengths the root of 2, and one of two entries agrees: 1 / 2.
    one = np.array([[[-1.0, 0.0], [0.0, 1.0]]])
    other = np.array([[[0.0, -1.0], [0.0, 1.0]]])
    assert metrics.pearson(one, other)[0] == pytest.approx(0.5)
    assert metrics.ssim(
        np.random.default_rng(0).uniform(size=(1, 16, 16)),
        np.random.default_rng(0).uniform(size=(1, 16, 16)),
    )[0] == pytest.approx(1)


def test_saliency_interpolated_pictures():
    image = np.array([[0.0, 0, 0], [1, 8, 1], [0, 0, 0]])[..., None]
    shown = np.zeros((3, 3), bool)
    shown[1, 0] = True
    np.testing.assert_array_equal(
        interpolated(image, shown)[..., 0], [[0, 0, 0], [1, 0.5, 0], [0, 0, 0]]
    )
    corners = np.array([[1.0, 0, 1], [0, 0, 0], [1, 0, 1]])[..., None]
    np.testing.assert_array_equal(interpolated(corners, np.zeros((3, 3), bool)), np.ones((3, 3, 1)))
    full = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    np.testing.assert_array_equal(interpolated(full, np.ones((9, 9), bool)), full)


def test_saliency_information_grows_with_what_is_shown():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] / 64
    picture = np.stack([np.sin(9 * x * y), np.cos(5 * x), y], -1) * 100 + 100
    # Some noise, without which a smooth picture is compressed to nearly nothing.
    picture = (picture + rng.normal(0, 9, picture.shape)).clip(0, 255).astype(np.uint8)
    order = rng.permutation(64 * 64).reshape(64, 64)
    sizes = [entropy(interpolated(picture, order < f * 64 * 64)) for f in (0, 0.01, 0.1, 1.0)]
    assert sizes == sorted(set(sizes))


def test_saliency_curves_are_put_together():
    x = [[0, 0.2, 0.4, 0.6, 1.0], [0, 0.4, 0.4, 0.4, 1.0], [np.nan] * 5]
    curve, area = metrics.aggregate(x, method="mean")
    np.testing.assert_allclose(curve, [0, 0.3, 0.4, 0.5, 1.0])
    assert area == pytest.approx(
        (0 + 0.3) / 8 + (0.3 + 0.4) / 8 + (0.4 + 0.5) / 8 + (0.5 + 1.0) / 8
    )


def test_saliency_curve_of_a_model_that_pays_for_pixels():
    """Against the curve by hand: thresholds, normalisation, monotone, interpolation."""
    y, x = np.mgrid[:32, :32] / 32
    images = np.stack([np.sin(9 * x * y) ** 2, np.cos(5 * x) ** 2, y], -1)[None].astype(np.float32)
    images[0, 8:16, 8:16] = 1.0
    model = perturb.Model(
        lambda w, v: jnp.stack([30 * v[:, 8:16, 8:16].mean((1, 2, 3)) - 20, 0 * v[:, 0, 0, 0]], 1),
        (),
    )
    maps = np.zeros((1, 32, 32))
    maps[0, 8:16, 8:16] = 1 + np.arange(64).reshape(8, 8) / 64
    good = metrics.information(model, images, [0], maps)
    poor = metrics.information(model, images, [0], -maps)
    assert 0 <= poor.area[0] < good.area[0] <= 1
    assert good.curves[0, 0] == 0
    assert good.curves[0, -1] == 1
    assert (np.diff(good.curves[0]) >= 0).all()
    # A class that the whole picture does not show is skipped, not counted as nothing.
    assert np.isnan(metrics.information(model, images, [1], maps).area[0])


@pytest.mark.parametrize("count", [1, 3, 20])
def test_captum_infidelity_of_an_exact_map_is_nothing(count):
    rng = np.random.default_rng(count)
    images = rng.uniform(size=(count, 4, 4, 3)).astype(np.float32)
    weights = rng.normal(size=(4, 4, 3)).astype(np.float32)
    model = perturb.Model(lambda w, x: (x * w).sum((1, 2, 3))[:, None], jnp.asarray(weights))
    exact = np.broadcast_to(weights, images.shape)
    found = metrics.infidelity(model, images, np.zeros(count, int), exact, samples=10)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    wrong = metrics.infidelity(model, images, np.zeros(count, int), 100 * exact, samples=10)
    scaled = metrics.infidelity(
        model, images, np.zeros(count, int), 100 * exact, samples=10, scaled=True
    )
    assert wrong.min() > 1
    np.testing.assert_allclose(scaled, 0, atol=1e-5)


def test_captum_infidelity_of_integrated_gradients_is_the_convergence_error():
    """Taking all of the picture off, a map is wrong by what its sum misses of the score."""
    # Cubes: four steps of a curved function leave an error that can be seen.
    model = perturb.Model(lambda w, x: (x**3).sum((1, 2)), ())
    images = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
    found = attribution.integrated_gradients(model, images, [0, 0], steps=4)
    gap = found.sum((1, 2)) - (images[..., 0] ** 3).sum((1, 2))
    slope = found[..., None] / images[..., :1] * np.array([1, 0, 0])
    wrong = metrics.infidelity(
        model, images, [0, 0], slope, perturb=lambda rng, x: x.astype(np.float64), samples=2
    )
    np.testing.assert_allclose(wrong, gap**2, rtol=1e-2)


def test_captum_max_sensitivity():
    """A constant map does not move; one that doubles its input moves as its input does."""
    images = np.full((2, 8, 8, 3), 0.5, np.float32)
    still = metrics.max_sensitivity(lambda x, t: np.ones(x.shape[:3]), images, [0, 0])
    np.testing.assert_array_equal(still, 0)
    moving = metrics.max_sensitivity(
        lambda x, t: 2 * x[..., 0], images, [0, 0], radius=0.02, samples=5
    )
    assert moving.min() > 0
    # Pixels of 0.5 move by up to 0.02, and the map with them: relative to its length no more.
    assert moving.max() <= 0.02 / 0.5 + 1e-6


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_road_imputer_against_a_dense_system(share):
    """The same linear system by hand, every pixel's row written out, solved densely."""
    rng = np.random.default_rng(0)
    image, missing = rng.uniform(size=(9, 11, 3)), rng.uniform(size=(9, 11)) < share
    # A corner, which has three neighbours in place of eight.
    missing[0, 0] = True
    system, right = np.zeros((99, 99)), np.zeros((99, 3))
    for y in range(9):
        for x in range(11):
            i = 11 * y + x
            if not missing[y, x]:
                system[i, i], right[i] = 1, image[y, x]
                continue
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    inside = 0 <= y + dy < 9 and 0 <= x + dx < 11
                    if (dy or dx) and inside:
                        # Weights of Rong et al. 2022: neighbours by a side count twice those by a
                        # corner.
                        w = 1 / 6 if 0 in (dy, dx) else 1 / 12
                        system[i, i] += w
                        system[i, 11 * (y + dy) + x + dx] -= w
    wanted = np.linalg.solve(system, right).reshape(9, 11, 3)
    found = metrics.impute(image, missing, noise=0.0)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    np.testing.assert_array_equal(found[~missing], image[~missing])
    assert np.abs(metrics.impute(image, missing, noise=0.01) - found).max() < 0.1
