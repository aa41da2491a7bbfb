"""The kills and faults of `tests.launch.killing` through the clients of real stores.

  python -m tests.cluster.stores --kind=s3 --random=100 --step=5 --told=10 --races=50 --hosts=4

The jobs speak to a server of the store's protocol (`servers.py`) through the client of users.
Beside the kills at every call and at random times, the network is spoiled request by request: busy
answers, requests cut, answers lost or halved (`proxy.py`). Prints one JSON object of counts.
"""

import argparse
import json
import pathlib
import shutil
import signal
import sys
import tempfile
import time

from launch.job import clients, store
from tests.cluster import proxy, servers
from tests.launch import killing

# What the jobs ask of a client.
CALLS = (
    *("pipe_file", "put_file", "cat_file", "rm_file", "info"),
    *("call_s3", "call"),  # listing
)


class Shimmed:
    """A client whose calls go through `act`."""

    def __init__(self, client, act):
        self._client, self._act, self._count = client, act, 0

    # By name as it is asked for: the rest of the client stays as it is.
    def __getattr__(self, name):
        found = getattr(self._client, name)
        if name not in CALLS:
            return found

        def call(*arguments, **keywords):
            number, self._count = self._count, self._count + 1
            return self._act(number, name, lambda: found(*arguments, **keywords), arguments)

        return call


class Remote(killing.Objects):
    """A server; what lies there is copied to this disk to be looked at, past the job's client."""

    # Errors of the client's own are met through the proxy.
    kinds = ("EACCES", "lost answer")

    def __init__(self, server, copies):
        self.server, self.copies = server, pathlib.Path(copies).resolve()

    def place(self, out):
        return store.Address(self.server.address(self.name(out)))

    def name(self, out):
        return str(pathlib.Path(out).relative_to(self.copies / "jobs"))

    def tree(self, out):
        folder = self.copies / "tree"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start = self.name(out) + "/"
        # Past the client under test, which could hide its own mistakes.
        for name in self.server.list(start):
            to = folder / name.removeprefix(start)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(self.server.read(name))
        return folder

    def remove(self, out):
        # Most cases have names of their own, and what they leave is small.
        for name in self.server.list(self.name(out) + "/") if "race" in str(out) else ():
            self.server.remove(name)

    @staticmethod
    def shim(act):
        opened, made = clients.system, {}

        def shimmed(text):
            # One client a process, so that calls are numbered through.
            return made.setdefault("client", Shimmed(opened(text), act))

        clients.system = shimmed

    @property
    def failing(self):
        return killing.failing_store


class Torture(killing.Torture):
    """The same cases, and a network that fails."""

    def network(self, step):
        """Spoils one request of a job after the other, in ways that a client is over with."""
        server = self.disk.server
        server.plan()
        # Undisturbed, for the number of requests that there are to spoil.
        assert killing.ended(killing.forked(killing.work, self.place(self.out / "asked"))) == 0
        self.counts["requests"] = server.plan()["seen"]
        self.disk.remove(self.out / "asked")
        for i, at in enumerate(range(0, self.counts["requests"], step)):
            ways = proxy.MIXED if step == 1 else [proxy.MIXED[i % len(proxy.MIXED)]]
            for way in ways:
                out = self.out / f"net{at}{way}"
                server.plan(what=way, at=at)
                result = killing.ended(killing.forked(killing.work, self.place(out)))
                hit = server.plan()["spoiled"]
                # A fault that met no request has tested nothing.
                self.add("network: not met", not hit)
                # A client repeats what is busy or cut: the job does not notice.
                self.add("network: other end", result != 0)
                self.judge("network", out)

    def mixed(self, runs, share=0.15):
        """Spoils a share of all requests, chosen at random, and kills every other job meanwhile."""
        server = self.disk.server
        for i in range(runs):
            out = self.out / f"mixed{i}"
            server.plan(what="mixed", share=share, seed=i)
            process = killing.forked(killing.work, self.place(out))
            if i % 2:
                # Later in each run, so that the kills fall all over the job.
                time.sleep(0.5 + 0.3 * i)
                killing.os.kill(process, signal.SIGKILL)
            result = killing.ended(process)
            spoiled = server.plan()["spoiled"]
            self.add("spoiled requests", sum(spoiled.values()))
            # Done, an error that the client gave up on, or killed: nothing else is an end.
            self.add("mixed: other end", result not in (0, 2, -signal.SIGKILL))
            self.judge("mixed", out)


def preload(kind):
    """Imports a client, so that each fork does not; it is opened in the forks only."""
    name = {"s3": "s3fs", "az": "adlfs", "gs": "gcsfs"}[kind]
    killing.os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    __import__(name)


def tortured(server, *, step, random, told, races, hosts, mixed, seed=0):
    """Runs the cases on a server; returns the counts."""
    preload(server.kind)
    with tempfile.TemporaryDirectory() as folder:
        # Read by the client when it is opened, which the forks do.
        killing.os.environ.update(server.variables(server.port))
        torture = Torture(f"{folder}/jobs", Remote(server, folder))
        torture.counts["calls"] = torture.calls
        for name, call in [
            ("random", lambda: torture.at_random(random, seed)),
            ("network", lambda: torture.network(step)),
            ("mixed", lambda: torture.mixed(mixed)),
            ("enumerated", lambda: torture.enumerated(step)),
            ("told", lambda: torture.told(told)),
            ("failures", lambda: torture.failures(4 * step)),
            ("races", lambda: torture.races(races)),
            ("hosts", lambda: torture.hosts(hosts)),
        ]:
            begin = time.monotonic()
            # Only what the proxy spoils goes through it.
            through = None if name in ("network", "mixed") else server.port
            killing.os.environ.update(server.variables(through))
            call()
            torture.counts[f"seconds {name}"] = round(time.monotonic() - begin, 1)
            print(name, json.dumps(torture.counts), file=sys.stderr, flush=True)
    return torture.counts


def wrong(counts):
    """What of the counts must be zero and is not."""
    return {n: v for n, v in counts.items() if ": " in n and not n.endswith(": runs") and v}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=servers.KINDS, required=True)
    parser.add_argument("--step", type=int, default=5, help="every step-th call or request only")
    parser.add_argument("--random", type=int, default=100)
    parser.add_argument("--told", type=int, default=10)
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--mixed", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    given = vars(parser.parse_args())
    with servers.started(given.pop("kind")) as server:
        counts = tortured(server, **given)
    print(json.dumps(counts, indent=1))
    sys.exit(bool(wrong(counts)))


if __name__ == "__main__":
    main()
