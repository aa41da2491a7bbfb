"""Meaningful perturbations: penalties and starts by hand, planted regions found, the least that
must go.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import masks
from perturb.methods.meaningful import Jitter, Smoothness
from tests import planted

RNG = np.random.default_rng(0)


BLACK = perturb.operators.Fade(colour=0.0)


def seen_through(inside, gain=3.0):
    """Class 0 of two wants the pixels inside white: p = .998 on a white image, .002 on a black
    one.
    """
    # White and black lie .5 above and below, so the two logits differ by 6: p = .998 or .002.
    weights = 2 * gain * inside / inside.sum()

    def net(weights, images):
        grey = (images.mean(-1) - 0.5) * weights
        first = grey.sum((1, 2))
        return jnp.stack([first, -first], 1)

    return perturb.Model(net, jnp.asarray(weights, jnp.float32))


@pytest.mark.slow_cases
@pytest.mark.parametrize("beta", [2.0, 3.0])
@pytest.mark.parametrize("mean", [False, True])
def test_the_price_of_a_mask(beta, mean):
    """Equation 4 by loops, isotropic and not; flat at zero, where PyTorch's abs is flat too."""
    cells = RNG.random((5, 6)).astype(np.float32)
    mask = masks.Mask(cells, jnp.asarray(cells))
    size = cells.sum()
    down, right = np.diff(cells, axis=0), np.diff(cells, axis=1)
    apart = (np.abs(down) ** beta).sum() + (np.abs(right) ** beta).sum()
    # At the last row and column there is one difference only: the other counts as 0.
    square = np.pad(down, ((0, 1), (0, 0))) ** 2 + np.pad(right, ((0, 0), (0, 1))) ** 2
    together = (square ** (beta / 2)).sum()
    if mean:
        size, together = size / 30, together / 30
        apart = (np.abs(down) ** beta).mean() + (np.abs(right) ** beta).mean()
    for isotropic, rough in ((True, together), (False, apart)):
        price = Smoothness(l1=0.3, tv=0.7, beta=beta, mean=mean, isotropic=isotropic)
        got = jax.jit(price)(mask, 0.5, 0, 1)
        np.testing.assert_allclose(got, 0.3 * size + 0.7 * rough, rtol=1e-5)
        many = jax.vmap(lambda m, p=price: p(m, 0.5, 0, 1))(jax.tree.map(lambda x: x[None], mask))
        np.testing.assert_allclose(many[0], got, rtol=1e-6)
        flat = jax.grad(lambda c, p=price: p(masks.Mask(c, c), 0.5, 0, 1))(jnp.zeros((5, 6)))
        np.testing.assert_array_equal(flat, 0)


def test_jitter():
    """Every shift from 0 to 3 px along both sides comes up; borders repeat; noise has its size."""
    view = jnp.asarray(RNG.random((9, 10, 3)), jnp.float32)
    padded = np.pad(view, ((0, 3), (0, 3), (0, 0)), mode="edge")
    corners = {padded[i : i + 9, j : j + 10].tobytes(): (i, j) for i in range(4) for j in range(4)}
    jitter = jax.jit(Jitter(pixels=4))
    # 150 draws of 16 shifts: one is missed with probability 16 * (15/16)**150, .1 %; the keys are
    # fixed.
    found = {
        corners[np.asarray(jitter(view, None, jax.random.key(n), 0)).tobytes()] for n in range(150)
    }
    assert len(found) == 16
    noisy = Jitter(noise=(0.1, 0.2, 0.4))
    grey = jnp.zeros((64, 64, 3))
    drawn = noisy(grey, None, jax.random.key(0), 0)
    # 4,096 draws a channel: their deviation is known to 1.1 %.
    np.testing.assert_allclose(drawn.std((0, 1)), [0.1, 0.2, 0.4], rtol=0.05)
    np.testing.assert_array_equal(Jitter()(view, None, jax.random.key(0), 0), view)


@pytest.mark.slow_cases
@pytest.mark.parametrize("start", ["ones", "random", "circle"])
def test_a_planted_region_is_removed(start):
    """From every start the answer is lost, and what goes lies where the answer is."""
    inside = planted.disc((64, 64), 0.06, (0.5, 0.6))
    model = seen_through(inside)
    result = perturb.meaningful(
        model, np.ones((1, 64, 64, 3)), [0], start=start, operator=BLACK, steps=150
    )
    assert result.probability_original[0] > 0.99
    assert result.probability_binary[0, 0] < 0.1
    region = result.masks[0, 0] > 0.5
    assert (region & inside).sum() >= 0.6 * region.sum() > 0
    np.testing.assert_allclose(result.achieved_area[0, 0], region.mean(), rtol=1e-5)
    np.testing.assert_array_equal(result.areas, result.achieved_area)


