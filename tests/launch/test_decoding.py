"""Pictures that hang, crash or starve the process that decodes them."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest

import perturb
from launch import results
from launch.inputs import decoding, images
from tests.launch.test_masks import read_lines

ROOT = pathlib.Path(__file__).parents[2]
HANGING = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.launch import hanging; "
    "hanging.main()",
)


def png(seed=0, size=(40, 30)):
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("geometry", "channels"),
    [
        (None, 3),
        (perturb.squash(8), 1),
        (perturb.short_side(20).crop(16), 3),
        (perturb.central(0.5, 9), 3),
    ],
)
def test_a_process_decodes_as_this_one_does(geometry, channels):
    with decoding.Decoders(1) as decoders:
        got, want = (f(png(), geometry, channels) for f in (decoders.picture, images.picture))
    np.testing.assert_array_equal(got.pixels, want.pixels)
    assert got.pixels.dtype == np.float32
    assert got[1:] == want[1:]


def test_refusals_are_the_same():
    bad = [b"", b"GIF89a", png()[:-500]]
    with decoding.Decoders(1) as decoders:
        for data, geometry in [*((d, None) for d in bad), (png(), perturb.Geometry().crop(99))]:
            caught = []
            for picture in (images.picture, decoders.picture):
                with pytest.raises(images.BadImage) as error:
                    picture(data, geometry)
                caught.append((error.value.stage, str(error.value), error.value.sha256))
            assert caught[0] == caught[1]


def test_a_decoder_knows_no_jax():
    code = (
        "import sys; from launch.inputs import decoder; decoder.serve(); print(*sys.modules, "
        "file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    message = io.BytesIO()
    decoding.decoder.send(message, {"steps": [["squash", [4, 4]]], "channels": 3}, png())
    loaded = process.communicate(message.getvalue(), timeout=600)[1].decode().split()
    assert "launch.inputs.images" in loaded
    assert "perturb.geometry" in loaded
    assert not {"jax", "flax", "perturb.model"} & set(loaded)


@pytest.fixture
def hanging(monkeypatch):
    """Puts the decoder that can be told to hang in place of the real one."""
    monkeypatch.setattr(decoding.Decoders.__init__, "__defaults__", (HANGING,))
    monkeypatch.setattr(decoding.decoder, "SECONDS", 0.3)
    monkeypatch.setattr(decoding.decoder, "CLOCK", 6.0)


TRICKS = {
    "spin": "decoding took more than 0.3 s of processor time",
    "crash": "decoding ended its process (SIGSEGV)",
    "die": "decoding ended its process (SIGKILL)",
    "eat": "needs more than 4 GiB",
    "exit": "decoding ended its process (exit code 7)",
    "lie": "decoding ended its process (SIGKILL)",
    "sleep": "decoding took more than 6 s",
}


@pytest.mark.slow
def test_hostile_pictures_are_refused_and_the_next_one_is_read(hanging):
    with decoding.Decoders(1) as decoders:
        for trick in ("spin", "crash", "eat", "exit", "lie"):
            with pytest.raises(images.BadImage) as error:
                decoders.picture(trick.encode(), None)
            assert (error.value.stage, str(error.value)) == ("decode", TRICKS[trick])
            assert len(error.value.sha256) == 64
        assert decoders.picture(b"print", None).size == (4, 4)
        np.testing.assert_array_equal(
            decoders.picture(png(), None).pixels, images.picture(png(), None).pixels
        )


@pytest.mark.slow
def test_hostile_pictures_cost_their_own_row(launch_masks, photos, toy, instant, tmp_path, hanging):
    plain = tmp_path / "plain"
    assert launch_masks(*toy, f"--images={photos}", f"--out={plain}")[0] == 0
    for i, trick in enumerate(TRICKS):
        photos.joinpath(f"{'abcd'[i % 4]}_{trick}.png").write_bytes(trick.encode())
    photos.joinpath("z_print.png").write_bytes(b"print")
    out = tmp_path / "out"
    code, err = launch_masks(*toy, f"--images={photos}", f"--out={out}")
    assert code == 0, err
    errors = {e["id"].partition("@")[0]: e for e in read_lines(out / "errors.jsonl")}
    assert len(errors) == len(TRICKS)
    for i, (trick, words) in enumerate(TRICKS.items()):
        found = errors[f"{'abcd'[i % 4]}_{trick}.png"]
        assert (found["stage"], found["error"]) == ("decode", words)
    rows = [row for row in read_lines(out / "results.jsonl") if row["image"] != "z_print.png"]
    assert rows == read_lines(plain / "results.jsonl")
    assert len(results.load(out)["ids"]) == 5


PARENT = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
from launch.inputs import decoding
decoders = decoding.Decoders(2, {command!r})
for data in (b"spin", b"print"):
    threading.Thread(target=decoders.picture, args=(data, None), daemon=True).start()
while decoders._idle.qsize() < 1:
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(60)
"""


def children(process):
    """Process ids of the children of a process."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_no_decoder_outlives_its_parent_for_long():
    code = PARENT.format(root=str(ROOT), command=HANGING)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"ready\n"
    alive = children(parent.pid)
    assert alive
    parent.kill()
    parent.wait()
    parent.stdout.close()
    # One is idle and goes at once; one computes and goes when its second of processor time is over.
    end = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{p}").exists() for p in alive) and time.monotonic() < end:
        time.sleep(0.1)
    left = [p for p in alive if pathlib.Path(f"/proc/{p}").exists()]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []


def test_many_threads_share_few_processes():
    got = {}
    with decoding.Decoders(2) as decoders:

        def work(i):
            got[i] = decoders.picture(png(i), perturb.squash(6)).pixels

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert decoders._idle.qsize() <= 2
    for i in range(8):
        np.testing.assert_array_equal(got[i], images.picture(png(i), perturb.squash(6)).pixels)
