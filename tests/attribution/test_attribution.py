"""Every attribution finds a planted patch; each has the one signature and its own rules."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import attribution
from perturb.taps.swapping import swap
from tests import relunet

SIZE = 32
ROWS, COLUMNS = slice(6, 18), slice(14, 26)
# Smaller than the defaults: the tests are about the answer, not the effort.
FAST = {
    "smoothgrad": {"samples": 4},
    "integrated_gradients": {"steps": 8},
    "rise": {"samples": 600, "cells": 5},
    "igos": {"steps": 6, "integration": 4, "cells": 8, "size_weight": 1.0, "operator": "fade"},
    # 0.14 is the planted patch: 144 of 1,024 px.
    "extremal_contours": {"steps": 30, "area": 0.14},
    "nested": {"areas": (0.14, 0.3), "first_steps": 30, "steps": 15},
    "occlusion": {"window": 4},
    "contrastive_excitation": {"layer": "low", "contrast_layer": "high"},
}
# Of tokens: tests/attribution/test_transformers.py.
TRANSFORMERS = ("libragrad", "legrad", "rollout")
LONG = ("nested", "igos", "extremal_contours", "rise")
LOOKING = [
    pytest.param(n, marks=pytest.mark.slow) if n in LONG else n
    for n in attribution.NAMES
    if n not in (*attribution.CONTROLS, *TRANSFORMERS)
]


@pytest.fixture(scope="module")
def planted():
    """A model of colours, two grey pictures with a patch of colour, and the patch."""
    rng = np.random.default_rng(0)
    images = np.full((2, SIZE, SIZE, 3), 0.4, np.float32)
    # Noise tells the pixels apart: what ties would be ordered by place, which is no answer.
    images += rng.uniform(-0.03, 0.03, images.shape).astype(np.float32)
    images[0, ROWS, COLUMNS, 0] += 0.5
    images[1, ROWS, COLUMNS, 2] += 0.5
    patch = np.zeros((SIZE, SIZE), bool)
    patch[ROWS, COLUMNS] = True
    return relunet.model(relunet.colour_weights()), images, np.array([0, 2]), patch


def overlap(found, patch):
    """Share of the patch among as many highest values as it has pixels."""
    order = np.argsort(-found.reshape(-1), kind="stable")[: patch.sum()]
    return patch.reshape(-1)[order].mean()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("smoothgrad", {"samples": 4}),
        ("expected_gradients", {"samples": 4}),
        ("guided_integrated_gradients", {"steps": 4}),
        ("igos", {"steps": 2, "integration": 2, "cells": 4}),
    ],
)
def test_64_bit_arithmetic_changes_no_map(planted, name, options):
    model, images, targets, _ = planted
    method = attribution.get(name)
    plain = method(model, images[:, :16, :16], targets, **options)
    # Many scientific programs turn it on for all of a process.
    with jax.enable_x64(True):
        wide = method(model, images[:, :16, :16], targets, **options)
    np.testing.assert_allclose(wide, plain, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("contrast", ["low", None])
def test_a_contrast_at_the_same_layer_is_refused(planted, contrast):
    model, images, targets, _ = planted
    # Without one it is taken at the last layer with places, which is "high" here.
    layer = contrast or attribution._common.last_layer(model, images)
    with pytest.raises(ValueError, match=r"layer must lie before .*nothing would be left"):
        attribution.contrastive_excitation(
            model, images, targets, layer=layer, contrast_layer=contrast
        )


@pytest.mark.slow_cases
@pytest.mark.parametrize("name", LOOKING)
def test_a_planted_patch_is_found(name, planted):
    if name == "xrai":
        pytest.importorskip("skimage", reason="xrai cuts pictures up by scikit-image")
    model, images, targets, patch = planted
    found = attribution.get(name)(model, images, targets, **FAST.get(name, {}))
    assert found.shape == images.shape[:3]
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    for i in range(2):
        # The first layer sees every other pixel only, so gradients are a comb: half of them hit.
        comb = name in ("gradient", "input_gradient", "smoothgrad", "integrated_gradients")
        comb |= name in ("guided_backprop", "deconvnet", "lrp", "attn_lrp")
        comb |= name in ("expected_gradients", "guided_integrated_gradients")
        # Chance is 0.14, the patch's share of the picture.
        wanted = 0.2 if comb else 0.55
        if name == "deconvnet":  # passes positive gradients everywhere, the patch or not
            wanted = 0.1
        assert overlap(found[i], patch) >= wanted, (name, overlap(found[i], patch))
        if name != "deconvnet":
            # A mean of masks is never far from their mean.
            factor = 1.05 if name == "rise" else 1.2
            assert found[i][patch].mean() > factor * found[i][~patch].mean()


@pytest.mark.parametrize("name", attribution.NAMES)
def test_one_signature(name):
    parameters = list(inspect.signature(attribution.get(name)).parameters.values())
    assert [p.name for p in parameters[:3]] == ["model", "images", "targets"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[3:])


@pytest.mark.parametrize("name", ["gradient", "random", "centre", "sobel"])
def test_an_image_alone_gets_the_map_it_gets_in_company(name, planted):
    model, images, targets, _ = planted
    function = attribution.get(name)
    both = function(model, images, targets)
    alone = function(model, images[:1], targets[:1])
    np.testing.assert_allclose(alone[0], both[0], atol=1e-6)
    assert alone.shape == (1, SIZE, SIZE)


def test_one_picture_takes_a_key_of_its_own(planted):
    model, images, targets, _ = planted
    keys = jax.random.split(jax.random.key(3), 2)
    both = attribution.smoothgrad(model, images[:2], targets[:2], samples=4, key=keys)
    alone = attribution.smoothgrad(model, images[:1], targets[:1], samples=4, key=keys[:1])
    np.testing.assert_allclose(alone[0], both[0], atol=1e-6 * np.abs(both[0]).max())


def test_controls_have_not_looked_at_the_network(planted):
    _, images, targets, _ = planted
    one, two = (relunet.model(relunet.random_weights(seed)) for seed in (0, 1))
    for name in attribution.CONTROLS:
        function = attribution.get(name)
        np.testing.assert_array_equal(
            function(one, images, targets), function(two, images, targets)
        )


def test_sobel_against_its_definition(planted):
    _, images, targets, _ = planted
    found = attribution.sobel(relunet.model(relunet.random_weights()), images, targets)
    grey = images[0].mean(-1).astype(np.float64)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    # On the patch's left border, whose first column is 14: elsewhere there is hardly an edge.
    y, x = 9, 13
    window = grey[y - 1 : y + 2, x - 1 : x + 2]
    by_hand = np.hypot((window * kernel).sum(), (window * kernel.T).sum())
    assert found[0, y, x] == pytest.approx(by_hand, rel=1e-4)


def test_integrated_gradients_are_complete(planted):
    model, images, targets, _ = planted
    found = attribution.integrated_gradients(model, images, targets, steps=64)
    rise = [float(model(images)[i, t] - model(0 * images)[i, t]) for i, t in enumerate(targets)]
    # A sum over 64 points of a path that bends at every relu; of the integral nothing would be
    # missing.
    np.testing.assert_allclose(found.sum((1, 2)), rise, rtol=0.02)


def test_cam_refuses_what_is_not_linear_after_the_layer(planted):
    model, images, targets, _ = planted
    with pytest.raises(ValueError, match="use grad_cam"):
        attribution.cam(model, images, targets, layer="low")


def test_excitation_keeps_the_probability(planted):
    """All that leaves the target arrives where every unit below is positive."""
    rng = np.random.default_rng(0)
    # Positive weights and pictures: every unit is on, and no path is closed to what is handed down.
    weights = jax.tree.map(lambda w: np.abs(w) + 0.01, relunet.random_weights())
    images = rng.uniform(0.1, 1, (2, 16, 16, 3)).astype(np.float32)
    found = attribution.excitation(relunet.model(weights), images, np.array([0, 3]), layer="high")
    small = found[:, ::2, ::2]
    assert small.min() >= 0
    # The layer has 8 x 8 places; enlarging keeps the mean, and the shares sum to 1.
    np.testing.assert_allclose(found.mean((1, 2)) * 64, 1.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x, t: attribution.gradient(m, x[0], t), "images must be"),
        (lambda m, x, t: attribution.gradient(m, x, [0, 9]), "targets must be in 0 to 2"),
        (lambda m, x, t: attribution.gradient(m, x, [0.0, 1.0]), "targets must be"),
        (lambda m, x, t: attribution.gradient(m, x, t, layer="nope"), "no activation named"),
        (lambda m, x, t: attribution.occlusion(m, x, t, window=64), "window and stride"),
        (lambda m, x, t: attribution.rise(m, x, t, masks=np.ones((4, 3, 3))), "masks must be"),
        (lambda m, x, t: attribution.get("magic"), "attribution must be one of"),
        (
            lambda m, x, t: attribution.guided_backprop(
                perturb.Model(lambda w, x: x.mean((1, 2)), ()), x, t
            ),
            "has no relu",
        ),
    ],
)
def test_what_cannot_be_served_is_named(planted, call, words):
    model, images, targets, _ = planted
    with pytest.raises(ValueError, match=words):
        call(model, images, targets)


def test_swap_leaves_functions_of_weights_alone():
    def f(x, w):
        return jax.nn.relu(x) + jax.nn.relu(w)

    double = {"relu": lambda old, varied, x: 2 * old(x)}
    # 2 * 3 + 5: the second relu sees the weight alone, and stays as it was.
    assert float(swap(f, double)(jnp.float32(3.0), jnp.float32(5.0))) == 11.0
    assert float(jax.jit(swap(f, double))(jnp.float32(3.0), jnp.float32(5.0))) == 11.0


def relus_by(act, loop=None):
    """A network of three relus, all alike but for how they are written."""
    rng = np.random.default_rng(5)
    weights = [jnp.float32(0.4 * rng.standard_normal(s)) for s in ((27, 8), (2, 8, 8), (8, 4))]

    def f(p, x):
        b, h, w, c = x.shape
        x = x.reshape(b, h // 3, 3, w // 3, 3, c).transpose(0, 1, 3, 2, 4, 5)
        x = act(x.reshape(b, h // 3, w // 3, 27) @ p[0])
        x = loop(x, p[1]) if loop else act(act(x @ p[1][0]) @ p[1][1])
        return x.mean((1, 2)) @ p[2]

    return perturb.Model(f, weights)


def by_scan(x, kernels):
    return jax.lax.scan(lambda x, k: (jax.nn.relu(x @ k), None), x, kernels)[0]


def by_cond(x, kernels):
    # Always true, which tracing cannot know: the branch stays one.
    x = jax.lax.cond(kernels.sum() > -1e9, lambda x: jax.nn.relu(x @ kernels[0]), lambda x: x, x)
    return jax.nn.relu(x @ kernels[1])


def by_while(x, kernels):
    # A bound that depends on values makes a while of the loop; it runs once.
    return jax.lax.fori_loop(
        0, jnp.int32(kernels.sum() > -1e9), lambda i, x: jax.nn.relu(x @ kernels[i]), x
    )


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("act", "loop"),
    [
        (jax.nn.relu, by_scan),
        (jax.nn.relu, by_cond),
        (lambda x: jnp.maximum(x, 0), None),
        (lambda x: jnp.maximum(jnp.zeros_like(x), x), None),
        (lambda x: jnp.where(x > 0, x, 0), None),
        (lambda x: x * (x > 0), None),
        (jax.checkpoint(jax.nn.relu), None),
    ],
    ids=["scan", "cond", "maximum", "zeros", "where", "times", "remat"],
)
@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_rules_reach_relus_however_they_are_written(name, act, loop):
    images = np.random.default_rng(1).random((2, 9, 9, 3), np.float32)
    rule = attribution.get(name)
    want = rule(relus_by(jax.nn.relu), images, [0, 1])
    # The rule must differ from the plain gradient here, or one that reached no relu would pass.
    assert np.abs(want - attribution.gradient(relus_by(jax.nn.relu), images, [0, 1])).max() > 1e-3
    got = rule(relus_by(act, loop), images, [0, 1])
    np.testing.assert_allclose(got, want, atol=1e-6 * want.max())


def test_relus_out_of_reach_are_refused_and_variances_are_none():
    images = np.random.default_rng(1).random((2, 9, 9, 3), np.float32)
    with pytest.raises(ValueError, match="a while of the model holds functions that this rule"):
        attribution.guided_backprop(relus_by(jax.nn.relu, by_while), images, [0, 1])

    def normalised(x):  # As Flax computes a variance, which is not an activation.
        v = jnp.maximum(0.0, (x**2).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2)
        return jnp.tanh(x / jnp.sqrt(v + 1e-6))

    with pytest.raises(ValueError, match="has no relu"):
        attribution.guided_backprop(relus_by(normalised), images, [0, 1])
