"""`jax.distributed` between processes in network namespaces of their own.

  python -m tests.cluster.namespaces --hosts=4 --out=/dev/shm/namespaces

Each "host" is a namespace with an address of its own, joined to the others by a veth pair and a
bridge, so that they meet over sockets alone. Needs root. A job is run as it is on machines
without a scheduler (`--multiprocess --coordinator=HOST:PORT --num_processes=N --process_id=I`);
then the coordinator is lost twice: before it answers anybody, and in the middle of the work.
Prints one JSON object.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
PORT = 8476


def ip(*words):
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Namespaces that are joined by a bridge; `with Hosts(4) as hosts`."""

    def __init__(self, number):
        # By process, so that two runs do not meet; names of links are short.
        self.tag = f"m{os.getpid() % 10000}"
        self.names = [f"{self.tag}-{i}" for i in range(number)]
        self.started = []

    def address(self, i):
        """The address of a host."""
        return f"10.77.0.{i + 1}"

    def __enter__(self):
        try:
            ip("link", "add", self.tag, "type", "bridge")
            ip("link", "set", self.tag, "up")
            for i, name in enumerate(self.names):
                ip("netns", "add", name)
                ip("link", "add", f"{self.tag}v{i}", "type", "veth", "peer", "eth0", "netns", name)
                ip("link", "set", f"{self.tag}v{i}", "master", self.tag, "up")
                ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        # Half a network would be in the way of the next run.
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # A namespace lives on, unnamed, as long as a process in it.
        for process in self.started:
            process.kill()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", self.tag], capture_output=True)

    def start(self, i, *command, **more):
        """Starts a process on a host."""
        line = ["ip", "netns", "exec", self.names[i], *command]
        found = subprocess.Popen(line, cwd=ROOT, text=True, stderr=subprocess.PIPE, **more)
        self.started.append(found)
        return found


LATER = """
import runpy
from launch.job import hosts
hosts.JOIN = {wait}
runpy.run_module("launch.masks", run_name="__main__")
"""


def job(hosts, i, arguments, wait=None, **more):
    """Starts one process of the job; `wait`: seconds for the others at the start."""
    number = len(hosts.names)
    place = [f"--coordinator={hosts.address(0)}:{PORT}", f"--num_processes={number}"]
    program = ["-c", LATER.format(wait=wait)] if wait else ["-m", "launch.masks"]
    line = [sys.executable, *program, "--multiprocess", *place, f"--process_id={i}"]
    return hosts.start(i, *line, *arguments, **more)


def said(process, seconds):
    """Waits for a process; returns code, its last line and how long it took."""
    begin = time.monotonic()
    try:
        text = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        # What it said until then is all there is to go by.
        text = process.communicate()[1]
        return {"code": "still running", "line": text[-300:], "s": seconds}
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        "code": process.returncode,
        "line": lines[-1] if lines else "",
        "lines": len(lines),
        "traceback": "Traceback" in text,
        "s": round(time.monotonic() - begin, 1),
        "text": text[-3000:],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    # Whoever stops it at a limit of time finds no namespace of it afterwards.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from launch.jobs import batches
    from tests.cluster.slurm import items, tree

    folder = pathlib.Path(given.out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    images = batches.demo_pictures(folder, "demo", given.items)
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}

    def arguments(out, steps=20):
        return [
            *(f"--images={images}", "--model=demo", f"--steps={steps}", "--areas=0.1"),
            *("--evidence=none", f"--out={out}"),
        ]

    found = {}
    with Hosts(given.hosts) as hosts:
        alone = hosts.start(
            0, sys.executable, "-m", "launch.masks", *arguments(folder / "whole"), env=env
        )
        assert said(alone, 600)["code"] == 0
        out = folder / "joined"
        processes = [job(hosts, i, arguments(out), env=env) for i in range(given.hosts)]
        ends = [said(process, 600) for process in processes]
        found["joined"] = {
            "codes": [end["code"] for end in ends],
            "every item once": sorted(set(items(out))) == sorted(items(out))
            and len(items(out)) == given.items,
            "same tree": tree(out) == tree(folder / "whole"),
            "places": sum(
                f"process {i} of {given.hosts}" in ends[i]["text"] for i in range(len(ends))
            ),
        }
        # Nobody answers; asked for 15 seconds instead of 300.
        end = said(job(hosts, 1, arguments(folder / "never"), wait=15, env=env), 600)
        found["no coordinator"] = {k: end[k] for k in ("code", "line", "lines", "s", "traceback")}
        # It is lost while the others work, who do its part too.
        out = folder / "lost"
        processes = [job(hosts, i, arguments(out, 60), env=env) for i in range(given.hosts)]
        # Not before the work has begun, for the coordinator's loss at the start is the case above.
        while not (out / "run.json").exists() and all(p.poll() is None for p in processes):
            time.sleep(0.5)
        # The process itself: `ip netns exec` became it.
        processes[0].send_signal(signal.SIGKILL)
        ends = [said(process, 400) for process in processes]
        found["coordinator lost"] = {
            "codes": [end["code"] for end in ends],
            "every item once": len(items(out)) == len(set(items(out))) == given.items,
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
