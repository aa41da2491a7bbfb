"""Short forms of the programs for Slurm, namespaces and ssh: for root, where all is installed."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.cluster import slurm

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def needs(*programs):
    """Skips where something is not installed, or who asks is not root."""
    missing = [name for name in programs if not shutil.which(name)]
    if missing or os.getuid():
        pytest.skip(f"needs root and {', '.join(programs)}")


def program(name, *arguments):
    """Runs one of the programs; returns what it counted."""
    line = [sys.executable, "-m", f"tests.cluster.{name}", *arguments]
    done = subprocess.run(line, cwd=slurm.ROOT, capture_output=True, text=True, timeout=1500)
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_job_of_slurm_is_killed_preempted_and_loses_a_node(tmp_path):
    needs(*slurm.PROGRAMS)
    some = ["--items=64", "--kills=2", "--preemptions=1", "--nodes=1"]
    found = program("slurm", *some, f"--out={tmp_path}")
    assert (found["kills"], found["preemptions"], found["nodes lost"]) == (2, 1, 1)
    assert found["restarts"] >= 2
    assert (found["lost or twice"], found["other tree"]) == (0, 0)


def test_processes_in_namespaces_join_and_lose_their_coordinator(tmp_path):
    needs("ip")
    found = program("namespaces", "--hosts=4", f"--out={tmp_path}")
    joined = found["joined"]
    assert joined["codes"] == [0] * 4
    assert joined["places"] == 4
    assert joined["every item once"]
    assert joined["same tree"]
    alone = found["no coordinator"]
    assert alone["code"] == 2
    assert "process 0 has not answered at" in alone["line"]
    assert (alone["lines"], alone["traceback"]) == (1, False)
    assert alone["s"] < 120
    lost = found["coordinator lost"]
    assert lost["codes"] == [-9, 0, 0, 0]
    assert lost["every item once"]


def test_the_script_for_ssh_does_all_once(tmp_path):
    needs("sshd", "ssh", "ssh-keygen")
    found = program("sshd", "--items=48", f"--out={tmp_path}")
    assert (found["code"], found["killed"], found["cut"]) == (0, 1, 1), found
    assert found["every item once"]
    assert found["same tree"]
