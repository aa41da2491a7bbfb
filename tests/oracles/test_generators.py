"""Generators without weights at hand against independent PyTorch packages, with random weights.

pytorch-pretrained-biggan (BigGAN-deep), gan-lab (StyleGAN, progressive growing) and
stylegan2-torch: all MIT. Their packages import what only downloads and training need, so the one
module is loaded alone.
"""

import importlib
import importlib.util
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gan_dissect import load_generator  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(0)
run = jax.jit(lambda g, z: g(z))


def module(monkeypatch, package, name, stubs=()):
    """`package.name` without running any `__init__`; `stubs` are modules that it imports and
    nothing uses.
    """
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed: use `make oracles`")
    parent = pathlib.Path(found.origin).parent
    parts = name.split(".")
    for i in range(len(parts)):
        full = ".".join([package, *parts[:i]])
        bare(monkeypatch, full, parent.joinpath(*parts[:i]))
    for stub in stubs:
        monkeypatch.setitem(sys.modules, stub, types.ModuleType(stub))
        sys.modules[stub].__getattr__ = lambda name: None
    return importlib.import_module(f"{package}.{name}")


def bare(monkeypatch, name, path):
    empty = types.ModuleType(name)
    empty.__path__ = [str(path)]
    monkeypatch.setitem(sys.modules, name, empty)


def enliven(source):
    """Every parameter and statistic drawn anew: zeros and ones hide an exchange."""
    for name, value in [*source.named_parameters(), *source.named_buffers()]:
        if not name.endswith(("_u", "_v", "kernel")):
            value.data = torch.tensor(RNG.standard_normal(value.shape), dtype=torch.float32)
        if name.endswith("running_vars"):
            value.data = value.data.abs() + 0.5
    return source.eval()


def close(got, want):
    """Within 1e-5 of the largest output, the two pictures of which differ."""
    want = want.numpy().transpose(0, 2, 3, 1)
    assert np.abs(want[0] - want[1]).max() > 0.03 * np.abs(want).max() > 1e-3
    error = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
    assert error <= 1e-5
    return error


def biggan(monkeypatch):
    name = "pytorch_pretrained_biggan"
    model = module(monkeypatch, name, "model", [f"{name}.file_utils"])
    # As published every second block doubles, but few and narrow; attention at 8 px.
    layers = [(False, 16, 8), (True, 8, 4), (False, 4, 2), (True, 2, 1)]
    config = model.BigGANConfig(
        z_dim=6,
        class_embed_dim=6,
        channel_width=8,
        num_classes=5,
        layers=layers,
        attention_layer_position=2,
    )
    source = model.BigGAN(config)
    with torch.no_grad():
        for _ in range(3):  # the power iteration of the spectral norms needs a few looks
            source.train()(torch.zeros(2, 6), torch.eye(5)[:2], 1.0)
        scale = {n: v.clone() for n, v in source.named_parameters()}
        enliven(source)
        for n, value in source.named_parameters():  # signals of the size that it is trained at
            if n.endswith("_orig"):
                value.data = scale[n] * (1 + 0.2 * value.data)
    return source


def weights(source):
    return {k: v.numpy() for k, v in source.state_dict().items()}


@pytest.mark.parametrize("truncation", [1.0, 0.5])
def test_biggan_deep(truncation, monkeypatch, record_property):
    source = biggan(monkeypatch)
    # Classes 0, 3 and 4 of five: the first, the last and one between.
    z, label = RNG.standard_normal((3, 6)).astype(np.float32), np.array([0, 3, 4])
    with torch.no_grad():
        want = source.double()(torch.tensor(z).double(), torch.eye(5).double()[label], truncation)
    source.float()
    generator = load_generator("biggan_deep", weights=weights(source), truncation=truncation)
    got = 2 * np.asarray(run(generator, {"z": z, "label": label})["image"], np.float64) - 1
    record_property("ours", f"{close(got, want):.1e}")


def test_biggan_between_two_statistics(monkeypatch):
    """Theirs exchanges the shares: at 25.75 of its 50 steps it takes what belongs to 25.25, and so
    must not we.
    """
    source = biggan(monkeypatch)
    z = RNG.standard_normal((2, 6)).astype(np.float32)
    given = weights(source)
    with torch.no_grad():
        one, other = (
            source.double()(torch.tensor(z).double(), torch.eye(5).double()[[1, 2]], t)
            for t in (0.515, 0.505)
        )
    generator = load_generator("biggan_deep", weights=given, truncation=0.505)
    got = (
        2 * np.asarray(run(generator, {"z": z, "label": np.array([1, 2])})["image"], np.float64) - 1
    )
    close(got, one)
    assert np.abs(got - other.numpy().transpose(0, 2, 3, 1)).max() > 1e-3


