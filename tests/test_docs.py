"""The programs in the documentation run as they stand, page by page, on the embedded world."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
# A block marked `python` is run; `py` needs files or time that a test has not, and is shown only.
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {
    str(page.relative_to(DOCS)): blocks
    for page in sorted(DOCS.rglob("*.md"))
    if (blocks := BLOCK.findall(page.read_text()))
}
PAGES["../README.md"] = BLOCK.findall((ROOT / "README.md").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run(page, capsys):
    names = {"__name__": "page"}
    # One set of names a page, as a reader who types the blocks one after another has it.
    for block in PAGES[page]:
        exec(compile(block, page, "exec"), names)
    capsys.readouterr()


def test_there_are_pages():
    # A pattern that matches nothing would pass every page.
    assert len(PAGES) >= 6


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    missing = [
        str(page.relative_to(DOCS))
        for page in DOCS.rglob("*.md")
        if f"{page.relative_to(DOCS)}\n" not in contents + "\n"
    ]
    assert not missing


def test_the_tests_that_the_page_on_security_names_are_there():
    named = re.findall(r"`(tests/\S+?)::(\w+)`", (DOCS / "security.md").read_text())
    # So that a change of the page's form is noticed, which would leave nothing to look for.
    assert len(named) >= 20
    missing = [
        f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()
    ]
    assert not missing
