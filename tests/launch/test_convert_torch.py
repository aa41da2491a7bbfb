"""Files that PyTorch users have, converted: each names the net that takes it, which was loaded to
prove it.
"""

import argparse

import numpy as np
import pytest
import safetensors.numpy

from gan_dissect.nets import boundaries, layouts
from launch import convert
from tests.weights.test_torchfile import fake, tensor, torch, zipped

__all__ = ["fake", "torch"]  # fixtures

RNG = np.random.default_rng(0)
# A DCGAN with latents of 8 numbers: 1 to 4 to 8 px. What has no weights has no number here.
NET = {
    "0.weight": (8, 16, 4, 4),
    "1.weight": (16,),
    "1.bias": (16,),
    "1.running_mean": (16,),
    "1.running_var": (16,),
    "3.weight": (16, 3, 4, 4),
}
# Positive, for a variance that is not would give no picture.
WEIGHTS = {n: np.abs(RNG.standard_normal(s)).astype(np.float32) for n, s in NET.items()}


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(convert.logging, "info", lambda form, *given: lines.append(form % given))
    return lines


def saved(torch, path, place):
    """A file of `torch.save`: `place(state)` with the net's tensors by their names."""
    # One tensor more than the net has: that of the other network in the file.
    arrays = {str(k): a for k, a in enumerate([*WEIGHTS.values(), np.zeros((2, 2), np.float32)])}
    state = {n: tensor(torch, str(k), a) for k, (n, a) in enumerate(WEIGHTS.items())}
    zipped(path, place(state, tensor(torch, str(len(WEIGHTS)), arrays[str(len(WEIGHTS))])), arrays)


def nested(state):
    tree = {}
    for name, t in state.items():
        layer, kind = name.split(".")
        tree.setdefault(layer, {})[kind] = t
    return tree


PLACES = {
    "whole Sequential": lambda s, other: nested(s),
    "parallel": lambda s, other: {f"module.main.{n}": t for n, t in s.items()},
    "compiled": lambda s, other: {f"_orig_mod.module.main.{n}": t for n, t in s.items()},
    "Lightning": lambda s, other: {
        "state_dict": {f"generator.main.{n}": t for n, t in s.items()}
        | {"discriminator.0.weight": other},
        "epoch": 1,
        "hyper_parameters": {"lr": 1e-3},
    },
    "beside the discriminator": lambda s, other: {
        "netG": {f"main.{n}": t for n, t in s.items()},
        "netD": {"main.0.weight": other},
        "step": 7,
    },
    "beside flags": lambda s, other: {
        "netG": {f"main.{n}": t for n, t in s.items()},
        "args": argparse.Namespace(nz=8),
    },
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_generator_is_found_in_it(launched, torch, tmp_path, said, place):
    saved(torch, tmp_path / "f.pth", place)
    code, err = launched(convert, f"--source={tmp_path}/f.pth", f"--out={tmp_path}/g.safetensors")
    assert code == 0, err
    assert "loaded as --generator=dcgan, images of 8 x 8 px" in said[-1]
    made = safetensors.numpy.load_file(tmp_path / "g.safetensors")
    assert sorted(made) == sorted(f"main.{n}" for n in WEIGHTS)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(made[f"main.{name}"], array)
    # It needs no conversion any more, and says so.
    code, err = launched(convert, f"--source={tmp_path}/g.safetensors")
    assert code == 0, err
    use = f"needs no conversion: --generator=dcgan --weights={tmp_path}/g.safetensors"
    assert said[-1:] == [f"{tmp_path}/g.safetensors {use}"]


def test_one_tensor_is_a_direction(launched, torch, tmp_path, said):
    normal = RNG.standard_normal((1, 12)).astype(np.float32)
    zipped(tmp_path / "smile.pt", tensor(torch, "0", normal), {"0": normal})
    code, err = launched(convert, f"--source={tmp_path}/smile.pt")
    assert code == 0, err
    assert "one tensor [1, 12]" in said[-1]
    np.testing.assert_array_equal(np.load(tmp_path / "smile.npy"), normal)
    # Read as it is, too.
    for name in ("smile.pt", "smile.npy"):
        found = boundaries.read_boundary(tmp_path / name, size=12)
        # A norm of 12 float32 numbers and one division.
        np.testing.assert_allclose(found.normal, normal[0] / np.linalg.norm(normal), rtol=1e-6)
    code, err = launched(
        convert, f"--source={tmp_path}/smile.pt", f"--out={tmp_path}/x.safetensors"
    )
    assert code == 2
    assert "goes into a .npy" in err
    saved(torch, tmp_path / "net.pt", PLACES["parallel"])
    with pytest.raises(ValueError, match="not one tensor"):
        boundaries.read_boundary(tmp_path / "net.pt")


def test_two_generators_ask_for_a_part_and_what_is_none_is_said(launched, torch, tmp_path, said):
    def both(s, other):
        one = {f"main.{n}": t for n, t in s.items()}
        return {"a": one, "b": one, "c": {"features.0.weight": other}}

    saved(torch, tmp_path / "f.pth", both)
    code, err = launched(convert, f"--source={tmp_path}/f.pth")
    assert code == 2
    assert "several generators, choose one with --part: a, b" in err
    assert launched(convert, f"--source={tmp_path}/f.pth", "--part=b")[0] == 0
    code, err = launched(convert, f"--source={tmp_path}/f.pth", "--part=c")
    assert code == 0, err
    assert "no net here is known to take them" in said[-1]


def test_an_average_over_training_is_preferred():
    fit = layouts.fit
    one = {f"main.{n}": t for n, t in WEIGHTS.items()}
    found = fit({f"{p}.{n}": t for p in ("G", "G_ema") for n, t in one.items()})
    assert found.prefix == "G_ema."
    # A chain of plain convolutions is a discriminator.
    assert (
        fit({"main.0.weight": np.zeros((8, 3, 4, 4)), "main.2.weight": np.zeros((16, 8, 4, 4))})
        is None
    )


def test_a_stylegan3_is_said_to_be_one(launched, torch, tmp_path, said):
    arrays = {"0": np.zeros((4, 2), np.float32)}
    tree = {"G_ema": {"synthesis.input.freqs": tensor(torch, "0", arrays["0"])}}
    zipped(tmp_path / "f.pth", tree, arrays)
    code, err = launched(convert, f"--source={tmp_path}/f.pth")
    assert code == 0, err
    assert "a StyleGAN3 without all of its layers" in said[-1]
