"""Taps: what has no name, what cannot be edited, and the reason that is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import taps


def test_loops_are_refused():
    def f(x):
        def body(x, _):
            with jax.named_scope("cell"):
                x = taps.tag(jnp.tanh(x), "state")
            return jax.nn.relu(x), x

        x, _ = jax.lax.scan(body, x, None, length=3)
        with jax.named_scope("choice"):
            x = jax.lax.cond(x[0] > 0, lambda x: jax.nn.relu(x), lambda x: x, x)
        return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: taps.tag(x + 1, "count"), x)

    # The branch's result has the name of its scope; what is inside of loops is run a number of
    # times that no trace knows.
    assert list(taps.names(f, jnp.ones(2))) == ["choice"]
    for name, loop in [
        ("state", "scan"),
        ("cell", "scan"),
        ("cell#2", "scan"),
        ("choice/relu", "cond"),
        ("count", "while"),
    ]:
        with pytest.raises(ValueError, match=f"'{name}' lies inside the body of a {loop}"):
            taps.read(f, name)(jnp.ones(2))
    with pytest.raises(ValueError, match="none has a name, mark it"):
        taps.read(lambda x: x + 1, "relu")(1.0)


def test_what_has_no_effect_has_no_name():
    def f(x):
        with jax.named_scope("unused"):
            y = jax.nn.relu(taps.tag(x, "t"))
        del y
        return jnp.einsum("ij,jk->ki", x, x)

    x = jnp.arange(4.0).reshape(2, 2)
    assert list(taps.names(f, x)) == ["dense_1"]
    # An einsum's activation has the order of its equation, not that of the product inside.
    assert (taps.read(f, "dense_1")(x)[1]["dense_1"] == f(x)).all()
    for name in ("unused", "unused/relu", "t"):
        with pytest.raises(
            ValueError, match=f"'{name}' has no effect on what the function returns"
        ):
            taps.edit(f, {name: lambda a: a})(jnp.ones((2, 2)))


def test_edits_keep_shape_and_dtype():
    f = lambda x: jax.nn.relu(x) + 1  # noqa: E731
    with pytest.raises(ValueError, match=r"edit of 'relu' must return float32\[3\].* float32\[1\]"):
        taps.edit(f, {"relu": lambda a: a[:1]})(jnp.ones(3))
    with pytest.raises(ValueError, match=r"must return float32\[3\].* int32\[3\]"):
        taps.edit(f, {"relu": lambda a: a.astype(int)})(jnp.ones(3))
    assert (
        taps.edit(f, {"relu": lambda a: np.zeros(3, np.float32)})(jnp.ones(3)).tolist() == [1] * 3
    )


def test_a_scanned_linen_module_is_a_layer_and_its_inside_is_refused_with_the_reason():
    import flax.linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return nn.relu(nn.Dense(3, name="dense")(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
            x, _ = nn.scan(Block, **axes)(name="layers")(x, None)
            return nn.Dense(4, name="head")(x)

    x = jnp.ones((2, 3))
    variables = Net().init(jax.random.key(0), x)
    f = Net().apply
    assert list(taps.names(f, variables, x))[:2] == ["layers", "head"]
    y, read = taps.read(f, "layers")(variables, x)
    head = variables["params"]["head"]
    np.testing.assert_allclose(read["layers"] @ head["kernel"] + head["bias"], y, rtol=1e-6)
    with pytest.raises(ValueError, match="inside the body of a scan"):
        taps.read(f, "layers/dense")(variables, x)
