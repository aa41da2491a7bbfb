"""StyleGAN3 and BigGAN-PyTorch, which are no packages: run from clones, with random weights.

`PERTURB_CLONES=DIR make oracles`, with `DIR/stylegan3` and `DIR/BigGAN-PyTorch` as their authors
publish them.
"""

import math
import os
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gan_dissect import load_generator  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
run = jax.jit(lambda g, z: g(z))


@pytest.fixture
def clone(monkeypatch):
    def enter(name, *modules):
        path = pathlib.Path(os.environ.get("PERTURB_CLONES", "")) / name
        if not (os.environ.get("PERTURB_CLONES") and path.is_dir()):
            pytest.skip(f"PERTURB_CLONES names no folder with {name}")
        monkeypatch.syspath_prepend(os.fspath(path))
        for known in [m for m in sys.modules if m.split(".")[0] in modules]:
            monkeypatch.delitem(sys.modules, known)
        # Of this old package they use one function.
        stub = types.ModuleType("pkg_resources")
        stub.parse_version = lambda text: [
            int("".join(filter(str.isdigit, n)) or 0) for n in text.split(".")[:2]
        ]
        monkeypatch.setitem(sys.modules, "pkg_resources", stub)

    return enter


def drawn(net, change):
    """Every parameter and buffer moved by `change(name, noise)`, which is None where it stays."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            noise = torch.tensor(rng.standard_normal(value.shape), dtype=torch.float32)
            new = change(name, value, noise) if value.is_floating_point() else None
            if new is not None:
                value.copy_(new)
    return {n: t.numpy() for n, t in net.state_dict().items()}


def close(got, want):
    want = np.clip(want.numpy().transpose(0, 2, 3, 1), -1, 1)
    # A picture of one colour would agree whatever the layers do.
    assert want.std() > 0.05
    error = float(np.abs(2 * np.asarray(got) - 1 - want).max())
    assert error <= 1e-5
    return error


RADIAL = {"conv_kernel": 1, "use_radial_filters": True}
STYLEGAN3 = {
    "T 16 px": {"img_resolution": 16, "channel_base": 256, "channel_max": 16, "num_layers": 6},
    "T 64 px": {"img_resolution": 64, "channel_base": 1024, "channel_max": 24},
    "R 64 px": {"img_resolution": 64, "channel_base": 1024, "channel_max": 24, **RADIAL},
    "T 128 px, classes": {
        "img_resolution": 128,
        "channel_base": 2048,
        "channel_max": 16,
        "c_dim": 5,
    },
}


@pytest.mark.parametrize("case", STYLEGAN3)
def test_stylegan3(case, clone, record_property):
    clone("stylegan3", "training", "torch_utils", "dnnlib")
    from training.networks_stylegan3 import Generator

    torch.manual_seed(0)
    options = {"c_dim": 0} | STYLEGAN3[case]
    net = Generator(z_dim=20, w_dim=24, img_channels=3, **options).eval()

    def change(name, value, noise):
        if name.endswith("magnitude_ema"):
            return 0.5 + noise.abs()
        moved = name.endswith(("bias", "input.affine.weight", "w_avg"))
        return value + 0.3 * noise if moved else None

    weights = drawn(net, change)
    z, label = (
        np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32),
        np.array([0, 2, 4]),
    )
    # A turn and a move that no symmetry of the picture hides.
    turn, move = math.radians(20), (0.1, -0.05)
    c, s = math.cos(turn), math.sin(turn)
    inverse = np.linalg.inv([[c, s, move[0]], [-s, c, move[1]], [0, 0, 1]])
    classes = options["c_dim"]
    for options, psi in (({"translate": move, "rotate": 20}, 0.7), ({}, 1.0)):
        transform = inverse if options else np.eye(3)
        with torch.no_grad():
            net.synthesis.input.transform.copy_(torch.tensor(transform))
            given = torch.eye(5)[label] if classes else None
            want = net(torch.tensor(z), given, truncation_psi=psi)
        weights["synthesis.input.transform"] = np.eye(3, dtype=np.float32)
        generator = load_generator("stylegan3", weights=weights, truncation=psi, **options)
        got = run(generator, {"z": z, "label": label} if classes else z)["image"]
        record_property("ours", f"{close(got, want):.1e}")


BIGGAN = {
    "hierarchical": {
        "hier": True,
        "shared_dim": 6,
        "dim_z": 20,
        "resolution": 32,
        "G_ch": 8,
        "G_attn": "16",
        "mybn": True,
    },
    "attention twice": {
        "shared_dim": 6,
        "dim_z": 9,
        "resolution": 64,
        "G_ch": 4,
        "G_attn": "32_64",
    },
    "no shared table": {"G_shared": False, "dim_z": 9, "resolution": 32, "G_ch": 8, "G_attn": "0"},
    "no spectral norms": {
        "G_param": "",
        "hier": True,
        "shared_dim": 6,
        "dim_z": 20,
        "resolution": 32,
        "G_ch": 8,
        "G_attn": "0",
    },
}


@pytest.mark.parametrize("case", BIGGAN)
def test_biggan(case, clone, record_property):
    clone("BigGAN-PyTorch", "BigGAN", "layers", "sync_batchnorm")
    from BigGAN import Generator

    torch.manual_seed(0)
    net = Generator(n_classes=5, no_optim=True, **({"G_shared": True} | BIGGAN[case])).eval()

    def change(name, value, noise):
        # The state of the power iteration belongs to the weights, and stays.
        if name.endswith(("u0", "sv0")):
            return None
        if name.endswith("var"):
            return 0.5 + noise.abs()
        plain = name.endswith(("bias", "gamma", "mean"))
        return 0.5 * noise if plain else value + 0.05 * noise

    weights = drawn(net, change)
    z, label = (
        np.random.default_rng(1).standard_normal((3, net.dim_z)).astype(np.float32),
        np.array([0, 2, 4]),
    )
    with torch.no_grad():
        want = net(torch.tensor(z), net.shared(torch.tensor(label)))
    generator = load_generator("biggan", weights={f"module.{n}": t for n, t in weights.items()})
    got = run(generator, {"z": z, "label": label})["image"]
    record_property("ours", f"{close(got, want):.1e}")
