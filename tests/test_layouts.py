"""Places and channels of a layer: every order of axes gives the map that channels-last gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import attribution, layouts, taps

# Sides that differ, so that height is not mistaken for width.
IMAGES = np.random.default_rng(0).random((2, 16, 12, 3), np.float32)
WEIGHTS = (
    0.3 * jax.random.normal(jax.random.key(3), (8, 3, 3, 3)),
    jax.random.normal(jax.random.key(4), (8, 4)),
)
# How a feature map `[B, h, w, K]` is handed from one part of a network to the next.
ORDERS = {
    "BHWC": (lambda x: x, lambda x, h, w: x),
    "BCHW": (lambda x: jnp.moveaxis(x, -1, 1), lambda x, h, w: jnp.moveaxis(x, 1, -1)),
    "BHCW": (lambda x: x.transpose(0, 1, 3, 2), lambda x, h, w: x.transpose(0, 1, 3, 2)),
    "BNC": (lambda x: x.reshape(len(x), -1, 8), lambda x, h, w: x.reshape(-1, h, w, 8)),
    "BCN": (
        lambda x: jnp.moveaxis(x, -1, 1).reshape(len(x), 8, -1),
        lambda x, h, w: jnp.moveaxis(x.reshape(-1, 8, h, w), 1, -1),
    ),
    "class token": (
        lambda x: jnp.concatenate([jnp.ones((len(x), 2, 8)), x.reshape(len(x), -1, 8)], 1),
        lambda x, h, w: x[:, 2:].reshape(-1, h, w, 8),
    ),
    "heads": (
        lambda x: x.reshape(len(x), -1, 2, 4).transpose(0, 2, 1, 3),
        lambda x, h, w: x.transpose(0, 2, 1, 3).reshape(-1, h, w, 8),
    ),
}


def net(order):
    there, back = ORDERS[order]

    def f(p, x):
        spec = ("NHWC", "OIHW", "NHWC")
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, p[0], (2, 2), "SAME", dimension_numbers=spec)
        )
        y = taps.tag(there(x), "features")
        # Squared, so that the gradient differs from place to place; that of a mean does not.
        return jnp.square(back(y, *x.shape[1:3])).mean((1, 2)) @ p[1]

    return perturb.Model(f, WEIGHTS)


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("name", "order"),
    [("grad_cam", o) for o in ORDERS if o != "BHWC"]
    + [("gradient", "BCHW"), ("linear_approx", "heads"), ("excitation", "BCN")],
)
def test_the_map_does_not_depend_on_the_order_of_the_axes(name, order):
    want = attribution.get(name)(net("BHWC"), IMAGES, [0, 1], layer="features")
    got = attribution.get(name)(net(order), IMAGES, [0, 1], layer="features")
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("order", ["BCHW", "class token"])
def test_channel_masks_are_over_channels(order):
    model = net(order)
    layout = layouts.layer_layout(model, IMAGES, "features")
    assert (layout.channels, layout.grid) == (8, (8, 6))
    assert layout.before == (2 if order == "class token" else 0)
    want = perturb.channels(net("BHWC"), IMAGES, [0, 1], layer="features", counts=3, steps=5)
    got = perturb.channels(model, IMAGES, [0, 1], layer="features", counts=3, steps=5)
    # Which channels, not how much: the order of axes may change the last bit of a score.
    np.testing.assert_array_equal(got.channels, want.channels)


def windows(x, side):
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, side * side, c)


def test_windows_rolls_resizes_loops_and_shuffles_are_followed():
    def f(p, x):
        b, h, w, c = x.shape
        x = taps.tag(jnp.roll(x, (-1, -1), (1, 2)), "rolled")
        y = taps.tag(windows(x, 4), "windows")
        # Attention within windows of 4 x 4: batch and window share an axis, which is no grid.
        y = jax.nn.softmax(y @ y.transpose(0, 2, 1)) @ y
        y = y.reshape(b, h // 4, w // 4, 4, 4, c).transpose(0, 1, 3, 2, 4, 5)
        x = x + taps.tag(y.reshape(b, h, w, c), "back")
        x = taps.tag(jax.image.resize(x, (b, 2 * h, 2 * w, c), "linear"), "resized")
        x = taps.tag(x[:, jnp.arange(h) * 2], "rows")
        x = taps.tag(jax.lax.scan(lambda a, _: (jnp.sin(a), None), x, length=2)[0], "looped")
        merged = x.reshape(b, h // 2, 2, w, 2, c).transpose(0, 1, 3, 4, 2, 5)
        x = taps.tag(merged.reshape(b, h // 2, w, 4 * c), "merged") @ jnp.eye(4 * c)
        up = x.reshape(b, h // 2, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        x = taps.tag(up.reshape(b, h, 2 * w, c), "shuffled")
        return taps.tag(x.mean((1, 2)), "mean") @ p

    model = perturb.Model(f, jnp.ones((3, 4)))
    found = layouts._all(model, IMAGES)
    want = {
        "rolled": (16, 12),
        "back": (16, 12),
        # Each as the line of `f` above makes it: twice as large, every second row, halved and
        # merged.
        "resized": (32, 24),
        "rows": (16, 24),
        "looped": (16, 24),
        "merged": (8, 12),
        "shuffled": (16, 24),
        "mean": (),
    }
    assert {name: found[name].grid for name in want} == want
    assert found["merged"].channels == 12
    with pytest.raises(
        ValueError, match=r"'windows' of shape .* mixes pictures and places"
    ) as caught:
        attribution.grad_cam(model, IMAGES, [0, 1], layer="windows")
    assert len(str(caught.value)) < 300


class ViT(nn.Module):
    """Fixed to one size by its positions, as published ones are; with layers besides or not."""

    wider: bool = False

    @nn.compact
    def __call__(self, x):
        b = len(x)
        x = nn.Conv(16, (4, 4), strides=4, name="patch")(x).reshape(b, -1, 16)
        token = self.param("token", nn.initializers.normal(0.02), (1, 1, 16))
        x = jnp.concatenate([jnp.tile(token, (b, 1, 1)), x], 1)
        # 12 patches of 4 x 4 and a class token: 13 positions.
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, 13, 16))
        for i in range(2):
            y = nn.LayerNorm(name=f"norm_{i}")(x)
            x = x + nn.MultiHeadDotProductAttention(2, name=f"attention_{i}")(y, y)
            if self.wider:
                x = x + nn.Dense(16, name=f"out_{i}")(nn.gelu(nn.Dense(32, name=f"in_{i}")(x)))
        return nn.Dense(4)(nn.LayerNorm(name="last")(x)[:, 0])


@pytest.mark.slow
def test_a_vision_transformer_reads_patches_never_tokens_by_heads():
    module = ViT()
    model = perturb.adapters.from_linen(module, module.init(jax.random.key(0), IMAGES))
    assert attribution._common.last_layer(model, IMAGES) == "patch"
    module = ViT(wider=True)
    wider = perturb.adapters.from_linen(module, module.init(jax.random.key(0), IMAGES))
    # The class token is read: of the others what goes into the last attention is the last to count.
    assert attribution._common.last_layer(wider, IMAGES) == "norm_1"
    prefix, suffix = taps.split(model, "norm_1")
    a, live = prefix(IMAGES)
    slope = jax.grad(lambda a: suffix(a, live)[jnp.arange(2), jnp.array([0, 1])].sum())(a)
    # Without the class token, which has no place.
    a, slope = (v[:, 1:].reshape(2, 4, 3, 16) for v in (a, slope))
    want = jnp.maximum((a * slope.mean((1, 2), keepdims=True)).sum(-1), 0)
    got = attribution.grad_cam(model, IMAGES, [0, 1], layer="norm_1")
    np.testing.assert_allclose(got, attribution._common.enlarge(want, (16, 12)), rtol=1e-5)
    with pytest.raises(ValueError, match="has every place twice, as the weights of attention do"):
        attribution.grad_cam(model, IMAGES, [0, 1], layer="attention_1/dense_1")
    with pytest.raises(ValueError, match="has no places left"):
        attribution.gradient(model, IMAGES, [0, 1], layer="Dense_0")


def test_a_head_that_the_answer_does_not_hang_on_is_no_default_layer():
    """As a detector's boxes beside its scores, or a second classifier for training."""

    def net(w, x):
        body = taps.tag(jnp.tanh(x @ w), "body")
        return {"out": body.mean((1, 2)), "aux": taps.tag(body @ w, "aux").mean((1, 2))}

    model = perturb.Model(net, jnp.eye(3), select="out")
    assert attribution._common.last_layer(model, IMAGES) == "body"
    assert np.abs(attribution.linear_approx(model, IMAGES, [0, 1])).max() > 0


