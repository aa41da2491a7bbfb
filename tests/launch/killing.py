"""Kills a small job at every call that touches the disk, at random times, and in company, and looks
at what is left.

  python -m tests.launch.killing --random=200 --told=50 --races=1000 --hosts=20 --out=/tmp/killing
  # the same in a store of objects
  python -m tests.launch.killing --store --races=200 --out=/tmp/killing

The job is the real one (`launch.job.run`, `launch.job.commit`) around an instant computation. Every
run is a fork of this process, which loads no JAX, so that hundreds take seconds. Prints one JSON
object of counts; `test_killing.py` holds it to what is promised.
"""

import argparse
import contextlib
import errno
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from launch.job import commit, faults, machine, manifest, run, store
from tests.launch import objects

# Six shards, the last of them of two rows: a whole and a part of one are both stopped.
ITEMS, ROWS = 22, 4
CALLS = ("open", "write", "fsync", "replace", "link", "unlink")
# Kept before any of them is replaced, for the shims themselves and what they let through.
real = {name: getattr(os, name) for name in CALLS}
# EIO passes and is tried again, a full or read-only disk is not: both ways are taken.
DISK_ERRORS = ("ENOSPC", "EIO", "EROFS")


def compute(shard, items, salt=0):
    """A shard's arrays and record: all of its identity, nothing of when or where."""
    # Drawn by the shard's number, so that a repeated shard has the very same bytes.
    noise = np.random.default_rng([shard, salt]).normal(size=(len(items), 40)).astype(np.float16)
    rows = [
        {"id": item.path, "score": float(x)} for item, x in zip(items, noise[:, 0], strict=True)
    ]
    return {"0.soft": noise}, {"items": [], "rows": rows, "errors": []}


def work(out, share=(0, 1), pause=0.0):
    """The job: what `launch.masks` does around its method."""
    items = manifest.Manifest("/", tuple(manifest.Item(f"{i:03d}.png", i) for i in range(ITEMS)))
    several = share != (0, 1)
    job = run.Run(
        out, {"seed": 0}, {"name": "fake"}, items, shard_rows=ROWS, place=run.Place(*share, several)
    )
    for shard, group in itertools.groupby(job.pending(), key=lambda pair: pair[0]):
        if pause:
            time.sleep(pause * random.random())
        if not job.committed(shard):
            job.commit(shard, *compute(shard, [item for _, item in group]))
    if job.complete():
        rows, errors = job.finish()
        (out / "report").mkdir(exist_ok=True)
        store.put(out / "report" / "index.html", f"{rows} rows, {errors} errors".encode())
        job.collect()


def forked(function, *arguments):
    """Starts `function` in a fork; returns its process id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    # Of a fork that fails before it has an answer of its own.
    code = 1
    try:
        # Asking JAX for its devices would take longer than the job.
        machine.here = lambda: {"processor": "pretended", "instructions": "", "devices": "none"}
        # So that an injected error is met often, not waited for.
        faults.retried.__kwdefaults__["wait"] = 0.0
        function(*arguments)
        code = 0
    except BaseException as error:  # as `launch.flags.run` ends a launcher
        if faults.leaving(error):
            code = faults.PREEMPTED
        elif isinstance(error, OSError):
            code = 2
            sys.stderr.write(f"{error}\n")
        else:
            raise
    finally:
        # Not `sys.exit`, which would run what the parent has registered for its own end.
        os._exit(code)


def heard(function, *arguments):
    """Runs `function` in a fork; returns its exit code and what it said on stderr."""
    read, write = os.pipe()

    def told():
        os.dup2(write, 2)
        function(*arguments)

    result = ended(forked(told))
    os.close(write)
    with os.fdopen(read) as file:
        return result, file.read()


def ended(process):
    """Waits for a fork; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def shim(act):
    """Puts `act(number, name, call, arguments)` in place of every call that touches the disk."""
    count = itertools.count()

    def wrapped(name):
        def call(*arguments, **keywords):
            return act(next(count), name, lambda: real[name](*arguments, **keywords), arguments)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name))


