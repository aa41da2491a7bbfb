"""What a GPU computes in a form of its own, run here: the numbers are those of the other form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import operators
from perturb._numerics import sums
from perturb.masks import areas, upsampling
from perturb.solver.views import mirrored


@pytest.fixture
def gpu(monkeypatch):
    """Returns a function that runs another as a GPU would."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            for module in (sums, areas, operators, upsampling):
                # The choice between the forms is made in one function, which here always takes the
                # GPU's.
                patch.setattr(module, "by_platform", lambda gpu, other, *x: gpu(*x))
            return jax.jit(lambda *x: function(*x))(*args)

    return run


# One row, one and a half, and a picture.
@pytest.mark.slow_cases
@pytest.mark.parametrize("number", [7, 1001, 3000, 50176])
def test_sums_are_as_close_and_do_not_know_their_neighbours(gpu, number):
    x = jax.random.normal(jax.random.key(number), (5, number))
    both = gpu(jax.vmap(lambda x: sums.totals((x, x**2), bounds=(None, None))), x)
    for got, terms in zip(both, (x, x**2), strict=True):
        # 18 bits below the largest term in a row of 2,048, 21 in one of 256; half a unit each, of
        # either sign.
        unit = float(jnp.abs(terms).max()) * 2.0**-18
        np.testing.assert_allclose(got, np.asarray(terms, float).sum(1), atol=unit * number**0.5)
        np.testing.assert_array_equal(got[:2], gpu(jax.vmap(sums.total), terms[:2]))
    (one,) = gpu(lambda x: sums.totals((x,), bounds=(1,)), jnp.full(number, 0.01))
    np.testing.assert_allclose(one, 0.01 * number, rtol=1e-6)
    assert gpu(lambda x: sums.count(x > 0), x[0]) == (x[0] > 0).sum()
    # Sums by whole numbers have no infinity: it must not come out as a large number.
    assert np.isnan(gpu(sums.total, x[0].at[1].set(np.inf)))


def _pictures():
    """Scores of many kinds: blobs, tails, two values, one value, a ramp, a single point."""
    keys = jax.random.split(jax.random.key(0), 4)
    size = (96, 96)
    blobs = upsampling.gaussian_upsample(
        jax.random.normal(keys[0], (32, 32)), size, step=3, sigma=4.0, reach=4
    )
    yield "noise", jax.random.normal(keys[1], size)
    yield "blobs", blobs
    yield "peaks", blobs**3
    yield "tails", jax.random.t(keys[2], 2.0, size)
    yield "two values", (jax.random.uniform(keys[3], size) < 0.003).astype(jnp.float32)
    yield "flat", jnp.zeros(size)
    yield "ramp", jnp.arange(96.0 * 96).reshape(size)
    yield "point", jnp.zeros(size).at[3, 4].set(1)