def test_what_cannot_be_followed_is_said_by_hand_or_refused():
    def f(p, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        # NumPy on the host, into which no trace can look.
        y = jax.pure_callback(lambda x: np.asarray(x), shape, x, vmap_method="expand_dims")
        return (
            taps.tag(jax.lax.stop_gradient(y) * x.mean((1, 2, 3), keepdims=True), "hidden").mean(
                (1, 2)
            )
            @ p
        )

    model = perturb.Model(f, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"Model\(layouts=\{'hidden': 'BHWC'\}\)") as caught:
        attribution.linear_approx(model, IMAGES, [0, 1], layer="hidden")
    assert len(str(caught.value)) < 300
    said = perturb.Model(f, jnp.ones((3, 4)), layouts={"hidden": "BHWC"})
    hash(said.layouts)
    got = attribution.linear_approx(said, IMAGES, [0, 1], layer="hidden")
    assert got.shape == (2, 16, 12)
    for bad, why in (
        ({"hidden": "BCH"}, "a letter of B, C, N, H, W"),
        ({"none": "BHWC"}, "'none'"),
    ):
        with pytest.raises(ValueError, match=why):
            layouts.layouts(perturb.Model(f, jnp.ones((3, 4)), layouts=bad), IMAGES)


def test_signals_and_volumes_have_places_too():
    for shape, grid in (((2, 9, 3), (9,)), ((2, 4, 5, 6, 3), (4, 5, 6))):
        model = perturb.Model(
            lambda w, x: taps.tag(jnp.moveaxis(x, -1, 1), "first").mean(2), (), output="any"
        )
        found = layouts.layer_layout(model, jnp.ones(shape), "first")
        assert (found.grid, found.channels) == (grid, 3)
        assert found.to_places(jnp.ones((2, 3, *grid))).shape == (2, *grid, 3)
