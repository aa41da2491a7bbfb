"""Opens the page of a run of `launch.features` in Chromium: its size, how long it takes, how it
looks.

  python -m launch.features --model=squeezenet1_1 --weights=FILE --layer=features.11 --units=all \
      --size=128 --images=PHOTOGRAPHS --out=out/wall
  python -m benchmarks.features.wall --run=out/wall --shots=/tmp/shots
"""

from __future__ import annotations

import argparse
import pathlib
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
    data.row("page, MB", "pictures", "width, px", "loaded, s", "wider than the window, px")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        for width in (1300, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            before = time.monotonic()
            page.goto(page_file.as_uri(), wait_until="load")
            spent = time.monotonic() - before
            pictures = page.locator("figure").count()
            beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            data.row(f"{megabytes:.1f}", pictures, width, f"{spent:.2f}", max(0, beyond))
            if given.shots:
                pathlib.Path(given.shots).mkdir(parents=True, exist_ok=True)
                page.screenshot(path=f"{given.shots}/wall-{width}.png")
        browser.close()


if __name__ == "__main__":
    main()
