"""StyleGAN, block by block against sums written out, and the spaces that its latents may be in."""

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect import check_generator, load_generator, move, sample
from perturb import taps

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
run = jax.jit(lambda g, z: g(z))


def tensors(fused=False):
    """Latents of 6, styles of 5, two layers of 4 px and two of 8."""
    shapes = {
        "mapping.dense0.linear.weight": (5, 6),
        "mapping.dense1.linear.weight": (5, 5),
        "truncation.w_avg": (5,),
    }
    shapes |= {f"mapping.dense{k}.wscale.bias": (5,) for k in (0, 1)}
    shapes["synthesis.layer0.first_layer"] = (1, 5, 4, 4)
    for i, (into, width) in enumerate(((0, 5), (5, 4), (4, 3), (3, 3))):
        at, side = f"synthesis.layer{i}", 4 * 2 ** (i // 2)
        if i == 2 and fused:
            shapes[f"{at}.weight"] = (3, 3, into, width)
        elif i:
            shapes[f"{at}.conv.weight"] = (width, into, 3, 3)
        shapes |= {f"{at}.epilogue.bias": (width,), f"{at}.epilogue.apply_noise.weight": (width,)}
        shapes[f"{at}.epilogue.apply_noise.noise"] = (1, 1, side, side)
        style = f"{at}.epilogue.style_mod.dense"
        shapes |= {f"{style}.linear.weight": (2 * width, 5), f"{style}.wscale.bias": (2 * width,)}
    shapes |= {"synthesis.output1.conv.weight": (3, 3, 1, 1), "synthesis.output1.bias": (3,)}
    return {k: RNG.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def convolved(x, w):
    k, (b, h, width, _) = w.shape[-1], x.shape
    x = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    y = np.zeros((b, h, width, len(w)))
    for r in range(h):
        for c in range(width):
            y[:, r, c] = np.einsum("byxi,oiyx->bo", x[:, r : r + k, c : c + k], w)
    return y


def scattered(x, w):
    """What TensorFlow's transposed convolution does with a kernel averaged over its four shifts;
    `[k, k, I, O]`.
    """
    kernel = sum(
        np.pad(w, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)
    )
    b, h, width, _ = x.shape
    y = np.zeros((b, 2 * h + 2, 2 * width + 2, w.shape[-1]))
    for r in range(h):
        for c in range(width):
            y[:, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4] += np.einsum(
                "bi,yxio->byxo", x[:, r, c], kernel
            )
    return y[:, 1:-1, 1:-1]


def blurred(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    f = np.outer([1, 2, 1], [1, 2, 1]) / 16
    h, w = x.shape[1] - 2, x.shape[2] - 2
    return sum(f[i, j] * x[:, i : i + h, j : j + w] for i in range(3) for j in range(3))


def by_hand(t, z, psi=1.0, truncated=4):
    w = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-8)
    for k in (0, 1):
        weight, bias = t[f"mapping.dense{k}.linear.weight"], t[f"mapping.dense{k}.wscale.bias"]
        # The mapping learns a hundred times slower: its weights are stored as many times larger.
        w = leaky(w @ weight.T * 0.01 * np.sqrt(2 / weight.shape[1]) + 0.01 * bias)
    values = {"mapping": w}
    x = np.tile(t["synthesis.layer0.first_layer"].transpose(0, 2, 3, 1), (len(z), 1, 1, 1))
    for i in range(4):
        at = f"synthesis.layer{i}"
        if i:
            gain = np.sqrt(2 / (9 * x.shape[-1]))
            if f"{at}.weight" in t:
                x = scattered(x, t[f"{at}.weight"] * gain)
            else:
                x = np.kron(x, np.ones((1, 2, 2, 1))) if i == 2 else x
                x = convolved(x, t[f"{at}.conv.weight"]) * gain
            # Layer 2 is the one that doubles, and what is doubled is blurred.
            x = blurred(x) if i == 2 else x
        at = f"{at}.epilogue"
        x = x + t[f"{at}.apply_noise.noise"][0, 0, :, :, None] * t[f"{at}.apply_noise.weight"]
        x = leaky(x + t[f"{at}.bias"])
        x = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-8)
        mean = t["truncation.w_avg"]
        used = mean + psi * (w - mean) if i < truncated else w
        dense = f"{at}.style_mod.dense"
        y = used @ t[f"{dense}.linear.weight"].T / np.sqrt(5) + t[f"{dense}.wscale.bias"]
        scale, shift = np.split(y[:, None, None], 2, -1)
        x = values[f"layer{i}"] = x * (scale + 1) + shift
    image = convolved(x, t["synthesis.output1.conv.weight"]) / np.sqrt(3)
    return image + t["synthesis.output1.bias"], values


@pytest.mark.parametrize("fused", [False, True])
def test_blocks(fused):
    given = tensors(fused)
    generator = load_generator("stylegan", weights=given, truncation=0.7, truncated=3)
    z = RNG.standard_normal((3, 6)).astype(np.float32)
    image, values = by_hand(given, z, 0.7, 3)
    outputs, found = jax.jit(lambda g, z: taps.read(g, list(values))(z))(generator, z)
    for name, value in values.items():
        # float32 beside float64; the normalisation divides by a deviation over no more than 64
        # places.
        np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(outputs["image"], np.clip((image + 1) / 2, 0, 1), atol=2e-4)
    assert outputs["styles"].shape == (3, 4, 5)
    shapes = gan_dissect.layers(generator)
    assert (shapes["layer2"], shapes["layer2.style"]) == ((8, 8, 3), (6,))


@pytest.mark.slow
def test_spaces_agree():
    """One image, whether z, w, the style of every layer, or z and a shift is given."""
    given = tensors()
    nets = {
        s: load_generator("stylegan", weights=given, truncation=0.5, space=s)
        for s in ("z", "w", "w+")
    }
    latents = {s: sample(g, KEY, 3) for s, g in nets.items()}
    assert [z.shape for z in latents.values()] == [(3, 6), (3, 5), (3, 4, 5)]
    images = [np.asarray(run(g, latents[s])["image"]) for s, g in nets.items()]
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], atol=1e-5)
    np.testing.assert_allclose(run(nets["z"], latents["z"])["styles"], latents["w+"], atol=1e-5)
    layered = load_generator("stylegan", weights=given, truncation=0.5, space="layers")
    z = sample(layered, KEY, 3)
    assert z["shift"].shape == (3, 4, 5)
    z = (
        z
        | {"z": latents["z"]}
        | {
            "noise": {
                f"layer{i}": np.tile(
                    given[f"synthesis.layer{i}.epilogue.apply_noise.noise"][0], (3, 1, 1)
                )
                for i in range(4)
            }
        }
    )
    np.testing.assert_allclose(run(layered, z)["image"], images[0], atol=1e-5)
    # What is moved in one layer leaves the layers before it alone.
    read = jax.jit(lambda g, z: taps.read(g, ["layer2", "layer3"])(z)[1])
    moved = read(layered, move(z, np.ones(5, np.float32), 2.0, layers=[3], leaf="shift"))
    before = read(layered, z)
    np.testing.assert_array_equal(moved["layer2"], before["layer2"])
    assert np.abs(moved["layer3"] - before["layer3"]).max() > 1e-2
    quiet = read(layered, z | {"noise": jax.tree.map(np.zeros_like, z["noise"])})
    assert np.abs(quiet["layer2"] - before["layer2"]).max() > 1e-2


