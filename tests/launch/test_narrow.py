"""Pages on a telephone: nothing is wider than the window, and numbers do not lie on each other."""

import shutil

import numpy as np
import pytest

from launch.demo import __main__ as demo
from launch.demo import world
from launch.jobs.compare import page as compared
from launch.jobs.dissect import page as units
from launch.jobs.masks import page as masks
from launch.report.html import document
from tests.launch.test_results import committed, some_masks

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
    look = look._replace(verdict="doubtful", reasons=("a long reason " * 9,))
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


def regions(folder):
    """The page of a run of masks, with every badge that a card can have."""
    found = some_masks(batch=3)
    status = np.array([["ok", "not_converged"], ["nonfinite", "ok"], ["ok", "ok"]])
    names = [f"{'a long name of a picture ' * 5}{i}.png" for i in range(3)]
    flags = {"areas": [0.1, 0.3], "target": "csv"}
    committed(folder, found._replace(status=status), names=names, flags=flags)
    return masks.write(folder)


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as run:
        started = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of the pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    for made in (two_networks, leakage):
        (folder / f"{made.__name__}.html").write_text(made(), encoding="utf-8")
    found = {f.stem: f for f in folder.glob("*.html")}
    found["regions"] = regions(folder / "run")
    runs = folder / "run", folder / "run"
    found["compared"] = compared.write(folder / "compared", runs, ("a long name" * 4, "B"))
    return found


@pytest.mark.parametrize("name", ["two_networks", "leakage", "regions", "compared"])
@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_is_wider_than_the_window_and_nothing_overlaps(name, width, pages, browser):
    # The policy of the page forbids scripts that are not its own, and these are the test's.
    page = browser.new_page(viewport={"width": width, "height": 800}, bypass_csp=True)
    logged = []
    page.on("console", lambda m: logged.append(m.text))
    page.goto(pages[name].as_uri())
    for opened in (False, True):
        page.evaluate(
            "o => document.querySelectorAll('details').forEach(d => { d.open = o; })", opened
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = page.evaluate(
            "[...document.querySelectorAll('img, td, th')].filter(e => "
            "e.getBoundingClientRect().right > innerWidth + 1).length"
        )
        assert cut == 0
        assert page.evaluate(OVERLAPS) == []
    page.close()
    assert logged == []


def test_a_page_of_masks_by_keyboard_and_what_is_chosen_is_in_its_address(pages, browser):
    page = browser.new_page(viewport={"width": 1300, "height": 800}, bypass_csp=True)
    page.goto(pages["regions"].as_uri())
    page.keyboard.press("/")
    page.keyboard.type("no such name")
    assert page.locator("#empty").is_visible()
    assert "find=no" in page.url
    page.get_by_role("button", name="Show all").click()
    assert not page.locator("#empty").is_visible()
    page.select_option("#sort", "effect1:down")
    page.select_option("#view", "region")
    assert "sort=effect1" in page.url
    first = page.locator(".card h2").first.inner_text()
    # The address alone brings the page back as it was.
    again = browser.new_page(bypass_csp=True)
    again.goto(page.url)
    assert again.locator(".card h2").first.inner_text() == first
    assert again.evaluate("document.body.dataset.view") == "region"
    again.close()
    page.locator(".card img:visible").first.focus()
    page.keyboard.press("Enter")
    said = page.locator("#zoom span")
    assert said.inner_text().endswith("1 of 9")
    page.keyboard.press("ArrowRight")
    assert said.inner_text().endswith("2 of 9")
    page.keyboard.press("Escape")
    assert page.locator("#zoom").count() == 0
    badge = page.locator(".badge summary").first
    badge.focus()
    page.keyboard.press("Enter")
    assert page.locator(".badge[open] p").first.is_visible()
    page.close()


def test_on_paper_what_badges_mean_is_printed_and_controls_are_not(pages, browser):
    page = browser.new_page(bypass_csp=True)
    page.goto(pages["regions"].as_uri())
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not page.locator(".controls").is_visible()
    assert page.locator(".badge p").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator(".badge p").first.is_visible()
    page.close()
