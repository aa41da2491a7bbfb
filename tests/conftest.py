"""Shared fixtures: where the real networks and photographs lie, and a model whose answer is known."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real networks, photographs and goldens; tests that need it skip without it.

    Once `PERTURB_DATA` is set a missing file is a failure, never a skip.
    """
    root = os.environ.get("PERTURB_DATA")
    if not root:
        pytest.skip("PERTURB_DATA is not set: no real networks and photographs to test on")
    path = pathlib.Path(root)
    if not (path / "README.md").is_file():
        pytest.fail(f"PERTURB_DATA={root} is not the data folder: it has no README.md")
    return path
