"""Patterns on cases with a known answer: the paper's two-dimensional toy, linear nets, patches cut
out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model
from perturb.internals import patterns
from perturb.taps.swapping import LAYER, swap
from tests import relunet


def images(number=6, size=20, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (number, size, size, 3)).astype(np.float32)


def toy(number=200_000):
    """x = y (1, 0) + e (1, 1), made exactly uncorrelated: sampling then decides nothing."""
    rng = np.random.default_rng(0)
    y, e = rng.normal(size=(2, number))
    y -= y.mean()
    e -= e.mean()
    # What is left of y in e is taken out, so that both are exactly uncorrelated.
    e -= y * (e @ y) / (y @ y)
    y, e = y / y.std(), e / e.std()
    return np.outer(y, [1, 0]) + np.outer(e, [1, 1]), np.array([1.0, -1.0])


def test_the_toy_of_the_paper():
    """The distractor (1, 1) is cancelled by w = (1, -1); the pattern is the signal's (1, 0)."""
    x, w = toy()
    # In double precision: the closed form is asked for six digits of two hundred thousand samples.
    with jax.enable_x64(True):
        model = Model(lambda w, x: x[:, 0, 0] @ w, jnp.asarray(w[:, None], jnp.float64), channels=2)
        found = patterns.fit_patterns(model, [jnp.asarray(x)[:, None, None]])
    np.testing.assert_allclose(found.linear[0][:, 0], [1, 0], atol=1e-6)
    assert abs(w @ np.asarray(found.positive[0][:, 0]) - 1) < 1e-6
    assert abs(w @ np.asarray(found.negative[0][:, 0]) - 1) < 1e-6
    y = x @ w
    quality = [
        patterns.signal_quality(x, w, np.outer(y, a))
        for a in (w / (w @ w), np.asarray(found.linear[0][:, 0]), np.array([0.3, 0.9]) / -0.6)
    ]
    # In closed form: of the weights, of the true signal, and of a vector with nothing behind it.
    np.testing.assert_allclose(quality, [1 - 1 / 5**0.5, 1, 1 - 1.5 / 3.25**0.5], atol=1e-4)


