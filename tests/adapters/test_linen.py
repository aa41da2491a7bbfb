"""Linen modules as models: normalisation, keywords, and programs shared by equal modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import adapters, check_model, short_side

IMAGES = np.random.default_rng(0).random((2, 6, 5, 3), np.float32)


class Net(nn.Module):
    features: int = 4

    @nn.compact
    def __call__(self, x, train=True, power=(1,)):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.features)(x.mean((1, 2)) ** power[0])

    @nn.compact
    def embed(self, x):
        return nn.Dense(2, name="embed")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def variables():
    return Net().init(jax.random.key(0), IMAGES, train=False)


def dense(variables, x):
    layer = variables["params"]["Dense_0"]
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def test_normalisation_and_keywords_against_numpy(variables):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    model = adapters.from_linen(
        Net(), variables, mean=mean, std=std, train=False, power=(2,), name="squares"
    )
    # Fresh statistics are 0 and 1, so all that the norm does is its epsilon of 1e-5.
    x = (IMAGES - np.float32(mean)) / np.float32(std) / np.sqrt(1 + 1e-5, dtype=np.float32)
    expected = dense(variables, x.mean((1, 2)) ** 2)
    np.testing.assert_allclose(check_model(model, IMAGES), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(model, IMAGES), expected, rtol=1e-4)
    # A batch of batches, the second in reverse: rows must not be mixed up.
    stacked = jax.vmap(model)(jnp.stack([IMAGES, IMAGES[::-1]]))
    np.testing.assert_allclose(stacked, np.stack([expected, expected[::-1]]), rtol=1e-4)


def test_fields_reach_the_model(variables):
    geometry = short_side(8).crop(6)
    model = adapters.from_linen(
        Net(), variables, geometry=geometry, class_names=list("abcd"), output="probabilities"
    )
    assert model.geometry == geometry
    assert model.class_names == ("a", "b", "c", "d")
    assert (model.output, model.name, model.channels) == ("probabilities", "Net", 3)


@pytest.mark.parametrize("method", ["embed", Net.embed])
def test_another_method(method):
    variables = Net().init(jax.random.key(0), IMAGES, method="embed")
    model = adapters.from_linen(Net(), variables, method=method, output="embedding")
    assert model(IMAGES).shape == (2, 2)


def test_bfloat16_images_stay_bfloat16_inside(variables):
    # Mean and deviation are float32 numbers: they must not lift the images to float32.
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables)
    model = adapters.from_linen(Net(), half, mean=0.5, std=0.25, train=False)
    assert model(jnp.asarray(IMAGES, jnp.bfloat16)).dtype == jnp.bfloat16


def test_equal_modules_share_a_program_and_others_do_not(variables):
    traces = []

    @jax.jit
    def run(model, x):
        traces.append(model.apply)
        return model(x)

    other = jax.tree.map(lambda v: v + 0.5, variables)
    a, b = (adapters.from_linen(Net(), v, mean=0.5, train=False) for v in (variables, other))
    assert a.apply == b.apply
    assert hash(a.apply) == hash(b.apply)
    assert not np.allclose(run(a, IMAGES), run(b, IMAGES))
    # Weights are arguments: other ones are no other program.
    assert len(traces) == 1
    run(adapters.from_linen(Net(), variables, mean=0.4, train=False), IMAGES)
    run(adapters.from_linen(Net(), variables, mean=0.5, train=False, power=(3,)), IMAGES)
    assert len(traces) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (1.0, 0.0, 1.0)}, r"std must not be 0, got \(1.0, 0.0, 1.0\)"),
        ({"mean": (0.1, 0.2)}, r"mean must be one number, or one for each of 3 channels"),
        ({"mean": float("nan")}, "mean must be one number"),
        ({"train": False, "power": [2]}, "must be hashable"),
        ({"output": "scores"}, "output must be one of"),
    ],
)
def test_bad_options_are_named(variables, options, message):
    with pytest.raises(ValueError, match=message):
        adapters.from_linen(Net(), variables, **options)
