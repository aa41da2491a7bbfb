"""Strict import: what fits is filled once, in the right layout; all that does not is named at
once.
"""

import os
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy

from perturb import weights as weights_lib
from perturb.weights import Slot, fill, filling, read_tensors, slots


class Net(nn.Module):
    """Every kind of layer, nested, with dots in the names."""

    @nn.compact
    def __call__(self, x):
        # Oblong, so that a swap of its axes does not fit.
        x = nn.Conv(4, (3, 2), name="features.0")(x)
        x = nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False, name="depthwise")(x)
        x = Block(name="block.1")(x)
        return nn.Dense(5, name="fc")(x.mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True, name="bn")(x)


IMAGES = np.random.default_rng(2).random((2, 6, 6, 3), np.float32)
SHAPES = {
    "features.0.weight": (4, 3, 3, 2),
    "features.0.bias": (4,),
    "depthwise.weight": (4, 1, 3, 3),
    "block.1.bn.weight": (4,),
    "block.1.bn.bias": (4,),
    "block.1.bn.running_mean": (4,),
    "block.1.bn.running_var": (4,),
    "fc.weight": (5, 4),
    "fc.bias": (5,),
}


@pytest.fixture(scope="module")
def template():
    return jax.eval_shape(Net().init, jax.random.key(0), IMAGES)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.random(shape).astype(np.float32) for name, shape in SHAPES.items()}


def numpy_net(w, x):
    """The net by its definition, on the arrays of the file (NCHW layouts)."""
    # An even kernel is padded on one side only: flax puts the column on the right.
    x = np.pad(x.transpose(0, 3, 1, 2), [(0, 0), (0, 0), (1, 1), (0, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2), (2, 3))
    x = np.einsum("nchwij,ocij->nohw", windows, w["features.0.weight"])
    x = x + w["features.0.bias"][None, :, None, None]
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    x = np.einsum("nchwij,cij->nchw", windows, w["depthwise.weight"][:, 0])
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, scale, bias = (w[f"block.1.bn.{n}"][None, :, None, None] for n in names)
    # The epsilon that flax and PyTorch share.
    x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def test_slots_have_the_names_and_shapes_of_torch(template):
    found = slots(template)
    leaves = filling._leaves(template)
    shapes = {name: slot.layout.shape(leaves[slot.path].shape) for name, slot in found.items()}
    assert shapes == SHAPES
    separated = slots(template, separator="/")
    assert "block.1/bn.running_mean" in separated


def test_layouts_against_numpy(template, tensors):
    variables = fill(template, tensors, slots(template), net="net")
    assert jax.tree.structure(variables) == jax.tree.structure(template)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    # Sums of up to 18 products in float32, and a mean over 36 places.
    np.testing.assert_allclose(
        Net().apply(variables, IMAGES), numpy_net(tensors, IMAGES), rtol=1e-4
    )


@pytest.mark.parametrize("save", ["F32", "F16", "BF16", "F64", "dict"])
def test_files_and_dicts_give_the_same_float32(template, tensors, tmp_path, save):
    # Values that every one of these types holds exactly.
    tensors = {name: np.round(t * 64) / 64 for name, t in tensors.items()}
    expected = fill(template, tensors, slots(template), net="net")
    path = tmp_path / "net.safetensors"
    types = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
    if save == "BF16":
        halves = {name: jnp.asarray(t, jnp.bfloat16) for name, t in tensors.items()}
        safetensors.flax.save_file(halves, path)
    elif save != "dict":
        as_type = {name: t.astype(types[save]) for name, t in tensors.items()}
        safetensors.numpy.save_file(as_type, path)
    read = read_tensors(tensors if save == "dict" else path)
    jax.tree.map(
        np.testing.assert_array_equal, fill(template, read, slots(template), net="net"), expected
    )
    if save != "dict":
        assert read_tensors(str(path)).keys() == read.keys()


def test_one_error_names_everything(template, tensors):
    tensors["features.0.wieght"] = tensors.pop("features.0.weight")
    del tensors["fc.bias"]
    tensors["fc.weight"] = tensors["fc.weight"].T
    tensors["block.1.bn.bias"] = tensors["block.1.bn.bias"] * np.nan
    # Whole numbers, as a mistaken export of weights has.
    tensors["block.1.bn.weight"] = np.arange(4)
    tensors["head.weight"] = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="weights do not fit net") as caught:
        fill(template, tensors, slots(template), net="net")
    lines = str(caught.value).splitlines()
    assert lines[0] == "weights do not fit net: 2 missing, 2 extra, 1 mis-shaped, 2 unusable"
    assert {line.strip() for line in lines[1:]} == {
        "missing features.0.weight [4, 3, 3, 2] (the nearest name in the file is "
        "features.0.wieght)",
        "missing fc.bias [5]",
        "extra features.0.wieght [4, 3, 3, 2]",
        "extra head.weight [2, 2]",
        "mis-shaped fc.weight: expected [5, 4], found [4, 5]",
        "unusable block.1.bn.bias: 4 of 4 values are not finite",
        "unusable block.1.bn.weight: expected a float type, found int64",
    }


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_is_needed(template, tensors, name):
    del tensors[name]
    with pytest.raises(ValueError, match=f"net: 1 missing\n  missing {name} "):
        fill(template, tensors, slots(template), net="net")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_float32_does_not_hold(template, tensors, value):
    # In float64, where 1e300 is a number: it is none in float32.
    tensors["fc.bias"] = np.array([0, 1, value, 3, 4])
    with pytest.raises(ValueError, match=r"unusable fc\.bias: 1 of 5 values are not finite"):
        fill(template, tensors, slots(template), net="net")


