"""The studio as people use it, in headless Chromium: by mouse, keyboard and touch, on a desktop and
on a telephone.
"""

import json
import os
import pathlib
import shutil

import pytest

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# axe-core, one file: `npm pack axe-core`; its path is given by this variable.
AXE = os.environ.get("AXE_CORE")
WAIT = 180_000  # ms; a first map compiles
SIZES = {"desktop": (1300, 900), "telephone": (390, 800)}


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as run:
        started = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=SIZES)
def page(browser, request):
    """A page of either size; whatever it logs fails the test."""
    width, height = SIZES[request.param]
    # A page's own policy forbids what the tests evaluate in it.
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=width < 500, bypass_csp=True
    )
    made, logged = context.new_page(), []
    made.on("console", lambda m: logged.append(m.text))
    made.on("pageerror", lambda e: logged.append(str(e)))
    made.set_default_timeout(WAIT)
    made.wide, made.logged = width, logged
    yield made
    context.close()
    assert logged == []


def settled(page):
    """Waits for the page to say what it has to say, and for nothing to be wider than the window."""
    page.locator("#working").wait_for(state="hidden", timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.wide
    assert page.locator("#said.wrong").count() == 0
    # 24 px is the least height of a target that WCAG 2.2 asks for.
    small = page.evaluate(
        "[...document.querySelectorAll('main button, main select')].filter(e => e.offsetParent && "
        "!e.classList.contains('link')).filter(e => e.getBoundingClientRect().height < 24).length"
    )
    assert small == 0
    # Only where axe-core is there; it is no Python package.
    if AXE:
        page.evaluate(pathlib.Path(AXE).read_text())
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        grave = [
            (v["id"], v["nodes"][0]["html"][:120])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert grave == []


def press(page, place):
    """A click, or on a telephone a tap."""
    place.scroll_into_view_if_needed()
    (place.tap if page.wide < 500 else place.click)()


def test_masks_by_mouse_touch_and_keyboard(served, page):
    page.goto(served.url)
    page.locator("#masks .word").nth(1).wait_for(timeout=WAIT)
    settled(page)
    area = page.locator("#area")
    area.focus()
    before = page.locator("#masks .bars").first.inner_text()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    # Answers come later than keys: the page is waited for, not a time.
    page.wait_for_function(
        "b => document.querySelector('#masks .bars').innerText !== b", arg=before
    )
    # Five steps of a hundredth from 0.1.
    assert "a=0.15" in page.url
    press(page, page.get_by_role("button", name="My own region"))
    canvas = page.locator("#masks canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = page.locator("#masks .bars").first.inner_text()
    if page.wide < 500:
        page.touchscreen.tap(x, y)
    else:
        page.mouse.move(x - 60, y)
        page.mouse.down()
        page.mouse.move(x + 60, y, steps=8)
        page.mouse.up()
    page.wait_for_function(
        "b => document.querySelector('#masks .bars').innerText !== b", arg=before
    )
    painted = page.url
    assert "mask=" in painted
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_function("u => location.href !== u", arg=painted)
    settled(page)
    # The address brings the state back, in a page of its own.
    score = page.locator("#masks .bars").first.inner_text()
    page.reload()
    page.wait_for_function(
        "b => document.querySelector('#masks .bars').innerText === b", arg=score, timeout=WAIT
    )


def test_a_dropped_picture_and_one_that_is_none(served, page, tmp_path):
    from tests.studio.test_app import png

    good, bad = tmp_path / "mine.png", tmp_path / "none.png"
    good.write_bytes(png((300, 200)))
    bad.write_bytes(b"no picture")
    page.goto(served.url)
    page.locator("#masks .word").nth(1).wait_for(timeout=WAIT)
    page.set_input_files("#file", bad)
    page.locator("#said.wrong").wait_for()
    assert "cannot be used" in page.inner_text("#said")
    page.set_input_files("#file", good)
    page.locator("#masks .thumbs button[aria-label='mine.png'][aria-pressed=true]").wait_for()
    page.locator("#masks .word").first.wait_for(timeout=WAIT)
    # A browser logs every refused request by itself.
    assert [line for line in page.logged if "400" not in line] == []
    page.logged.clear()


def test_the_generator_is_painted_undone_and_measured(served, page):
    page.goto(served.url + "#generator")
    page.locator("#generator p.small:has-text('those that best match')").wait_for(timeout=WAIT)
    settled(page)
    page.locator("#generator .effects .bar").first.wait_for()
    plain = page.locator("#generator .effects").first.inner_text()
    press(page, page.get_by_role("button", name="object", exact=True))
    press(page, page.get_by_role("button", name="Everywhere"))
    page.wait_for_function(
        "b => document.querySelector('#generator .effects').innerText !== b", arg=plain
    )
    assert "steps=" in page.url
    settled(page)
    press(page, page.get_by_role("button", name="Hold the last stroke"))
    page.locator("#generator .band").first.wait_for(timeout=WAIT)
    settled(page)
    press(page, page.get_by_role("button", name="Undo"))
    page.wait_for_function(
        "b => document.querySelector('#generator .effects').innerText === b", arg=plain
    )
    canvas = page.locator("#generator canvas.brush")
    canvas.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.wait_for_function("location.href.includes('steps=')")
    with page.expect_download() as kept:
        press(page, page.get_by_role("button", name="Save the strip"))
    # The first bytes of a PNG: what was saved is a picture.
    assert pathlib.Path(kept.value.path()).read_bytes()[:4] == b"\x89PNG"
    press(page, page.get_by_text("The same in Python").locator("visible=true"))
    page.wait_for_function(
        "document.querySelector('#generator pre').innerText.includes('taps.edit')"
    )


def test_units_are_switched_off_by_click_and_key(served, page):
    page.goto(served.url + "#units")
    page.locator("#units .unit").nth(5).wait_for(timeout=WAIT)
    page.locator("#units .bar").nth(5).wait_for(timeout=WAIT)
    settled(page)
    before = page.locator("#units aside .effects").first.inner_text()
    # One unit by pointer and one by key, and both of them have to count.
    press(page, page.locator("#units .unit").first)
    page.locator("#units .unit").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "b => document.querySelector('#units aside .effects').innerText !== b", arg=before
    )
    assert page.locator("#units .unit[aria-pressed=true]").count() == 2
    press(page, page.get_by_role("button", name="All on again"))
    page.wait_for_function(
        "b => document.querySelector('#units aside .effects').innerText === b", arg=before
    )


def test_tabs_by_keyboard_and_two_pages_that_do_not_mix(served, page):
    page.goto(served.url)
    page.locator("#tab-masks").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#tab-units", "aria-selected") == "true"
    page.keyboard.press("ArrowRight")
    other = page.context.new_page()
    other.goto(served.url + "#masks?p=0003-cross&a=0.3")
    page.goto(served.url + "#masks?p=0004-triangle&a=0.05")
    for one, said in ((other, "cross"), (page, "triangle")):
        one.locator("#masks .word").nth(1).wait_for(timeout=WAIT)
        assert said in one.locator("#masks .answer").first.inner_text()
    assert (
        json.loads(other.evaluate("JSON.stringify(document.querySelector('#area').value)")) == "30"
    )


def test_without_its_token_the_page_says_what_to_do(served, browser):
    page = browser.new_page()
    page.goto(served.url.split("?")[0])
    assert "open the address that the studio has printed" in page.inner_text("body")
