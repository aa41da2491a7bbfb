"""BigGAN-deep: norms by truncation, classes, attention and spectral norms against sums written out.

The whole net is compared with pytorch-pretrained-biggan in tests/oracles/test_generators.py.
"""

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect import check_generator, load_generator, move, sample
from gan_dissect.nets.biggan_deep import Attention, Norm, unspectral
from perturb import taps

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
run = jax.jit(lambda g, z: g(z))


def tensors():
    """3 classes, z of 2 and embeddings of 2; one block at 4 px, attention, one that doubles."""
    shapes = {
        "embeddings.weight": (2, 3),
        "generator.gen_z.weight": (256, 4),
        "generator.gen_z.bias": (256,),
    }
    for i, into, out in ((0, 16, 16), (2, 16, 8)):
        for k, (a, b, size) in enumerate(((into, 4, 1), (4, 4, 3), (4, 4, 3), (4, out, 1))):
            at = f"generator.layers.{i}"
            shapes |= {f"{at}.conv_{k}.weight": (b, a, size, size), f"{at}.conv_{k}.bias": (b,)}
            shapes |= {f"{at}.bn_{k}.{name}": (3, a) for name in ("running_means", "running_vars")}
            shapes |= {f"{at}.bn_{k}.{name}.weight": (a, 4) for name in ("scale", "offset")}
    for name, shape in (("theta", (2, 16)), ("phi", (2, 16)), ("g", (8, 16)), ("o_conv", (16, 8))):
        shapes[f"generator.layers.1.snconv1x1_{name}.weight"] = (*shape, 1, 1)
    shapes["generator.layers.1.gamma"] = (1,)
    shapes |= {f"generator.bn.{name}": (3, 8) for name in ("running_means", "running_vars")}
    shapes |= {f"generator.bn.{name}": (8,) for name in ("weight", "bias")}
    shapes |= {"generator.conv_to_rgb.weight": (8, 8, 3, 3), "generator.conv_to_rgb.bias": (8,)}
    found = {k: RNG.standard_normal(s).astype(np.float32) / 2 for k, s in shapes.items()}
    # Variances are positive, and not so small that they magnify rounding.
    return {k: np.abs(v) + 0.5 if k.endswith("vars") else v for k, v in found.items()}


@pytest.mark.parametrize(
    ("truncation", "shares"), [(1.0, (0, 0, 1)), (0.5, (0, 1, 0)), (0.125, (0.75, 0.25, 0))]
)
def test_statistics_by_truncation(truncation, shares):
    """The nearer of two stored statistics counts more: 0.125 is a quarter of the way from 0 to
    0.5.
    """
    means, variances = RNG.standard_normal((3, 4)), RNG.random((3, 4)) + 0.5
    x, y = RNG.standard_normal((2, 3, 3, 4)), RNG.standard_normal((2, 5))
    scale, offset = RNG.standard_normal((2, 5, 4))
    variables = {
        "batch_stats": {"mean": means, "var": variances},
        "params": {"scale": {"kernel": scale}, "offset": {"kernel": offset}},
    }
    # Three statistics, at truncations 0, .5 and 1.
    got = Norm(truncation, 1e-4, 3).apply(
        jax.tree.map(np.float32, variables), *map(np.float32, (x, y))
    )
    mean, var = np.array(shares) @ means, np.array(shares) @ variances
    normal = (x - mean) / np.sqrt(var + 1e-4)
    want = normal * (1 + y @ scale)[:, None, None] + (y @ offset)[:, None, None]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_attention_by_hand():
    x = RNG.standard_normal((2, 4, 4, 8)).astype(np.float32)
    w = {"theta": (8, 1), "phi": (8, 1), "g": (8, 4), "o_conv": (4, 8)}
    w = {k: RNG.standard_normal(s).astype(np.float32) for k, s in w.items()}
    # gamma .5: at its first value, 0, attention would not show at all.
    params = {f"snconv1x1_{k}": {"kernel": v[None, None]} for k, v in w.items()}
    got = Attention().apply({"params": params | {"gamma": np.array([0.5], np.float32)}}, x)
    want = np.zeros_like(x)
    halved = {
        k: [[(x @ w[k])[:, r : r + 2, c : c + 2].max((1, 2)) for c in (0, 2)] for r in (0, 2)]
        for k in ("phi", "g")
    }
    keys, values = (np.stack([cell for row in halved[k] for cell in row], 1) for k in ("phi", "g"))
    for r in range(4):
        for c in range(4):
            weight = np.exp(np.einsum("bc,bkc->bk", x[:, r, c] @ w["theta"], keys))
            weight /= weight.sum(1, keepdims=True)
            want[:, r, c] = x[:, r, c] + 0.5 * np.einsum("bk,bkc->bc", weight, values) @ w["o_conv"]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_spectral_norms_are_divided_out():
    # Its largest singular value is 3, with the first axis on both sides: one product finds it.
    weight = np.diag([3.0, 2.0]).astype(np.float32).reshape(2, 2, 1, 1)
    u, v = np.array([1.0, 0.0], np.float32), np.array([1.0, 0.0], np.float32)
    stored = {"a.weight_orig": weight, "a.weight_u": u, "b": u}
    for given in (stored, stored | {"a.weight_v": v}):
        found = unspectral(given)
        assert sorted(found) == ["a.weight", "b"]
        np.testing.assert_allclose(found["a.weight"].ravel(), [1, 0, 0, 2 / 3], atol=1e-6)
    with pytest.raises(ValueError, match=r"a\.weight_u must have shape \[2\], found \[3\]"):
        unspectral(stored | {"a.weight_u": np.zeros(3)})
    with pytest.raises(ValueError, match=r"a\.weight_v must have shape \[2\], found \[3\]"):
        unspectral(stored | {"a.weight_v": np.zeros(3)})


