import json
import pathlib
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# A memory disk where there is one: what is tested is what a dead process leaves, not the disk.
MEMORY = pathlib.Path("/dev/shm")


def killing(*arguments):
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        command = [sys.executable, "-m", "tests.launch.killing", f"--out={folder}/k", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_job_that_is_killed_or_fails_anywhere_loses_nothing_and_ends_the_same():
    # Every ninth call; the command line of `tests.launch.killing` takes them all.
    counts = killing("--step=9", "--random=12", "--told=6", "--races=20", "--hosts=4")
    runs = {n: v for n, v in counts.items() if n.endswith(": runs")}
    wrong = {n: v for n, v in counts.items() if ": " in n and n not in runs and v}
    assert not wrong
    # Nothing goes wrong in a case that was not run: each has to have its runs.
    assert runs["killed at a call: runs"] >= 20
    assert runs["killed at a random time: runs"] == 12
    assert runs["told to leave: runs"] == 6
    # The 20 s after which code that does not listen is ended, and some for a busy machine.
    assert counts["seconds to leave"] < 25
    assert runs["ENOSPC for good: runs"] >= 10
    assert runs["races: runs"] == 20
    assert runs["hosts: runs"] == 4
