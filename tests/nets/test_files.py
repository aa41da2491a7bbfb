import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from perturb.nets import _weights

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": -np.arange(6, dtype=np.float32).reshape(2, 3),
    "c.bias": np.ones(2, np.float16),
}
TEMPLATE = {
    "params": {n: {"kernel": np.zeros((3, 2))} for n in "ab"} | {"c": {"bias": np.zeros(2)}}
}


def test_the_same_tensors_from_every_kind_of_file(tmp_path):
    np.savez(tmp_path / "w.npz", **TENSORS)
    np.savez_compressed(tmp_path / "packed.npz", **TENSORS)
    safetensors.numpy.save_file(TENSORS, tmp_path / "w.safetensors")
    (tmp_path / "w.msgpack").write_bytes(serialization.msgpack_serialize(TENSORS))
    for path in tmp_path.iterdir():
        found = _weights.read_tensors(path)
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            np.testing.assert_array_equal(found[name], tensor)


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
        (changed(**{"a.weight": a.astype(np.float64) * 1e300}), "not finite"),
        (changed(**{"a.weight": a.astype(np.int32)}), "float type"),
        (changed(**{"c.bias": np.ones((2, 1), np.float32)}), "c.bias"),
        ({"x": a}, "another net"),
    ]


@pytest.mark.parametrize(("tensors", "words"), mutated())
def test_mutated_weights_are_refused_by_name(tensors, words):
    with pytest.raises(ValueError, match=words):
        _weights.fill(TEMPLATE, tensors, _weights.slots(TEMPLATE), net="a net")


def test_hostile_files_are_refused_and_nothing_runs():
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.nets.hostile"],
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
    assert found["longest_s"] < 1
    assert found["growth_mb"] < 64
