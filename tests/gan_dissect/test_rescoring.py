"""Rescoring, mixing and moving by layers, on a generator whose layers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import Concepts, Generator, sample
from gan_dissect.rescoring import (
    _spearman,
    identity,
    mix,
    monotonicity,
    move,
    redraw,
    rescore,
    rescore_layers,
)
from perturb import Model
from perturb.units.concepts import attributes, labels

KEY = jax.random.key(2)
LAYERS, D = 3, 6


def latent(key):
    a, b = jax.random.split(key)
    w = jnp.broadcast_to(jax.random.normal(a, (D,))[None], (LAYERS, D))
    return {"w": w, "noise": jax.random.normal(b, (4, 4))}


def apply(variables, z):
    """Layer 0 sets the light of the left half, layer 1 that of the right, layer 2 nothing."""
    w = z["w"]
    # Two latents move the left half, the second half as much; one moves the right; the rest none.
    left, right = jax.nn.sigmoid(w[:, 0, 0] + 0.5 * w[:, 0, 1]), jax.nn.sigmoid(w[:, 1, 2])
    image = jnp.stack([left, left, right, right], 1)[:, None, :, None] * jnp.ones((1, 4, 1, 1))
    return {"image": 0.9 * image + 0.1 * jax.nn.sigmoid(z["noise"])[..., None]}


GENERATOR = Generator(apply, {}, latent=latent, name="layered")
SCORES = attributes(
    lambda o: jnp.stack(
        [o["image"][:, :, :2].mean((1, 2, 3)), o["image"][:, :, 2:].mean((1, 2, 3))], 1
    ),
    ["left", "right"],
)
COMMON = {"leaf": "w", "samples": 100, "key": KEY}


@pytest.mark.slow
def test_rescoring_matrix():
    # One direction for the left, one for the right and one for nothing.
    d = np.eye(D)[[0, 2, 5]]
    found = rescore(GENERATOR, d, SCORES, distance=1.5, **COMMON, controls=30)
    z = sample(GENERATOR, KEY, 100)
    w = np.asarray(z["w"])[:, 0]

    def light(x):
        return 0.9 / (1 + np.exp(-x))

    at = w[:, 0] + 0.5 * w[:, 1]
    np.testing.assert_allclose(found.change[0, 0], (light(at + 1.5) - light(at)).mean(), atol=1e-5)
    np.testing.assert_allclose(
        found.change[1, 1], (light(w[:, 2] + 1.5) - light(w[:, 2])).mean(), atol=1e-5
    )
    # What a direction does not touch stays to the last digit, and so does its interval.
    np.testing.assert_allclose(found.change[[0, 1, 2, 2], [1, 0, 0, 1]], 0, atol=1e-6)
    assert (found.change_low <= found.change + 1e-6).all()
    assert (found.change <= found.change_high + 1e-6).all()
    # Above all 30 controls: (1 + 0) / (30 + 1), two-sided.
    np.testing.assert_allclose(found.p_value[0, 0], 2 / 31)
    assert found.p_value[2].min() > 0.5
    assert found.control_change.shape == (30, 2)
    # Backwards the change is negative, where the published one is 0.
    back = rescore(GENERATOR, d, SCORES, distance=-1.5, **COMMON, controls=2)
    assert back.change[0, 0] < -0.1
    np.testing.assert_allclose(back.clipped[0, 0], 0, atol=1e-6)
    np.testing.assert_allclose(back.before, found.before)


@pytest.mark.slow
def test_layers_that_make_an_attribute():
    by_layer = rescore_layers(
        GENERATOR, np.eye(D)[[0, 2]], SCORES, distance=1.5, **COMMON, controls=3
    )
    change = np.stack([r.change for r in by_layer])
    whole = rescore(GENERATOR, np.eye(D)[[0, 2]], SCORES, distance=1.5, **COMMON, controls=3).change
    np.testing.assert_allclose(change[0, 0, 0], whole[0, 0], atol=1e-6)
    np.testing.assert_allclose(change[1, 1, 1], whole[1, 1], atol=1e-6)
    np.testing.assert_allclose(change[2], 0, atol=1e-6)
    np.testing.assert_allclose(change[1, 0], 0, atol=1e-6)
    flat = Generator(lambda v, z: {"image": jax.nn.sigmoid(z).reshape(-1, 8, 8, 1)}, {})
    with pytest.raises(ValueError, match=r"must have a leaf \[layers, D\], got \[64\]"):
        rescore_layers(flat, np.eye(64)[:1], SCORES, samples=4, key=KEY)


@pytest.mark.slow
def test_clipping_is_biased():
    """Scores that are noise: the signed change has 0 in its interval, the published one does
    not.
    """

    def noisy(variables, outputs):
        # Any move of the light turns it many times: before and after have nothing in common.
        return jnp.sin(1e4 * outputs["image"][:, 0, 0])

    noise = Concepts(noisy, ("noise",), kind="scores")
    found = rescore(GENERATOR, np.eye(D)[:1], noise, **COMMON, controls=40)
    assert found.change_low[0, 0] < 0 < found.change_high[0, 0]
    assert found.clipped[0, 0] > 0.2
    assert found.p_value[0, 0] > 0.04


@pytest.mark.slow
def test_identity():
    pixels = Model(lambda v, x: x.reshape(len(x), -1) - 0.5, {}, output="embedding", name="pixels")
    none = identity(GENERATOR, np.eye(D)[5], pixels, **COMMON, controls=5)
    np.testing.assert_allclose([none.similarity, none.low, none.high], 1, atol=1e-5)
    some = identity(GENERATOR, np.eye(D)[0], pixels, **COMMON, controls=5)
    assert some.low <= some.similarity <= some.high < 1
    assert some.control.shape == (5,)
    assert none.similarity > some.control.max()
    maps = Model(lambda v, x: x, {}, output="embedding", name="maps")
    with pytest.raises(ValueError, match=r"features must give \[B, F\]"):
        identity(GENERATOR, np.eye(D)[0], maps, **COMMON)


def test_monotonicity():
    found = monotonicity(GENERATOR, np.eye(D)[0], SCORES, name="left", **COMMON, controls=5)
    assert found.rank_correlation == 1
    assert found.rising == 1
    assert (np.diff(found.scores) > 0).all()
    # A sigmoid: the steps at the ends are the smallest.
    assert found.saturation.max() == 1
    assert found.saturation[[0, -1]].max() < 0.8
    assert (found.scores_low <= found.scores + 1e-6).all()
    flat = monotonicity(GENERATOR, np.eye(D)[5], SCORES, name="left", **COMMON, controls=5)
    assert flat.rank_correlation == 0
    assert (np.abs(found.control_rank_correlation) <= 1).all()
    at, rng = np.arange(5.0), np.random.default_rng(0)
    # Four values at five places: every row has a tie.
    values = rng.integers(0, 4, (20, 5))
    ranks = np.array([[(v < x).sum() + ((v == x).sum() - 1) / 2 for x in v] for v in values])
    want = [np.corrcoef(at, r)[0, 1] for r in ranks]
    np.testing.assert_allclose(_spearman(at, values), want)
    for options, match in (
        ({"name": "top"}, "name must be one of left, right, got 'top'"),
        ({}, "name must be one of left, right, got None"),
        ({"name": "left", "positions": (0, 1)}, "at least 3 in rising order"),
    ):
        with pytest.raises(ValueError, match=match):
            monotonicity(GENERATOR, np.eye(D)[0], SCORES, **COMMON, **options)


def test_move_mix_and_redraw():
    z = sample(GENERATOR, KEY, 4)
    other = sample(GENERATOR, KEY, 4, start=4)
    image = GENERATOR(z)["image"]
    mixed = GENERATOR(mix(z, other, layers=[1], leaf="w"))["image"]
    np.testing.assert_allclose(mixed[:, :, :2], image[:, :, :2])
    noise = GENERATOR({"w": other["w"], "noise": z["noise"]})["image"]
    np.testing.assert_allclose(mixed[:, :, 2:], noise[:, :, 2:])
    fresh = redraw(GENERATOR, z, jax.random.key(5), leaves=["noise"])
    np.testing.assert_array_equal(fresh["w"], z["w"])
    assert np.abs(fresh["noise"] - z["noise"]).max() > 0.1
    d = np.random.default_rng(0).standard_normal((LAYERS, D)).astype(np.float32)
    far = jnp.arange(4.0)
    moved = jax.jit(lambda z: move(z, d, far, leaf="w", layers=[0, 2]))(z)["w"]
    want = np.asarray(z["w"]) + np.arange(4.0).reshape(-1, 1, 1) * d * np.array([1, 0, 1]).reshape(
        1, 3, 1
    )
    np.testing.assert_allclose(moved, want, rtol=1e-5, atol=1e-6)
    each = jax.vmap(lambda a: move({"w": z["w"]}, d, a, leaf="w")["w"])(far)
    np.testing.assert_allclose(each[2], np.asarray(z["w"]) + 2 * d, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(move(z["w"][:, 0], d[0], 1.0), z["w"][:, 0] + d[0])


def test_errors():
    z = sample(GENERATOR, KEY, 4)
    for call, match in (
        (lambda: move(z, np.ones(D), 1.0), "leaf must be one of noise, w, got None"),
        (lambda: move(z["w"], np.ones(D), 1.0, leaf="w"), "leaf must be None"),
        (
            lambda: move(z, np.ones(5), 1.0, leaf="w"),
            r"direction must be \[6\] or \[3, 6\], got "
            r"shape \[5\]",
        ),
        (lambda: move(z, np.ones(D), np.ones(3), leaf="w"), r"distance must be a number or \[4\]"),
        (lambda: move(z, np.ones(D), 1.0, leaf="w", layers=[3]), "layers must be in 0 to 2, got 3"),
        (lambda: move(np.zeros((2, D)), np.ones(D), 1.0, layers=[0]), "layers are for latents"),
        (lambda: mix(np.zeros((2, D)), np.zeros((2, D)), layers=[0]), "must have the same leaf"),
        (lambda: redraw(GENERATOR, z, KEY, leaves=["style"]), "leaf must be one of noise, w"),
        (
            lambda: rescore(GENERATOR, np.ones((1, 5)), SCORES, **COMMON),
            r"directions must be \[K, "
            r"6\]",
        ),
        (lambda: rescore(GENERATOR, np.ones((1, D)), labels(["a"]), **COMMON), "got masks"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