@pytest.mark.slow
def test_random_weights_can_be_trusted():
    """Images differ, and each is drawn by itself."""
    generator = load_generator("stylegan", key=KEY)
    assert check_generator(generator) == {"image": (16, 16, 3), "styles": (6, 16)}
    assert np.asarray(run(generator, sample(generator, KEY, 4))["image"]).std(0).max() > 0.05


def test_import_is_strict():
    given = tensors()
    spare = {
        "synthesis.lod": np.zeros(()),
        "synthesis.output0.bias": np.zeros(3),
        "truncation.truncation": np.ones((1, 4, 1)),
    }
    load_generator("stylegan", weights=given | spare)
    for options, match in (
        ({"weights": given | {"spare": np.zeros(2)}}, "1 extra"),
        (
            {"weights": {k: v for k, v in given.items() if k != "synthesis.layer3.epilogue.bias"}},
            "1 missing",
        ),
        ({"weights": {"a": np.zeros(2)}}, r"no tensors mapping\.dense0\.linear\.weight"),
        ({"weights": given, "space": "s"}, r"space must be one of 'z', 'w', 'w\+', 'layers'"),
        ({"weights": given, "truncation": -1.0}, r"truncation in \[0, 1\], got 'z', -1"),
        ({}, "got neither"),
    ):
        with pytest.raises(ValueError, match=match):
            load_generator("stylegan", **options)
