"""The studio as people use it, in headless Chromium: by mouse, keyboard and touch, on a desktop and
on a telephone.
"""

import json
import pathlib
import threading
import time

import pytest

from tests import browsers

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
WAIT = 180_000  # ms; a first map compiles
SIZES = {"desktop": (1300, 900), "telephone": (390, 800)}


@pytest.fixture(scope="module")
def browser():
    if browsers.BROWSER is None:
        pytest.skip("no chromium on this machine")
    with browsers.chromium() as started:
        yield started


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
    assert page.evaluate(browsers.CUT) == []
    assert page.evaluate(browsers.OVERLAPS) == []
    assert browsers.grave(page) == []


def press(page, place):
    """A click, or on a telephone a tap."""
    place.scroll_into_view_if_needed()
    if page.wide >= 500:
        place.click()
        return
    # A browser takes the first tap after a quick swipe for the end of a movement, and clicks
    # nothing: the finger comes down again, as a person's would.
    button = place.element_handle()
    button.evaluate("e => e.addEventListener('click', () => { e.tapped = true; }, { once: true })")
    for _ in range(5):
        place.tap()
        try:
            page.wait_for_function("e => e.tapped", arg=button, timeout=10_000)
        except playwright.TimeoutError:
            continue
        button.evaluate("e => { delete e.tapped; }")
        return
    raise AssertionError("five taps, and no click")


def stroke(page, canvas):
    """A stroke across the middle of a canvas: by a mouse, or on a telephone by a finger."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    y = box["y"] + box["height"] / 2
    way = [box["x"] + box["width"] * part for part in (0.3, 0.4, 0.5, 0.6, 0.7)]
    if page.wide >= 500:
        page.mouse.move(way[0], y)
        page.mouse.down()
        page.mouse.move(way[-1], y, steps=8)
        page.mouse.up()
        return
    # Playwright taps, but does not drag: the browser's own protocol does.
    finger = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", way[0]), *(("touchMove", x) for x in way[1:])):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        # s; without a pause the stroke is a swipe, after which the next tap is none.
        time.sleep(0.05)
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


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
        "b => document.querySelector('#masks .bars')?.innerText !== b", arg=before
    )
    # Five steps of a hundredth from 0.1.
    page.wait_for_function("location.href.includes('a=0.15')")
    press(page, page.get_by_role("button", name="My own region"))
    canvas = page.locator("#masks canvas").first
    before = page.locator("#masks .bars").first.inner_text()
    stroke(page, canvas)
    page.wait_for_function(
        "b => document.querySelector('#masks .bars')?.innerText !== b", arg=before
    )
    page.wait_for_function("location.href.includes('mask=')")
    painted = page.url
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
        "b => document.querySelector('#masks .bars')?.innerText === b", arg=score, timeout=WAIT
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
        "b => document.querySelector('#generator .effects')?.innerText !== b", arg=plain
    )
    assert "steps=" in page.url
    settled(page)
    press(page, page.get_by_role("button", name="Hold the last stroke"))
    page.locator("#generator .band").first.wait_for(timeout=WAIT)
    settled(page)
    press(page, page.get_by_role("button", name="Undo"))
    page.wait_for_function(
        "b => document.querySelector('#generator .effects')?.innerText === b", arg=plain
    )
    canvas = page.locator("#generator canvas.brush")
    stroke(page, canvas)
    page.wait_for_function("location.href.includes('steps=')")
    press(page, page.get_by_role("button", name="Undo"))
    page.wait_for_function("!location.href.includes('steps=')")
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
        "document.querySelector('#generator pre')?.innerText.includes('taps.edit')"
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
        "b => document.querySelector('#units aside .effects')?.innerText !== b", arg=before
    )
    assert page.locator("#units .unit[aria-pressed=true]").count() == 2
    press(page, page.get_by_role("button", name="All on again"))
    page.wait_for_function(
        "b => document.querySelector('#units aside .effects')?.innerText === b", arg=before
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


def test_cancel_ends_the_work_and_the_studio_is_idle(served, page, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def endless(asked, report):
        try:
            while True:
                report(0.5, 1, "for ever")
                begun.set()
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setitem(served.studio.works, "map", endless)
    page.goto(served.url + "#masks?p=0005-square&t=3")
    page.get_by_text("for ever").wait_for()
    assert begun.wait(60)
    press(page, page.locator("#cancel"))
    page.get_by_text("Nothing was lost").wait_for()
    assert ended.wait(60)
    page.locator("#working").wait_for(state="hidden")
    # Nobody is left in the lane, and its only thread takes the next one.
    deadline = time.monotonic() + 60
    while served.studio.long._there and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.studio.long._there == 0
    monkeypatch.undo()
    asked = {"model": "demo", "picture": "0005-square", "target": "square"}
    assert "result" in served.work("map", **asked)[-1]


def test_the_slider_draws_without_asking_the_network(served, page):
    page.goto(served.url + "#masks?p=0000-crescent&both=0")
    page.locator("#masks .word").first.wait_for(timeout=WAIT)
    settled(page)
    # From here on nobody answers, and the outline follows the slider all the same.
    page.route("**/api/**", lambda route: None)
    drawn = "document.querySelector('#masks canvas').toDataURL()"
    seen = {page.evaluate(drawn)}
    for area in (20, 40, 60):
        page.evaluate(
            """a => { const area = document.querySelector('#area'); area.value = a;
            area.dispatchEvent(new Event('input')); }""",
            area,
        )
        seen.add(page.evaluate(drawn))
    assert len(seen) == 4


def test_without_its_token_the_page_says_what_to_do(served, browser):
    page = browser.new_page()
    page.goto(served.url.split("?")[0])
    assert "open the address that the studio has printed" in page.inner_text("body")
