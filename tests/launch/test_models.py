"""A model of one's own on the command line, held to its source by `--parity`."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import perturb
from launch import models
from perturb.nets._net import IMAGENET_MEAN, IMAGENET_STD


def right():
    """A real network under its published recipe."""
    folder = pathlib.Path(os.environ["PERTURB_DATA"]) / "weights"
    return perturb.load_model("cifar_resnet20", weights=folder / "cifar10_resnet20.safetensors")


def wrong_mean():
    """The same, normalised as TensorFlow's networks are."""
    model = right()
    # 0.5 and 0.5 instead of the means of the data set: plausible pictures, wrong numbers.
    return dataclasses.replace(
        model, apply=dataclasses.replace(model.apply, mean=(0.5,), std=(0.5,))
    )


def wrong_order():
    """The same, given blue, green, red."""
    model = right()
    return dataclasses.replace(model, apply=_Reversed(model.apply))


@dataclasses.dataclass(frozen=True)
class _Reversed:
    apply: object

    def __call__(self, variables, images):
        # A mistake that a red and blue picture would show and a grey one would not.
        return self.apply(variables, images[..., ::-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["right", "wrong_mean", "wrong_order"])
def test_parity_catches_wrong_preprocessing(
    data_dir, launch_masks, photos, instant, tmp_path, name
):
    golden = np.load(data_dir / "golden" / "cifar10_resnet20.npz")
    # The file holds what PyTorch's net was given, normalised and channels first.
    x = golden["input"].transpose(0, 2, 3, 1) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    np.savez(tmp_path / "parity.npz", x=x.clip(0, 1), y=golden["output"])
    code, err = launch_masks(
        f"--model=tests.launch.test_models:{name}",
        f"--images={photos}",
        f"--parity={tmp_path}/parity.npz",
        f"--out={tmp_path}/out",
    )
    if name == "right":
        assert code == 0, err
    else:
        assert code == 2
        assert "differs from its source by" in err.splitlines()[-1]


def test_a_file_under_other_names_is_read_at_another_size(tmp_path):
    plain = perturb.load_model("squeezenet1_1", key=jax.random.key(1))
    stored = {
        "/".join(path): leaf for path, leaf in flatten_dict(plain.variables["params"]).items()
    }
    # Another project's names: a prefix and no `params`.
    np.savez(tmp_path / "net.npz", **{f"body!{name}": leaf for name, leaf in stored.items()})
    found = models.load(
        "squeezenet1_1", weights=str(tmp_path / "net.npz"), rename="^body!=params/", input_size=96
    )
    assert found.geometry.size == (96, 96)
    images = np.random.default_rng(0).random((2, 96, 96, 3), np.float32)
    # The same arrays in the same program: nothing may differ.
    np.testing.assert_array_equal(found(images), plain(images))
