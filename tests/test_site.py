"""The built site as people open it: every page, without a server, on a desktop and on a telephone.

`make docs` builds it and runs this; elsewhere it skips unless `SITE` names a built site.
"""

import contextlib
import html
import os
import pathlib
import re
import urllib.parse

import pytest

from tests import browsers

SITE = pathlib.Path(os.environ.get("SITE", "none")).resolve()
BROWSER = browsers.BROWSER
pytestmark = pytest.mark.skipif(
    "SITE" not in os.environ, reason="no site has been built: use `make docs`"
)
# A server gives the page for what is missing; its paths start at the server's root.
PAGES = sorted(p for p in SITE.rglob("*.html") if p.name != "404.html")
REFERENCE = re.compile(r"""<(?:a|link|script|img|iframe)\b[^>]*?\b(href|src)=["']?([^"'\s>]+)""")
TUTORIALS = (
    "mask-in-five-minutes",
    "your-own-model",
    "compare-attributions",
    "gan-units",
    "find-the-cheat",
    "what-unit-17-looks-for",
)


def local(page):
    """What a page refers to on this disk."""
    for _, address in REFERENCE.findall(page.read_text(encoding="utf-8")):
        parts = urllib.parse.urlsplit(html.unescape(address))
        if not parts.scheme and not parts.netloc and parts.path:
            yield address, (page.parent / urllib.parse.unquote(parts.path)).resolve()


def test_every_page_and_file_that_is_linked_to_is_there():
    # An empty folder has no dead link either.
    assert len(PAGES) > 40
    missing = [
        f"{page.relative_to(SITE)}: {address}"
        for page in PAGES
        for address, file in local(page)
        if not file.exists()
    ]
    assert missing == []


def test_nothing_is_loaded_from_elsewhere():
    loaded = []
    for page in PAGES:
        for tag in re.findall(r"<(?:link|script|img|iframe)\b[^>]*>", page.read_text("utf-8")):
            outside = re.search(r"""\b(?:href|src)=["']?(?:https?:)?//""", tag)
            # The canonical address is a name, and is not loaded.
            if outside and 'rel="canonical"' not in tag:
                loaded.append(f"{page.relative_to(SITE)}: {tag[:200]}")
    assert loaded == []


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_tutorial_has_been_run_and_shows_pictures(name):
    if os.environ.get("EXECUTE_TUTORIALS") == "false":
        pytest.skip("built without running the tutorials")
    text = (SITE / "tutorials" / f"{name}.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") >= 3
    assert "Traceback" not in text


def test_examples_of_docstrings_are_code():
    quoted = [
        str(page.relative_to(SITE))
        for page in (SITE / "reference").glob("*.html")
        if re.search(r"<blockquote>\s*<blockquote>", page.read_text(encoding="utf-8"))
    ]
    assert quoted == []


@pytest.mark.parametrize("width", [1300, 390])
def test_pages_fit_the_window_and_complain_of_nothing(width):
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    found = []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        # Pages of runs forbid scripts that are not their own, and these are the test's.
        tab = browser.new_page(viewport={"width": width, "height": 900}, bypass_csp=True)
        here = ""
        tab.on("console", lambda m: found.append(f"{here}: {m.type}: {m.text}"))
        tab.on("pageerror", lambda e: found.append(f"{here}: {e}"))
        # An icon that is still on its way when the next page is opened is aborted.
        tab.on(
            "requestfailed",
            lambda r: (
                None
                if r.failure == "net::ERR_ABORTED"
                else found.append(f"{here}: {r.url}: {r.failure}")
            ),
        )
        tab.on(
            "request",
            lambda r: (
                None
                if r.url.startswith(("file:", "data:", "blob:", "about:"))
                else found.append(f"{here}: asks for {r.url}")
            ),
        )
        for page in PAGES:
            here = str(page.relative_to(SITE))
            tab.goto(page.as_uri())
            wide = tab.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                found.append(f"{here}: {wide} px wide in a window of {width} px")
            # All on a telephone, where most scrolls; on a desktop one page of each kind.
            if width < 500 or page.parent == SITE:
                found += [f"{here}: {rule}: {element}" for rule, element, _ in browsers.grave(tab)]
            if shots := os.environ.get("SHOTS"):
                to = pathlib.Path(shots) / f"{here.replace('/', '-')}-{width}.png"
                tab.screenshot(path=to, full_page=True)
        browser.close()
    assert found == []


def test_the_search_works_without_a_server():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        said = []
        tab.on("console", lambda m: said.append(m.text))
        tab.on("pageerror", lambda e: said.append(str(e)))
        tab.goto((SITE / "index.html").as_uri())
        wanted = tab.locator('.md-search-result__item a[href*="glossary"]').first
        for attempt in range(12):
            # What is typed before the page listens is lost: typed again until it answers.
            tab.locator(".md-search__input").fill("truncation" + " " * (attempt % 2))
            with contextlib.suppress(playwright.TimeoutError):
                wanted.wait_for(timeout=5_000)
                break
        assert wanted.count() == 1
        browser.close()
    assert said == []
