"""What the units of an honest classifier and of a cheat answer to, on one page.

  python -m launch.demo.units --out=out/demo-units

Both were trained on the embedded picture world; the cheat where a watermark gave the class away.
Every pixel of the world is known, so no mask is optimised: units are compared with what is there,
and with networks of random weights. Leaves demo/, demo_cheat/ and report/index.html in --out.
"""

from __future__ import annotations

import time

from absl import logging

from launch import demo, flags, results
from launch.job import store
from launch.jobs.dissect.page import STYLE, last
from launch.jobs.dissect_model import page, work
from launch.report.html import document, text

_OUT, _SEED, _SMALL = flags.shared("out", "seed", "small")

SAMPLES, NETWORKS, ROTATIONS = 300, 10, 2
TITLES = {
    "demo": "The honest one: trained where watermarks say nothing",
    "demo_cheat": "The cheat: trained where a watermark gave the class away",
}


def main() -> int:
    """Dissects both networks and writes the page."""
    out = store.path(_OUT.value or "out/demo-units")
    began = time.monotonic()
    store.writable(out)
    small = _SMALL.value
    sections = []
    for name in demo.NAMES:
        folder = out / name
        work.run(
            folder,
            {
                "model": name,
                "weights": None,
                "images": None,
                "concepts": None,
                # One layer is enough to show the page.
                "layer": "relu#6" if small else None,
                "samples": 24 if small else SAMPLES,
                "quantile": 0.99,
                "networks": 1 if small else NETWORKS,
                "rotations": 0 if small else ROTATIONS,
                "seed": _SEED.value,
                "batch_size": 12 if small else 50,
                "out": str(folder),
            },
        )
        page.write(folder)
        # Pages of units lie with their run; from here they are a folder away.
        answers = page.questions(last(folder)[0], results.settings(folder))
        body = page.body(folder, f"../{name}/report/")
        sections.append(f"<h2>{text(TITLES[name])}</h2>{answers}{body}")
    head = (
        "<header><h1>Find the cheat without a single mask</h1>"
        f"<p>{page.lead(results.settings(out / 'demo'))}</p></header>"
    )
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    store.put(
        folder / "index.html",
        document(
            "Units of two classifiers", f"{head}<main>{''.join(sections)}</main>", style=STYLE
        ),
    )
    logging.info("done in %.0f s: %s", time.monotonic() - began, folder / "index.html")
    return 0


if __name__ == "__main__":
    flags.run(main)
