"""What a job does when it is asked to stop, meets NaN, or runs out of memory."""

import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from launch import results
from launch.job import faults, hosts, meeting
from perturb import methods
from tests.launch.test_masks import read_lines

ROOT = pathlib.Path(__file__).parents[2]

# A job that does not leave stays for ASLEEP; one that leaves at once is gone by SOON, however busy
# the machine.
ASLEEP, SOON = 600, 300


def job(code, *, delay=0.0, notices=1):
    """Runs `code` in a process, tells it to leave; returns exit code and seconds it took to go."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    # Not before its handler is there, or the notice would simply kill it.
    assert process.stdout.readline() == b"ready\n"
    time.sleep(delay)
    begin = time.monotonic()
    for _ in range(notices):
        process.send_signal(signal.SIGTERM)
        # Two signals of a kind that wait together count as one.
        time.sleep(0.1)
    code = process.wait(timeout=2 * ASLEEP)
    process.stdout.close()
    return code, time.monotonic() - begin


BUSY = """
import sys, time
from launch.job import faults
faults.leave_on_notice(grace={grace})
try:
    # In here: on a busy machine the notice is there before the next line is.
    print("ready", flush=True)
    time.sleep(600)
except faults.Preempted:
    {after}
"""


def test_a_notice_ends_the_job_with_75():
    assert job(BUSY.format(grace=20, after="sys.exit(faults.PREEMPTED)"))[0] == 75


def test_code_that_does_not_listen_is_ended_and_so_is_one_told_twice():
    deaf = BUSY.format(grace=1, after="time.sleep(600)")
    code, seconds = job(deaf)
    assert code == 75
    assert seconds < SOON
    # With a grace longer than the test, only the second notice can have ended it.
    code, seconds = job(deaf.replace("grace=1", "grace=5000"), notices=2)
    assert code == 75
    assert seconds < SOON


BROKEN = """
from launch import flags
from launch.job import faults
def main():
    try:
        raise faults.Preempted
    finally:
        raise ValueError("an archive half written cannot be closed")
flags.run(main, ["launcher"])
"""


def test_what_a_notice_breaks_on_its_way_out_is_not_called_bad_input():
    done = subprocess.run([sys.executable, "-c", BROKEN], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stderr == "asked to stop; the same command continues from here\n"


SWALLOWED = """
import os, signal
from launch import flags
from launch.job import faults
from launch.job.progress import Progress
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        # What the handler raises in here Python drops, with a note on stderr.
        sum(range(100))
def main():
    faults.leave_on_notice(grace=5000)
    shown = Progress(2)
    Dying()
    print("went on")
    shown.add(1)
    print("done")
