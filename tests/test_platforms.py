"""What a GPU computes in a form of its own, run here: the numbers are those of the other form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import _sums, areas, operators, solver


@pytest.fixture
def gpu(monkeypatch):
    """Returns a function that runs another as a GPU would."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            for module in (_sums, areas, operators, solver):
                patch.setattr(module, "by_platform", lambda gpu, other, *x: gpu(*x))
            return jax.jit(lambda *x: function(*x))(*args)

    return run


@pytest.mark.parametrize("number", [7, 1001, 50176])
def test_sums_are_the_same_integers(gpu, number):
    x = jax.random.normal(jax.random.key(number), (number,))
    for function in (_sums.total, lambda x: _sums.count(x > 0)):
        np.testing.assert_array_equal(gpu(function, x), jax.jit(function)(x))


# Newton steps are as many as masks under way need, and twice that.
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


def test_a_mirror_without_a_branch(gpu):
    views, which = (
        jax.random.uniform(jax.random.key(2), (3, 8, 6, 1)),
        jnp.array([True, False, True]),
    )
    mirror = jax.vmap(solver._mirrored)
    np.testing.assert_array_equal(gpu(mirror, views, which), mirror(views, which))