# Eight looks at all pixels are enough for every one of them.
@pytest.mark.slow
@pytest.mark.parametrize("scores", [pytest.param(u, id=name) for name, u in _pictures()])
@pytest.mark.parametrize("temperature", [0.1, 0.025])
def test_the_area_is_as_exact_whatever_the_scores(gpu, request, scores, temperature):
    asked = jnp.array([0.01, 0.1, 0.5, 0.95])

    def masks(u):
        cut = functools.partial(areas.exact_area, temperature=temperature)
        return jax.vmap(cut, (None, 0))(areas.standard(u), asked)

    found = gpu(masks, scores)
    np.testing.assert_allclose(np.asarray(found, float).mean((1, 2)), asked, rtol=1e-5)
    # A mask's slope is a quarter over the temperature: a threshold's rounding shows most in the
    # sharper one. Among long tails the mean hardly tells two thresholds apart.
    atol = 5e-5 if "tails" in request.node.name else min(5e-5, 2e-6 / temperature)
    np.testing.assert_allclose(found, masks(scores), atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("area", [0.01, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("temperature", [0.1, 0.025])
def test_the_area_is_as_exact(gpu, area, temperature):
    scores = areas.standard(jax.random.normal(jax.random.key(0), (112, 112)))

    def mask(u):
        return areas.exact_area(u, area, temperature=temperature)

    np.testing.assert_allclose(float(gpu(mask, scores).mean()), area, rtol=1e-5)
    np.testing.assert_allclose(gpu(mask, scores), mask(scores), atol=2e-5)
    both = [
        run(jax.grad(lambda u: (mask(u) ** 2).sum()), scores) for run in (gpu, lambda f, x: f(x))
    ]
    np.testing.assert_allclose(*both, atol=1e-4 * float(jnp.abs(both[1]).max()))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.1, 0.025])
def test_the_area_has_the_same_slopes(gpu, temperature):
    def score(u):
        mask = areas.exact_area(areas.standard(u), 0.1, temperature=temperature)
        return (mask * jnp.arange(96)).sum()

    scores = dict(_pictures())["blobs"]
    both = [run(jax.grad(score), scores) for run in (gpu, lambda f, x: f(x))]
    np.testing.assert_allclose(*both, atol=1e-4 * float(jnp.abs(both[1]).max()))


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_turn_reads_its_own_levels_only(gpu, step):
    """What the others left in the array, a NaN here, is nowhere read or multiplied by nothing."""
    image = jax.random.uniform(jax.random.key(1), (12, 10, 3))
    parts = (operators.Noise(), operators.Blur(levels=4), operators.Fade())
    turns = operators.Alternate(operators=parts)
    reference = turns.prepare(image, jax.random.key(0))
    # The picture is the last level of the first, and the second has one of its own.
    # A turn is two steps, so step // 2 is the operator.
    own = np.array([[0, 1], [2, 3, 4, 5], [6, 1]][step // 2])
    elsewhere = jnp.full_like(reference, jnp.nan).at[own].set(reference[own])
    mask = jnp.linspace(0.01, 1, 120).reshape(12, 10)

    def shown(m, levels):
        return turns.at(levels, m, jnp.int32(step))

    alone = parts[step // 2]
    want = alone.apply(alone.prepare(image, jax.random.key(0)), mask)
    np.testing.assert_allclose(gpu(shown, mask, elsewhere), want, atol=2e-7)
    np.testing.assert_allclose(shown(mask, reference), want, atol=2e-7)
    slopes = [
        run(jax.grad(lambda m, x: (shown(m, x) ** 2).sum()), mask, x)
        for run, x in ((gpu, elsewhere), (lambda f, *x: f(*x), reference))
    ]
    np.testing.assert_allclose(*slopes, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [2, 8])
def test_two_levels_of_a_pyramid_give_what_all_give(gpu, levels):
    image = jax.random.uniform(jax.random.key(1), (24, 20, 3))
    blur = operators.Blur(levels=levels)
    reference = blur.prepare(image, None)
    # Whole numbers of levels, 0 and 1 among them, and what lies between.
    mask = jnp.linspace(0, 1, 24 * 20).reshape(24, 20).at[:, 0].set(1).at[:, 1].set(2 / 7)

    def shown(m):
        return blur.apply(reference, m)

    np.testing.assert_allclose(gpu(shown, mask), shown(mask), atol=2e-7)
    assert (gpu(shown, jnp.ones_like(mask)) == image).all()
    slopes = [
        run(jax.grad(lambda m: (shown(m) ** 2).sum()), mask) for run in (gpu, lambda f, x: f(x))
    ]
    np.testing.assert_allclose(*slopes, atol=1e-5)


@pytest.mark.slow
def test_a_mirror_is_a_place_to_read_from_but_on_a_tpu_a_choice():
    pictures, which = (
        jax.random.uniform(jax.random.key(2), (3, 2, 8, 6, 3)),
        jnp.array([True, False, True]),
    )
    mirror = jax.jit(jax.vmap(mirrored))
    wanted = np.where(
        which[:, None, None, None, None], np.asarray(pictures)[..., ::-1, :], pictures
    )
    np.testing.assert_array_equal(mirror(pictures, which), wanted)
    for platform, reads in (("cpu", True), ("cuda", True), ("tpu", False)):
        program = jax.export.export(mirror, platforms=[platform])(pictures, which).mlir_module()
        assert ("gather" in program, "reverse" in program) == (reads, not reads)


@pytest.mark.slow_cases
@pytest.mark.parametrize("cells", [1, 5])
def test_blobs_beyond_the_border_count_for_it(gpu, cells):
    grid = jax.random.normal(jax.random.key(3), (cells, 4))

    def spread(grid):
        return upsampling.gaussian_upsample(grid, (3 * cells, 12), step=3, sigma=4.0, reach=4)

    np.testing.assert_allclose(gpu(spread, grid), spread(grid), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 700, 9215, 9216])
def test_the_highest_scores_are_the_same(gpu, count):
    for name, scores in _pictures():
        scores = scores.at[:9].multiply(-1)  # both zeros among them
        for u in (scores, jnp.round(scores, 1), jnp.full_like(scores, jnp.finfo(jnp.float32).max)):
            kept = gpu(jax.vmap(areas.binarise, (0, None)), u[None], count)
            np.testing.assert_array_equal(kept[0], areas.binarise(u, count), err_msg=name)
            assert kept.sum() == count
