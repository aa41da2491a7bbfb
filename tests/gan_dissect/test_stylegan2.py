"""StyleGAN2, block by block against sums written out; edits by layers on its pytree of latents."""

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect import check_generator, load_generator, mix, move, sample
from gan_dissect.nets.stylegan2 import _shapes, _sizes
from perturb import taps

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
run = jax.jit(lambda g, z: g(z))


def tensors(classes=0):
    shapes = _shapes(6, 6, 2, (5, 4), 3, classes)
    return {k: RNG.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def rectified(x):
    return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)


def modulated(x, weight, style, *, demodulate=True):
    """Each sample's own weights, as the paper has it; `[B, h, w, I]`, (O, I, k, k), `[B, I]`."""
    w = weight[None] * style[:, None, :, None, None]
    if demodulate:
        # Over inputs and places of the kernel: every output map keeps variance 1.
        w = w / np.sqrt((w**2).sum((2, 3, 4), keepdims=True) + 1e-8)
    return w


def convolved(x, w):
    k, (b, h, width, _) = w.shape[-1], x.shape
    pad = k // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = np.zeros((b, h, width, w.shape[1]))
    for r in range(h):
        for c in range(width):
            y[:, r, c] = np.einsum("byxi,boiyx->bo", x[:, r : r + k, c : c + k], w)
    return y


def blurred(x, before, after):
    # Sums to 4: of the doubled picture's pixels one in four is not zero.
    f = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    h, w = x.shape[1] - 3, x.shape[2] - 3
    return sum(f[i, j] * x[:, i : i + h, j : j + w] for i in range(4) for j in range(4))


def doubled(x, w):
    b, h, width, _ = x.shape
    y = np.zeros((b, 2 * h + 1, 2 * width + 1, w.shape[1]))
    for r in range(h):
        for c in range(width):
            y[:, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3] += np.einsum("bi,boiyx->byxo", x[:, r, c], w)
    return blurred(y, 1, 1)


def by_hand(t, z, psi=1.0, label=None):
    w = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-8)
    if label is not None:
        row = np.eye(3)[label] @ t["mapping.embed.weight"].T / np.sqrt(3) + t["mapping.embed.bias"]
        w = np.concatenate([w, row / np.sqrt((row**2).mean(-1, keepdims=True) + 1e-8)], 1)
    for k in range(2):
        weight, bias = t[f"mapping.fc{k}.weight"], t[f"mapping.fc{k}.bias"]
        # The mapping's learning rate of .01 is part of its stored weights.
        w = rectified(w @ weight.T * 0.01 / np.sqrt(weight.shape[1]) + 0.01 * bias)
    w = t["mapping.w_avg"] + psi * (w - t["mapping.w_avg"])
    values = {}

    def style(layer):
        at = f"synthesis.{layer}.affine"
        return w @ t[f"{at}.weight"].T / np.sqrt(6) + t[f"{at}.bias"]

    def layer(name, x, up):
        at = f"synthesis.{name}"
        weight = modulated(x, t[f"{at}.weight"], style(name))
        x = doubled(x, weight) if up else convolved(x, weight)
        x = x + (t[f"{at}.noise_const"] * t[f"{at}.noise_strength"])[None, :, :, None]
        values[name] = rectified(x + t[f"{at}.bias"])
        return values[name]

    def image(name, x):
        at = f"synthesis.{name}"
        weight = modulated(x, t[f"{at}.weight"], style(name), demodulate=False)
        return convolved(x, weight) / np.sqrt(x.shape[-1]) + t[f"{at}.bias"]

    x = np.tile(t["synthesis.b4.const"].transpose(1, 2, 0)[None], (len(z), 1, 1, 1))
    x = layer("b4.conv1", x, False)
    seen = image("b4.torgb", x)
    x = layer("b8.conv1", layer("b8.conv0", x, True), False)
    # The smaller picture enlarged: zeros between, then the filter, uneven at the two ends.
    spread = np.zeros((len(z), 8, 8, 3))
    spread[:, ::2, ::2] = seen
    return blurred(spread, 2, 1) + image("b8.torgb", x), values


@pytest.mark.parametrize("psi", [1.0, 0.5])
def test_blocks(psi):
    given = tensors()
    generator = load_generator("stylegan2", weights=given, truncation=psi)
    z = RNG.standard_normal((3, 6)).astype(np.float32)
    image, values = by_hand(given, z, psi)
    outputs, found = jax.jit(lambda g, z: taps.read(g, list(values))(z))(generator, z)
    for name, value in values.items():
        np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(outputs["image"], np.clip((image + 1) / 2, 0, 1), atol=2e-4)
    assert outputs["styles"].shape == (3, 4, 6)


