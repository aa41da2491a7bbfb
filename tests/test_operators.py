"""Operators against direct computations in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import operators

RNG = np.random.default_rng(0)
# Odd sides that differ: an axis that is mistaken for another does not fit.
SHAPES = [(19, 3), (13, 18, 3), (5, 6, 7, 2)]


def blurred(image, sigma, padding):
    """A separable Gaussian of reach ceil(4 sigma), each line convolved on its own."""
    reach = int(np.ceil(4 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    image = image.astype(np.float64)
    for axis in range(image.ndim - 1):
        pads = [(reach, reach) if d == axis else (0, 0) for d in range(image.ndim)]
        if padding == "edge":
            padded = np.pad(image, pads, mode="edge")
        else:
            inside = np.pad(np.ones_like(image), pads)
            padded = np.pad(image, pads) + (1 - inside) * np.asarray(padding)
        image = np.apply_along_axis(np.convolve, axis, padded, taps, "valid")
    return image


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("padding", ["edge", "colour"])
def test_pyramid_against_convolution(shape, padding):
    """Signals, pictures and volumes; a blur wider than the image too."""
    image = RNG.random(shape).astype(np.float32)
    padding = (0.1, 0.9, 0.4)[: shape[-1]] if padding == "colour" else padding
    # 6 reaches 24 px, beyond every side here; 0 must be the picture itself.
    sigmas = (6.0, 0.8, 0.0)
    got = jax.jit(lambda x: operators.pyramid(x, sigmas, padding=padding))(image)
    for level, sigma in zip(got, sigmas, strict=True):
        want = blurred(image, sigma, padding) if sigma else image
        # float32 sums of up to 49 weights and three axes, of values up to 1.
        np.testing.assert_allclose(level, want, atol=2e-6)


def test_pyramid_refuses_an_unknown_padding():
    with pytest.raises(ValueError, match="padding must be 'edge' or a colour, got 'reflect'"):
        operators.pyramid(jnp.zeros((4, 4, 3)), [1.0], padding="reflect")


def test_blur_levels_and_interpolation():
    """Sigmas fall evenly to zero; a mask picks linearly between two neighbouring levels."""
    image = RNG.random((14, 21, 3)).astype(np.float32)
    blur = operators.Blur(pixels=2.0, levels=3)
    levels = blur.prepare(jnp.asarray(image), None)
    np.testing.assert_allclose(levels[1], blurred(image, 1.0, "edge"), atol=2e-6)
    mask = RNG.random((14, 21)).astype(np.float32)
    stack = np.asarray(levels, np.float64)
    want = np.empty_like(stack[0])
    for i in np.ndindex(mask.shape):
        # Three levels are two intervals; a mask of exactly 1 belongs to the upper one.
        low = min(int(mask[i] * 2), 1)
        part = mask[i] * 2 - low
        want[i] = (1 - part) * stack[(low, *i)] + part * stack[(low + 1, *i)]
    np.testing.assert_allclose(blur.apply(levels, jnp.asarray(mask)), want, atol=1e-6)


def test_blur_strength_follows_the_shorter_side():
    """20 px at 224 is 2 px at 22.4; the paper's pixels are an option."""
    image = jnp.asarray(RNG.random((28, 40, 3)), jnp.float32)
    ours = operators.Blur().prepare(image, None)[0]
    # 28 px is an eighth of 224: 20 px become 2.5. Bit by bit, for it is one program.
    np.testing.assert_array_equal(ours, operators.Blur(pixels=2.5).prepare(image, None)[0])


def test_blur_needs_two_levels():
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        operators.Blur(levels=1).prepare(jnp.zeros((8, 8, 3)), None)


@jax.tree_util.Partial
def _mirror(image):
    return image[::-1]


