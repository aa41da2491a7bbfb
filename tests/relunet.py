"""A small network with relu, by hand: what attribution rules are checked on, here and in torch."""

import jax
import jax.numpy as jnp
import numpy as np

from perturb import Model, taps


def conv(x, kernel, bias, stride=1):
    """Convolution with an odd kernel, padded by half of it: the same in torch."""
    # Not "SAME": with a stride of 2 XLA pads more at the end, torch the same on both sides.
    pad = [((k - 1) // 2,) * 2 for k in kernel.shape[:2]]
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=numbers)
    return y + bias


def apply(w, images):
    """Two convolutions with relu, a mean over places, a linear layer: `[B, H, W, 3]` to `[B,
    K]`.
    """
    x = taps.tag(jax.nn.relu(conv(images, *w["one"], stride=2)), "low")
    # No stride here: the maps of both layers have half the picture's sides.
    x = taps.tag(jax.nn.relu(conv(x, *w["two"])), "high")
    return x.mean((1, 2)) @ w["last"][0] + w["last"][1]


def model(weights):
    """The network with weights `one`, `two` (HWIO, bias) and `last` (IO, bias)."""
    return Model(apply, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights))


def random_weights(seed=0, classes=5):
    """He-normal weights and small biases."""
    rng = np.random.default_rng(seed)
    shapes = {"one": (5, 5, 3, 8), "two": (3, 3, 8, 6), "last": (6, classes)}
    return {
        name: (
            rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1])),
            rng.normal(size=s[-1]) * 0.1,
        )
        for name, s in shapes.items()
    }


def colour_weights():
    """Class 0 is red, 1 green, 2 blue: a unit fires where its colour is above the other two."""
    one = np.zeros((1, 1, 3, 3))
    # Rows sum to nothing: 1.5 - 0.5 for its own colour, less 0.5 for each other one. Grey gives 0.
    one[0, 0] = 1.5 * np.eye(3) - 0.5
    two = np.zeros((1, 1, 3, 3))
    two[0, 0] = np.eye(3)
    zero = np.zeros(3)
    # The bias of -0.05 keeps units silent on grey with weak noise.
    return {"one": (one, zero - 0.05), "two": (two, zero), "last": (40 * np.eye(3), zero)}
