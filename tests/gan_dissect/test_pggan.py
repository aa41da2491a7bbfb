"""The progressively grown generator, block by block against sums written out."""

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect import check_generator, load_generator
from gan_dissect.nets.pggan import Block
from perturb import taps

RNG = np.random.default_rng(0)


def tensors():
    shapes = {
        "layer1": (6, 5, 4),
        "layer2": (6, 6, 3),
        "layer3": (4, 6, 3),
        "layer4": (4, 4, 3),
        "output_8x8": (3, 4, 1),
    }
    found = {}
    for name, (o, i, k) in shapes.items():
        found[f"{name}.conv.weight"] = RNG.standard_normal((o, i, k, k)).astype(np.float32)
        found[f"{name}.wscale.b"] = RNG.standard_normal(o).astype(np.float32)
    return found


def block(x, weight, b, pad, *, double=False, gain=2**0.5, rectify=True):
    """From the paper: `[B, h, w, I]`, weight (O, I, k, k)."""
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)
    if double:
        x = np.kron(x, np.ones((1, 2, 2, 1)))
    o, i, k, _ = weight.shape
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    h, w = x.shape[1] - k + 1, x.shape[2] - k + 1
    y = np.zeros((len(x), h, w, o))
    for r in range(h):
        for c in range(w):
            y[:, r, c] = np.einsum("byxi,oiyx->bo", x[:, r : r + k, c : c + k], weight)
    # The equalised learning rate: weights are stored with variance 1 and scaled as they are used.
    y = y * gain / (k * np.sqrt(i)) + b
    return np.where(y > 0, y, 0.2 * y) if rectify else y


def test_blocks():
    given = tensors()
    generator = load_generator("pggan", weights=given)
    z = RNG.standard_normal((3, 5)).astype(np.float32)
    layers = [f"layer{k}" for k in (1, 2, 3, 4)]
    outputs, values = jax.jit(lambda g, z: taps.read(g, layers)(z))(generator, z)
    x = z.reshape(3, 1, 1, 5)
    # 4 px from one place: padded by 3 a kernel of 4 sees it from 4 places.
    for name, pad, double in zip(layers, (3, 1, 1, 1), (False, False, True, False), strict=True):
        x = block(x, given[f"{name}.conv.weight"], given[f"{name}.wscale.b"], pad, double=double)
        np.testing.assert_allclose(values[name], x, atol=1e-4)
    out = given["output_8x8.conv.weight"], given["output_8x8.wscale.b"]
    # The layer to colours has neither the rectifier nor the gain that makes up for it.
    image = np.clip(block(x, *out, 0, gain=1.0, rectify=False), -1, 1)
    np.testing.assert_allclose(outputs["image"], (image + 1) / 2, atol=1e-4)
    assert check_generator(generator) == {"image": (8, 8, 3)}
    assert gan_dissect.layers(generator)["layer4"] == (8, 8, 4)
    # The latent is normalised first: its length does not matter.
    # Up to the 1e-8 that keeps the division from 0.
    longer = jax.jit(lambda g, z: g(z))(generator, 3 * z)["image"]
    np.testing.assert_allclose(longer, outputs["image"], atol=1e-5)


def test_one_pixel_by_hand():
    """Two channels (3, 4): normalised by sqrt(12.5), times the kernel, times sqrt(2) / (1
    sqrt(2)).
    """
    module = Block(1, 1, 0)
    variables = {
        "params": {
            "conv": {"kernel": np.array([[[[1.0], [-1.0]]]])},
            "wscale": {"b": np.array([0.5])},
        }
    }
    y = module.apply(variables, np.array([[[[3.0, 4.0]]]], np.float32))
    np.testing.assert_allclose(y[0, 0, 0, 0], -1 / np.sqrt(12.5) + 0.5, rtol=1e-5)
    y = module.apply(variables, np.array([[[[0.0, 5.0]]]], np.float32))
    np.testing.assert_allclose(y[0, 0, 0, 0], 0.2 * (-np.sqrt(2) + 0.5), rtol=1e-5)


def test_import_is_strict():
    given = tensors()
    with pytest.raises(ValueError, match="1 missing"):
        load_generator("pggan", weights={k: v for k, v in given.items() if k != "layer2.wscale.b"})
    with pytest.raises(ValueError, match="1 extra"):
        load_generator("pggan", weights=given | {"spare": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"no tensors layer1\.conv\.weight"):
        load_generator("pggan", weights={"a": np.zeros(2)})
    check_generator(load_generator("pggan", key=jax.random.key(0)))