@pytest.mark.slow
def test_classes_and_spaces():
    """The class is part of what is mapped; in W and W+ it is in the latent already."""
    given = tensors(3)
    free = load_generator("stylegan2", weights=given, truncation=0.5)
    z = sample(free, KEY, 3)
    image, _ = by_hand(given, np.asarray(z["z"]), 0.5, np.asarray(z["label"]))
    want = np.clip((image + 1) / 2, 0, 1)
    np.testing.assert_allclose(run(free, z)["image"], want, atol=2e-4)
    for space, shape in (("w", (3, 6)), ("w+", (3, 4, 6))):
        generator = load_generator("stylegan2", weights=given, truncation=0.5, space=space)
        w = sample(generator, KEY, 3)
        assert w.shape == shape
        np.testing.assert_allclose(run(generator, w)["image"], want, atol=2e-4)
    missing = run(free, z | {"label": np.array([3, -1, 0])})["image"]
    assert np.isnan(missing[:2]).all()
    assert np.isfinite(missing[2]).all()
    # The class is fixed on loading, so latents are z alone.
    fixed = load_generator("stylegan2", weights=given, label=2)
    image, _ = by_hand(given, np.asarray(z["z"]), 1.0, np.full(3, 2))
    want = np.clip((image + 1) / 2, 0, 1)
    np.testing.assert_allclose(run(fixed, z["z"])["image"], want, atol=2e-4)
    layered = load_generator("stylegan2", weights=given, space="layers")
    assert sorted(sample(layered, KEY, 2)) == ["label", "noise", "shift", "z"]


@pytest.mark.slow
def test_layers_of_latents():
    generator = load_generator("stylegan2", key=KEY, space="layers")
    assert check_generator(generator)["image"] == (16, 16, 3)
    shapes = gan_dissect.layers(generator)
    assert shapes["b8.conv0"] == (8, 8, 8)
    assert shapes["b8.conv0.style"] == (8,)
    z = sample(generator, KEY, 3)
    assert z["shift"].shape == (3, 6, 16)
    # Noise has strength 0 at the start of training; what is stored is the picture of "z".
    flat = load_generator("stylegan2", key=KEY)
    image = run(generator, z)["image"]
    np.testing.assert_allclose(image, run(flat, z["z"])["image"], atol=1e-5)
    # A shift of the last layer's style changes the last image layer alone.
    d = np.ones(16, np.float32)
    read = jax.jit(lambda g, z: taps.read(g, ["b16.conv1", "b16.conv0"])(z))
    last = move(z, d, 2.0, layers=[5], leaf="shift")
    (new, after), (_, before) = read(generator, last), read(generator, z)
    np.testing.assert_array_equal(after["b16.conv1"], before["b16.conv1"])
    assert np.abs(new["image"] - image).max() > 1e-3
    middle = read(generator, move(z, d, 2.0, layers=[4], leaf="shift"))[1]
    np.testing.assert_array_equal(middle["b16.conv0"], before["b16.conv0"])
    assert np.abs(middle["b16.conv1"] - before["b16.conv1"]).max() > 1e-3
    mixed = mix(z, last, layers=[5], leaf="shift")
    np.testing.assert_array_equal(run(generator, mixed)["image"], run(generator, last)["image"])


def test_import_is_strict():
    given = tensors()
    assert _sizes(given) == (6, 6, 2, (5, 4), 3, 0)
    fir = {"synthesis.b8.conv0.resample_filter": np.zeros((4, 4))}
    load_generator("stylegan2", weights=given | fir)
    with pytest.raises(ValueError, match="1 missing"):
        load_generator(
            "stylegan2", weights={k: v for k, v in given.items() if k != "synthesis.b8.conv0.bias"}
        )
    for options, match in (
        ({"weights": given | {"spare": np.zeros(2)}}, "1 extra"),
        ({"weights": {"a": np.zeros(2)}}, r"no tensors mapping\.fc0\.weight"),
        ({"weights": given, "space": "s"}, "space must be one of 'z'"),
        (
            {"weights": given, "label": 0},
            "label must be None: these weights have no classes, got 0",
        ),
        ({"weights": given, "truncation": 2.0}, r"truncation in \[0, 1\], got 'z', 2"),
        ({}, "got neither"),
    ):
        with pytest.raises(ValueError, match=match):
            load_generator("stylegan2", **options)
