import numpy as np
import pytest
import safetensors.numpy

from launch import convert
from tests.weights.test_torchfile import dumps, fake, tensor, torch, zipped

__all__ = ["fake", "torch"]  # fixtures


def test_a_file_is_converted_and_a_part_chosen(launched, torch, tmp_path):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    zipped(tmp_path / "one.pth", {"conv.weight": tensor(torch, "0", a)}, {"0": a})
    code, err = launched(convert, f"--source={tmp_path}/one.pth", f"--out={tmp_path}/x.safetensors")
    assert code == 0, err
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(tmp_path / "x.safetensors")["conv.weight"], a
    )
    both = {name: {"w": tensor(torch, "0", a)} for name in ("g", "d")}
    zipped(tmp_path / "two.pth", both, {"0": a})
    arguments = (f"--source={tmp_path}/two.pth", f"--out={tmp_path}/y.safetensors")
    code, err = launched(convert, *arguments)
    assert code == 2
    assert "--part is missing: the file holds g, d" in err
    assert launched(convert, *arguments, "--part=d")[0] == 0
    assert list(safetensors.numpy.load_file(tmp_path / "y.safetensors")) == ["w"]


class Evil:
    def __reduce__(self):
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source=evil.pkl"], "names builtins.eval"),
        (["--source=none.pth"], "there is no file"),
        (["--source=evil.pkl", "--out=x.npz"], "must end in .safetensors"),
        ([], "--source is missing"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(launched, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(dumps({"w": Evil()}, 4))
    code, err = launched(convert, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_file_that_needs_no_conversion_is_said_to_need_none(launched, tmp_path, caplog):
    safetensors.numpy.save_file(
        {"fc.weight": np.ones((2, 3), np.float32)}, tmp_path / "w.safetensors"
    )
    caplog.set_level("INFO", logger="absl")
    code, err = launched(convert, f"--source={tmp_path}/w.safetensors")
    assert code == 0, err
    assert "w.safetensors needs no conversion: --weights=" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1
