"""BigGAN-deep: norms by truncation, classes, attention and spectral norms against sums written out.

The whole net is compared with pytorch-pretrained-biggan in tests/oracles/test_generators.py.
"""

import re

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect import check_generator, load_generator, move, sample
from gan_dissect.nets import layouts
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


def in_their_names(given, class_first):
    """The same weights as BigGAN-PyTorch's class has them, a stored vector beside each product."""
    numbers = {0: (0, 0), 1: (0, 1), 2: (1, 0)}
    found = {"shared.weight": given["embeddings.weight"].T}
    for name, t in given.items():
        part, *rest = name.removeprefix("generator.").split(".")
        rest = ".".join(rest)
        if part == "layers":
            number, rest = rest.split(".", 1)
            i, j = numbers[int(number)]
            rest = re.sub(r"(conv|bn)_(\d)", lambda m: f"{m[1]}{int(m[2]) + 1}", rest)
            rest = rest.replace("scale.", "gain.").replace("offset.", "bias.")
            rest = rest.replace("snconv1x1_", "").replace("o_conv", "o")
            name = f"blocks.{i}.{j}.{rest}"
            t = t.reshape(()) if rest == "gamma" else t
        elif part == "gen_z":
            # Channels first: a row for each channel and place, and not for each place and channel.
            t = t.reshape(16, -1, *t.shape[1:]).swapaxes(0, 1).reshape(t.shape)
            name = f"linear.{rest}"
        elif part in ("bn", "conv_to_rgb"):
            name = f"output_layer.{0 if part == 'bn' else 2}.{rest}"
            name = name.replace("0.weight", "0.gain")
        else:
            continue
        if class_first and re.search(r"(^linear|[.](gain|bias))[.]weight$", name):
            t = np.concatenate([t[:, 2:], t[:, :2]], 1)  # z and embedding have two numbers each
        if name.endswith(("running_means", "running_vars")):
            name = name.replace("running_means", "stored_mean").replace(
                "running_vars", "stored_var"
            )
            t = t[0]
        found[name] = t
        if name.endswith("weight") and t.ndim > 1:
            u = RNG.standard_normal((1, len(t))).astype(np.float32)
            # Its scale is of no account: one power iteration from u finds the size to divide by.
            found |= {name: 3 * t, name.replace("weight", "u0"): u}
    return found


@pytest.mark.parametrize(("prefix", "drawn"), [("", 8), ("G_ema.module.", 3)])
def test_the_layout_of_biggan_pytorch(prefix, drawn):
    """Its older version draws more channels than it shows, its newer one has the class before z."""
    want = {n: t[:1] if "running" in n else t for n, t in tensors().items()}
    want |= {n: t[:drawn] for n, t in want.items() if "to_rgb" in n}
    given = in_their_names(want, class_first=drawn == 3)
    found = layouts.fit({prefix + n: t for n, t in given.items()})
    assert (found.net, found.prefix) == ("biggan_deep", prefix)
    assert sorted(found.tensors) == sorted(want)
    for name, t in want.items():
        if name.endswith("running_vars"):
            t = t + np.float32(1e-5 - 1e-4)  # as much smaller as the epsilon here is larger
        got = found.tensors[name]
        if name != "embeddings.weight" and t.ndim > 1 and "running" not in name:
            # Divided by its own size, whatever scale it was stored at.
            t, got = t / np.linalg.norm(t), got / np.linalg.norm(got)
        np.testing.assert_allclose(got, t, rtol=1e-5, atol=1e-6, err_msg=name)
    assert check_generator(load_generator("biggan_deep", weights=given)) == {"image": (8, 8, 3)}
    odd = {n: t for n, t in given.items() if not n.startswith("blocks.1.")}
    with pytest.raises(ValueError, match="two blocks a resolution"):
        layouts.fit(odd)


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