def dying(at, late):
    """Dies at the call number `at`: before it, or half-way (a write) or after it (others)."""

    def act(number, name, call, arguments):
        if number != at:
            return call()
        if late and name == "write":
            # A torn write: half of the bytes are on the disk, and the file has no end.
            real["write"](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        elif late:
            with contextlib.suppress(OSError):  # that there is nothing is an answer too
                call()
        os.kill(os.getpid(), signal.SIGKILL)

    return act


def failing(at, kind, every):
    """Fails at call `at` and, if `every`, from there on; a full disk takes no writes."""
    code = getattr(errno, kind)

    def act(number, name, call, arguments):
        hit = number >= at if every else number == at
        # A disk that is full can still be read.
        reading = name == "open" and not arguments[1] & os.O_CREAT
        if hit and name in ("open", "write", "fsync", "replace", "link") and not reading:
            raise OSError(code, os.strerror(code))
        return call()

    return act


def failing_store(at, kind, every):
    """The same for calls to a store: an answer may also be lost, or be an error of the client's
    own.
    """

    def act(number, name, call, arguments):
        if number < at or (number > at and not every):
            return call()
        if kind == "lost answer":
            # Done, and not known to be done: asked again, a store must not count it as someone
            # else's.
            call()
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if kind == "client":
            # Not an OSError, which is what `launch.job.store` has to make of it.
            raise ClientError("429: slow down")
        raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))

    return act


class ClientError(Exception):
    """What a store's client raises that is no OSError."""


class Disk:
    """Where the files of the jobs lie, and how they are looked at."""

    stored = False
    kinds = DISK_ERRORS
    shim = staticmethod(shim)
    failing = staticmethod(failing)

    def place(self, out):
        """What a job is given as its folder."""
        return out

    def tree(self, out):
        """A folder of this disk that holds what lies there."""
        return out

    def remove(self, out):
        """Removes all of it."""
        shutil.rmtree(out, ignore_errors=True)  # a store has no folder before its first object


class Objects(Disk):
    """A store of objects over this disk."""

    stored = True
    kinds = ("EIO", "EACCES", "client", "lost answer")
    shim = staticmethod(objects.shim)
    failing = staticmethod(failing_store)
    place = staticmethod(objects.address)


