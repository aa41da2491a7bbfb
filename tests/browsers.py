"""A headless browser for tests, and what is wanted of every page that it shows."""

import contextlib
import importlib.util
import os
import pathlib
import shutil

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# A desktop and a telephone, px.
WIDTHS = (1300, 390)

# Every two leaf boxes that lie on each other, by more than rounding.
OVERLAPS = """() => {
  const leaves = [...document.querySelectorAll('td, th, figcaption b, figcaption span, h1, h2, h3, '
      + 'p, li, dt, dd, summary, button, select, output, label, figure img')]
    .filter(e => e.checkVisibility() && (e.innerText || '').trim() + (e.src || '')
      && !e.closest('.links, .thumbs') && !e.querySelector('td, p, ul, summary, select, label'));
  const boxes = leaves.map(e => e.getBoundingClientRect()), found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const a = boxes[i], b = boxes[j];
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 2 && y > 2 && !leaves[i].contains(leaves[j]))
      found.push([leaves[i], leaves[j]].map(e => (e.innerText || e.alt).slice(0, 60)));
  }
  return found; }"""
# Text and pictures that the window cuts off; a table that scrolls by itself may be longer.
CUT = """() => [...document.querySelectorAll('img, td, th, h1, h2, h3, p, li, button, select, svg')]
  .filter(e => e.checkVisibility() && !e.closest('.links, .thumbs, pre, code')
    && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => (e.innerText || e.alt || e.tagName).slice(0, 60))"""


def _axe() -> pathlib.Path | None:
    """The one file of axe-core: that of the package for Playwright, or `AXE_CORE`."""
    if given := os.environ.get("AXE_CORE"):
        return pathlib.Path(given)
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        return None
    return pathlib.Path(found.submodule_search_locations[0], "axe.min.js")


AXE = _axe()


@contextlib.contextmanager
def chromium():
    """A browser for the time of a module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as run:
        started = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


def grave(page):
    """What axe-core finds serious or critical in a page, as (rule, element); nothing without it.

    The page must have been opened with `bypass_csp`: its own policy forbids scripts of tests.
    """
    if AXE is None:
        return []
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    # Without requests and messages to frames, which a page that is opened as a file may not make.
    options = "{resultTypes: ['violations'], preload: false, iframes: false}"
    found = page.evaluate(f"axe.run({options})")["violations"]
    return [
        (v["id"], v["nodes"][0]["html"][:160], v["nodes"][0]["failureSummary"][:200])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
