"""Habits that a reader of the code relies on: short files and lines, types that say something."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LIBRARIES = ("perturb", "gan_dissect", "launch")
FOLDERS = (*LIBRARIES, "tests", "benchmarks")
LINES, WIDTH = 600, 100
# `Any` says nothing to a reader or to mypy; `perturb.types` has better words for most of it.
ANY = 424


def files(*folders):
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    # A folder that was moved would else be clean for having no files.
    assert len(found) > 10 * len(folders)
    return found


def long_lines(text):
    return [n for n, line in enumerate(text.splitlines(), 1) if len(line) > WIDTH]


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_and_lines_are_short_and_all_are_formatted(folder):
    for path in files(folder):
        text, name = path.read_text(), path.relative_to(ROOT)
        assert len(text.splitlines()) <= LINES, f"{name} has more than {LINES} lines"
        assert not long_lines(text), f"{name}, lines over {WIDTH}: {long_lines(text)}"
        # Written in two parts, so that this file passes.
        assert "# fmt: " + "skip" not in text, f"{name} keeps a line from being formatted"


def test_most_types_are_named():
    found = {p: len(re.findall(r"\bAny\b", p.read_text())) for p in files(*LIBRARIES)}
    worst = sorted(found, key=found.__getitem__)[-5:]
    # A count that may only fall: the worst five files are where to begin.
    assert sum(found.values()) <= ANY, [f"{p.relative_to(ROOT)}: {found[p]}" for p in worst]


def test_mypy_is_strict():
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.mypy]")[2]
    assert "\nstrict = true\n" in settings
    assert 'packages = ["perturb", "gan_dissect", "launch"]' in settings


def test_a_long_line_is_noticed():
    assert long_lines("a" * WIDTH) == []
    assert long_lines("a\n" + "a" * (WIDTH + 1)) == [2]
