"""Attributions of every kind of output, of signals, volumes and strips, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import attribution

V = 3.0
X = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
SQUARE = np.zeros((8, 8))
# A mean over 16 px: each has a sixteenth of the slope.
SQUARE[2:6, 2:6] = 1 / 16
VECTORS = np.array([[1.0, 2.0, 2.0], [2.0, -1.0, 2.0]], np.float32)
REGIONS = np.random.default_rng(1).random((2, 8, 8)).astype(np.float32)


def seen(x):
    """Brightness of a square in each colour, times 3, in numpy or JAX."""
    return V * x[:, 2:6, 2:6].mean((1, 2))


def softmax(y):
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def planted(output):
    def apply(v, x):
        if output == "segmentation":
            return v * x
        y = v * x[:, 2:6, 2:6].mean((1, 2))
        if output == "detection":
            # The second box scores half of the first, so the first decides wherever a class is
            # asked for.
            boxes = jnp.broadcast_to(jnp.array([[0.0, 0, 4, 4], [4.0, 4, 8, 8]]), (len(x), 2, 4))
            return boxes, jnp.stack([y, 0.5 * y], 1)
        if output == "probabilities":
            return jax.nn.softmax(y)
        return y[:, :1] if output == "binary" else y

    return perturb.Model(apply, jnp.float32(V), output=output)


def one_hot(t):
    return np.eye(3)[t]


def slopes(output, targets):
    """`[B, H, W, C]` gradients of the targets' scores, by hand."""
    found = []
    for i, t in enumerate(np.arange(2) if targets is None else targets):
        along = SQUARE[..., None] * V
        if output == "binary":
            found.append(along * one_hot(0) * (1 if t else -1))
        elif output == "probabilities":
            p = softmax(seen(X.astype(np.float64)))[i]
            # The derivative of a softmax.
            found.append(along * (p[t] * (one_hot(t) - p)))
        elif output == "segmentation":
            # Without a region the score is the mean over all 64 places.
            found.append(np.full((8, 8, 1), V / 64) * one_hot(t))
        else:
            found.append(along * one_hot(t))
    return np.stack(found)


KINDS = ("logits", "probabilities", "binary", "multilabel", "regression", "embedding", "any")
KINDS = (*KINDS, "segmentation", "detection")


@pytest.mark.slow_cases
@pytest.mark.parametrize("output", KINDS)
def test_against_closed_forms(output):
    model, targets = planted(output), [0, 1]
    want = slopes(output, targets)
    np.testing.assert_allclose(
        attribution.gradient(model, X, targets), np.abs(want).max(-1), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        attribution.input_gradient(model, X, targets), (X * want).sum(-1), rtol=1e-4, atol=1e-7
    )
    # Complete: the map's sum is the score's rise from black.
    score = jax.vmap(lambda y, t: perturb.scores.score(output, y, t))
    rise = score(model(X), jnp.array(targets)) - score(model(0 * X), jnp.array(targets))
    found = attribution.integrated_gradients(model, X, targets)
    np.testing.assert_allclose(found.sum((1, 2)), rise, rtol=1e-3, atol=1e-5)
    if output != "probabilities":  # linear: a pixel's fall is its share of the score
        found = attribution.occlusion(model, X, targets, window=1, operator=BLACK)
        np.testing.assert_allclose(found, (X * want).sum(-1), atol=1e-5)


BLACK = perturb.operators.Fade(colour=0.0)


def test_targets_that_are_more_than_a_number():
    """The cosine with a vector, the mean over a region, the overlap with a box."""
    model = planted("embedding")
    found = attribution.integrated_gradients(model, np.clip(X, 0.1, 1), VECTORS, baseline=0.1)
    y, y0 = seen(np.clip(X, 0.1, 1)), np.full(3, 0.1 * V)
    length = np.linalg.norm(VECTORS, axis=1)
    cosine = (y * VECTORS).sum(1) / np.linalg.norm(y, axis=1) / length
    start = VECTORS @ y0 / np.linalg.norm(y0) / length
    # A cosine bends along the path, so a sum over some of its points is off by some thousandths.
    np.testing.assert_allclose(found.sum((1, 2)), cosine - start, atol=2e-3)
    found = attribution.gradient(planted("segmentation"), X, ([2, 0], REGIONS))
    np.testing.assert_allclose(found, V * REGIONS / REGIONS.sum((1, 2), keepdims=True), rtol=1e-4)
    boxes = np.array([[0.0, 0, 4, 2]] * 2)  # half of the first box, none of the second
    found = attribution.gradient(planted("detection"), X, ([2, 0], boxes))
    np.testing.assert_allclose(found, np.tile(0.5 * V * SQUARE, (2, 1, 1)), rtol=1e-4)


def test_rise_and_igos_go_by_the_probability_where_there_is_one():
    rng = np.random.default_rng(0)
    masks = rng.random((6, 8, 8)).astype(np.float32)
    for output in ("multilabel", "binary", "regression"):
        model = planted(output)
        y = np.stack([seen(m[..., None] * X) for m in masks])[:, [0, 1], [0, 1]]
        if output == "binary":
            # Targets 0 and 1 of one logit: no is its negative.
            y = np.stack([seen(m[..., None] * X) for m in masks])[..., 0] * [-1, 1]
        value = y if output == "regression" else 1 / (1 + np.exp(-y))
        want = np.einsum("nb,nhw->bhw", value, masks) / len(masks)
        found = attribution.rise(model, X, [0, 1], masks=masks)
        np.testing.assert_allclose(found, want, rtol=1e-4)