def files(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def sound(out):
    """Returns what is wrong with the committed part: nothing, wherever a run was stopped."""
    wrong = []
    for path in (out / "shards").glob("*.json"):
        try:
            commit.read_shard(path.with_suffix(""))
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    for path in (out / "run.json",):
        if path.exists():
            json.loads(path.read_bytes())
    return wrong


class Torture:
    """Runs the cases in a folder of `disk` and counts."""

    def __init__(self, out, disk=None):
        self.out, self.counts = pathlib.Path(out).resolve(), {}
        self.disk = disk or Disk()
        self.place = self.disk.place
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        # The same disk, for links and renames do not cross disks; beside the runs, not in them.
        objects.Objects.uploads = self.out / "uploads"
        objects.Objects.uploads.mkdir()
        # In a fork, as all of them: the clients of stores do not outlive one.
        assert ended(forked(work, self.place(self.out / "whole"))) == 0
        self.whole = files(self.disk.tree(self.out / "whole"))
        self._calls()

    def _calls(self):
        read, write = os.pipe()

        def counted(out):
            total = [0]

            def act(number, name, call, arguments):
                total[0] = number
                return call()

            self.injected(act, out)
            # Past the shim, whose calls are counted.
            real["write"](write, str(total[0] + 1).encode())

        # Counted on a run that nothing disturbs: every one of its calls is a place to stop at.
        assert ended(forked(counted, self.place(self.out / "counted"))) == 0
        self.calls = int(os.read(read, 20))

    def injected(self, act, out):
        self.disk.shim(act)
        work(out)

    def add(self, name, number=1):
        self.counts[name] = self.counts.get(name, 0) + number

    def judge(self, label, out):
        """Looks at what a stopped run left, continues it and compares."""
        # What is committed now is promised to stay, byte for byte.
        tree = self.disk.tree(out)
        before = {n: b for n, b in files(tree).items() if n.startswith("shards/") and ".json" in n}
        self.add(f"{label}: corrupt", len(sound(tree)))
        if ended(forked(work, self.place(out))) != 0:
            self.add(f"{label}: cannot continue")
        after = files(self.disk.tree(out))
        self.add(f"{label}: lost", sum(after.get(n) != b for n, b in before.items()))
        rows = after.get("results.jsonl", b"").splitlines()
        self.add(f"{label}: twice", len(rows) - len(set(rows)))
        self.add(f"{label}: other tree", after != self.whole)
        self.add(f"{label}: runs")
        self.disk.remove(out)

    def enumerated(self, step=1):
        for late in (False, True):
            for at in range(0, self.calls, step):
                out = self.out / f"kill{at}{late}"
                code = ended(forked(self.injected, dying(at, late), self.place(out)))
                # Any other end would mean that the call was never reached, and nothing was tested.
                assert code == -signal.SIGKILL, code
                self.judge("killed at a call", out)

    def at_random(self, runs, seed=0):
        begin = time.monotonic()
        assert ended(forked(work, self.place(self.out / "timed"))) == 0
        span = time.monotonic() - begin
        rng = random.Random(seed)
        for i in range(runs):
            out = self.out / f"random{i}"
            process = forked(work, self.place(out))
            # A little beyond the run's own time, so that some are over before they are killed.
            time.sleep(1.1 * span * rng.random())
            os.kill(process, signal.SIGKILL)
            ended(process)
            self.judge("killed at a random time", out)

    def told(self, runs):
        """SIGTERM at random times: 75, or 0 where the work was done before."""
        rng = random.Random(2)

        def listening(out, ready):
            faults.leave_on_notice()
            # Not before the handler is there: an early SIGTERM ends a process with -15, rightly.
            real["write"](ready, b"x")
            # Time between shards, or a run of some milliseconds would be over before it is told.
            work(out, pause=0.02)

        for i in range(runs):
            out = self.out / f"told{i}"
            read, write = os.pipe()
            process = forked(listening, self.place(out), write)
            os.read(read, 1)
            os.close(read)
            os.close(write)
            time.sleep(0.15 * rng.random())
            begin = time.monotonic()
            os.kill(process, signal.SIGTERM)
            code = ended(process)
            longest = max(self.counts.get("seconds to leave", 0.0), time.monotonic() - begin)
            self.counts["seconds to leave"] = round(longest, 2)
            self.add("told to leave: other end", code not in (0, faults.PREEMPTED))
            self.add("left with 75", code == faults.PREEMPTED)
            self.judge("told to leave", out)

    def failures(self, step=1):
        for kind, every in itertools.product(self.disk.kinds, (False, True)):
            name = kind + (" for good" if every else " once")
            code = getattr(errno, kind, errno.ETIMEDOUT)
            words = "429: slow down" if kind == "client" else os.strerror(code)
            for at in range(0, self.calls, step):
                out = self.out / f"fail{at}"
                act = self.disk.failing(at, kind, every)
                result, said = heard(self.injected, act, self.place(out))
                # 2 where the error reached the user; with 0 the job got over it.
                met = result == 2
                self.add(f"{name}: unclear", met and words not in said)
                self.add(f"{name}: other end", result not in (0, 2))
                left = list(out.rglob(".tmp-*")) if out.exists() else []
                self.add(f"{name}: leftovers", len(left))
                self.judge(name, out)

    def small(self, step=1):
        """Disks with room for 1, 2, ... files: the job stops with a clear line, and goes on when
        there is more.
        """
        disk = self.out / "disk"
        disk.mkdir()
        for pages in itertools.count(1, step):
            # tmpfs gives whole pages: a page more is a file more at the most.
            size = f"size={pages * os.sysconf('SC_PAGE_SIZE')}"
            mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
            if self.disk.stored or subprocess.run(mount, capture_output=True).returncode:
                return  # only root may
            try:
                result, said = heard(work, disk / "job")
                self.add("small disk: other end", result not in (0, 2))
                self.add(
                    "small disk: unclear", result == 2 and os.strerror(errno.ENOSPC) not in said
                )
                self.add("small disk: leftovers", len(list(disk.rglob(".tmp-*"))))
                # Room is made as a person would make it, without touching what the job left.
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                self.judge("small disk", disk / "job")
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            if result == 0:
                return

    def races(self, rounds):
        """Two writers of one shard whose arrays differ: one is committed, whole."""
        stem = self.out / "race" / "shards" / "000000"
        for i in range(rounds):
            stem.parent.mkdir(parents=True, exist_ok=True)
            gate, go = os.pipe()

            def writer(salt, gate=gate, go=go):
                real["close"] = os.close
                # Its own copy of the pipe's end: while that is open the read below would never
                # return.
                os.close(go)
                os.read(gate, 1)
                data, record = compute(0, [manifest.Item("a", 1)], salt=salt)
                # Not 0 and 1: neither an exception nor a plain end can be taken for an answer.
                os._exit(10 if commit.write_shard(self.place(stem), data, record) else 11)

            processes = [forked(writer, 2 * i + k) for k in range(2)]
            # Both writers begin here, as close to each other as two processes can.
            os.close(go)
            results = sorted(ended(p) for p in processes)
            os.close(gate)
            # Exactly one of the two says that it was the one who committed.
            self.add("races: not one commit", results != [10, 11])
            # A record and the arrays that it names; the loser has taken its own away.
            tree = self.disk.tree(stem.parent.parent)
            left = list((tree / "shards").iterdir())
            self.add("races: corrupt", len(sound(tree)) + (len(left) != 2))
            commit.read_shard(tree / "shards" / stem.name)
            self.add("races: runs")
            self.disk.remove(stem.parent.parent)

    def hosts(self, rounds):
        """Four processes, one killed; started again as one, two, three and four."""
        rng = random.Random(1)
        for i in range(rounds):
            out = self.out / f"hosts{i}"
            processes = [forked(work, self.place(out), (k, 4), 0.02) for k in range(4)]
            # While the first shards are made: 0.02 s is the longest pause before each.
            time.sleep(0.03 * rng.random())
            os.kill(processes[rng.randrange(4)], signal.SIGKILL)
            # The others finish its shards too; every other round all are killed, as JAX does.
            for process in processes if i % 2 else ():
                os.kill(process, signal.SIGKILL)
            for process in processes:
                ended(process)
            again = 1 + i % 4
            processes = [forked(work, self.place(out), (k, again), 0.02) for k in range(again)]
            self.add("hosts: failed", sum(ended(p) != 0 for p in processes))
            self.add("hosts: other tree", files(self.disk.tree(out)) != self.whole)
            self.add("hosts: runs")
            self.disk.remove(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--step", type=int, default=1, help="every step-th call only")
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--told", type=int, default=50)
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--store", action="store_true", help="in a store of objects, not on a disk")
    given = parser.parse_args()
    torture = Torture(given.out, Objects() if given.store else Disk())
    torture.counts["calls"] = torture.calls
    for name, call in [
        ("enumerated", lambda: torture.enumerated(given.step)),
        ("random", lambda: torture.at_random(given.random)),
        ("told", lambda: torture.told(given.told)),
        ("failures", lambda: torture.failures(given.step)),
        ("small disks", lambda: torture.small(given.step)),
        ("races", lambda: torture.races(given.races)),
        ("hosts", lambda: torture.hosts(given.hosts)),
    ]:
        begin = time.monotonic()
        call()
        torture.counts[f"seconds {name}"] = round(time.monotonic() - begin, 1)
    shutil.rmtree(torture.out)
    print(json.dumps(torture.counts, indent=1))


if __name__ == "__main__":
    main()
