"""Opens the page of a run of `launch.features` in Chromium: its size, how long it takes, how it
looks.

  python -m launch.features --model=squeezenet1_1 --weights=FILE --layer=features.11 --units=all \
      --size=128 --images=PHOTOGRAPHS --out=out/wall
  python -m benchmarks.features.wall --run=out/wall --shots=/tmp/shots
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import subprocess
import time

from playwright.sync_api import sync_playwright

from benchmarks.units import data


def main() -> None:
    """Prints a table, and writes screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="out/wall")
    parser.add_argument("--shots", default="")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    page_file = pathlib.Path(given.run, "report", "index.html").resolve()
    megabytes = page_file.stat().st_size / 1e6
    data.row(
        *(
            "page, MB",
            "pictures",
            "width, px",
            "loaded, s",
            "CPU s of the browser, less an empty page",
        ),
        "wider than the window, px",
    )
    empty = _spent(given.chromium, "about:blank", 1300)
    spent_by = {w: _spent(given.chromium, page_file.as_uri(), w) - empty for w in (1300, 390)}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        for width in (1300, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            before = time.monotonic()
            page.goto(page_file.as_uri(), wait_until="load")
            spent = time.monotonic() - before
            pictures = page.locator("figure").count()
            beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            told = f"{spent:.2f}", f"{spent_by[width]:.2f}", max(0, beyond)
            data.row(f"{megabytes:.1f}", pictures, width, *told)
            if given.shots:
                pathlib.Path(given.shots).mkdir(parents=True, exist_ok=True)
                page.screenshot(path=f"{given.shots}/wall-{width}.png")
        browser.close()


def _spent(chromium: str, address: str, width: int) -> float:
    """CPU seconds of a browser that opens a page and is closed: what else runs does not matter."""
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    subprocess.run(
        [chromium, *options, "--dump-dom", address],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before


if __name__ == "__main__":
    main()
