"""Inversion, quality and paths of pictures on models whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.internals import features


def _patches(weights, images):
    """A strided orthonormal convolution: every patch of 2 x 2 by an orthonormal matrix."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return taps.tag(x.reshape(b, h // 2, w // 2, 4 * c) @ weights, "patches")


@pytest.mark.slow
def test_an_orthonormal_layer_gives_the_picture_back():
    # Orthonormal: the layer loses nothing and turns everything.
    weights = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0].astype(np.float32)
    model = perturb.Model(_patches, jnp.asarray(weights))
    images = np.random.default_rng(1).uniform(0.1, 0.9, (2, 12, 16, 3)).astype(np.float32)
    found = features.invert(
        model, "patches", images, prior="pixels", steps=300, key=jax.random.key(0)
    )
    assert (found.psnr > 50).all()
    assert (found.error < 0.01).all()


@pytest.mark.slow
def test_what_a_layer_drops_is_left_to_the_prior():
    weights = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0].astype(np.float32)
    # Eight of twelve directions of each patch are read, the other four are not.
    kept, dropped = weights[:, :8], weights[:, 8:]
    model = perturb.Model(_patches, jnp.asarray(kept))
    images = np.random.default_rng(1).uniform(0.3, 0.7, (2, 12, 16, 3)).astype(np.float32)
    found = features.invert(
        model, "patches", images, prior="pixels", steps=300, key=jax.random.key(0)
    )
    assert (found.relative < 1e-3).all()
    rest = np.asarray(_patches(jnp.asarray(dropped), jnp.asarray(images - found.images)))
    assert np.abs(rest).mean() > 0.03  # it was never seen


def test_quality_says_how_a_picture_stands_to_natural_ones():
    model = perturb.Model(lambda w, x: x.mean((1, 2, 3))[:, None] + w, jnp.float32(0))
    natural = np.linspace(0.1, 0.6, 10, dtype=np.float32)[:, None, None, None]
    natural = natural + 0.05 * np.random.default_rng(0).uniform(size=(10, 16, 16, 3))
    wanted = features.logit(0)
    made = features.Features(
        images=np.stack([np.full((16, 16, 3), v) for v in (0.9,)]),
        values=np.array([0.9]),
        start=np.array([0.5]),
        started=np.array([True]),
        finite=np.array([True]),
        important=np.zeros((1, 16, 16)),
    )
    found = features.quality(model, wanted, made, natural)
    assert found.reach[0] == 1.0
    # The brightest natural picture is 0.6 with 0.025 of noise on average.
    assert found.ratio[0] == pytest.approx(0.9 / 0.625, rel=0.02)
    assert found.verdict == ("shows more than any natural picture",)
    low = made._replace(values=np.array([0.3]))
    found = features.quality(model, wanted, low, natural)
    assert 0.2 <= found.reach[0] <= 0.5
    assert found.verdict == ("shows no more than natural pictures do",)
    # Each number 0 or 1 at random: high frequencies as strong as low ones.
    noise = np.random.default_rng(0).integers(0, 2, (1, 16, 16, 3))
    smooth = np.tile(np.linspace(0, 1, 16)[:, None, None], (10, 1, 16, 3)).astype(np.float32)
    found = features.quality(model, wanted, made._replace(images=noise), smooth)
    assert found.verdict == ("busy: high frequencies",)
    grey = made._replace(started=np.array([False]))
    assert features.quality(model, wanted, grey, natural).verdict == ("did not start",)


def test_paths_are_1_among_the_same_and_0_among_others():
    def apply(w, x):
        return taps.tag(jax.nn.relu(x.mean((1, 2)) @ w), "middle")

    rng = np.random.default_rng(0)
    model = perturb.Model(apply, jnp.asarray(rng.normal(size=(3, 40)), jnp.float32))

    def coloured(colour, count):
        noise = rng.uniform(-0.05, 0.05, (count, 8, 8, 3))
        return (np.array(colour) + noise).astype(np.float32)

    # Two colours with a little noise: neighbours within, strangers between.
    red, blue = coloured((0.9, 0.1, 0.1), 12), coloured((0.1, 0.1, 0.9), 12)
    same = features.path_similarity(model, red[0], red[1:], blue, ("middle",))
    other = features.path_similarity(model, blue[0], red[1:], blue[1:], ("middle",))
    assert same[0] == pytest.approx(1, abs=0.05)
    assert other[0] == pytest.approx(0, abs=0.1)


def _drawn(basis, z):
    return jax.nn.sigmoid(z @ basis).reshape(1, 8, 8, 3)


@pytest.mark.slow
def test_a_generator_and_an_untrained_network_are_priors_too():
    rng = np.random.default_rng(0)
    weights = np.linalg.qr(rng.normal(size=(12, 12)))[0].astype(np.float32)
    model = perturb.Model(_patches, jnp.asarray(weights))
    basis = jnp.asarray(rng.normal(size=(5, 8 * 8 * 3)), jnp.float32)
    images = np.concatenate([_drawn(basis, z) for z in rng.normal(size=(2, 1, 5))])
    latents = features.Latents(draw=_drawn, variables=basis, dimensions=5)
    found = features.invert(
        model, "patches", images, prior=latents, steps=300, key=jax.random.key(0)
    )
    # Five numbers make each picture, and the layer keeps all of it.
    assert (found.psnr > 40).all()
    found = features.invert(
        model, "patches", images, prior="deep", steps=100, key=jax.random.key(0)
    )
    # Noise has no shapes to be learnt first; it is fitted all the same.
    assert (found.relative < 0.5).all()
    far = features.feature_error(model, "patches", images, images[::-1])
    assert far == pytest.approx(1)
    assert (found.error < far).all()
