"""Inversion against latents that are known, and on a digit decoder with its own encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import (
    Generator,
    Normal,
    Uniform,
    _clipped,
    edit_image,
    invert,
    load_generator,
    sample,
)
from gan_dissect.inversion import linear_encoder, prior, ramp
from perturb import Model
from tests import graphnet

KEY = jax.random.key(8)


def draw(w, z):
    """16 pixels that see the first 6 of 8 latents: the other two are free."""
    return {"image": jax.nn.sigmoid(z[:, :6] @ w).reshape(-1, 4, 4, 1)}


def toy(latent=None):
    w = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    return Generator(draw, jnp.asarray(w), latent=latent or Normal((8,)))


@pytest.mark.slow
def test_known_latents_are_found():
    generator = toy()
    z = np.asarray(sample(generator, KEY, 6))
    goal = generator(z)["image"]
    found = invert(generator, goal, steps=400, key=KEY)
    # 16 pixels tell six latents apart, so there is one answer to find.
    np.testing.assert_allclose(found.latents[:, :6], z[:, :6], atol=0.02)
    # What the image does not show stays at the mean.
    np.testing.assert_allclose(found.latents[:, 6:], 0, atol=0.1)
    assert (found.psnr > 45).all()
    assert (found.psnr > found.start_psnr + 10).all()
    error = np.square(found.images.astype(np.float64) - goal).mean((1, 2, 3))
    np.testing.assert_allclose(found.psnr, -10 * np.log10(np.maximum(error, 1e-12)), rtol=1e-3)
    assert np.isnan(found.domain_gap).all()
    assert found.history.shape == (400, 6)
    assert (found.history[-1] < 0.01 * found.history[0]).all()
    # Each image by itself: alone, the same latent.
    alone = invert(generator, goal[2:3], steps=400, key=KEY)
    assert alone.latents.shape == (1, 8)
    np.testing.assert_allclose(alone.latents[0, :6], found.latents[2, :6], atol=0.02)
    # From latents that are right there is nothing to do.
    there = invert(generator, goal, start=z, steps=2, noise=0.0, up=0, down=0, rate=1e-4)
    np.testing.assert_allclose(there.latents, z, atol=1e-3)


def clipped(how):
    def apply(v, z):
        # 1.3 at the mean, .2 a unit of the latent: .5 is reached at z = -4.
        x = 1.3 + v * z[:, :1, None, None] * jnp.ones((1, 8, 8, 1))
        return {"image": how(x)}

    return Generator(apply, jnp.float32(0.2), latent=Normal((4,)))


CLIPS = {
    "clip": lambda x: jnp.clip(x, 0, 1),
    "of [-1, 1]": lambda x: (jnp.clip(2 * x - 1, -1, 1) + 1) / 2,
    "clamp": lambda x: jax.lax.clamp(0.0, x, 1.0),
    "in a jit": jax.jit(lambda x: jnp.minimum(jax.nn.relu(x).transpose(0, 2, 1, 3), 1.0)),
}


@pytest.mark.slow_cases
@pytest.mark.parametrize("how", CLIPS.values(), ids=CLIPS)
def test_a_picture_that_starts_white_is_inverted(how):
    """The mean latent draws 1.3, clipped to white: its own derivative is 0 everywhere."""
    generator = clipped(how)
    goal = np.full((2, 8, 8, 1), 0.5, np.float32)
    goal[1] = 1.0  # what is white and ought to be stays where it is
    found = invert(generator, goal, steps=200, noise=0.0)
    np.testing.assert_allclose(found.latents[0, 0], -4, atol=1e-2)
    assert found.psnr[0] > 40
    np.testing.assert_allclose(found.latents[1], 0, atol=0.1)


def test_clips_inside_the_generator_keep_their_derivative():
    """Only what clips the image itself is passed; the values are the same to the last bit."""

    def f(x):
        inner = jnp.clip(x, 0, 1)
        return jnp.clip(jnp.tanh(3 * inner) + 0.5, 0, 1)

    # Values on both sides of the inner clip, whose own ends are 0 and 1.
    x = jnp.linspace(-1, 2, 31)
    np.testing.assert_array_equal(_clipped.passing(f)(x), f(x))
    gradient = jax.grad(lambda x: _clipped.passing(f)(x).sum())(x)
    assert (np.asarray(gradient)[(x < -1e-3) | (x > 1 + 1e-3)] == 0).all()
    assert (np.asarray(gradient)[(x > 0.3) & (x < 0.9)] != 0).all()


@pytest.mark.slow
def test_one_latent_a_layer():
    """In W+ each layer has its own; what is found draws the image, and an edit moves all layers."""

    def layered(w, z):
        return draw(w, jnp.concatenate([z[:, 0, :3], z[:, 1, :3], z[:, 0, 3:]], 1))

    generator = Generator(layered, toy().variables, latent=Normal((2, 4)))
    z = np.asarray(sample(generator, KEY, 4))
    found = invert(generator, generator(z)["image"], steps=1000, key=KEY)
    assert found.latents.shape == (4, 2, 4)
    np.testing.assert_allclose(found.latents[..., :3], z[..., :3], atol=0.03)
    assert found.radius.shape == (4,)
    one = np.array([0.0, 2.0, 0.0, 0.0])
    edited = edit_image(generator, found, one, distance=0.5)
    np.testing.assert_allclose(
        edited.latents - found.latents, np.tile(one / 4, (4, 2, 1)), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"start must be \[4, 2, 4\], got shape \[4, 4\]"):
        invert(generator, generator(z)["image"], start=np.zeros((4, 4)))


@pytest.mark.slow
def test_domain_holds_latents_back():
    """An image from far outside the prior: the encoder's agreement costs detail and keeps the
    latent in.
    """
    generator = toy()
    # Four times as far out as the prior: latents that it hardly ever draws.
    z = 4 * np.asarray(sample(generator, KEY, 4))
    goal = generator(z)["image"]
    encoder = linear_encoder(generator, samples=1024, key=jax.random.key(1))
    own = np.asarray(sample(generator, jax.random.key(2), 500))
    read = np.asarray(encoder(generator(own)["image"]))
    assert np.corrcoef(read[:, 0], own[:, 0])[0, 1] > 0.8
    # The two latents that no pixel shows cannot be read off: the encoder's answer is their mean, 0.
    assert np.abs(read[:, 6:]).mean() < 0.2
    free = invert(generator, goal, start="encoder", encoder=encoder, steps=200, key=KEY)
    held = invert(generator, goal, start="encoder", encoder=encoder, domain=2.0, steps=200, key=KEY)
    assert (held.radius < free.radius).all()
    assert (held.domain_gap < free.domain_gap).all()
    assert (held.psnr <= free.psnr + 1e-3).all()
    assert (free.percentile > 99).all()
    np.testing.assert_allclose(held.start_psnr, free.start_psnr)


def test_edit_after_inversion():
    generator = toy()
    goal = np.asarray(generator(sample(generator, KEY, 3))["image"])
    found = invert(generator, goal, steps=100, key=KEY)
    d = np.eye(8)[1] * 3
    edited = edit_image(generator, found, d, distance=2.0)
    np.testing.assert_allclose(edited.latents, found.latents + 2 * np.eye(8)[1][None], atol=1e-6)
    np.testing.assert_allclose(edited.images, generator(edited.latents)["image"], atol=1e-6)
    assert (edited.change > 0.05).all()
    # Nothing moved, and what was missed put back: the image itself.
    same = edit_image(generator, found, d, distance=0.0, rest=goal)
    np.testing.assert_allclose(same.images, goal, atol=1e-6)
    # The last latent draws nothing, however far it is moved.
    free = edit_image(generator, found, np.eye(8)[7], distance=5.0)
    np.testing.assert_allclose(free.change, 0, atol=1e-6)


def test_prior():
    for latent in (Normal((8,), scale=3.0), Uniform((8,), 1.0, 5.0)):
        about = prior(toy(latent), 4000, KEY)
        np.testing.assert_allclose(
            about.std, 3.0 if latent == Normal((8,), 3.0) else 4 / 12**0.5, rtol=0.05
        )
        # Radii are relative to the root mean square of all.
        np.testing.assert_allclose(np.square(about.radii).mean(), 1, rtol=1e-3)
        assert (np.diff(about.radii) >= 0).all()
    rates = np.array([float(ramp(s, 1000)) for s in range(0, 1001, 10)])
    assert rates[0] == 0
    # Up over the first twentieth, down over the last quarter, as the schedule is published.
    np.testing.assert_allclose(rates[5:76], 1, atol=1e-6)
    assert (np.diff(rates[75:]) < 0).all()
    assert float(ramp(0, 10, up=0, down=0)) == 1


def digits(data_dir):
    """The decoder of a variational autoencoder of digits, and the encoder that it was trained
    with.
    """
    decoder = load_generator(
        "mlp", weights=data_dir / "weights" / "mnist_vae_decoder.safetensors", output="sigmoid"
    )
    graph, variables = graphnet.load(data_dir / "weights" / "mnist_vae_encoder.json")

    def mean(variables, images):
        return graph(variables, images.transpose(0, 3, 1, 2))["fc21"]

    return decoder, Model(mean, variables, output="embedding", name="encoder")


@pytest.mark.slow
def test_digits_in_domain(data_dir):
    """A short form of `python -m benchmarks.gan_figures inversion`."""
    decoder, encoder = digits(data_dir)
    z = np.asarray(sample(decoder, KEY, 8))
    goal = np.asarray(jax.jit(lambda g, z: g(z)["image"])(decoder, z))
    mean = invert(decoder, goal, steps=150, key=KEY)
    held = invert(decoder, goal, start="encoder", encoder=encoder, domain=2e-3, steps=150, key=KEY)
    assert np.median(mean.psnr) > 25
    assert np.median(held.psnr) > np.median(held.start_psnr)
    assert (held.domain_gap < 1).all()


def test_errors():
    generator = toy()
    goal = np.zeros((2, 4, 4, 1))
    encoder = Model(lambda v, x: x.reshape(len(x), -1), {}, output="embedding")
    for options, match in (
        ({"start": "encoder"}, "encoder must be given"),
        ({"domain": 1.0}, "encoder must be given"),
        ({"start": "middle"}, "start must be 'mean', 'encoder' or latents"),
        ({"start": np.zeros((2, 3))}, r"start must be \[2, 8\], got shape \[2, 3\]"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"encoder": encoder, "domain": 1.0}, r"encoder must give \[2, 8\], got \[2, 16\]"),
    ):
        with pytest.raises(ValueError, match=match):
            invert(generator, goal, **options)
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\] in \[0, 1\]"):
        invert(generator, goal + 2)
    with pytest.raises(ValueError, match=r"images must be \[4, 4, 1\] as the generator's, got"):
        invert(generator, np.zeros((2, 5, 4, 1)))
    found = invert(generator, goal, steps=1)
    with pytest.raises(ValueError, match="direction of its size"):
        edit_image(generator, found, np.ones(7), distance=1.0)
    with pytest.raises(ValueError, match="rest must be images"):
        edit_image(generator, found, np.ones(8), distance=1.0, rest=goal[:1])
