"""The served studio: its answers are those of the library, and whatever comes, it stays up and
writes nothing.
"""

import base64
import contextlib
import io
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

pytestmark = pytest.mark.slow
PICTURE = {"model": "demo", "picture": "0000-crescent"}


def png(size=(64, 64), colour=(200, 30, 30)):
    """A picture file."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def full(cells):
    return base64.b64encode(b"\xff" * (cells // 8)).decode()


def test_a_region_by_hand_scores_as_the_library_scores_it(served):
    import perturb
    from launch import demo
    from launch.demo import world
    from perturb import operators
    from perturb.evidence import fills

    cells = np.zeros((64, 64), np.uint8)
    cells[10:40, 8:36] = 1
    asked = {**PICTURE, "target": "crescent", "fill": "mean"}
    found = served.ask("score", **asked, mask=base64.b64encode(np.packbits(cells)).decode())
    # Index 0 of the world's seed 7 is the studio's picture `0000-crescent`.
    model, image = demo.load("demo"), world.render(7, 0).image
    masks = np.stack([np.ones((64, 64)), cells, 1 - cells]).astype(np.float32)
    import jax

    views = fills.show(operators.get("mean"), image, jax.random.key(0), masks)
    target = model.class_names.index("crescent")
    expected = [float(perturb.scores.probability("logits", row, target)) for row in model(views)]
    # One batch of three here: the studio's own program may round differently.
    assert [found["whole"], found["alone"], found["without"]] == pytest.approx(expected, abs=1e-4)
    assert found["area"] == pytest.approx(cells.mean())
    # Where all is kept nothing was removed, whatever the fill.
    whole = served.ask("score", **asked, mask=full(64 * 64))
    assert whole["alone"] == pytest.approx(whole["whole"], abs=1e-4)


def test_one_map_serves_every_area_and_the_script_gives_the_same(served, capsys):
    lines = served.work("map", **PICTURE, target="crescent")
    progress = [line["progress"] for line in lines if "progress" in line]
    assert progress == sorted(progress)
    assert len(progress) > 10
    places = np.frombuffer(base64.b64decode(lines[-1]["result"]["places"]), "<u4")
    # Ranks of all pixels, each of them once.
    assert sorted(places) == list(range(1, 64 * 64 + 1))
    verdict = served.ask("verdict", **PICTURE, target="crescent", area=0.1)
    text = served.ask("script", **PICTURE, target="crescent", area=0.1)["text"]
    scope = {}
    exec(text, scope)
    assert capsys.readouterr().out.splitlines()[0] == verdict["verdict"]
    # A tenth of 64 x 64 px is 409.6.
    assert (scope["region"].ravel() > 0).tolist() == (places <= 410).tolist()
    assert float(scope["card"].probability["blur"][0, 0]) == pytest.approx(
        verdict["alone"], abs=1e-4
    )


def test_strokes_draw_what_the_script_draws(served):
    units = served.work("units", layer="layer1")[-1]["result"]["ranked"]["object"][:8]
    place = np.zeros((16, 16), np.uint8)
    place[4:12] = 1
    step = {"layer": "layer1", "units": units, "level": 0}
    step["mask"] = base64.b64encode(np.packbits(place)).decode()
    asked = {"first": 3, "count": 4, "steps": [step, {**step, "level": 1.5}]}
    found = served.ask("paint", **asked)
    sheet = base64.b64decode(found["sheet"].split(",")[1])
    shown = np.asarray(PIL.Image.open(io.BytesIO(sheet))).reshape(64, 4, 64, 3).swapaxes(0, 1)
    scope = {}
    exec(served.ask("painted_script", **asked)["text"], scope)
    assert np.abs(shown / 255 - scope["images"]).max() < 0.02
    plain = served.ask("wall", first=3, count=4)
    assert np.abs(np.array(plain["shares"]) - np.array(found["after"])).max() > 0.001


def test_what_is_dropped_obeys_the_rules_of_the_launchers(served):
    status, body = served.request("POST", "/api/pictures", png((300, 200)))
    assert status == 200
    picture = json.loads(body)["id"]
    assert served.ask("answers", model="demo_cheat", picture=picture)["size"] == [64, 64]
    hostile = {
        "text": b"no picture at all",
        "empty": b"",
        "cut off": png()[:60],
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        # Width and height of 2^31 - 1 in the head of a picture of one pixel.
        "bomb": png((1, 1)).replace(b"\x00\x00\x00\x01\x00\x00\x00\x01", b"\x7f\xff\xff\xff" * 2),
    }
    for name, data in hostile.items():
        status, body = served.request("POST", "/api/pictures", data)
        assert (name, status) == (name, 400)
        assert body.startswith(b"this picture cannot be used")
        assert len(body) < 301
    # Refused by what it says of itself, before it is sent.
    # By hand, for `http.client` would send the body first and read the refusal afterwards.
    with contextlib.closing(socket.create_connection(("127.0.0.1", served.port))) as line:
        line.sendall(
            f"POST /api/pictures HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nX-Studio-Token: "
            f"token-of-the-tests\r\nContent-Length: {33 * 2**20}\r\n\r\n".encode()
        )
        assert line.recv(20).startswith(b"HTTP/1.1 413")
    # Whatever came, the next one is answered.
    assert served.request("GET", "/api/world")[0] == 200


@pytest.mark.parametrize(
    "picture", ["../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "a" * 5000, "\x00", "<script>"]
)
def test_names_that_mean_something_elsewhere_mean_nothing_here(served, picture):
    status, body = served.request(
        "POST", "/api/ask/answers", json.dumps({**PICTURE, "picture": picture})
    )
    assert status == 404
    assert len(body) < 301
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/app.py",
        "/api/picture/..%2f..%2fREADME.md",
    ):
        assert served.request("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("score", "["),
        ("score", "[]"),
        # Deeper than a parser that calls itself can go.
        ("score", "[" * 100_000),
        ("score", json.dumps({**PICTURE, "mask": "AA=="})),
        ("score", json.dumps({**PICTURE, "mask": full(4096), "fill": "lava"})),
        ("score", json.dumps({**PICTURE, "mask": full(4096), "target": "zebra"})),
        ("score", json.dumps({**PICTURE, "mask": full(4096), "target": 10})),
        ("verdict", json.dumps({**PICTURE, "area": "1e9"})),
        ("answers", json.dumps({"model": "os", "picture": "0000-crescent"})),
        ("wall", json.dumps({"first": -1, "count": 1e9})),
        ("paint", json.dumps({"first": 0, "count": 4, "steps": [{"layer": "layer1"}]})),
        ("paint", json.dumps({"first": 0, "count": 4, "moves": {"age": 3}})),
        # The layer has units 0 to 63.
        ("ablate", json.dumps({**PICTURE, "layer": "relu#6", "units": [64]})),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_in_a_line(served, name, body):
    status, said = served.request("POST", f"/api/ask/{name}", body)
    assert status == 400
    assert said.count(b"\n") == 1
    assert len(said) < 301


def test_fifty_clients_at_once_are_served_each_with_its_own(served):
    # Forty-five areas, and one of them five times more, all asked at the same time.
    areas = [0.02 * n for n in range(1, 46)] + [0.5] * 5
    served.work("map", **PICTURE, target="crescent")

    def one(area):
        found = served.ask("verdict", **PICTURE, target="crescent", area=area)
        return area, found["alone"]

    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(one, areas))
    # Asked again alone: nobody was given the answer of another.
    for area, alone in (found[2], found[20], found[-1]):
        assert one(area)[1] == pytest.approx(alone, abs=1e-5)


def test_work_that_nobody_waits_for_ends_and_the_next_begins(served):
    begun = time.monotonic()
    for n in range(20):
        with contextlib.closing(socket.create_connection(("127.0.0.1", served.port))) as line:
            body = json.dumps({"model": "demo", "picture": "0001-diamond", "target": n % 10})
            line.sendall(
                f"POST /api/long/map HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nX-Studio-Token: "
                f"token-of-the-tests\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            # The work has begun; the line is closed without waiting for it.
            line.recv(200)
    left = time.monotonic() - begun
    assert (
        "result" in served.work("map", model="demo", picture="0001-diamond", target="diamond")[-1]
    )
    # Twenty maps would take twenty times as long as the one that was waited for.
    one = time.monotonic() - begun - left
    begun = time.monotonic()
    served.work("map", model="demo", picture="0002-ring", target="ring")
    assert one < 10 * max(time.monotonic() - begun, 0.5)


def test_a_dead_decoder_is_replaced(served):
    import psutil

    for child in psutil.Process().children():
        if any("decoder" in part for part in child.cmdline()):
            child.send_signal(signal.SIGKILL)
    assert served.request("POST", "/api/pictures", png(colour=(1, 2, 3)))[0] == 200


def test_the_command_prints_one_address_and_writes_nothing(tmp_path):
    pytest.importorskip("uvicorn")
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.studio"],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(root),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            # Python's own caches are no files of the studio's.
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{20,})\n", address)
        assert found, address
        with socket.create_connection(("127.0.0.1", int(found[1]))) as line:
            line.sendall(
                f"GET /api/world HTTP/1.1\r\nHost: 127.0.0.1:{found[1]}\r\nX-Studio-Token: "
                f"{found[2]}\r\nConnection: close\r\n\r\n".encode()
            )
            assert line.recv(20).startswith(b"HTTP/1.1 200")
    finally:
        # As Ctrl-C does: the way in which people end it.
        process.send_signal(signal.SIGINT)
        # A machine that is busy may be compiling for a while yet.
        rest, errors = process.communicate(timeout=300)
    assert rest == ""
    assert process.returncode == 0, errors
    assert list(tmp_path.iterdir()) == []
