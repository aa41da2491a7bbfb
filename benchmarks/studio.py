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


def median(function: Callable[[int], Any], times: int, *, cpu: bool = False) -> float:
    """Seconds of the middle one of several calls, after one that compiles; with `cpu` those that
    this process computed, on all cores together, which do not grow where others compute too.
    """
    now = time.process_time if cpu else time.perf_counter
    # The first call compiles.
    function(0)
    found = []
    for n in range(1, times + 1):
        began = now()
        function(n)
        found.append(now() - began)
    return statistics.median(found)


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
    score = median(lambda n: client.post("/api/ask/score", {**demo, "mask": bits(64, 64, n)}), 20)
    print(f"brush to score: {1000 * score:.0f} ms", flush=True)

    def dropped(n: int) -> None:
        picture = json.loads(client.post("/api/pictures", file((64, 64), n)))["id"]
        client.post("/api/long/map", {"model": "demo", "picture": picture, "target": 1})

    print(f"a dropped 64 px picture to its first mask: {median(dropped, 3):.1f} s", flush=True)
    # The map is made once and then asked for areas, as a slider asks.
    client.post("/api/long/map", demo)
    verdict = median(
        lambda n: client.post("/api/ask/verdict", {**demo, "area": 0.02 + 0.01 * n}), 20
    )
    print(f"area to verdict: {1000 * verdict:.0f} ms", flush=True)
    painting = client.studio.painting
    if painting is None:
        raise RuntimeError("the embedded world has a generator")
    layer, (h, w, _) = next(iter(painting.layers.items()))
    units = json.loads(client.post("/api/long/units", {"layer": layer}).splitlines()[-1])
    best = units["result"]["ranked"][painting.concepts.names[-1]][:8]

    def stroke(n: int) -> None:
        step = {"layer": layer, "units": best, "level": 0, "mask": bits(h, w, n)}
        client.post("/api/ask/paint", {"first": 16 * n, "count": 16, "steps": [step]})

    print(f"brush of 8 units to 16 new samples: {1000 * median(stroke, 20):.0f} ms", flush=True)
    computed = median(lambda n: stroke(n + 40), 20, cpu=True)
    print(f"the same, computed on all cores together: {1000 * computed:.0f} ms", flush=True)
    browser = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        print("area slider: not measured, it needs playwright and chromium")
        return
    with sync_playwright() as run:
        page = run.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            bypass_csp=True
        )
        page.goto(client.url)
        page.locator("#masks .word").nth(1).wait_for(timeout=300_000)
        took = page.evaluate(
            """async () => { const area = document.querySelector("#area"), took = [];
            for (let n = 1; n < 40; n++) { area.value = n; const began = performance.now();
              area.dispatchEvent(new Event("input")); await new Promise(requestAnimationFrame);
              took.push(performance.now() - began); }
            return took.sort((a, b) => a - b)[20]; }"""
        )
        print(f"area slider to the next frame, two pictures: {took:.0f} ms")


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

    print(f"a photograph to its first mask, SqueezeNet 1.1, warm: {median(dropped, 3):.1f} s")
    computed = median(dropped, 3, cpu=True)
    print(f"the same, computed on all cores together: {computed:.1f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights")
    parser.add_argument("--photograph")
    given = parser.parse_args()
    if given.weights:
        photograph(given.weights, given.photograph)
    else:
        embedded()