def test_counters_and_patterns_may_be_in_excess(template, tensors):
    # PyTorch counts batches in every normalisation; a network that answers needs no count.
    tensors["block.1.bn.num_batches_tracked"] = np.array(7)
    fill(template, tensors, slots(template), net="net")
    tensors["ema.fc.bias"] = tensors["fc.bias"]
    with pytest.raises(ValueError, match=r"1 extra\n  extra ema\.fc\.bias \[5\]"):
        fill(template, tensors, slots(template), net="net")
    fill(template, tensors, slots(template), net="net", ignore=("ema.*", "*tracked"))


def test_a_file_without_one_common_name_is_another_net(template):
    with pytest.raises(ValueError, match="no name matches, these are the weights of another net"):
        fill(template, {"conv1.weight": np.ones(3)}, slots(template), net="net")


def test_slots_must_fill_every_leaf_once(template, tensors):
    twice = slots(template) | {"again": Slot(("params", "fc", "bias"))}
    with pytest.raises(ValueError, match="params/fc/bias is filled 2 times"):
        fill(template, tensors, twice, net="net")
    short = slots(template)
    del short["fc.bias"]
    with pytest.raises(ValueError, match="params/fc/bias is filled 0 times"):
        fill(template, tensors, short, net="net")
    astray = slots(template) | {"more": Slot(("params", "fc", "more"))}
    with pytest.raises(ValueError, match="params/fc/more is filled 1 times"):
        fill(template, tensors, astray, net="net")


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "name", ["w.pth", "w.pt", "w.PKL", "w.ckpt", "w.bin", "w.safetensors", "w"]
)
def test_nothing_is_unpickled(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    with pytest.raises(ValueError, match=r"safetensors|which no file of weights needs"):
        read_tensors(path)
    assert not (tmp_path / "opened").exists()


def test_pickled_files_are_answered_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"got .*w\.pkl: .*convert it .* safetensors\.torch"):
        read_tensors(tmp_path / "w.pkl")


def test_truncated_and_absent_files(tmp_path, tensors):
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(tensors, path)
    # The last eight bytes are two numbers of the last tensor.
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        read_tensors(path)
    for absent in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read_tensors(absent)


def test_renaming_keeps_every_tensor_or_says_so():
    renamed = weights_lib.rename({"norm.weight": 1, "a.norm.bias": 2}, {r"^norm\.": "ln."})
    assert renamed == {"ln.weight": 1, "a.norm.bias": 2}
    with pytest.raises(ValueError, match=r"the file holds ln\.weight twice"):
        # The new name is taken: one of the two would be lost.
        weights_lib.rename({"norm.weight": 1, "ln.weight": 2}, {r"^norm\.": "ln."})


def test_width_is_what_most_tensors_say():
    tensors = {"a": np.ones((3, 4)), "b": np.ones(3), "c": np.ones((8, 5)), "d": np.ones(2)}
    # Two of the three say 3.
    assert weights_lib.width(tensors, ("a", 0), ("b", 0), ("c", 1), default=7) == 3
    # One name is absent and one tensor has no such axis: nobody says anything.
    assert weights_lib.width(tensors, ("none", 0), ("d", 1), default=7) == 7


def test_drawn_weights_have_unit_gain(template):
    drawn = weights_lib.draw(template, jax.random.key(3))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, template)
    np.testing.assert_array_equal(drawn["batch_stats"]["block.1"]["bn"]["var"], np.ones(4))
    np.testing.assert_array_equal(drawn["params"]["fc"]["bias"], np.zeros(5))
    wide = {"kernel": jax.ShapeDtypeStruct((3, 3, 50, 60), jnp.float32)}
    kernel = weights_lib.draw(wide, jax.random.key(0))["kernel"]
    # 27,000 draws: the standard error of their deviation is 0.43 %.
    assert float(kernel.std()) == pytest.approx(450**-0.5, rel=0.02)
    assert not np.array_equal(kernel, weights_lib.draw(wide, jax.random.key(4))["kernel"])
