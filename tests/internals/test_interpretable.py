"""The loss of interpretable filters where its value is known, and what units carry of a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model, taps
from perturb.internals import explainer
from perturb.internals import interpretable as made

SIDE = 4


def one_hot_maps(height=400.0):
    """Each place once: the map says all there is to say about the place."""
    return height * jnp.eye(SIDE**2).reshape(-1, SIDE, SIDE, 1)


def test_maps_that_tell_the_place_share_all_there_is_with_the_templates():
    """log n² nats, less what the template of nothing takes: its share is 1 / (1 + n²)."""
    found = made.mutual_information(one_hot_maps(), scale=30.0, beta=8.0)
    assert np.log(SIDE**2) - 0.35 < float(found[0]) <= np.log(SIDE**2) + 1e-3


def test_equal_maps_tell_nothing():
    maps = jnp.broadcast_to(one_hot_maps()[3], (12, SIDE, SIDE, 1))
    np.testing.assert_allclose(made.mutual_information(maps), 0, atol=1e-5)


def test_the_gradient_has_a_baseline():
    """Against the closed form, with the mean subtracted that the paper's equation leaves out."""
    x = jnp.maximum(jax.random.normal(jax.random.key(0), (12, SIDE, SIDE, 1)) * 3, 0)
    scale = 4.0
    found = jax.grad(lambda x: made.mutual_information(x, scale=scale).sum())(x)
    tau = scale * 0.5 / SIDE**2
    t = np.concatenate([tau * made.templates(SIDE), -tau * np.ones((1, SIDE, SIDE))])
    t = t.reshape(-1, SIDE**2)
    alpha = SIDE**2 / (1 + SIDE**2)
    prior = np.array([alpha / SIDE**2] * SIDE**2 + [1 - alpha])
    trace = np.asarray(x, np.float64).reshape(12, -1) @ t.T
    p = np.exp(trace - trace.max(0))
    p /= p.sum(0)
    r = np.log(p / (p * prior).sum(1, keepdims=True))
    # With the mean that the paper's equation leaves out.
    wanted = (prior * p * (r - (p * r).sum(0))) @ t
    error = np.abs(np.asarray(found).reshape(12, -1) - wanted).max()
    assert error <= 1e-5 * np.abs(wanted).max() + 1e-9
    plain = (prior * p * r) @ t
    # Far apart: a gradient without it could not pass.
    assert np.abs(plain - wanted).max() > 0.1 * np.abs(wanted).max()


def test_templates_and_masks():
    """1 at the peak, 0 at an L1 distance of n / beta, -1 from 2 n / beta on."""
    n = 8
    t = made.templates(n)[3 * n + 3]
    assert t[3, 3] == 1
    assert t[3, 5] == 0
    assert t[1, 3] == 0
    assert (t[3, 7], t[7, 7]) == (-1, -1)
    maps = jnp.ones((1, n, n, 1)).at[0, 3, 3, 0].set(2.0)
    cut = np.asarray(made.mask_maps(maps))[0, :, :, 0]
    assert cut[3, 3] == 2
    assert (cut[t <= 0] == 0).all()


@pytest.mark.slow
def test_the_loss_does_not_see_the_scale_of_a_filter():
    x = jnp.maximum(jax.random.normal(jax.random.key(1), (6, SIDE, SIDE, 3)), 0)
    labels, classes = jnp.array([0, 1, 0, 1, 0, 1]), jnp.array([0, 1, 0])
    losses = [made.filter_loss(x * c, labels, classes) for c in (1.0, 100.0)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert np.isfinite(jax.grad(lambda x: made.filter_loss(x * 1e4, labels, classes))(x)).all()


@pytest.mark.parametrize("others", ["mean", "peak"])
def test_descent_makes_filters_fire_for_their_class_at_one_place(others):
    """On free maps, where nothing but the loss decides."""
    x = jax.random.uniform(jax.random.key(2), (8, SIDE, SIDE, 2))
    labels = jnp.array([0, 1] * 4)
    classes = jnp.array([0, 1])
    step = jax.jit(
        jax.grad(lambda x: made.filter_loss(jnp.maximum(x, 0), labels, classes, others=others))
    )
    start = x
    # Of a map whose peak falls, one place moves a step; of one whose mean falls, all do.
    for _ in range(400 if others == "mean" else 800):
        x = x - 0.5 * step(x)
    # Rectified, as the loss sees them.
    before, after = (np.maximum(np.asarray(v), 0) for v in (start, x))
    assert (made.own_class_ratio(after, labels, classes) > 1.5).all()
    assert (made.own_class_ratio(before, labels, classes) < 1.2).all()
    own = after[::2, ..., 0]
    assert made.concentration(own[..., None])[0] > 1.5 * made.concentration(before[..., :1])[0]


def test_a_filters_class():
    maps = np.zeros((4, 2, 2, 2))
    maps[[0, 2], 0, 0, 1] = 1
    maps[[1, 3], 0, 0, 0] = 1
    assert made.filter_classes(maps, [0, 1, 0, 1], 2).tolist() == [1, 0]
    np.testing.assert_allclose(made.own_class_ratio(maps, [0, 1, 0, 1], [1, 0]), 2)


@pytest.fixture(scope="module")
def linear():
    """A layer of 8 independent units, of which the score of class 0 adds up known shares."""
    weights = np.zeros((8, 2))
    weights[:, 0] = [4, 2, 1, 1, 0, 0, 0, 0]

    def apply(w, x):
        a = taps.tag(x.mean((1, 2)) * 1.0, "units")
        return taps.tag(a @ w, "scores")

    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (200, 1, 1, 8)).astype(np.float32)
    return Model(apply, jnp.asarray(weights, jnp.float32), channels=8), images, np.zeros(200, int)


def test_what_all_none_and_some_units_carry(linear):
    model, images, targets = linear
    options = {"layer": "units", "upper": "scores"}
    everything = explainer.explained(model, images, targets, units=range(8), **options)
    nothing = explainer.explained(model, images, targets, units=[], **options)
    first = explainer.explained(model, images, targets, units=[0], **options)
    assert everything.r2 > 0.999
    assert nothing.r2 == 0
    np.testing.assert_allclose(everything.share, 1, rtol=1e-5)
    np.testing.assert_allclose(everything.kept, 1, rtol=1e-5)
    np.testing.assert_allclose(nothing.share, 0)
    # The variance of a sum of independent units is that of their squares: 16 + 4 + 1 + 1.
    # Independent units of one variance: 16 of 22 parts of it.
    assert abs(first.r2 - 16 / 22) < 0.1
    x = images[:, 0, 0]
    np.testing.assert_allclose(first.share, 4 * x[:, 0] / (x @ [4, 2, 1, 1, 0, 0, 0, 0]), rtol=1e-4)


def test_the_smallest_set(linear):
    model, images, targets = linear
    # The four that have a weight.
    units, kept = explainer.smallest_set(model, images, targets, layer="units", keep=0.999)
    assert sorted(units.tolist()) == [0, 1, 2, 3]
    assert kept >= 0.999
    fewer, _ = explainer.smallest_set(model, images, targets, layer="units", keep=0.85)
    assert set(fewer.tolist()) < {0, 1, 2, 3}
