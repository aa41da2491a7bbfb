"""Layouts of other projects: the names and shapes that their classes give, and the same weights
back.

The tables here are the projects' own, written out a second time and the other way round. Against
the classes themselves, with random weights, pictures agreed to 2.5e-5 at 128 px and 8e-6 up to 64
px (float32).
"""

import re

import jax
import numpy as np
import pytest

from gan_dissect import load_generator
from gan_dissect.nets import layouts
from gan_dissect.nets.stylegan import stylegan
from gan_dissect.nets.stylegan2 import stylegan2

RNG = np.random.default_rng(0)


def drawn(shapes):
    return {n: RNG.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def own2(generator):
    """StyleGAN2's weights under their names, all random."""
    return drawn({n: np.shape(v) for n, v in generator.variables.items()})


def turned(w):
    # A convolution that is stored for a transposed one is turned around in both axes.
    return np.ascontiguousarray(w[:, :, ::-1, ::-1])


def rosinality(w):
    to = {"g_ema.input.input": w["synthesis.b4.const"][None], "latent_avg": w["mapping.w_avg"]}
    for name, t in w.items():
        if match := re.fullmatch(r"mapping\.fc(\d)\.(.+)", name):
            to[f"g_ema.style.{int(match[1]) + 1}.{match[2]}"] = t
        if match := re.fullmatch(r"synthesis\.b(\d+)\.(conv0|conv1|torgb)\.(.+)", name):
            side, layer, kind = int(match[1]), match[2], match[3]
            # They number the layers through; ours are named by the side of their picture.
            level = {4: 0, 8: 1, 16: 2}[side]
            conv = "conv1" if side == 4 else f"convs.{2 * level - 2 + int(layer == 'conv1')}"
            number = 0 if side == 4 else 2 * level - 1 + int(layer == "conv1")
            rgb = layer == "torgb"
            if rgb:
                conv = "to_rgb1" if side == 4 else f"to_rgbs.{level - 1}"
            if kind == "weight":
                to[f"g_ema.{conv}.conv.weight"] = t[None]
            elif kind.startswith("affine."):
                to[f"g_ema.{conv}.conv.modulation.{kind[7:]}"] = t
            elif kind == "noise_strength":
                to[f"g_ema.{conv}.noise.weight"] = t.reshape(1)
            elif kind == "noise_const":
                to[f"g_ema.noises.noise_{number}"] = t[None, None]
            elif rgb:
                to[f"g_ema.{conv}.bias"] = t.reshape(1, -1, 1, 1)
            else:
                to[f"g_ema.{conv}.activate.bias"] = t
    # Filters are fixed, and in the file for its class alone: whatever they hold, they are passed
    # over.
    to["g_ema.convs.0.conv.blur.kernel"] = np.ones((4, 4), np.float32)
    # The weights of training beside their average, of 0 so that a wrong choice shows.
    to |= {n.replace("g_ema.", "g."): 0 * t for n, t in to.items() if n.startswith("g_ema.")}
    return to


def genforce2(w):
    to = {"truncation.w_avg": w["mapping.w_avg"]}
    to["synthesis.early_layer.const"] = w["synthesis.b4.const"][None]
    for name, t in w.items():
        if match := re.fullmatch(r"mapping\.fc(\d)\.(.+)", name):
            to[f"mapping.dense{match[1]}.{match[2]}"] = t
        if match := re.fullmatch(r"synthesis\.b(\d+)\.(conv0|conv1|torgb)\.(.+)", name):
            level, layer = {4: 0, 8: 1, 16: 2}[int(match[1])], match[2]
            number = 2 * level - int(layer == "conv0")
            at = f"synthesis.output{level}" if layer == "torgb" else f"synthesis.layer{number}"
            kind = {
                "affine.weight": "style.weight",
                "affine.bias": "style.bias",
                "noise_const": "noise",
            }.get(match[3], match[3])
            # Their styles begin at 0 and have 1 added, ours are stored with it.
            t = t - 1 if kind == "style.bias" else t
            t = turned(t) if kind == "weight" and layer == "conv0" else t
            to[f"{at}.{kind}"] = t[None, None] if kind == "noise" else t
    to["synthesis.upsample.kernel"] = np.ones((1, 1, 4, 4), np.float32)
    return to


@pytest.mark.slow
@pytest.mark.parametrize("layout", [rosinality, genforce2])
@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.generator."])
def test_stylegan2(layout, prefix):
    w = own2(stylegan2(key=jax.random.key(0)))
    given = layout(w)
    if prefix:
        # `latent_avg` lies beside the networks in the file, not in one of them.
        given = {f"{prefix}{n}" if "." in n else n: t for n, t in given.items()}
    found = layouts.fit(given)
    assert found.net == "stylegan2"
    assert found.prefix == prefix + ("g_ema." if layout is rosinality else "")
    assert sorted(found.tensors) == sorted(w)
    for name, t in w.items():
        np.testing.assert_allclose(found.tensors[name], t, atol=1e-6, err_msg=name)
    load_generator("stylegan2", weights=given)


@pytest.mark.slow
def test_rosinality_without_a_mean_gets_that_of_many_latents():
    w = own2(stylegan2(key=jax.random.key(0)))
    given = rosinality(w)
    del given["latent_avg"]
    found = layouts.fit(given)
    assert "mean style of 10000 latents" in found.notes[0]
    G = load_generator("stylegan2", weights=given, space="w")
    z = jax.random.normal(jax.random.key(1), (4000, 16))
    want = np.asarray(jax.vmap(lambda z: G.apply.through(G.variables, z))(z))
    error = np.abs(found.tensors["mapping.w_avg"] - want.mean(0))
    # Two means of samples: six standard errors of the smaller one, for every number at once.
    assert (error < 6 * want.std(0) / np.sqrt(4000)).all()


def genforce1(w):
    to = {}
    for name, t in w.items():
        name = name.replace(".linear.weight", ".weight").replace(".wscale.bias", ".bias")
        name = name.replace("epilogue.style_mod.dense", "style").replace("epilogue.", "")
        name = name.replace("first_layer", "const").replace("conv.weight", "weight")
        match = re.fullmatch(r"synthesis\.layer(\d+)\.weight", name)
        fused = match and int(match[1]) == 10  # the first of 128 px
        to[name] = turned(t) if fused else t
    to["synthesis.output0.weight"] = np.zeros((3, 4, 1, 1), np.float32)
    to["synthesis.lod"] = np.zeros((), np.float32)
    return to


def test_stylegan():
    """Of 128 px, where the doubling layers are stored for the transposed convolution."""
    shapes = {"truncation.w_avg": (8,), "synthesis.layer0.first_layer": (1, 4, 4, 4)}
    for k in range(2):
        shapes |= {f"mapping.dense{k}.linear.weight": (8, 8), f"mapping.dense{k}.wscale.bias": (8,)}
    for i in range(12):
        at, side = f"synthesis.layer{i}", 4 * 2 ** (i // 2)
        if i:
            shapes[f"{at}.conv.weight"] = (4, 4, 3, 3)
        shapes |= {
            f"{at}.epilogue.apply_noise.weight": (4,),
            f"{at}.epilogue.apply_noise.noise": (1, 1, side, side),
            f"{at}.epilogue.bias": (4,),
            f"{at}.epilogue.style_mod.dense.linear.weight": (8, 8),
            f"{at}.epilogue.style_mod.dense.wscale.bias": (8,),
        }
    shapes |= {"synthesis.output5.conv.weight": (3, 4, 1, 1), "synthesis.output5.bias": (3,)}
    w = drawn(shapes)
    found = layouts.fit(genforce1(w))
    assert found.net == "stylegan"
    for name, t in w.items():
        np.testing.assert_array_equal(found.tensors[name], t, err_msg=name)
    stylegan(weights=found.tensors)


@pytest.mark.parametrize(
    "kind", ["genforce", "genforce fused", "InterFaceGAN", "InterFaceGAN fused"]
)
def test_pggan(kind):
    widths, size = (10, 8, 6), 12
    w = {}
    for i, width in enumerate(widths):
        into = widths[i - 1] if i else size
        k = 3 if i else 4
        w |= {
            f"layer{2 * i + 1}.conv.weight": (width, into, k, k),
            f"layer{2 * i + 1}.wscale.b": (width,),
        }
        w |= {
            f"layer{2 * i + 2}.conv.weight": (width, width, 3, 3),
            f"layer{2 * i + 2}.wscale.b": (width,),
        }
    w |= {"output_16x16.conv.weight": (3, 6, 1, 1), "output_16x16.wscale.b": (3,)}
    w, given = drawn(w), {"lod": np.zeros((), np.float32)}
    for name, t in w.items():
        number = int(re.findall(r"\d+", name)[0])
        at = "output2" if name.startswith("output") else f"layer{number - 1}"
        doubling = at in ("layer2", "layer4") and "fused" in kind
        if name.endswith(".b"):
            given[f"{at}.bias" if "genforce" in kind else f"{at}.wscale.bias"] = t
        elif doubling and "genforce" in kind:
            given[f"{at}.weight"] = turned(t).transpose(1, 0, 2, 3)
        elif doubling:
            given[f"{at}.weight"] = turned(t).transpose(2, 3, 1, 0)
        else:
            given[f"{at}.weight" if "genforce" in kind else f"{at}.conv.weight"] = t
    for k in (0, 1):
        given |= {
            n.replace("output2", f"output{k}"): 0 * t for n, t in given.items() if "output2" in n
        }
    found = layouts.fit(given)
    assert found.project == f"{kind.split()[0]}'s PGGAN"
    assert sorted(found.tensors) == sorted(w)
    for name, t in w.items():
        np.testing.assert_array_equal(found.tensors[name], t, err_msg=name)
    load_generator("pggan", weights=given)


def test_what_is_none_is_described():
    assert layouts.fit({"features.0.weight": np.zeros((8, 3, 3, 3))}) is None
    words = {
        "G_ema.synthesis.input.freqs": "StyleGAN3",
        "fc.weight": "a classifier",
        "netD.0.weight": "a discriminator",
        "a.b": "its tensors are called a.b",
    }
    for name, word in words.items():
        assert word in layouts.resembles({name: np.zeros(1)})
    w = own2(stylegan2(key=jax.random.key(0)))
    given = rosinality(w)
    both = {f"{p}.{n}": t for p in "ab" for n, t in given.items() if n.startswith("g_ema.")}
    with pytest.raises(ValueError, match=r"choose one with --part: a\.g_ema, b\.g_ema"):
        layouts.fit(both)


def other_architecture():
    w = own2(stylegan2(key=jax.random.key(0)))
    w = {n: t for n, t in w.items() if ".torgb." not in n or ".b16." in n}
    w["synthesis.b16.torgb.weight"] = w["synthesis.b16.torgb.weight"] * np.float32(0.05)
    return w


def picture(w):
    z = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
    return np.asarray(load_generator("stylegan2", weights=w)(z)["image"])


@pytest.mark.slow
def test_residual_blocks_without_their_shortcut_are_the_plain_chain():
    """Scaled by the root of a half behind each block; noise and bias behind it stay as they are."""
    plain = other_architecture()
    residual = dict(plain)
    for side in (8, 16):
        residual[f"synthesis.b{side}.skip.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    for layer in ("conv0", "conv1"):
        for kind in ("bias", "noise_strength"):
            # Unscaled, the signal is the root of 2 larger here: bias and noise are made larger with
            # it, and the last layer takes the scale of both blocks off.
            plain[f"synthesis.b16.{layer}.{kind}"] = plain[
                f"synthesis.b16.{layer}.{kind}"
            ] * np.sqrt(2).astype(np.float32)
    plain["synthesis.b16.torgb.weight"] = plain["synthesis.b16.torgb.weight"] * np.float32(0.5)
    image = picture(residual)
    assert image.std() > 0.05
    np.testing.assert_allclose(image, picture(plain), atol=1e-5)


def enlarged(x):
    """Twice as many rows and columns by [1, 3, 3, 1] / 4, zeros outside."""
    for axis in (1, 2):
        x = np.moveaxis(x, axis, 0)
        x = np.concatenate([0 * x[:1], x, 0 * x[:1]])
        # Of four taps two meet a sample and two a zero between them: 1 and 3, or 3 and 1.
        pairs = (x[:-2] + 3 * x[1:-1]) / 4, (3 * x[1:-1] + x[2:]) / 4
        x = np.moveaxis(np.stack(pairs, 1).reshape(-1, *x.shape[1:]), 0, axis)
    return x


def test_residual_blocks_that_are_their_shortcut():
    w = other_architecture()
    x = np.zeros((1, 4, 4, 8))
    for side in (8, 16):
        w[f"synthesis.b{side}.skip.weight"] = RNG.standard_normal((8, 8, 1, 1)).astype(np.float32)
        for name in list(w):
            if f".b{side}.conv" in name and name.endswith((".weight", ".bias", "strength")):
                w[name] = 0 * w[name] if ".affine." not in name else w[name]
    # The first block gives its bias alone, rectified; the styles of the image are 1.
    for name in (
        "synthesis.b4.conv1.weight",
        "synthesis.b4.conv1.noise_strength",
        "synthesis.b16.torgb.affine.weight",
    ):
        w[name] = 0 * w[name]
    # The style that scales every channel by 1.
    w["synthesis.b16.torgb.affine.bias"] = np.ones(8, np.float32)
    bias = w["synthesis.b4.conv1.bias"]
    x = x + np.where(bias > 0, bias, 0.2 * bias) * np.sqrt(2)
    for side in (8, 16):
        kernel = w[f"synthesis.b{side}.skip.weight"][:, :, 0, 0].T / np.sqrt(8)
        x = enlarged(x @ kernel) * np.sqrt(0.5)
    image = (
        x @ w["synthesis.b16.torgb.weight"][:, :, 0, 0].T / np.sqrt(8)
        + w["synthesis.b16.torgb.bias"]
    )
    want = np.clip((image + 1) / 2, 0, 1)
    np.testing.assert_allclose(picture(w), np.concatenate([want, want]), atol=1e-5)