def test_the_circle_is_the_smallest_that_takes_the_answer():
    """A disc of radius r decides; the start is the first centred circle that covers it."""
    inside = planted.disc((64, 64), 0.06)
    model = seen_through(inside)
    result = perturb.meaningful(
        model,
        np.ones((1, 64, 64, 3)),
        [0],
        start="circle",
        operator=BLACK,
        steps=1,
        # No price, one step, and a reward that moves little: what is left is the start.
        penalty=Smoothness(l1=0.0, tv=0.0),
        reward=lambda row, target, original: 0.0 * row[target] + jax.nn.softmax(row)[target],
    )
    region = result.masks[0, 0] > 0.3
    assert (region & inside).sum() >= 0.9 * inside.sum()
    assert region.mean() < 0.2


@pytest.mark.slow
def test_preserve_keeps_what_matters():
    inside = planted.disc((64, 64), 0.1)
    result = perturb.meaningful(
        seen_through(inside), np.ones((1, 64, 64, 3)), [0], game="preserve", operator=BLACK
    )
    assert result.probability_binary[0, 0] > 0.9
    assert result.achieved_area[0, 0] < 0.4
    assert (result.masks[0, 0][inside] > 0.5).mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["caffe", "pytorch_port"])
def test_presets_run_at_any_size(preset):
    """As published at 224 px; here at 40 x 56, where they must at least lower the score."""
    model = planted.small_network()
    images = RNG.random((2, 40, 56, 3), np.float32)
    result = perturb.meaningful(model, images, [1, 2], preset=preset, steps=8)
    assert result.masks.shape == (2, 1, 40, 56)
    assert (result.masks >= 0).all()
    assert (result.masks <= 1).all()
    again = perturb.meaningful(model, images, [1, 2], preset=preset, steps=8)
    np.testing.assert_array_equal(result.masks, again.masks)


def test_the_least_region_by_hand():
    """Scores sorted, one area after the other, deleted by hand: the first that takes 95 %."""
    model = planted.small_network(seed=2)
    images = RNG.random((2, 20, 24, 3), np.float32)
    scores = RNG.random((2, 20, 24), np.float32)
    areas = np.linspace(0.05, 0.9, 8)
    found = perturb.minimal_region(
        model, images, [0, 1], scores, areas=areas, operator="fade", reward="logit", suppression=0.6
    )
    for i, target in enumerate((0, 1)):
        order = np.argsort(-scores[i].reshape(-1), kind="stable")
        left = []
        for a in areas:
            gone = np.zeros(480, bool)
            gone[order[: round(a * 480)]] = True
            cut = np.where(gone.reshape(20, 24, 1), 0.5, images[i])
            left.append(float(model(np.stack([cut, cut]))[0, target]))
        pair = np.stack([images[i], np.full_like(images[i], 0.5)])
        top, floor = (float(v) for v in model(pair)[:, target])
        share = (np.array(left) - floor) / (top - floor)
        np.testing.assert_allclose(found.left[i], share, atol=1e-3)
        # A suppression of .6 leaves .4 of the way from the floor to the whole.
        enough = share <= 0.4
        if enough.any():
            np.testing.assert_allclose(found.area[i], round(areas[enough.argmax()] * 480) / 480)
        else:
            assert np.isnan(found.area[i])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"game": "dual"}, "game must be delete or preserve"),
        ({"preset": "torch"}, "preset must be one of default, caffe, pytorch_port, got 'torch'"),
        ({"start": "square"}, "start must be one of circle, random, ones, got 'square'"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        perturb.meaningful(planted.small_network(), np.ones((1, 16, 16, 3)), [0], **options)


def test_errors_of_the_least_region():
    model, images = planted.small_network(), np.ones((1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"suppression must be in \(0, 1\), got 1"):
        perturb.minimal_region(model, images, [0], images[..., 0], suppression=1)
    with pytest.raises(ValueError, match="scores must be"):
        perturb.minimal_region(model, images, [0], images)
