"""The model as a pytree, and the checks that refuse a model the methods cannot trust."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model, check_model, check_parity

WEIGHTS = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
IMAGES = np.random.default_rng(0).random((3, 6, 5, 3), np.float32)


def linear(w, x):
    return x.mean((1, 2)) @ w


def train_mode(w, x):
    """Batch normalisation with the statistics of the batch at hand."""
    x = (x - x.mean((0, 1, 2), keepdims=True)) / (x.std((0, 1, 2), keepdims=True) + 1e-3)
    # Every other row: over all of them the mean square of what was normalised is 1, whatever the
    # picture.
    return (x**2)[:, ::2].mean((1, 2)) @ w


def test_variables_are_leaves_and_the_rest_is_static():
    model = Model(linear, {"w": WEIGHTS}, class_names=["a", "b", "c", "d"])
    # A name among the leaves would be traced; weights that are not among them would be compiled in.
    assert [leaf.shape for leaf in jax.tree.leaves(model)] == [(3, 4)]
    other = jax.tree.map(lambda w: w + 1, model)
    assert other.class_names == ("a", "b", "c", "d")
    assert jax.tree.structure(other) == jax.tree.structure(model)


def test_other_weights_do_not_retrace_and_other_functions_do():
    traces = []

    @jax.jit
    def run(model, x):
        # Runs while tracing only: its length is the number of compiled programs.
        traces.append(model.name)
        return model(x)

    outputs = [run(Model(linear, WEIGHTS * k), IMAGES) for k in (1, 2, 3)]
    np.testing.assert_allclose(outputs[1], 2 * outputs[0], rtol=1e-5)
    assert len(traces) == 1
    run(Model(train_mode, WEIGHTS), IMAGES)
    assert len(traces) == 2


def test_model_against_numpy_jit_and_vmap():
    model = Model(linear, WEIGHTS)
    expected = IMAGES.mean((1, 2)) @ WEIGHTS
    np.testing.assert_allclose(model(IMAGES), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(model, IMAGES), expected, rtol=1e-5)
    stacked = jax.vmap(model)(jnp.stack([IMAGES, 1 - IMAGES]))
    np.testing.assert_allclose(stacked[0], expected, rtol=1e-5)


def test_unknown_output_is_refused():
    with pytest.raises(ValueError, match=r"output must be one of logits, .* got 'scores'"):
        Model(linear, WEIGHTS, output="scores")


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_check_model_returns_a_row_for_every_image(batch):
    outputs = check_model(Model(linear, WEIGHTS), IMAGES[:batch])
    np.testing.assert_allclose(outputs, IMAGES[:batch].mean((1, 2)) @ WEIGHTS, rtol=1e-5)


def test_check_model_takes_trees_integers_and_signals():
    def segment(w, x):
        return {"map": (x @ w).argmax(-1), "any": (x > 0.5).any((1, 2))}

    outputs = check_model(Model(segment, WEIGHTS, output="any"), IMAGES)
    assert outputs["map"].shape == (3, 6, 5)
    signals = Model(lambda w, x: x.mean(1) * w, np.float32(2), channels=7)
    assert check_model(signals, np.ones((2, 9, 7), np.float32)).shape == (2, 7)


@pytest.mark.parametrize(
    "images",
    [IMAGES, IMAGES[:1], np.full_like(IMAGES, 0.5), np.full_like(IMAGES[:1], 0.5)],
    # Grey pictures alike have nothing to leak, and one has no neighbour: the check must make its
    # own.
    ids=["photographs", "one photograph", "grey", "one grey"],
)
def test_check_model_refuses_coupled_batches(images):
    with pytest.raises(ValueError, match=r"model leaky couples the images of a batch"):
        check_model(Model(train_mode, WEIGHTS, name="leaky"), images)


def test_check_model_refuses_an_image_that_neighbours_turn_to_nan():
    def fragile(w, x):
        spread = jnp.sqrt(1.0 - x.max((0, 1, 2)))  # finite until a neighbour holds a full white
        return x.mean((1, 2)) @ w / spread.min()

    with pytest.raises(ValueError, match="couples the images"):
        check_model(Model(fragile, WEIGHTS), IMAGES * 0.9)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda w, x: linear(w, x).at[0, 0].set(jnp.nan), "NaN or infinite outputs"),
        (lambda w, x: linear(w, x) / 0.0, "NaN or infinite outputs"),
        (lambda w, x: linear(w, x).mean(0), r"one row an image, .* got shape \(4,\) for 3 images"),
        (lambda w, x: linear(w, x).sum(), r"one row an image, .* got shape \(\) for 3 images"),
    ],
)
def test_check_model_refuses_bad_outputs(apply, message):
    with pytest.raises(ValueError, match=message):
        check_model(Model(apply, WEIGHTS), IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0, 0], r"must be \[B, H, W, 3\] .* got shape \(5, 3\)"),
        (IMAGES[:0], r"B at least 1, got shape \(0, 6, 5, 3\)"),
        (IMAGES.transpose(0, 3, 1, 2), r"must be \[B, H, W, 3\]"),
        ((IMAGES * 255).astype(np.uint8), r"floats in \[0, 1\], got uint8; divide by 255"),
    ],
)
def test_check_model_refuses_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        check_model(Model(linear, WEIGHTS), images)


def test_parity_measures_and_refuses():
    y = IMAGES.astype(np.float64).mean((1, 2)) @ WEIGHTS
    model = Model(linear, WEIGHTS)
    assert check_parity(model, IMAGES, y) < 1e-6
    # One class of four is off by 1 % of the largest output, and that is what is measured.
    off = y + 0.01 * np.abs(y).max() * (np.arange(4) == 2)
    assert check_parity(model, IMAGES, off, tolerance=0.02) == pytest.approx(0.01, rel=0.02)
    with pytest.raises(ValueError, match=r"differs from its source by 0\.0[01]"):
        check_parity(model, IMAGES, off)


@pytest.mark.parametrize(
    "apply",
    [
        lambda w, x: linear(w, (x - 0.5) / 0.25),  # preprocessing that the source did not have
        lambda w, x: linear(w, x[..., ::-1]),  # BGR
        lambda w, x: linear(w, x) + jnp.nan,
    ],
)
def test_parity_refuses_another_preprocessing(apply):
    with pytest.raises(ValueError, match="parity: model wrong differs from its source"):
        check_parity(Model(apply, WEIGHTS, name="wrong"), IMAGES, IMAGES.mean((1, 2)) @ WEIGHTS)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (IMAGES, np.ones((3, 5)), r"gives \(3, 4\), y has shape \(3, 5\)"),
        (IMAGES.transpose(0, 3, 1, 2), np.ones((3, 4)), r"x\.transpose\(0, 2, 3, 1\)"),
        (IMAGES * 4 - 2, np.ones((3, 4)), r"x must be in \[0, 1\], got \[-1\."),
        (IMAGES[:0], np.ones((0, 4)), r"got shape \(0, 6, 5, 3\)"),
    ],
)
def test_parity_refuses_bad_arrays(x, y, message):
    with pytest.raises(ValueError, match=message):
        check_parity(Model(linear, WEIGHTS), x, y)


def test_parity_wants_one_array():
    model = Model(lambda w, x: {"logits": linear(w, x)}, WEIGHTS, output="any")
    with pytest.raises(ValueError, match=r"gives a dict, y has shape \(3, 4\)"):
        check_parity(model, IMAGES, np.ones((3, 4)))