SHAPES = {"signal": (2, 24, 3), "strip": (2, 1, 24, 3), "column": (2, 24, 1, 3)}
SHAPES["volume"] = (2, 6, 6, 6, 3)


@pytest.mark.parametrize(
    "kind",
    ["signal", "strip", *(pytest.param(k, marks=pytest.mark.slow) for k in ("column", "volume"))],
)
def test_signals_strips_and_volumes(kind):
    """The first third along the longest axis is seen, in the target's channel."""
    x = np.random.default_rng(0).random(SHAPES[kind]).astype(np.float32)
    axis = int(np.argmax(x.shape[1:-1]))
    part = np.zeros(x.shape[1:-1])
    part[(slice(None),) * axis + (slice(part.shape[axis] // 3),)] = 1
    part /= part.sum()
    inner = tuple(range(1, x.ndim - 1))
    model = perturb.Model(lambda w, x: (w * x).sum(inner), part[..., None].astype(np.float32))
    want = np.stack([part * x[i, ..., i] for i in range(2)])

    def call(name, **options):
        found = attribution.get(name)(model, x, [0, 1], **options)
        assert found.shape == x.shape[:-1], name
        assert np.isfinite(found).all(), name
        return found

    np.testing.assert_allclose(call("gradient"), np.stack([part, part]), atol=1e-6)
    np.testing.assert_allclose(call("smoothgrad", samples=2), np.stack([part, part]), atol=1e-6)
    for name in ("input_gradient", "integrated_gradients"):
        np.testing.assert_allclose(call(name), want, atol=1e-6)
    np.testing.assert_allclose(call("occlusion", window=1, operator=BLACK), want, atol=1e-5)
    for name in ("random", "centre", "sobel"):
        call(name)
    told = perturb.Model(model.apply, model.variables, output="regression")
    found = attribution.rise(told, x, [0, 1], samples=300, cells=4)
    # 300 random masks of four cells: the part that is seen is higher on average, no more is
    # promised.
    assert (found[:, part > 0].mean(1) > found[:, part == 0].mean(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_optimised_maps_of_signals_strips_and_volumes(kind):
    x = np.random.default_rng(0).random(SHAPES[kind]).astype(np.float32)
    inner = tuple(range(1, x.ndim - 1))
    model = perturb.Model(lambda w, x: w * x.mean(inner), jnp.float32(2.0), output="regression")
    given = {"igos": {"steps": 2, "integration": 2}}
    given["nested"] = {"areas": (0.5, 0.25), "first_steps": 2, "steps": 2}
    for name, options in given.items():
        found = attribution.get(name)(model, x, [0, 1], **options)
        assert found.shape == x.shape[:-1]
        assert np.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_cells_of_signals_strips_and_volumes(kind):
    """Black boxes by cells see the one half that is looked at, whatever the number of axes."""
    x = np.random.default_rng(0).random(SHAPES[kind]).astype(np.float32)
    along = 1 + int(np.argmax(x.shape[1:-1]))
    half = x.shape[along] // 2
    inner = tuple(range(1, x.ndim - 1))
    model = perturb.Model(
        lambda w, x: w * jnp.moveaxis(x, along, 1)[:, :half].mean(inner),
        jnp.float32(9.0),
        output="regression",
    )
    for name, options in {"sobol_indices": {"designs": 8}, "hsic": {"samples": 200}}.items():
        found = attribution.get(name)(model, x, [0, 1], cells=2, operator=BLACK, **options)
        assert found.shape == x.shape[:-1]
        seen = np.abs(np.moveaxis(found, along, 1)).reshape(2, x.shape[along], -1).mean(2)
        assert (seen[:, :half].mean(1) > 4 * seen[:, half:].mean(1)).all()
    if x.ndim != 4:
        with pytest.raises(ValueError, match=r"draws stars on pictures \[B, H, W, C\]"):
            attribution.extremal_contours(model, x, [0, 1])


@pytest.mark.parametrize("kind", SHAPES)
def test_grad_cam_of_signals_strips_and_volumes(kind):
    """Grad-CAM of the last map: a linear classifier's weight times the map, by hand."""
    x = np.random.default_rng(0).random(SHAPES[kind]).astype(np.float32)
    inner = tuple(range(1, x.ndim - 1))
    weight = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)

    def net(w, x):
        return perturb.taps.tag(2.0 * x, "map").mean(inner) @ w

    found = attribution.grad_cam(perturb.Model(net, weight), x, [0, 1])
    places = np.prod(x.shape[1:-1])
    # The map is twice the picture, and the mean over places makes the weight one in their number.
    want = np.stack([2 * x[i] @ weight[:, i] for i in range(2)]) / places
    np.testing.assert_allclose(found, np.maximum(want, 0), atol=1e-6)
