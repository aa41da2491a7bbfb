"""Kills jobs of a Slurm of several nodes on one machine, preempts them, and takes nodes away.

  python -m tests.cluster.slurm --items=200 --kills=20 --preemptions=10 --out=/dev/shm/slurm

Debian's `slurm-wlm` and `munge`, as root: one slurmctld, and a slurmd a node under names and
ports of their own, with two partitions of which one preempts the other.
`launch/pods/slurm.sbatch` is submitted as it is, with fewer processes. Each round is a run of its
own that is disturbed until it is done; its files are compared with those of a run that nobody
disturbed. Prints one JSON object.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
GRACE = 8  # seconds from SIGTERM to SIGKILL of a job that is preempted
CONF = """\
ClusterName=masks
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdTimeout=15
KillWait=5
MinJobAge=3600
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_min_interval=100000
NodeName=DEFAULT CPUs={cpus} RealMemory=2000 Gres=gpu:2
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace} State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Cluster:
    """A Slurm in a folder; `with Cluster(folder, nodes=5) as cluster`."""

    def __init__(self, folder, nodes=5):
        self.folder = pathlib.Path(folder).resolve()
        self.nodes = [f"n{i}" for i in range(nodes)]
        self.daemons = {}
        # The environment that this runs in, which need not be the clone's own.
        self.env = {**os.environ, "VENV": sys.prefix}
        self.env["SLURM_CONF"] = str(self.folder / "slurm.conf")

    def __enter__(self):
        try:
            return self.up()
        except BaseException:
            self.__exit__()
            raise

    def up(self):
        """Starts all of it and waits until every node is idle."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "state").mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        # A key of its own: nobody else's Slurm must take its messages.
        key.write_bytes(secrets.token_bytes(128))
        # munged refuses a key that others could read.
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()}"
            for n in self.nodes
        )
        text = CONF.format(
            host=host,
            port=free_port(),
            folder=self.folder,
            cpus=os.cpu_count(),
            nodes=nodes,
            grace=GRACE,
        )
        (self.folder / "slurm.conf").write_text(text)
        # Cards that are counted and given out; what they are is of no matter here.
        cards = itertools.product(self.nodes, ("full", "zero"))
        gres = "".join(f"NodeName={n} Name=gpu File=/dev/{card}\n" for n, card in cards)
        (self.folder / "gres.conf").write_text(gres)
        where = f"{self.folder}/munge"
        self.start(
            *("munged", "-F", "-f", f"--key-file={key}", f"--socket={where}.socket"),
            *(f"--pid-file={where}.pid", f"--log-file={where}.log", f"--seed-file={where}.seed"),
        )
        # Time for munged to listen, whom slurmctld asks first.
        time.sleep(1)
        self.start("slurmctld", "-D")
        for node in self.nodes:
            self.boot(node)
        until = time.monotonic() + 60
        while self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%T").count("idle") < len(
            self.nodes
        ):
            if time.monotonic() > until:
                raise RuntimeError(f"Slurm does not start: {self.ask('sinfo')}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self.ask("scancel", "--user=root")
        for node in self.nodes:
            self.lose(node)
        for name in list(self.daemons):
            self.end(name)

    def start(self, *command, name=None):
        """Starts a daemon in the foreground of a session of its own."""
        self.daemons[name or command[0]] = subprocess.Popen(
            command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self, name):
        process = self.daemons.pop(name, None)
        if process:
            process.kill()
            process.wait()

    def boot(self, node):
        """Starts a node."""
        self.start("slurmd", "-D", "-N", node, name=node)

    def lose(self, node):
        """A node is gone with all that ran on it."""
        self.end(node)
        # slurmd alone would leave the job's processes, which a lost machine does not.
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node=None, of=None):
        """Processes of jobs: on a node, or those whose command line has the word `of`."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                env, line = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            ours = f"SLURM_CONF={self.env['SLURM_CONF']}".encode() in env.split(b"\0")
            here = not node or f"SLURMD_NODENAME={node}".encode() in env.split(b"\0")
            step = node and b"slurmstepd" in line and f"spool.{node}".encode() in env
            named = not of or (of.encode() in line and b"python" in line.split(b"\0")[0])
            if step or (ours and here and named):
                found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def ask(self, *command):
        """What a command of Slurm says."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True).stdout

    def submit(self, *arguments):
        """Submits; returns the number of the job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def states(self, job):
        """The states of a job and of its array's tasks."""
        told = self.ask("scontrol", "show", "job", "-o", job)
        return re.findall(r"JobState=(\w+)", told)

    def told(self, job, what):
        """A number that Slurm keeps of a job, added up over an array."""
        told = self.ask("scontrol", "show", "job", "-o", job)
        return sum(int(n) for n in re.findall(rf"\b{what}=(\d+)", told))


def tree(out):
    """The digest of every file whose content is a result."""
    # `run.json` names the folder that it was given.
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def items(out):
    """The ids of the results in their order."""
    path = out / "results.jsonl"
    return [json.loads(line)["id"] for line in path.open()] if path.exists() else []


