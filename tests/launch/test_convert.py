import pathlib

import numpy as np
import pytest
import safetensors.numpy

from launch import convert
from perturb import embedded
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
    # Two networks in one file, as a training leaves them: which is meant cannot be guessed.
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
        # If this were ever called, the test would see a ZeroDivisionError and not a refusal.
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
    code, err = launched(convert, f"--source={tmp_path}/w.safetensors")
    assert code == 0, err
    assert "w.safetensors needs no conversion: --weights=" in caplog.text
    # The file itself: nothing was written beside it.
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_classifier_is_named_under_its_own_names_and_renamed(launched, torch, tmp_path, caplog):
    stored = safetensors.numpy.load_file(
        pathlib.Path(embedded.__file__).parent / "demo.safetensors"
    )
    safetensors.numpy.save_file(stored, tmp_path / "plain.safetensors")
    code, err = launched(convert, f"--source={tmp_path}/plain.safetensors")
    assert code == 0, err
    assert "plain.safetensors needs no conversion: --model=demo --weights=" in caplog.text
    # The right tensors under names of another project: they load only after --rename.
    arrays = {str(i): a for i, a in enumerate(stored.values())}
    named = {f"net_{n}": tensor(torch, str(i), a) for i, (n, a) in enumerate(stored.items())}
    zipped(tmp_path / "other.pth", named, arrays)
    code, err = launched(convert, f"--source={tmp_path}/other.pth")
    assert code == 0, err
    assert "no net here is known to take them" in caplog.text
    code, err = launched(convert, f"--source={tmp_path}/other.pth", "--rename=^net_=")
    assert code == 0, err
    assert "loaded as --model=demo" in caplog.text
    put = safetensors.numpy.load_file(tmp_path / "other.safetensors")
    assert put.keys() == stored.keys()


@pytest.mark.parametrize(
    ("rename", "words"),
    # Without a `=`, without a match, and with no regular expression.
    [("net_", "expected PATTERN=TEXT"), ("^none=", "matches no name"), ("(=x", "re.sub")],
)
def test_names_that_cannot_be_changed_are_said(launched, torch, tmp_path, rename, words):
    a = np.ones((2, 3), np.float32)
    zipped(tmp_path / "one.pth", {"net_a": tensor(torch, "0", a)}, {"0": a})
    code, err = launched(convert, f"--source={tmp_path}/one.pth", f"--rename={rename}")
    assert code == 2
    assert words in err
    assert err.startswith("error: ")
    assert len(err) < 300
