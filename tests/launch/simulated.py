"""A large job on many hosts that fail, with the real job code and a pretended device.

  python -m tests.launch.simulated --items=100000 --hosts=64 --kills=40 --out=/dev/shm/simulated

Hosts are forks of this process; an item takes `--seconds` on the pretended device (slept, not
computed). Hosts are killed at random and started again, as a scheduler does. Prints one JSON
object.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import time

from launch.job import manifest, run
from tests.launch import killing


def items(number):
    return manifest.Manifest("/", tuple(manifest.Item(f"{i:07d}.png", i) for i in range(number)))


def host(out, work, place, hosts, seconds, log):
    """One process of the job; adds its own seconds of computing and of everything else to a
    file.
    """
    begin, device, count = time.process_time(), 0.0, 0
    job = run.Run(out, {"seed": 0}, {"name": "fake"}, work, place=run.Place(place, hosts, True))
    for shard, group in itertools.groupby(job.pending(), key=lambda pair: pair[0]):
        rows = [item for _, item in group]
        if job.committed(shard):
            continue
        time.sleep(seconds * len(rows))
        job.commit(shard, *killing.compute(shard, rows))
        device, count = device + seconds * len(rows), count + len(rows)
    line = json.dumps({"items": count, "device": device, "cpu": time.process_time() - begin})
    # One write of a short line to a file opened for appending: lines of two hosts do not mix.
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode() + b"\n")
    os.close(descriptor)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    out = pathlib.Path(given.out)
    shutil.rmtree(out, ignore_errors=True)
    work, log = items(given.items), out.with_suffix(".log")
    log.unlink(missing_ok=True)
    rng, begin, kills, starts = random.Random(0), time.monotonic(), 0, 0
    # What it would take if no host failed and nothing but the device took time.
    ideal = given.items * given.seconds / given.hosts
    alive = {}
    places = list(range(given.hosts))
    done = set()
    out.mkdir(parents=True)
    while len(done) < given.hosts:
        for place in places:
            arguments = (out, work, place, given.hosts, given.seconds, log)
            alive[killing.forked(host, *arguments)] = place
            starts += 1
        places = []
        # So that the kills are spread over the whole job.
        time.sleep(ideal / (given.kills + 1))
        if kills < given.kills and alive:
            os.kill(rng.choice(list(alive)), signal.SIGKILL)
            kills += 1
        for process in list(alive):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                place = alive.pop(process)
                # As a scheduler does: who did not end well is started again in the same place.
                if os.waitstatus_to_exitcode(status):
                    places.append(place)
                else:
                    done.add(place)
    wall = time.monotonic() - begin
    job = run.Run(out, {"seed": 0}, {"name": "fake"}, work, place=run.Place(0, given.hosts))
    start = time.monotonic()
    complete = job.complete()
    rows, errors = job.finish()
    ids = [json.loads(line)["id"] for line in (out / "results.jsonl").open()]
    lines = [json.loads(line) for line in log.open()]
    found = {
        "complete": complete,
        "rows": rows,
        "errors": errors,
        "every item once": ids == [item.path for item in work.items],
        "kills": kills,
        "starts": starts,
        "wall_s": round(wall, 1),
        "device_s a host": round(ideal, 1),
        "finish_s": round(time.monotonic() - start, 1),
        "computed by hosts that ended well": sum(line["items"] for line in lines),
        "cpu_ms an item": round(
            1e3 * sum(r["cpu"] for r in lines) / sum(r["items"] for r in lines), 3
        ),
        "leftovers": len(list(out.rglob(".tmp-*"))),
        "bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
    }
    shutil.rmtree(out)
    log.unlink()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
