"""Pages on a telephone: nothing is wider than the window, and numbers do not lie on each other."""

import pytest

from tests import browsers
from tests.launch import made

pytestmark = pytest.mark.slow
pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    if browsers.BROWSER is None:
        pytest.skip("no chromium on this machine")
    with browsers.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of the pages by their kind."""
    folder = tmp_path_factory.mktemp("pages")
    return {name: write(folder / name) for name, write in made.KINDS.items()}


@pytest.mark.parametrize("name", made.KINDS)
@pytest.mark.parametrize("width", browsers.WIDTHS)
def test_nothing_is_cut_off_nothing_overlaps_and_nothing_is_barred(name, width, pages, browser):
    # The policy of the page forbids scripts that are not its own, and these are the test's.
    page = browser.new_page(viewport={"width": width, "height": 800}, bypass_csp=True)
    logged = []
    page.on("console", lambda m: logged.append(m.text))
    page.on("pageerror", lambda e: logged.append(str(e)))
    page.goto(pages[name].as_uri())
    for opened in (False, True):
        page.evaluate(
            "o => document.querySelectorAll('details').forEach(d => { d.open = o; })", opened
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(browsers.CUT) == []
        assert page.evaluate(browsers.OVERLAPS) == []
    # A badge opens into what it means.
    silent = "b => !(b.querySelector('p')?.textContent.trim())"
    assert page.evaluate(f"[...document.querySelectorAll('.badge')].filter({silent}).length") == 0
    # Both grounds: what is read on white need not be read on black.
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert browsers.grave(page) == []
    page.close()
    assert logged == []


def test_axe_core_is_there():
    if browsers.AXE is None:
        pytest.skip("no axe-core: pages were not checked by it")
    assert browsers.AXE.is_file()


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
    again = browser.new_page(bypass_csp=True)
    again.goto(page.url)
    assert again.locator("#zoom span").inner_text().endswith("2 of 9")
    again.close()
    page.bring_to_front()
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('#zoom') && !location.hash.includes('zoom')")
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