flags.run(main, ["launcher"])
"""


def test_a_notice_that_python_dropped_is_heeded_at_the_next_item():
    line = [sys.executable, "-c", SWALLOWED]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "went on\n")
    assert done.stderr.endswith("asked to stop; the same command continues from here\n")


def test_the_page_of_a_process_that_jax_ended_becomes_a_line():
    page = (
        "I0101 00:00:00 1 service.cc:1] starting\nF0101 00:00:00 1 client.h:80] Terminating "
        "process because the JAX distributed service detected fatal errors. absl::Status: "
        "DEADLINE_EXCEEDED: Deadline Exceeded\n\n*** Check failure stack trace: ***\n    @ 0x1 a\n"
    )
    said = meeting._why(page, -signal.SIGABRT, 300)
    assert "have not all met within 300 s (DEADLINE_EXCEEDED: Deadline Exceeded)" in said
    assert "\n" not in said
    # An exception of Python's: its last line, without the name of its class.
    said = meeting._why("Traceback:\n  line\nValueError: no cluster: none.\n", 1, 300)
    assert said == "no cluster: none."


@pytest.mark.parametrize("text", ["", "1", "2/2", "a/b", "-1/2", "1/2/3"])
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match=r"--shard="):
        hosts.share(text)


def test_flags_of_several_processes_that_do_not_fit(launch_masks, photos, toy, tmp_path):
    for more in (["--shard=0/2", "--multiprocess"], ["--process_id=1"], ["--shard=3"]):
        code, err = launch_masks(*toy, f"--images={photos}", f"--out={tmp_path}/o", *more)
        assert code == 2
        assert "--" in err.splitlines()[-1]


@pytest.mark.slow
def test_shares_together_are_the_whole(launch_masks, photos, toy, instant, tmp_path, monkeypatch):
    # 44 pictures with those of the fixture: three shards of 16, one for each share.
    for i in range(40):
        PIL.Image.new("RGB", (33, 33), (250, 5 * i, 0)).save(photos / f"f{i:02d}.png")
    arguments = [*toy, f"--images={photos}"]
    assert launch_masks(*arguments, f"--out={tmp_path}/whole")[0] == 0
    monkeypatch.setattr(faults, "leave_on_notice", lambda: None)
    # The last share is run before the others; whoever finds all shards there writes the results.
    for k in (2, 0, 1):
        code, err = launch_masks(*arguments, f"--out={tmp_path}/parts", f"--shard={k}/3")
        assert code == 0, err
        assert (tmp_path / "parts" / "results.jsonl").exists() == (k == 1)
    code, err = launch_masks(*arguments, "--seed=1", f"--out={tmp_path}/parts", "--shard=0/3")
    assert code == 2
    assert "another run" in err
    for name in ("results.jsonl", "report/index.html", "manifest.jsonl", "shards/000002.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_numbers_that_are_none_are_flagged_and_not_counted(launch_masks, photos, tmp_path):
    arguments = ["--steps=12", "--areas=0.2", "--batch_size=2", "--evidence=none"]
    arguments += [f"--images={photos}"]
    for kind, stage in (("logits", "model"), ("gradient", None)):
        out = tmp_path / kind
        code, err = launch_masks(*arguments, f"--model=tests.launch.toy:nan_{kind}", f"--out={out}")
        assert code == (1 if stage else 0), err
        rows = {row["image"]: row for row in read_lines(out / "results.jsonl")}
        errors = read_lines(out / "errors.jsonl")
        assert [e["stage"] for e in errors] == ([stage] if stage else [])
        # The toy models fail on pictures that are mostly blue.
        bad = rows.pop("c_blue.png", None)
        assert (bad is None) == (stage is not None)
        # An answer without a gradient still has a mask and its scores: a row with a warning.
        assert bad is None or bad["status"] == "nonfinite"
        assert {row["status"] for row in rows.values()} <= {"ok", "not_converged"}
        assert len(rows) == 3
        # Neighbours in the same batch are none the worse.
        assert all(np.isfinite(row["score_binary"]) for row in rows.values())


def test_too_many_errors_decide_the_exit_code_only(
    launch_masks, photos, toy, instant, tmp_path, caplog
):
    (photos / "broken.png").write_bytes(b"no")
    for rate, want in (("0.1", 1), ("0.2", 0)):
        given = [a for a in toy if "error_rate" not in a] + [f"--max_error_rate={rate}"]
        caplog.clear()
        code, err = launch_masks(*given, f"--images={photos}", f"--out={tmp_path}/{rate}")
        assert code == want, err
        # The flag that decides is named, with what takes the run as done.
        assert f"exit code {want}: 1 of 5 failed" in caplog.text
        assert f"--max_error_rate={rate}" in caplog.text
        assert ("--max_error_rate=0.2 accepts" in caplog.text) == bool(want)
        # Either way what could be done was done, and is there.
        assert len(results.load(tmp_path / rate)["ids"]) == 4


def test_out_of_memory_halves_the_slots_and_begins_the_items_anew(
    launch_masks, photos, toy, instant, tmp_path, monkeypatch
):
    stand, seen = methods.get("extremal"), []

    @functools.wraps(stand)
    def small(*arguments, batch_size, **more):
        seen.append(batch_size)
        if batch_size > limit:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return stand(*arguments, **more)

    monkeypatch.setitem(methods._NAMED, "extremal", small)
    arguments = [a for a in toy if "batch" not in a] + [f"--images={photos}", "--batch_size=8"]
    limit = 3
    code, err = launch_masks(*arguments, f"--out={tmp_path}/out")
    assert code == 0, err
    # Halved until it is no more than 3: 8 and 4 did not fit.
    assert seen == [8, 4, 2]
    # Two slots are the fewest that a run has: where they do not fit, halving ends.
    limit = 1
    code, err = launch_masks(*arguments, f"--out={tmp_path}/none")
    assert code == 2
    assert "do not fit into the device's memory" in err.splitlines()[-1]


def test_pipes_and_folders_named_like_pictures_are_errors(
    launch_masks, photos, toy, instant, tmp_path
):
    # Opened to be read, a pipe without a writer would wait for ever.
    os.mkfifo(photos / "pipe.png")
    # A device that never ends, and the folder itself.
    (photos / "list.csv").write_text("path\npipe.png\na_red.png\n/dev/zero\n.\n")
    code, err = launch_masks(*toy, f"--images={photos}/list.csv", f"--out={tmp_path}/out")
    assert code == 0, err
    errors = {e["id"]: e["error"] for e in read_lines(tmp_path / "out" / "errors.jsonl")}
    assert errors["pipe.png"] == errors["/dev/zero"] == "not a regular file"
    assert len(results.load(tmp_path / "out")["ids"]) == 1


CLUSTER = """
import sys, time
from launch.job import faults, hosts, meeting
place = hosts.join(
    multiprocess=True, coordinator="localhost:{port}", processes={number}, process={process}
)
assert place == ({process}, {number}, True), place
try:
    # Within the try: the notice may come as soon as this is read.
    print("ready", flush=True)
    time.sleep(600)
