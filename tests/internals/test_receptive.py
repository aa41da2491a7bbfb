"""Receptive fields: the formula of window stacks, and no gradient ever outside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.internals import box, receptive_field, window_formula
from perturb.internals._layers import units_last
from perturb.taps.swapping import swap


def _stack(windows, kinds):
    """A stack of windows over a square picture: convolutions and poolings, `[B, H, W, 1]`."""

    def f(_, x):
        for (k, s, p, d), kind in zip(windows, kinds, strict=True):
            pads = ((0, 0), (p, p), (p, p), (0, 0))
            if kind == "pool":
                x = jax.lax.reduce_window(
                    x,
                    -jnp.inf,
                    jax.lax.max,
                    (1, k, k, 1),
                    (1, s, s, 1),
                    pads,
                    window_dilation=(1, d, d, 1),
                )
            else:
                x = jax.lax.conv_general_dilated(
                    x,
                    jnp.ones((k, k, 1, 1)),
                    (s, s),
                    pads[1:3],
                    rhs_dilation=(d, d),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
                x = jax.nn.relu(x) if kind == "relu" else x
        return taps.tag(x, "last").mean((1, 2))

    return f


@pytest.mark.slow
def test_the_field_of_fifty_random_stacks_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    for _ in range(50):
        windows = [
            tuple(
                int(v)
                for v in (
                    rng.integers(1, 5),
                    rng.integers(1, 3),
                    rng.integers(0, 2),
                    rng.integers(1, 3),
                )
            )
            for _ in range(rng.integers(1, 4))
        ]
        # No more padding than keeps a window's middle inside the picture.
        windows = [(k, s, min(p, (k - 1) * d // 2), d) for k, s, p, d in windows]
        kinds = [str(rng.choice(["conv", "relu", "pool"])) for _ in windows]
        side = 96
        model = perturb.Model(_stack(windows, kinds), jnp.zeros(1), channels=1)
        grid = taps.names(model, jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32))[
            "last"
        ].shape
        offset, size, step = window_formula(windows)
        # Only places whose whole field lies inside: the formula knows no border.
        inside = [i for i in range(grid[1]) if 0 <= offset + i * step <= side - size]
        place = rng.choice(inside, 2)
        seen = receptive_field(model, "last", size=(side, side), places=[place])[0]
        top, left = (offset + int(i) * step for i in place)
        assert box(seen) == (top, left, top + size, left + size), (windows, kinds)


@functools.partial(jax.jit, static_argnames=("layer", "straight"))
def _gradients(model, images, places, units, layer, straight):
    # Straight: rectifiers let all through, so that no path is off for the picture at hand.
    swaps = {"relu": lambda old, varied, x: x, "relu6": lambda old, varied, x: x}

    def activation(x):
        return units_last(model, taps.read(model, layer)(x)[1][layer])

    def one(place, unit):
        def value(x):
            return (swap(activation, swaps) if straight else activation)(x)[0][(*place, unit)]

        return jnp.abs(jax.grad(value)(images))[0].max(-1)

    return jax.lax.map(lambda at: one(*at), (places, units))


def check(name, size, layers, count, straight=False, seed=0):
    """Violations among `count` units and places a layer, and how many gradients reach the whole
    box.
    """
    model = perturb.load_model(name, key=jax.random.key(seed)) if isinstance(name, str) else name
    rng = np.random.default_rng(seed)
    images = rng.random((1, *size, 3)).astype(np.float32)
    known = taps.names(model, images)
    outside = whole = 0
    for layer in layers:
        shape = known[layer].shape
        places = np.stack([rng.integers(0, n, count) for n in shape[1:-1]], -1)
        units = rng.integers(0, shape[-1], count)
        seen = receptive_field(model, layer, size=size, places=places, units=units)
        gradients = np.asarray(_gradients(model, images, places, units, layer, straight))
        for field, gradient in zip(seen, gradients > 0, strict=True):
            top, left, bottom, right = box(field)
            crop = np.zeros(size, bool)
            crop[top:bottom, left:right] = True
            outside += bool((gradient & ~crop).any())
            whole += box(gradient) == (top, left, bottom, right)
    return outside, whole


@pytest.mark.slow
def test_no_gradient_lies_outside_the_field_and_it_is_no_larger():
    assert check("demo", (64, 64), ("relu", "relu#3"), 20)[0] == 0
    assert check("demo", (64, 64), ("relu", "relu#3", "relu#6"), 20, straight=True) == (0, 60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("squeezenet1_1", (96, 96), ("features.0", "features.3", "features.6", "features.9")),
        ("mobilenet_v2", (96, 96), ("features.0/0", "features.3", "features.6", "features.9")),
        ("cifar_resnet20", (32, 32), ("conv1", "layer1.2", "layer2.0", "layer2.2")),
    ],
)
def test_no_gradient_lies_outside_the_field_of_published_nets(name, size, layers):
    assert check(name, size, layers, 63)[0] == 0
    outside, whole = check(name, size, layers[:2], 20, straight=True)
    assert (outside, whole) == (0, 40)


@pytest.mark.slow
def test_tokens_see_the_whole_picture_after_attention_and_their_patch_before():
    from perturb.nets.vit import ViT

    net = ViT(classes=3, patch=8, width=16, heads=2, hidden=32, layers=1)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    model = perturb.Model(net.apply, variables)
    first = receptive_field(model, "conv_proj", size=(32, 32), places=[[1, 2]], units=[3])[0]
    # Its own patch of 8 px, row 1 and column 2.
    assert box(first) == (8, 16, 16, 24)
    token = receptive_field(
        model, "encoder.layers.encoder_layer_0", size=(32, 32), places=[[5]], units=[0]
    )[0]
    assert token.all()


def test_depthwise_units_see_their_own_channel_only():
    def f(w, x):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return taps.tag(y, "deep").mean((1, 2))

    from perturb.internals import influence

    struct = jax.ShapeDtypeStruct((1, 5, 5, 2), jnp.float32)
    read = lambda x: taps.read(f, "deep")(jnp.ones((3, 3, 1, 2)), x)[1]["deep"]  # noqa: E731
    seen = np.asarray(influence(read, struct)((0, 2, 2, 1)))
    # A kernel of 3 x 3 on its own channel.
    assert seen[0, ..., 1].sum() == 9
    assert not seen[0, ..., 0].any()


def test_a_place_outside_the_layer_is_refused():
    model = perturb.load_model("demo", key=jax.random.key(0))
    with pytest.raises(ValueError, match="places must be"):
        receptive_field(model, "conv6", size=(64, 64), places=[[8, 0]])
    with pytest.raises(ValueError, match="nearest: conv6"):
        receptive_field(model, "conv7", size=(64, 64), places=[[0, 0]])
