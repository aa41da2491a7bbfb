"""`launch/pods/ssh.sh` against a real sshd: a process killed, a connection cut, all done once.

  python -m tests.cluster.sshd --items=64 --out=/dev/shm/sshd

One sshd with keys of its own stands for all machines; the script is given their names as they are.
Needs root and Debian's `openssh-server`. Prints one JSON object.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from tests.cluster.slurm import ROOT, free_port, items, tree

MACHINES = ("a", "b", "c")


@contextlib.contextmanager
def served(folder):
    """A running sshd; yields the variables with which `ssh` finds it under each of `MACHINES`."""
    folder.mkdir(parents=True, exist_ok=True)
    # The keys in it are nobody else's to read.
    folder.chmod(0o700)
    # Made by the service's unit, which does not run here.
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPermitRootLogin yes\nPidFile {folder}/pid\n"
    )
    (folder / "ssh_config").write_text(
        f"Host {' '.join(MACHINES)}\n  HostName 127.0.0.1\n  Port {port}\n"
        f"  IdentityFile {folder}/user\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {folder}/known\n  LogLevel ERROR\n"
    )
    found = shutil.which("ssh")
    (folder / "bin").mkdir()
    # Under the name `ssh`: the script is tested as it is, without a flag for the test.
    (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {found} -F {folder}/ssh_config "$@"\n')
    (folder / "bin" / "ssh").chmod(0o755)
    server = subprocess.Popen(
        # By its whole path, without which sshd does not start.
        ["/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        time.sleep(1)
        path = f"{folder}/bin:{os.environ['PATH']}"
        yield {"PATH": path, "HOSTS": " ".join(MACHINES), "REPO": str(ROOT), "VENV": sys.prefix}
    finally:
        server.kill()
        server.wait()


def running(word, out):
    """Processes of this run whose command line has a word."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                # Only of this run: others on the machine may run the same program.
                if word.encode() in line and str(out).encode() in line:
                    found.append((int(entry.name), line.split(b"\0")[0].decode()))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    from launch.jobs import batches

    folder = pathlib.Path(given.out).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    images = batches.demo_pictures(folder, "demo", given.items)
    out = folder / "run"
    arguments = [f"--images={images}", "--model=demo", "--steps=20", "--areas=0.1"]
    arguments += ["--evidence=none"]
    whole = [sys.executable, "-m", "launch.masks", *arguments, f"--out={folder}/whole"]
    subprocess.run(whole, cwd=ROOT, check=True, capture_output=True)
    found = {"machines": len(MACHINES), "items": given.items, "killed": 0, "cut": 0}
    with served(folder / "ssh") as variables:
        script = subprocess.Popen(
            ["bash", "launch/pods/ssh.sh", *arguments, f"--out={out}"],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # Not before the job has begun: what is killed must have something to lose.
        while not (out / "run.json").exists() and script.poll() is None:
            time.sleep(0.2)
        for pid, name in running("launch.masks", out):
            if "python" in name and not found["killed"]:
                os.kill(pid, signal.SIGKILL)
                found["killed"] = 1
        time.sleep(3)
        for pid, name in running("launch.masks", out):
            if name.endswith("ssh") and not found["cut"]:
                os.kill(pid, signal.SIGKILL)  # 137, as for a connection that ends with its client
                found["cut"] = 1
        said = script.communicate(timeout=900)[0]
    found["code"] = script.returncode
    found["lines"] = [line for line in said.splitlines() if "error" in line.lower()][:5]
    found["every item once"] = len(items(out)) == len(set(items(out))) == given.items
    found["same tree"] = tree(out) == tree(folder / "whole")
    print(json.dumps(found, indent=1))
    good = found["every item once"] and found["same tree"] and not script.returncode
    sys.exit(not good)


if __name__ == "__main__":
    main()
