"""Seconds of whole jobs on one device of this process and on all of them, in turn.

  JAX_NUM_CPU_DEVICES=4 python -m benchmarks.devices --rounds=3

Virtual CPU devices share the processors: with fewer of them than devices, or with programs that use
several threads anyway, all devices gain little. The first round compiles and is left out. Prints
one JSON object: of each job seconds on the clock and of the processors, and the ratio.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
from absl.testing import flagsaver

from launch import dissect, evaluate, features, flags, walk
from launch.jobs import batches

JOBS = {
    "evaluate": (
        evaluate,
        *("--model=demo", "--images={photos}", "--attributions=gradient"),
        "--metrics=deletion",
    ),
    "dissect": (dissect, "--samples=256", "--effect_samples=64", "--controls=2"),
    "walk": (walk, "--walks=8", "--controls=3", "--fit_samples=60"),
    "features": (features, "--model=demo", "--layer=conv4", "--steps=32"),
}


def timed(launcher, arguments, place):
    """Runs a job; returns seconds on the clock and of the processors."""
    begin = time.monotonic(), time.process_time()
    with flagsaver.flagsaver(), jax.default_device(place):
        try:
            flags.run(launcher.main, ["launcher", *arguments], own=getattr(launcher, "OWN", None))
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{arguments} ended with {end.code}") from end
    return time.monotonic() - begin[0], time.process_time() - begin[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", default=",".join(JOBS))
    given = parser.parse_args()
    report = {"devices": jax.local_device_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # Four shards of eight pictures: evaluate gives a device a shard at a time.
        photos = batches.demo_pictures(folder, "demo", 32)
        for job in given.jobs.split(","):
            launcher, *more = JOBS[job]
            arguments = [a.format(photos=photos) for a in more]
            found = {"one": [], "all": []}
            for i in range(given.rounds + 1):
                for which, place in (("one", jax.devices()[0]), ("all", None)):
                    out = f"--out={folder}/{job}{which}{i}"
                    found[which].append(timed(launcher, [*arguments, out], place))
            warm = {
                which: [round(statistics.median(t[k] for t in times[1:]), 2) for k in (0, 1)]
                for which, times in found.items()
            }
            report[job] = {**warm, "ratio": round(warm["one"][0] / warm["all"][0], 2)}
            print(job, report[job], flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