except faults.Preempted:
    sys.exit(faults.PREEMPTED)
"""


OF_SLURM = """
from launch import flags
from launch.job import hosts
hosts.JOIN = {wait}
def main():
    print(hosts.join(multiprocess=True), flush=True)
flags.run(main, ["launcher"])
"""


@pytest.mark.slow
def test_processes_find_each_other_by_the_words_of_a_scheduler_or_say_in_a_line_that_they_did_not():
    def started(process, wait):
        # As a step of two tasks; JAX makes the port of the coordinator from the job's number.
        words = {"JOB_ID": os.getpid(), "STEP_NODELIST": "localhost", "NTASKS": 2, "LOCALID": 0}
        words = {f"SLURM_{n}": str(v) for n, v in {**words, "PROCID": process}.items()}
        line = [sys.executable, "-c", OF_SLURM.format(wait=wait)]
        env = {**os.environ, **words, "JAX_PLATFORMS": "cpu"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(line, cwd=ROOT, env=env, text=True, **pipes)

    both = [started(k, 300) for k in range(2)]
    ends = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], ends
    assert [said for said, _ in ends] == [f"{hosts.Place(k, 2, True)}\n" for k in range(2)]
    # Nobody else comes: JAX itself aborts there, with a page of stack.
    alone = started(0, 1)
    said, error = alone.communicate()
    assert (alone.returncode, said) == (2, "")
    assert error.startswith("error: --multiprocess: the processes of this job have not all met")
    assert error.count("\n") == 1
    assert len(error) < 320


@pytest.mark.slow
def test_a_notice_reaches_a_process_of_a_cluster():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        # A port that the kernel has just called free, so that tests beside this one do not meet.
        port = free.getsockname()[1]
    programs = [CLUSTER.format(port=port, number=2, process=k) for k in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for code in programs
    ]
    # Both have joined: a notice before that would meet JAX's own start.
    assert [p.stdout.readline() for p in processes] == [b"ready\n"] * 2
    begin = time.monotonic()
    # JAX's own handler, which would wait for both to reach the same step, must not be the one in
    # force.
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes = [p.wait(timeout=2 * ASLEEP) for p in processes]
    assert codes == [75, 75]
    assert time.monotonic() - begin < SOON
    for process in processes:
        process.stdout.close()
