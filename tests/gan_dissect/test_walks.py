"""Walks against positions written out, and the calibrated one against its predictor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import (
    Concepts,
    Generator,
    Normal,
    attribute_direction,
    calibrate,
    load_generator,
    sample,
    walk,
)
from gan_dissect.walks import even_speed, linear, looped, random_walk, spherical, through
from perturb import Model
from perturb.units.concepts import attributes, labels
from tests import graphnet


def draw(variables, z):
    return {"image": jax.nn.sigmoid(z).reshape(-1, 2, 2, 1)}


TOY = Generator(draw, {}, latent=Normal((4,)))


def test_positions():
    z, d = np.array([1.0, 2, 0, 0]), np.array([0.0, 2, 0, 0])
    found = walk(TOY, z, d, steps=5, start=-2, stop=2)
    np.testing.assert_allclose(found.positions, [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(found.latents[:, 1], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(found.latents[:, 0], 1)
    np.testing.assert_allclose(
        found.outputs["image"], draw(None, found.latents)["image"], rtol=1e-6
    )
    absolute = walk(TOY, z, d, steps=[0.0, 0.5], mode="absolute")
    np.testing.assert_allclose(absolute.latents[:, 1], [0, 0.5])


def test_absolute_walk_knows_the_intercept():
    # Latents about 5: a boundary that is taken through the origin would be five units off.
    z = np.asarray(sample(TOY, jax.random.key(0), 3000)) + np.array([0, 5, 0, 0])
    found = attribute_direction(z, z[:, 1])
    walked = walk(TOY, z[0], found, steps=[0.0, 1.0], mode="absolute")
    np.testing.assert_allclose(walked.latents @ found.normal + found.intercept, [0, 1], atol=1e-5)
    # The boundary lies at the middle of the latents, not at the origin.
    np.testing.assert_allclose(walked.latents[0, 1], 5, atol=0.3)


def test_between():
    a, b = np.random.default_rng(0).standard_normal((2, 100))
    line, arc = linear(a, b, 7), spherical(a, b, 7)
    for path in (line, arc):
        np.testing.assert_allclose(path[[0, -1]], [a, b], atol=1e-12)
    np.testing.assert_allclose(np.diff(line, axis=0), np.tile((b - a) / 6, (6, 1)), atol=1e-12)
    lengths = np.linalg.norm(arc, axis=1)
    np.testing.assert_allclose(np.diff(lengths), np.diff(lengths)[0], atol=1e-12)
    unit = arc / lengths[:, None]
    turns = np.sum(unit[1:] * unit[:-1], 1)
    np.testing.assert_allclose(turns, turns[0], atol=1e-12)
    np.testing.assert_allclose(spherical(a, 2 * a, 3)[1], 1.5 * a)


@pytest.mark.slow
def test_calibrated_walk(data_dir):
    """DCGAN digits until LeNet says 7 with p = .9: within .02 wherever the walk gets there at
    all.
    """
    generator = load_generator(
        "dcgan", weights=data_dir / "weights" / "mnist_dcgan_generator.safetensors"
    )
    graph, variables = graphnet.load(data_dir / "weights" / "mnist_lenet5.json")

    def seven(variables, outputs):
        image = outputs["image"]
        image = jax.image.resize(image, (len(image), 32, 32, 1), "bilinear")
        return jax.nn.softmax(graph(variables, image.transpose(0, 3, 1, 2)))[:, 7:8]

    scores = Concepts(seven, ("seven",), variables, kind="scores")
    read = jax.jit(lambda generator, scores, z: scores(generator(z))[:, 0])

    def score(z):
        return np.concatenate([read(generator, scores, part) for part in np.split(z, len(z) // 64)])

    z = np.asarray(sample(generator, jax.random.key(0), 1024))
    found = attribute_direction(z, np.log(score(z) + 1e-9))
    start = np.asarray(sample(generator, jax.random.key(1), 64))
    # Eight is the usual length of a latent of 64 numbers.
    went = calibrate(generator, start, found, scores, target=0.9, limit=8.0)
    p = np.asarray(score(went.latents))
    np.testing.assert_allclose(p, went.score, atol=1e-3)
    assert went.reached.mean() > 0.5
    assert (abs(p[went.reached] - 0.9) <= 0.02).mean() >= 0.95
    # Those that are reported as out of reach are below the target all along the way.
    far = went.score[~went.reached]
    assert np.isnan(went.position[~went.reached]).all()
    assert ((far < 0.9) | (went.start[~went.reached] >= 0.9)).all()
    np.testing.assert_allclose(went.start, score(start), atol=1e-3)


def test_calibration_by_hand():
    scores = attributes(lambda o: o["image"][:, 0, 0], ["first"])
    z = np.array([[0.0, 0, 0, 0], [5, 0, 0, 0], [-20, 0, 0, 0], [1, 0, 0, 0]])
    went = calibrate(TOY, z, np.eye(4)[0], scores, target=0.9)
    # The sigmoid is .9 where its argument is the logarithm of 9.
    logit = np.log(9)
    assert went.reached.tolist() == [True, False, False, True]
    np.testing.assert_allclose(went.position[[0, 3]], [logit, logit - 1], atol=1e-3)
    np.testing.assert_allclose(went.latents[0], [logit, 0, 0, 0], atol=1e-3)
    alone = calibrate(TOY, z[:1], np.eye(4)[0], scores, target=0.9)
    np.testing.assert_allclose(alone.position, went.position[:1], atol=1e-6)
    back = calibrate(TOY, z, np.eye(4)[0], scores, target=0.5, limit=-6.0)
    np.testing.assert_allclose(back.position[1], -5, atol=1e-3)
    # A score that is the target's from the start on is reached there, not a step of the grid later.
    flat = attributes(lambda o: 0 * o["image"][:, 0, 0] + 0.5, ["flat"])
    still = calibrate(TOY, z, np.eye(4)[0], flat, target=0.5)
    assert still.reached.all()
    assert (still.position == 0).all()


def test_looped():
    z = np.random.default_rng(0).standard_normal((3, 5))
    path = looped(z, 8)
    assert path.shape == (24, 5)
    # Each of the three is met, eight frames apart.
    np.testing.assert_allclose(path[[0, 8, 16]], z, atol=1e-12)
    # No seam: from the last frame to the first is a step like those before it.
    steps = np.linalg.norm(np.diff(np.concatenate([path, path[:1]]), axis=0), axis=1)
    np.testing.assert_allclose(steps[16:], steps[16:].mean(), rtol=0.5)


@pytest.mark.parametrize(("between", "way"), [("spherical", spherical), ("linear", linear)])
def test_through_several_latents(between, way):
    z = np.random.default_rng(0).standard_normal((3, 4))
    found = through(TOY, z, frames=9, between=between)
    np.testing.assert_allclose(found.positions, np.arange(9) / 4)
    # Two stretches of five frames, which share the one in the middle.
    want = np.concatenate([way(z[0], z[1], 5)[:-1], way(z[1], z[2], 5)])
    np.testing.assert_allclose(found.latents, want, rtol=1e-6)
    np.testing.assert_allclose(found.outputs["image"], draw(None, want)["image"], rtol=1e-6)
    # Of latents of layers every row goes its own way.
    layered = Generator(lambda v, z: draw(v, z[:, 1]), {}, latent=Normal((2, 4)))
    rows = through(layered, np.stack([z[::-1], z], 1), frames=9, between=between)
    np.testing.assert_array_equal(rows.latents[:, 1], found.latents)


def test_even_speed():
    """A sigmoid is fast in the middle and slow at the ends; the frames are dense where it is
    fast.
    """
    path = np.array([[-8.0, 0, 0, 0], [8, 0, 0, 0]])
    even = even_speed(TOY, path, frames=9, fine=32)
    np.testing.assert_allclose(even.steps, even.steps.mean(), rtol=0.02)
    np.testing.assert_allclose(even.outputs["image"][:, 0, 0, 0], np.linspace(0, 1, 9), atol=0.01)
    # In even steps of the latent three quarters of the change are in the two in the middle.
    plain = jax.nn.sigmoid(np.linspace(-8, 8, 9))
    assert np.abs(np.diff(plain)).max() > 3 * even.steps.max()
    # By features that see a logarithm of it, other frames.
    log = Model(lambda v, x: jnp.log(x.reshape(len(x), -1)), {}, output="embedding")
    other = even_speed(TOY, path, frames=9, features=log, fine=32)
    np.testing.assert_allclose(other.steps, other.steps.mean(), rtol=0.05)
    assert np.abs(other.positions - even.positions).max() > 0.1
    with pytest.raises(ValueError, match="nothing does"):
        even_speed(TOY, np.zeros((2, 4)), frames=3)
    with pytest.raises(ValueError, match="frames must be at least 2"):
        even_speed(TOY, path, frames=1)


def test_random_walk():
    z, d = np.arange(50.0), np.eye(50)[3] * 2
    path = random_walk(jax.random.key(0), z, d, steps=400, stride=0.3, along=0.1)
    np.testing.assert_allclose(path[:, 3], 3 + 0.1 * np.arange(400), atol=1e-9)
    across = np.delete(path - z, 3, 1)
    # Where the pull balances the steps: variance stride^2 / (1 - (1 - pull)^2).
    far = np.linalg.norm(across[100:], axis=1)
    np.testing.assert_allclose(far.mean(), 0.3 / np.sqrt(1 - 0.95**2), rtol=0.15)
    again = random_walk(jax.random.key(0), z, d, steps=400, stride=0.3, along=0.1)
    np.testing.assert_array_equal(path, again)
    with pytest.raises(ValueError, match=r"pull in \[0, 1\], got 400, 2"):
        random_walk(jax.random.key(0), z, d, steps=400, pull=2)


def test_errors():
    z, d = np.zeros(4), np.ones(4)
    for options, match in (
        ({"mode": "far"}, "mode must be"),
        ({"steps": 1}, "steps must be at least 2 frames"),
        ({"steps": [1.0]}, "at least 2 positions"),
    ):
        with pytest.raises(ValueError, match=match):
            walk(TOY, z, d, **options)
    with pytest.raises(ValueError, match="between must be"):
        looped(np.eye(3), 2, between="curved")
    for points, options, match in (
        (np.eye(4)[:1], {}, r"\[P, 4\] with P at least 2, got shape \[1, 4\]"),
        (np.eye(3), {}, r"got shape \[3, 3\]"),
        (np.eye(4) * np.nan, {}, "must be finite"),
        (np.eye(4), {"frames": 3}, "frames must be at least 4"),
        (np.eye(4), {"between": "curved"}, "between must be"),
    ):
        with pytest.raises(ValueError, match=match):
            through(TOY, points, **({"frames": 9} | options))
    with pytest.raises(ValueError, match="direction of its size"):
        walk(TOY, z, np.ones(5))
    with pytest.raises(ValueError, match="not 0"):
        walk(TOY, z, 0 * d)
    two = attribute_direction(np.eye(4)[np.arange(400) % 4], np.arange(800.0).reshape(400, 2))
    with pytest.raises(ValueError, match="one attribute, got 2"):
        walk(TOY, z, two)
    with pytest.raises(ValueError, match="kind 'scores', got masks"):
        calibrate(TOY, z[None], d, labels(["a"]))
    both = attributes(lambda o: o["image"][:, 0, :, 0], ["a", "b"])
    for name in (None, "c"):
        with pytest.raises(ValueError, match="name must be one of a, b"):
            calibrate(TOY, z[None], d, both, name=name)
