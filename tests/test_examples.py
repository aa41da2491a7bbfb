"""The programs in `examples/` run, each in an empty folder."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_ten_and_each_says_what_it_is_for():
    assert len(EXAMPLES) >= 10
    assert all(path.read_text().startswith('"""') for path in EXAMPLES)
    assert max(len(path.read_text().splitlines()) for path in EXAMPLES) <= 50


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    if path.stem == "torch_model":
        pytest.importorskip("torch", reason="PyTorch is not installed: use `make adapters`")
    ran = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip()