def test_moments_are_those_of_patches():
    """Gradients with respect to the kernel against patches cut out, padding included."""
    weights = relunet.random_weights()
    model, x = relunet.model(weights), images()
    total = patterns.add_moments(model, x)
    kernel, bias = weights["one"]
    cut = jax.lax.conv_general_dilated_patches(
        jnp.asarray(x), (5, 5), (2, 2), [(2, 2), (2, 2)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    cut = np.asarray(cut, np.float64).reshape(-1, 3, 25).transpose(0, 2, 1).reshape(-1, 75)
    y = cut @ kernel.reshape(75, -1)
    on = (y + bias > 0).astype(float)
    # Sums of 600 float32 products, one a place.
    np.testing.assert_allclose(total[0].x.reshape(75, -1), cut.T @ on, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(total[0].xy.reshape(75, -1), cut.T @ (on * y), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(total[0].number, on.sum(0))


def test_the_kernels_product_with_a_pattern_is_one():
    model = relunet.model(relunet.random_weights())
    found = patterns.fit_patterns(model, [images(seed=s) for s in (0, 1)])
    for kernel, pattern in zip(patterns._kernels(model, images())[0], found.positive, strict=True):
        product = np.asarray((kernel * pattern).sum(tuple(range(kernel.ndim - 1))), np.float64)
        live = product != 0
        assert live.any()
        # A sum of up to 200 terms that are up to some tens: rounding of single precision.
        np.testing.assert_allclose(product[live], 1, atol=2e-5)


def test_a_unit_that_never_fires_has_no_pattern():
    weights = relunet.random_weights()
    # So low a bias that no picture reaches it.
    weights["one"][1][3] = -100.0
    found = patterns.fit_patterns(relunet.model(weights), [images()])
    assert not np.asarray(found.positive[0][..., 3]).any()
    assert np.isfinite(np.concatenate([np.ravel(p) for p in found.positive])).all()


def test_attribution_of_a_linear_network_sums_to_the_score():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(3, 3, 3, 8)) / 5, rng.normal(size=(8, 4))

    def apply(w, x):
        y = jax.lax.conv_general_dilated(
            x, w[0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y[:, 0, 0] @ w[1]

    model = Model(apply, (jnp.asarray(one, jnp.float32), jnp.asarray(two, jnp.float32)))
    x = images(64, 3)
    # Of a network without relu the regime is of no account: the linear pattern has product 1 too.
    linear = patterns.fit_patterns(model, [x])
    found = patterns.pattern_attribution(
        model, x[:5], np.arange(5) % 4, linear._replace(positive=linear.linear)
    )
    wanted = np.asarray(model(x[:5]))[np.arange(5), np.arange(5) % 4]
    np.testing.assert_allclose(found.sum((1, 2)), wanted, rtol=1e-3)


@pytest.mark.slow
def test_the_gradient_is_what_the_kernels_themselves_hand_back():
    model = relunet.model(relunet.random_weights())
    x = images(3)
    kernels = tuple(patterns._kernels(model, x)[0])
    # With the kernels in place of patterns the backward pass is the gradient.
    same = patterns.Patterns(kernels, kernels, kernels)
    found = patterns.pattern_net(model, x, [0, 1, 2], same)
    scores = np.asarray(model(x))[[0, 1, 2], [0, 1, 2]]
    gradient = jax.grad(lambda x: model(x)[jnp.arange(3), jnp.arange(3)].sum())(jnp.asarray(x))
    np.testing.assert_allclose(found, gradient * scores[:, None, None, None], atol=1e-5)


@pytest.mark.slow
def test_two_sided_patterns_explain_more_of_the_embedded_classifier_than_the_weights():
    """rho on pictures that the patterns were not fitted on, 16 units of each convolution."""
    from launch import demo
    from launch.demo import world

    model = demo.load("demo")
    pictures = np.stack([world.render(21, i).image for i in range(120)])
    found = patterns.fit_patterns(model, [pictures[i : i + 20] for i in range(0, 80, 20)])
    better, worst = patterns_against_weights(model, found, pictures[80:])
    assert better >= 0.9, (better, worst)


def patterns_against_weights(model, found, pictures, units=16, places=6000):
    """Share of units whose rho is at least that of the weights, and rho of all."""
    seen = []

    def note(layer, x, kernel, *bias):
        seen.append((layer, x, kernel, bias))
        return layer(x, kernel, *bias)

    swap(lambda x: model(x), {LAYER: note})(jnp.asarray(pictures))
    rng = np.random.default_rng(0)
    rho = []
    for i, (layer, x, kernel, bias) in enumerate(seen):
        if kernel.ndim == 4:
            p = layer.params
            cut = jax.lax.conv_general_dilated_patches(
                x,
                kernel.shape[:2],
                p["window_strides"],
                p["padding"],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            channels = kernel.shape[2]
            cut = np.asarray(cut).reshape(-1, channels, kernel.shape[0] * kernel.shape[1])
            cut = cut.transpose(0, 2, 1).reshape(len(cut), -1)
        else:
            cut = np.asarray(x)
        cut = cut[rng.permutation(len(cut))[:places]].astype(np.float64)
        flat = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
        plus, minus = (
            np.asarray(v[i], np.float64).reshape(flat.shape)
            for v in (found.positive, found.negative)
        )
        shift = np.ravel(bias[0]) if bias else np.zeros(flat.shape[1])
        for u in range(min(units, flat.shape[1])):
            y = cut @ flat[:, u]
            on = y + shift[u] > 0
            # A unit without both regimes in sight has nothing to compare.
            if min(on.mean(), 1 - on.mean()) < 0.005:
                continue
            two_sided = np.where(on[:, None], np.outer(y, plus[:, u]), np.outer(y, minus[:, u]))
            by_weights = np.outer(y, flat[:, u] / (flat[:, u] @ flat[:, u]))
            rho.append(
                (
                    i,
                    u,
                    *(patterns.signal_quality(cut, flat[:, u], s) for s in (two_sided, by_weights)),
                )
            )
    rho = np.array(rho)
    return (rho[:, 2] >= rho[:, 3]).mean(), rho