class Rounds:
    """Jobs of one command that are disturbed; `counts` says how often and what came of it."""

    def __init__(self, cluster, folder, number, steps, seed=0):
        from launch.jobs import batches

        self.cluster, self.folder = cluster, pathlib.Path(folder)
        # What an earlier run left would be more pictures than were asked for.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.images = batches.demo_pictures(self.folder, "demo", number)
        self.number, self.steps, self.rng = number, steps, random.Random(seed)
        self.counts = {"kills": 0, "preemptions": 0, "nodes lost": 0, "restarts": 0, "rounds": 0}
        self.counts |= {"submitted again": 0, "other tree": 0, "lost or twice": 0}
        # A process that starts again is soon at work, where it can be killed again.
        cluster.env.setdefault("JAX_COMPILATION_CACHE_DIR", f"{self.folder}/cache")
        cluster.env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

    def command(self, out):
        return [
            *(f"--images={self.images}", "--model=demo", f"--steps={self.steps}", "--areas=0.1"),
            *("--evidence=none", f"--out={out}"),
        ]

    def submit(self, out, *options):
        log = f"--output={self.folder}/{out.name}-%j.log"
        size = options or ("--nodes=4", "--ntasks-per-node=1")
        return self.cluster.submit(*size, log, "launch/pods/slurm.sbatch", *self.command(out))

    def undisturbed(self):
        """One process without Slurm; its files are what all others must give."""
        out = self.folder / "whole"
        line = [sys.executable, "-m", "launch.masks", *self.command(out)]
        subprocess.run(line, cwd=ROOT, env=self.cluster.env, check=True, capture_output=True)
        self.whole = tree(out)
        # A run with fewer would make a wrong one look right.
        assert len(items(out)) == self.number

    def disturb(self, kind):
        """One disturbance; returns whether it met a running process."""
        running = self.cluster.processes(of="launch.masks")
        if not running:
            return False
        if kind == "kills":
            # It may have ended since it was seen.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(running), signal.SIGKILL)
        elif kind == "preemptions":
            # Another's job that needs all nodes: the running one is told, and soon killed.
            job = self.cluster.submit(
                *("--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null"),
                *("--job-name=other", "--wrap=sleep 1"),
            )
            waited(lambda: set(self.cluster.states(job)) <= {"COMPLETED"}, GRACE + 60)
        else:
            node = self.rng.choice(self.cluster.nodes[:4])
            self.cluster.lose(node)
            time.sleep(20)  # until slurmctld has noticed
            self.cluster.boot(node)
        return True

    def round(self, plan, *options, deadline=900):
        """A run that is disturbed by what `plan` lists, at random times."""
        out = self.folder / f"round{self.counts['rounds']}"
        job, until = self.submit(out, *options), time.monotonic() + deadline
        while time.monotonic() < until:
            states = set(self.cluster.states(job))
            if states <= {"COMPLETED"}:
                break
            if not states & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "PREEMPTED"}:
                self.counts["restarts"] += self.cluster.told(job, "Restarts")
                self.counts["submitted again"] += 1
                if self.counts["submitted again"] > 60:
                    # Far more than there are disturbances: the jobs do not run at all.
                    log = max(self.folder.glob("*.log"), key=lambda p: p.stat().st_mtime)
                    raise RuntimeError(f"jobs end at once: {log.read_text()[-1000:]}")
                job = self.submit(out, *options)
            if "PENDING" in states:  # Slurm lets what it put back wait for two minutes
                self.cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(1 + 3 * self.rng.random())
            if plan and self.disturb(plan[0]):
                self.counts[plan.pop(0)] += 1
        self.counts["restarts"] += self.cluster.told(job, "Restarts")
        self.counts["rounds"] += 1
        found = items(out)
        self.counts["lost or twice"] += len(found) != self.number or len(set(found)) != self.number
        self.counts["other tree"] += tree(out) != self.whole
        return out


def waited(call, seconds):
    """Waits until something holds; returns whether it came to."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if call():
            return True
        time.sleep(0.5)
    return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--preemptions", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=3, help="nodes that are lost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    # Whoever stops it at a limit of time finds no daemon of it afterwards.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = ["kills"] * given.kills + ["preemptions"] * given.preemptions
    plan += ["nodes lost"] * given.nodes
    # Mixed, so that kinds of disturbances follow each other in one run.
    random.Random(given.seed).shuffle(plan)
    begin = time.monotonic()
    with Cluster(f"{given.out}/slurm") as cluster:
        rounds = Rounds(cluster, f"{given.out}/jobs", given.items, given.steps, given.seed)
        rounds.undisturbed()
        # First the other form of the same job, an array, which nobody disturbs.
        rounds.round([], "--array=0-3", "--nodes=1", "--ntasks-per-node=1")
        while plan:
            # Six disturbances a run, so that each run comes to its end.
            part, plan = plan[:6], plan[6:]
            rounds.round(part)
            plan = part + plan  # what did not meet a running job
            print(json.dumps(rounds.counts), file=sys.stderr, flush=True)
    counts = {**rounds.counts, "items": given.items, "wall_s": round(time.monotonic() - begin)}
    print(json.dumps(counts, indent=1))
    sys.exit(bool(counts["lost or twice"] or counts["other tree"]))


if __name__ == "__main__":
    main()
