"""The same masks for any number of slots, devices, processes, and stops: whole jobs, compared byte
for byte.

  python -m tests.launch.devices --out=/dev/shm/d [--slots=2,3] [--devices=1,2] [--processes=1,2]

Each combination is a job of the embedded classifier of its own, by as many processes
(`--shard=k/K`) with as many virtual CPU devices. The first process of every job does half of it
with the slots and devices of the combination before, so that all of them are continued by other
ones. Prints one JSON object.
"""

import argparse
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from launch.jobs import batches

ROOT = pathlib.Path(__file__).parents[2]


def launched(out, images, given, slots, devices, share):
    """Starts one process of a job."""
    command = [
        *(sys.executable, "-m", "launch.masks", f"--images={images}", "--model=demo"),
        *(f"--steps={given.steps}", f"--areas={given.areas}", "--evidence=none"),
        *(f"--batch_size={slots}", f"--out={out}", *share),
    ]
    # Compiled programs are kept between the jobs: tracing and running are what is tested.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": f"{given.out}/cache",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **cache, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes):
    """Waits for processes; the first that failed ends all."""
    for process in processes:
        error = process.communicate()[1]
        if process.returncode:
            sys.exit(error)


def tree(out):
    """The digest of every file whose content is a result."""
    # `run.json` names the slots and the machine, in which these jobs differ on purpose.
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main():
    parser = argparse.ArgumentParser()
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    # 3 and 5 do not divide a shard's 16 rows: these jobs have batches that are not full.
    parser.add_argument("--slots", type=numbers, default=[2, 3, 5, 8, 16])
    parser.add_argument("--devices", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--processes", type=numbers, default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--areas", default="0.1,0.3")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    folder = pathlib.Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    images = batches.demo_pictures(folder, "demo", given.images)
    begin, runs, wrong, first = time.monotonic(), 0, [], None
    before = (given.slots[-1], given.devices[0])
    for count, devices, slots in itertools.product(given.processes, given.devices, given.slots):
        out = folder / "job"
        shutil.rmtree(out, ignore_errors=True)
        # The first job has none before it; what it gives is what all others are held to.
        if first is not None:
            # Stopped half-way by others' arithmetic: a mask that depended on it would show in the
            # bytes.
            ended([launched(out, images, given, *before, ["--shard=0/2"])])
        shares = [[f"--shard={k}/{count}"] for k in range(count)] if count > 1 else [[]]
        ended([launched(out, images, given, slots, devices, share) for share in shares])
        if count > 1:  # whoever saw the last shard wrote the results; if two did at once, now
            ended([launched(out, images, given, slots, devices, [])])
        found = tree(out)
        first = found if first is None else first
        if found != first:
            wrong.append({"slots": slots, "devices": devices, "processes": count})
        runs, before = runs + 1, (slots, devices)
        print(runs, slots, devices, count, found == first, file=sys.stderr, flush=True)
    report = {
        "jobs": runs,
        "masks each": given.images * len(given.areas.split(",")),
        "files each": len(first),
        "different": wrong,
        "wall_s": round(time.monotonic() - begin),
    }
    shutil.rmtree(folder)
    print(json.dumps(report, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
