"""Max pooling by slices against XLA's window reduction, values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb.nets._pool import max_pool


@pytest.mark.slow_cases
# Odd and even sides: windows that end at the border, hang over it, or leave a row out.
@pytest.mark.parametrize("shape", [(2, 111, 111, 3), (3, 13, 16, 2)])
@pytest.mark.parametrize(
    ("side", "stride", "padding", "ceil"), [(3, 2, 0, True), (3, 2, 1, False), (2, 2, 0, False)]
)
def test_equals_window_reduction(shape, side, stride, padding, ceil):
    """Values are bitwise equal; gradients too, where no values tie."""
    x = jax.random.normal(jax.random.key(0), shape)
    over = [
        (padding, padding + (-(n + 2 * padding - side) % stride if ceil else 0)) for n in shape[1:3]
    ]

    def window(x):
        return nn.max_pool(x, (side, side), (stride, stride), over)

    def ours(x):
        return max_pool(x, side, stride, padding=padding, ceil=ceil)

    np.testing.assert_array_equal(jax.jit(ours)(x), window(x))
    # Every window weighs differently, so that a gradient that goes to another one shows.
    w = jax.random.normal(jax.random.key(1), window(x).shape)
    want = jax.grad(lambda x: (window(x) * w).sum())(x)
    np.testing.assert_allclose(jax.grad(lambda x: (ours(x) * w).sum())(x), want, atol=1e-5)
    np.testing.assert_array_equal(jax.vmap(ours)(jnp.stack([x, 2 * x]))[0], ours(x))