@pytest.fixture
def gan_lab(monkeypatch):
    """Loads a module of gan-lab, whose parts find each other at the top level, with narrow
    layers.
    """
    found = importlib.util.find_spec("gan_lab")
    if found is None:
        pytest.skip("gan-lab is not installed: use `make oracles`")
    root = pathlib.Path(found.origin).parent
    monkeypatch.syspath_prepend(str(root))

    def load(family, cls, widest=12):
        for name in ("utils", family):
            bare(monkeypatch, name, root / name)
        base = importlib.import_module(f"{family}.base")
        monkeypatch.setattr(base, "FMAP_MAX", widest)
        monkeypatch.setattr(base, "FMAP_BASE", 40)
        getattr(base, cls).reset_state()
        return importlib.import_module(f"{family}.architectures")

    yield load
    for name in [
        n for n in sys.modules if n.split(".")[0] in ("utils", "_int", "stylegan", "progan")
    ]:
        sys.modules.pop(name)


def grown(source):
    """At 16 px, nothing faded in any more, the weights drawn anew; the image mostly within [-1,
    1].
    """
    for _ in range(2):
        source.increase_scale()
        source.scale_inc_metadata_updated = False  # as their discriminator leaves it
    source.alpha = 1
    enliven(source)
    for value in source.torgb.parameters():
        # Fresh weights draw far beyond [-1, 1], where a clipped picture says nothing.
        value.data *= 0.2
    return source


def convolution(given, start):
    (name,) = (n for n in given if n.startswith(start) and n.endswith("conv2d.weight"))
    return given[name]


@pytest.mark.parametrize("psi", [1.0, 0.7])
def test_stylegan(psi, gan_lab, record_property):
    net = gan_lab("stylegan", "StyleGAN")
    source = net.StyleGenerator(
        16,
        len_latent=8,
        len_dlatent=8,
        mapping_num_fcs=3,
        blur_type="binomial",
        pct_mixing_reg=0.0,
        truncation_trick_params={"beta": 0.995, "psi": psi, "cutoff_stage": 1},
    )
    grown(source)
    with torch.no_grad():  # weights of the mapping are stored a hundred times as large
        for value in source.z_to_w.parameters():
            value.data *= 100
    mean = RNG.standard_normal(8).astype(np.float32)
    source.w_ewma = torch.tensor(mean)
    noise = [RNG.standard_normal((1, 1, s, s)).astype(np.float32) for s in (4, 4, 8, 8, 16, 16)]
    given = weights(source)
    named = {"truncation.w_avg": mean, "synthesis.layer0.first_layer": given["const_input"]}
    for k in range(3):
        at = f"z_to_w.fc_mapping_model.fc_{k}.linear"
        named[f"mapping.dense{k}.linear.weight"] = given[f"{at}.weight"]
        named[f"mapping.dense{k}.wscale.bias"] = given[f"{at}.bias"]
    for i in range(6):
        at, to = f"gen_layers.{i}", f"synthesis.layer{i}"
        if i:
            named[f"{to}.conv.weight"] = convolution(given, f"{at}.0.")
        to = f"{to}.epilogue"
        named[f"{to}.apply_noise.weight"] = given[f"{at}.1.noise_weight"].ravel()
        named[f"{to}.apply_noise.noise"] = noise[i]
        named[f"{to}.bias"] = given[f"{at}.2.0.bias"].ravel()
        named[f"{to}.style_mod.dense.linear.weight"] = given[f"{at}.3.linear.weight"]
        named[f"{to}.style_mod.dense.wscale.bias"] = given[f"{at}.3.linear.bias"]
    named["synthesis.output2.conv.weight"] = given["torgb.conv2d.weight"]
    named["synthesis.output2.bias"] = given["torgb.conv2d.bias"]
    z = RNG.standard_normal((3, 8)).astype(np.float32)
    with torch.no_grad():
        want = source(torch.tensor(z), noise=[torch.tensor(n) for n in noise])
    generator = load_generator("stylegan", weights=named, truncation=psi, truncated=2)
    record_property("ours", f"{near(run(generator, z)['image'], want):.1e}")