@pytest.mark.slow
def test_classes_and_layers():
    given = tensors()
    free = load_generator("biggan_deep", weights=given, truncation=0.5)
    assert check_generator(free) == {"image": (8, 8, 3)}
    z = sample(free, KEY, 64)
    assert np.abs(z["z"]).max() <= 1.0  # cut off at 2, then halved
    assert sorted(set(np.asarray(z["label"]).tolist())) == [0, 1, 2]
    image = np.asarray(run(free, z)["image"])
    fixed = load_generator("biggan_deep", weights=given, truncation=0.5, label=1)
    assert sample(fixed, KEY, 2).shape == (2, 2)
    ones = {"z": z["z"][:8], "label": np.full(8, 1)}
    np.testing.assert_allclose(run(fixed, z["z"][:8])["image"], run(free, ones)["image"], atol=1e-6)
    other = run(free, ones | {"label": np.full(8, 2)})["image"]
    assert np.abs(other - run(free, ones)["image"]).max() > 1e-2
    for missing in (3, -1):
        assert np.isnan(run(free, ones | {"label": np.full(8, missing)})["image"]).all()
    layered = load_generator("biggan_deep", weights=given, truncation=0.5, space="layers")
    # A shift of nothing is the picture without one.
    y = z | {"shift": np.zeros((64, 3, 4), np.float32)}
    np.testing.assert_allclose(run(layered, y)["image"], image, atol=1e-6)
    moved = move(y, np.ones(4, np.float32), 1.0, layers=[2], leaf="shift")
    layers = ["generator.layers.1", "generator.layers.2"]
    read = jax.jit(lambda g, z: taps.read(g, layers)(z)[1])
    before, after = read(layered, y), read(layered, moved)
    np.testing.assert_array_equal(before[layers[0]], after[layers[0]])
    assert np.abs(before[layers[1]] - after[layers[1]]).max() > 1e-2


def test_import_is_strict():
    given = tensors()
    generator = load_generator("biggan_deep", weights=given)
    shapes = gan_dissect.layers(generator)
    assert [shapes[f"generator.layers.{i}"] for i in range(3)] == [
        (4, 4, 16),
        (4, 4, 16),
        (8, 8, 8),
    ]
    for options, match in (
        ({"weights": given | {"spare": np.zeros(2)}}, "1 extra"),
        (
            {"weights": {k: v for k, v in given.items() if k != "generator.layers.1.gamma"}},
            "1 missing",
        ),
        ({"weights": {"a": np.zeros(2)}}, r"no tensors embeddings\.weight"),
        ({"weights": given, "label": 3}, "label must be in 0 to 2, got 3"),
        ({"weights": given, "truncation": 0.0}, r"truncation must be in \(0, 1\], got 0"),
        ({"weights": given, "space": "w"}, "space must be 'z', or 'layers'"),
        ({}, "got neither"),
    ):
        with pytest.raises(ValueError, match=match):
            load_generator("biggan_deep", **options)