def every_operator(shape):
    bank = jnp.asarray(RNG.random((4, *shape)), jnp.float32)
    return [
        *map(operators.get, operators.NAMES),
        operators.Fade(colour=(0.2, 0.3, 0.4)[: shape[-1]]),
        operators.Blur(padding=0.5),
        operators.Shuffled(bank=bank),
        operators.Replace(function=_mirror),
        operators.Alternate(operators=(operators.Fade(), operators.Noise())),
    ]


@pytest.mark.slow_cases
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ends_of_every_operator(shape):
    """Mask 1 is the image bit by bit, mask 0 owes nothing to the mask; the gradient is finite."""
    images = jnp.asarray(RNG.random((3, *shape)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    half = jnp.full((3, *shape[:-1]), 0.5)
    every = every_operator(shape)
    for operator in every if len(shape) == 3 else every[:2]:

        @jax.jit
        def run(operator, images, keys, masks):
            reference = jax.vmap(operator.prepare)(images, keys)
            return jax.vmap(operator.apply)(reference, masks)

        np.testing.assert_array_equal(run(operator, images, keys, jnp.ones_like(half)), images)
        floor = run(operator, images, keys, 0 * half)
        assert floor.shape == images.shape
        # A fill that leaves the picture where it was removes nothing.
        assert float(jnp.abs(floor - images).max()) > 0.05
        if not isinstance(operator, operators.Blur):  # a blend: halfway is the mean of both ends
            middle = run(operator, images, keys, half)
            np.testing.assert_allclose(middle, (images + floor) / 2, atol=1e-6)
        slope = jax.grad(lambda m: (run(operator, images, keys, m) ** 2).sum())(half)  # noqa: B023
        assert bool(jnp.isfinite(slope).all())


@pytest.mark.slow
def test_floors_against_numpy():
    """What each operator leaves where everything is removed."""
    image = RNG.random((8, 9, 3)).astype(np.float32)
    zero, key = jnp.zeros((8, 9)), jax.random.key(3)

    def floor(operator, key=key):
        return np.asarray(operator.apply(operator.prepare(jnp.asarray(image), key), zero))

    assert (floor(operators.get("fade")) == 0.5).all()
    np.testing.assert_allclose(floor(operators.get("mean"))[3, 4], image.mean((0, 1)), atol=1e-6)
    np.testing.assert_array_equal(floor(operators.Replace(function=_mirror)), image[::-1])
    bank = jnp.asarray(RNG.random((5, 8, 9, 3)), jnp.float32)
    drawn = {
        int(np.flatnonzero([(floor(operators.Shuffled(bank=bank), k) == b).all() for b in bank])[0])
        # Of five pictures one is missed by 30 draws with probability 5 * 0.8**30, or .6 %; the key
        # is fixed.
        for k in jax.random.split(key, 30)
    }
    assert drawn == set(range(5))
    noise = floor(operators.get("noise"))
    assert noise.min() >= 0
    assert noise.max() <= 1
    np.testing.assert_array_equal(noise, floor(operators.get("noise")))
    assert (noise != floor(operators.get("noise"), jax.random.key(4))).any()


def test_median_against_numpy():
    """Over windows, with the border repeated, each channel by itself."""
    image = RNG.random((9, 7, 2)).astype(np.float32)
    padded = np.pad(image, [(1, 1), (1, 1), (0, 0)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    got = jax.jit(lambda x: operators.median(x, 3))(image)
    np.testing.assert_array_equal(got, np.median(windows, (-2, -1)))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"operator must be one of blur, fade, .* got 'smudge'"):
        operators.get("smudge")
    with pytest.raises(ValueError, match=r"got 'blur\+blur'"):
        operators.get("blur+blur")
    own = operators.Fade(colour=0.1)
    assert operators.get(own) is own


def test_names_joined_are_operators_in_turn():
    turns = operators.get("noise+fade")
    assert turns.operators == (operators.get("noise"), operators.get("fade"))


@pytest.mark.slow
def test_operators_that_alternate_have_two_steps_each_and_are_scored_by_the_first():
    image, mask = jnp.asarray(RNG.random((6, 5, 3)), jnp.float32), jnp.zeros((6, 5))
    parts = (operators.Blur(pixels=1.0), operators.Noise(), operators.Fade())
    several = operators.Alternate(operators=parts)
    reference = several.prepare(image, jax.random.key(0))
    alone = [o.apply(o.prepare(image, jax.random.key(0)), mask) for o in parts]
    np.testing.assert_array_equal(several.apply(reference, mask), alone[0])
    seen = jax.jit(jax.vmap(lambda step: several.at(reference, mask, step)))(jnp.arange(8))
    # Two steps each: one as it is and one mirrored see the same fill.
    for step, turn in enumerate((0, 0, 1, 1, 2, 2, 0, 0)):
        np.testing.assert_allclose(seen[step], alone[turn], atol=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        operators.Alternate(operators=parts[:1]).prepare(image, None)
    with pytest.raises(ValueError, match=r"must be of perturb.operators, got <class 'object'>"):
        operators.Alternate(operators=(parts[0], object)).prepare(image, None)


def test_several_draws_of_noise_follow_each_other_in_turn():
    image, mask = jnp.asarray(RNG.random((6, 5, 3)), jnp.float32), jnp.zeros((6, 5))
    noise = operators.Noise(deviation=0.1, draws=6)
    drawn = noise.pictures(image, jax.random.key(0))
    # The first is that of one draw, then its mirror and both opposites: nothing is clipped at this
    # deviation.
    one = operators.Noise(deviation=0.1).prepare(image, jax.random.key(0))[1]
    np.testing.assert_array_equal(drawn[0], one)
    np.testing.assert_array_equal(drawn[1::2], jnp.flip(drawn[::2], 2))
    np.testing.assert_allclose(drawn[2], 2 * image.mean((0, 1)) - drawn[0], atol=1e-6)
    assert jnp.abs(drawn[4] - drawn[0]).max() > 0.01
    several = operators.Alternate(operators=(operators.Fade(), noise, operators.Fade(colour=0.0)))
    reference = several.prepare(image, jax.random.key(0))
    # Two steps each, three operators: two draws a round, the fourth round begins again.
    for step, draw in {2: 0, 3: 1, 8: 2, 9: 3, 14: 4, 15: 5, 20: 0}.items():
        seen = several.at(reference, mask, jnp.int32(step))
        np.testing.assert_allclose(seen, drawn[draw], atol=1e-6)
        np.testing.assert_array_equal(several.at(reference, mask, jnp.int32(step // 2 * 2 + 2)), 0)
        whole = several.at(reference, jnp.ones((6, 5)), jnp.int32(step))
        np.testing.assert_allclose(whole, image, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [operators.DEFAULT, "mean+blur+noise", "blur+noise", "mean+noise"])
def test_a_turn_is_the_same_to_the_last_bit_beside_any_other(name):
    operator, slots = operators.get(name), 4
    images = jax.random.uniform(jax.random.key(0), (slots, 32, 32, 3))
    mask = jax.nn.sigmoid(4 * jax.random.normal(jax.random.key(1), (slots, 32, 32)))
    # Both ends too, which are the picture and the fill themselves.
    mask = mask.at[:, :3].set(1).at[:, 3:5].set(0)
    back = jax.random.normal(jax.random.key(2), images.shape)
    reference = jax.vmap(operator.prepare)(images, jax.random.split(jax.random.key(3), slots))

    @jax.jit
    def shown(step):
        view, pull = jax.vjp(lambda m: jax.vmap(operator.at)(reference, m, step), mask)
        return view[0], pull(back)[0][0]

    for step in (0, 2, 4):
        alike = shown(jnp.full(slots, step))
        for other in (0, 2, 4):
            for got, want in zip(shown(jnp.array([step, other, 4, step])), alike, strict=True):
                np.testing.assert_array_equal(got, want)