def test_pggan(gan_lab, record_property):
    net = gan_lab("progan", "ProGAN", 8)
    source = grown(net.ProGenerator(16, len_latent=8))
    dense = source.gen_blocks[0][0].linear
    dense.bias.data = dense.bias.data[:8].repeat_interleave(16)  # ours has one a channel
    given = weights(source)
    named = {}
    # From one cell of padding 3, the place (y, x) is what the kernel has at (3 - y, 3 - x).
    first = given["gen_blocks.0.0.linear.weight"].reshape(8, 4, 4, 8)[:, ::-1, ::-1]
    named["layer1.conv.weight"] = np.ascontiguousarray(first.transpose(0, 3, 1, 2))
    named["layer1.wscale.b"] = given["gen_blocks.0.0.linear.bias"][::16]
    rest = [n for n in given if n.startswith("gen_blocks") and n.endswith("conv2d.weight")]
    for k, name in enumerate(rest, 2):
        named[f"layer{k}.conv.weight"] = given[name]
        named[f"layer{k}.wscale.b"] = given[name.removesuffix("weight") + "bias"]
    assert len(rest) == 5
    named["output_16x16.conv.weight"] = given["torgb.conv2d.weight"]
    named["output_16x16.wscale.b"] = given["torgb.conv2d.bias"]
    z = RNG.standard_normal((3, 8)).astype(np.float32)
    with torch.no_grad():
        want = source(torch.tensor(z))
    generator = load_generator("pggan", weights=named)
    record_property("ours", f"{near(run(generator, z)['image'], want):.1e}")


def near(got, want):
    """The same for images that we clip to [-1, 1] and they do not."""
    return close(2 * np.asarray(got, np.float64) - 1, want.clip(-1, 1))


def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
    """By its definition: zeros between, padding, a plain filter. Theirs exists on CUDA only."""
    b, c, h, w = x.shape
    spread = torch.zeros(b, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    padded = torch.nn.functional.pad(spread, (*pad, *pad))
    filters = kernel.flip(0, 1)[None, None].repeat(c, 1, 1, 1)
    return torch.nn.functional.conv2d(padded, filters, groups=c)[:, :, ::down, ::down]


def leaky(x, bias):
    bias = bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.nn.functional.leaky_relu(x + bias, 0.2) * 2**0.5


class Leaky(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return leaky(x, self.bias)


@pytest.mark.parametrize("psi", [1.0, 0.6])
def test_stylegan2(psi, monkeypatch, record_property):
    name = "stylegan2_torch"
    functional = torch.nn.functional
    for stub, parts in (
        (
            "torch_conv_gradfix",
            {"conv2d": functional.conv2d, "conv_transpose2d": functional.conv_transpose2d},
        ),
        (f"{name}.op.upfirdn2d", {"upfirdn2d": upfirdn2d}),
        (f"{name}.op.fused_act", {"fused_leaky_relu": leaky, "FusedLeakyReLU": Leaky}),
    ):
        monkeypatch.setitem(sys.modules, stub, types.ModuleType(stub))
        vars(sys.modules[stub]).update(parts)
    net = module(monkeypatch, name, "generator")
    source = net.Generator(16, latent_dim=8, n_mlp=3, channels={4: 7, 8: 6, 16: 5})
    enliven(source)
    with torch.no_grad():
        for value in source.mapping.parameters():
            value.data *= 100
        for value in source.to_rgbs.parameters():
            value.data *= 0.2
    given, mean = weights(source), RNG.standard_normal(8).astype(np.float32)
    # One picture of noise a layer: one layer at 4 px, two at each larger size.
    noise = [RNG.standard_normal((1, 1, s, s)).astype(np.float32) for s in (4, 8, 8, 16, 16)]
    named = {"mapping.w_avg": mean, "synthesis.b4.const": given["input.input"][0]}
    for k in range(3):
        for part in ("weight", "bias"):
            named[f"mapping.fc{k}.{part}"] = given[f"mapping.{k + 1}.{part}"]
    layers = ["convs.0", "up_convs.0", "convs.1", "up_convs.1", "convs.2"]
    for at, map_ in zip(layers, noise, strict=True):
        kind, i = at.split(".")
        side = 4 * 2 ** (int(i) + (kind == "up_convs"))
        to = f"synthesis.b{side}.conv{int(kind == 'convs')}"
        named[f"{to}.weight"] = given[f"{at}.weight"][0]
        for part in ("weight", "bias"):
            named[f"{to}.affine.{part}"] = given[f"{at}.affine.{part}"]
        named[f"{to}.noise_strength"] = given[f"{at}.add_noise.weight"].reshape(())
        named[f"{to}.bias"] = given[f"{at}.leaky_relu.bias"]
        named[f"{to}.noise_const"] = map_[0, 0]
    for i in range(3):
        at, to = f"to_rgbs.{i}", f"synthesis.b{4 * 2**i}.torgb"
        named[f"{to}.weight"] = given[f"{at}.weight"][0]
        named[f"{to}.bias"] = given[f"{at}.bias"].reshape(1)
        for part in ("weight", "bias"):
            named[f"{to}.affine.{part}"] = given[f"{at}.affine.{part}"]
    z = RNG.standard_normal((3, 8)).astype(np.float32)
    with torch.no_grad():
        want = source(
            [torch.tensor(z)],
            trunc_option=(psi, torch.tensor(mean)),
            noises=[torch.tensor(n) for n in noise],
        )
    generator = load_generator("stylegan2", weights=named, truncation=psi)
    record_property("ours", f"{near(run(generator, z)['image'], want):.1e}")
