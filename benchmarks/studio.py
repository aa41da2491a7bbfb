"""How long the studio takes to answer: medians over HTTP, and in a browser where Playwright and
Chromium are there.

python -m benchmarks.studio                                  # the embedded world
python -m benchmarks.studio --weights=squeezenet1_1.safetensors --photograph=FILE # and SqueezeNet
1.1
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import pathlib
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import uvicorn

from launch.studio import __main__ as main
from launch.studio import app, world

TOKEN = "benchmark"


class Client:
    """Asks a studio that runs in this process."""

    def __init__(self, shown: world.World):
        guarded, self.studio = app.build(shown, TOKEN)
        listening = main.listen(0)
        server = uvicorn.Server(main.config(guarded))
        threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
        # Not before: a request to a server that is not listening would be refused.
        while not server.started:
            time.sleep(0.01)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/?token={TOKEN}"

    def post(self, path: str, body: bytes | dict[str, Any]) -> bytes:
        """Returns the whole answer."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        line.request("POST", path, data, {"x-studio-token": TOKEN})
        answer = line.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(found.decode())
        return found


def report(name: str, function: Callable[[int], Any], times: int) -> None:
    """Prints the middle one of several calls, after one that compiles: what was waited, and what
    this process computed on all cores together, which does not grow where others compute too.
    """
    # The first call compiles.
    function(0)
    waited, computed = [], []
    for n in range(1, times + 1):
        began, before = time.perf_counter(), time.process_time()
        function(n)
        waited.append(time.perf_counter() - began)
        computed.append(time.process_time() - before)
    print(
        f"{name}: {1000 * statistics.median(waited):.0f} ms waited, "
        f"{1000 * statistics.median(computed):.0f} ms computed on all cores together",
        flush=True,
    )


def bits(rows: int, columns: int, n: int) -> str:
    """A brush of a few cells, another one for every `n`."""
    cells = np.zeros((rows, columns), np.uint8)
    # Another place each time: no answer may come from a cache.
    at = n % (rows - 4)
    cells[at : at + max(2, rows // 3), columns // 4 : columns // 2] = 1
    return base64.b64encode(np.packbits(cells)).decode()


def file(size: tuple[int, int], n: int) -> bytes:
    """A picture nobody has dropped before."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(n).integers(0, 256, (*size, 3), np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def embedded() -> None:
    """The rows of the embedded world."""
    client = Client(world.load())
    demo = {"model": "demo", "picture": "0000-crescent", "target": 8}
    report(
        "brush to score",
        lambda n: client.post("/api/ask/score", {**demo, "mask": bits(64, 64, n)}),
        20,
    )

    def dropped(n: int) -> None:
        picture = json.loads(client.post("/api/pictures", file((64, 64), n)))["id"]
        client.post("/api/long/map", {"model": "demo", "picture": picture, "target": 1})

    report("a dropped 64 px picture to its first mask", dropped, 3)
    # The map is made once and then asked for areas, as a slider asks.
    client.post("/api/long/map", demo)
    report(
        "area to verdict",
        lambda n: client.post("/api/ask/verdict", {**demo, "area": 0.02 + 0.01 * n}),
        20,
    )
    painting = client.studio.painting
    if painting is None:
        raise RuntimeError("the embedded world has a generator")
    layer, (h, w, _) = next(iter(painting.layers.items()))
    units = json.loads(client.post("/api/long/units", {"layer": layer}).splitlines()[-1])
    best = units["result"]["ranked"][painting.concepts.names[-1]][:8]

    fresh = False

    def stroke(n: int) -> None:
        step = {"layer": layer, "units": best, "level": 0, "mask": bits(h, w, n)}
        first = 16 * n if fresh else 0
        client.post("/api/ask/paint", {"first": first, "count": 16, "steps": [step]})

    report("brush of 8 units to 16 samples", stroke, 20)
    fresh = True
    report("the same, with samples that are new each time", lambda n: stroke(n + 40), 20)
    browser = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        print("area slider: not measured, it needs playwright and chromium")
        return
    with sync_playwright() as run:
        started = run.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = started.new_page(bypass_csp=True)
        page.goto(client.url)
        page.locator("#masks .word").nth(1).wait_for(timeout=300_000)
        session = started.new_browser_cdp_session()

        def spent() -> float:
            found = session.send("SystemInfo.getProcessInfo")["processInfo"]
            return sum(float(process["cpuTime"]) for process in found)

        before = spent()
        took = page.evaluate(
            """async () => { const area = document.querySelector("#area"), took = [];
            for (let n = 1; n < 41; n++) { area.value = n; const began = performance.now();
              area.dispatchEvent(new Event("input")); await new Promise(requestAnimationFrame);
              took.push(performance.now() - began); }
            return took.sort((a, b) => a - b)[20]; }"""
        )
        # With all that a browser does beside drawing: the answers that come meanwhile.
        computed = 1000 * (spent() - before) / 40
        print(
            f"area slider to the next frame, two pictures: {took:.0f} ms waited, {computed:.0f} ms "
            "computed by all of the browser"
        )


def photograph(weights: str, path: str) -> None:
    """The row of SqueezeNet 1.1."""
    shown = world.load(model="squeezenet1_1", weights=weights, listed=path)
    client = Client(shown)
    data = pathlib.Path(path).read_bytes()

    def dropped(n: int) -> None:
        with PIL.Image.open(io.BytesIO(data)) as image:
            buffer = io.BytesIO()
            # Another quality is another file, which the studio has not kept a map of.
            image.convert("RGB").save(buffer, "JPEG", quality=80 + n)
        picture = json.loads(client.post("/api/pictures", buffer.getvalue()))["id"]
        client.post("/api/long/map", {"model": "squeezenet1_1", "picture": picture})

    report("a photograph to its first mask, SqueezeNet 1.1, warm", dropped, 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights")
    parser.add_argument("--photograph")
    given = parser.parse_args()
    if given.weights:
        photograph(given.weights, given.photograph)
    else:
        embedded()
