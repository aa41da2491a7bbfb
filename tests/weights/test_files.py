import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

import perturb
from perturb import weights as weights_lib

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": -np.arange(6, dtype=np.float32).reshape(2, 3),
    "c.bias": np.ones(2, np.float16),
}
# Transposed against the file, as PyTorch's layout is.
TEMPLATE = {
    "params": {n: {"kernel": np.zeros((3, 2))} for n in "ab"} | {"c": {"bias": np.zeros(2)}}
}


def test_the_same_tensors_from_every_kind_of_file(tmp_path):
    np.savez(tmp_path / "w.npz", **TENSORS)
    np.savez_compressed(tmp_path / "packed.npz", **TENSORS)
    safetensors.numpy.save_file(TENSORS, tmp_path / "w.safetensors")
    (tmp_path / "w.msgpack").write_bytes(serialization.msgpack_serialize(TENSORS))
    for path in tmp_path.iterdir():
        found = weights_lib.read_tensors(path)
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            np.testing.assert_array_equal(found[name], tensor)


NESTED = {
    "params": {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2)},
        "b": {"kernel": np.ones((3, 2), np.float16)},
        "c": {"bias": np.zeros(2, np.float32)},
    }
}


def saved(way, tree, path):
    if way == "msgpack":
        path = path.with_suffix(".msgpack")
        path.write_bytes(serialization.msgpack_serialize(tree))
        return path
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    if way == "orbax":
        ocp.v1.save(
            path, jax.tree.map(lambda x: x if isinstance(x, (str, int)) else jnp.asarray(x), tree)
        )
    else:
        # One file an array, the form before OCDBT, whose parts a test can damage.
        ocp.PyTreeCheckpointer(use_ocdbt=False).save(path, tree)
    return path


@pytest.mark.parametrize("way", ["msgpack", "orbax", "orbax zarr"])
def test_checkpoints_of_flax_fill_every_leaf_once(way, tmp_path):
    path = saved(way, NESTED, tmp_path / "whole")
    found = weights_lib.read_tensors(path)
    assert sorted(found) == ["params/a/kernel", "params/b/kernel", "params/c/bias"]
    assert type(found["params/a/kernel"]) is np.ndarray
    filled = weights_lib.fill(TEMPLATE, found, weights_lib.slots(TEMPLATE), net="a net")
    for name in "ab":
        np.testing.assert_array_equal(
            filled["params"][name]["kernel"], NESTED["params"][name]["kernel"]
        )
    # Two too many: a layer and the counter of steps.
    more = {"params": {**NESTED["params"], "d": {"bias": np.ones(2, np.float32)}}, "step": 3}
    found = weights_lib.read_tensors(saved(way, more, tmp_path / "more"))
    with pytest.raises(ValueError, match="2 extra") as error:
        weights_lib.fill(TEMPLATE, found, weights_lib.slots(TEMPLATE), net="a net")
    assert "params/d/bias" in str(error.value)
    bad = {"params": {**NESTED["params"], "c": {"bias": np.full(2, np.nan, np.float32)}}}
    with pytest.raises(ValueError, match="not finite"):
        weights_lib.fill(
            TEMPLATE,
            weights_lib.read_tensors(saved(way, bad, tmp_path / "bad")),
            weights_lib.slots(TEMPLATE),
            net="a net",
        )
    words = {"params": NESTED["params"], "name": "x"}
    with pytest.raises(ValueError, match="name is no array of numbers but str"):
        weights_lib.read_tensors(saved(way, words, tmp_path / "words"))


def test_a_net_reads_flax_s_own_names_with_any_number_of_classes(tmp_path):
    model = perturb.load_model("cifar_resnet20", key=jax.random.key(0))
    path = saved("msgpack", jax.tree.map(np.asarray, model.variables), tmp_path / "w")
    again = perturb.load_model("cifar_resnet20", weights=path)
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)


def test_orbax_checkpoints_that_are_not_whole_or_lie(tmp_path):
    path = saved("orbax zarr", NESTED, tmp_path / "w")
    (array,) = path.glob("params.a.kernel")
    text = (array / ".zarray").read_text()
    head = json.loads(text)
    # The head of an array of 2^41 numbers, on the data of six.
    (array / ".zarray").write_text(json.dumps({**head, "shape": [1 << 40, 2], "chunks": [3, 2]}))
    with pytest.raises(ValueError, match=r"no readable Orbax checkpoint .*"):
        weights_lib.read_tensors(path)
    (array / ".zarray").write_text(text)
    # A checkpoint that was not copied as a whole.
    (array / "0.0").unlink()
    with pytest.raises(ValueError, match="no readable Orbax checkpoint"):
        weights_lib.read_tensors(path)
    with pytest.raises(FileNotFoundError):
        weights_lib.read_tensors(tmp_path)


def mutated():
    def changed(**tensors):
        return {n: t for n, t in {**TENSORS, **tensors}.items() if t is not None}

    a = TENSORS["a.weight"]
    return [
        (changed(**{"a.weight": None}), "a.weight"),
        (changed(**{"a.weight": None, "a.weights": a}), "nearest name in the file is a.weights"),
        (changed(**{"d.weight": a}), "extra d.weight"),
        (changed(**{"a.weight": a.T}), r"a.weight: expected \[2, 3\], found \[3, 2\]"),
        (changed(**{"a.weight": a[:1]}), "mis-shaped"),
        (changed(**{"a.weight": a.reshape(-1)}), "mis-shaped"),
        (changed(**{"a.weight": a * np.nan}), "6 of 6 values are not finite"),
        (changed(**{"a.weight": np.where(a == 3, np.inf, a)}), "1 of 6 values"),
        # Finite in the file's float64, not in float32.
        (changed(**{"a.weight": a.astype(np.float64) * 1e300}), "not finite"),
        (changed(**{"a.weight": a.astype(np.int32)}), "float type"),
        (changed(**{"c.bias": np.ones((2, 1), np.float32)}), "c.bias"),
        ({"x": a}, "another net"),
    ]


@pytest.mark.parametrize(("tensors", "words"), mutated())
def test_mutated_weights_are_refused_by_name(tensors, words):
    with pytest.raises(ValueError, match=words):
        weights_lib.fill(TEMPLATE, tensors, weights_lib.slots(TEMPLATE), net="a net")


def test_hostile_files_are_refused_and_nothing_runs():
    root = pathlib.Path(__file__).parents[2]
    # A process of its own, for an audit hook cannot be taken off again.
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights.hostile"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["other"] == []
    assert found["refused"] == found["files"] >= 52
    assert found["bombs_refused"] == found["bombs"] >= 10
    assert found["executed"] == []
    assert not found["ran"]
    # A second and 64 MB are nothing beside what these files ask for.
    assert found["longest_s"] < 1
    assert found["growth_mb"] < 64
