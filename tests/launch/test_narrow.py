"""Pages on a telephone: nothing is wider than the window, and numbers do not lie on each other."""

import shutil

import numpy as np
import pytest

from launch.demo import __main__ as demo
from launch.demo import world
from launch.jobs.dissect import page as units
from launch.report.html import document

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

# Every two leaf boxes that lie on each other, by more than rounding.
OVERLAPS = """() => {
  const leaves = [...document.querySelectorAll('td, th, figcaption b, figcaption span, h2, p')]
    .filter(e => e.offsetParent && e.innerText.trim() && !e.querySelector('td, p'));
  const boxes = leaves.map(e => e.getBoundingClientRect()), found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const a = boxes[i], b = boxes[j];
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 2 && y > 2 && !leaves[i].contains(leaves[j]))
      found.push([leaves[i].innerText, leaves[j].innerText]);
  }
  return found; }"""


def two_networks():
    """The page of `make demo`, of regions that nobody had to look for."""
    shown = world.pictures(2, watermark="right")
    look = demo.Look("crescent", 0.98, 0.91, np.zeros((64, 64)), 0.7, 0.1)
    looks = [[look._replace(mask=np.eye(64)) for _ in shown]] * 2
    accuracy = {"none": 1.0, "right": 1.0, "wrong": 0.123}
    one = {"accuracy": accuracy, "on_object": 0.87, "on_mark": 0.0}
    return demo._page(shown, looks, {"honest": one, "cheat": one}).decode()


def leakage():
    """The bars of `make demo-gan`, with the longest numbers that there may be."""
    low, high = -0.12345, 0.12345
    change = {
        "change": low,
        "change_low": low,
        "change_high": high,
        "random_low": low,
        "random_high": high,
    }
    row = {"effect": change, "leakage": {"gradient": change, "checks": change}}
    return document(
        "bars", f"<main>{units.bars({'off': row, 'on': row}, 'object')}</main>", style=units.STYLE
    ).decode()


@pytest.mark.parametrize("made", [two_networks, leakage])
@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_is_wider_than_the_window_and_nothing_overlaps(made, width, tmp_path):
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    file = tmp_path / "page.html"
    file.write_text(made(), encoding="utf-8")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, bypass_csp=True)
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = page.evaluate(
            "[...document.querySelectorAll('img, td, th')].filter(e => "
            "e.getBoundingClientRect().right > innerWidth + 1).length"
        )
        assert cut == 0
        assert page.evaluate(OVERLAPS) == []
        browser.close()
