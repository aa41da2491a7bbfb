"""A dissection killed at fifty moments leaves the same tables, bit for bit.

  python -m benchmarks.units.resume --kills=50 --out=/tmp/resume

The job is `launch.dissect --model=demo`. It runs whole once; then it is killed (SIGKILL) at a
random time after each start until it is done, again and again in new folders, until there were as
many kills. A start is a fork of this process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import shutil
import signal
import time

import numpy as np

from launch.job import store
from launch.jobs.dissect_model import work as dissect_model

NETWORKS = 2


def work(out: pathlib.Path, cache: str) -> None:
    """The job, in a process of its own; programs come from a cache, so that a start takes
    seconds.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    dissect_model.run(
        out,
        {
            "model": "demo",
            "weights": None,
            "images": None,
            "concepts": None,
            "layer": "relu#6",
            "samples": 24,
            "quantile": 0.99,
            "networks": NETWORKS,
            "rotations": 1,
            "seed": 0,
            "batch_size": 12,
            "out": str(out),
        },
    )


def tables(out: pathlib.Path) -> tuple[bytes, dict[str, np.ndarray]]:
    """What a finished run holds: its rows, and the arrays of every shard by name."""
    arrays = {
        f"{path.name}|{name}": value
        for path in sorted((out / "shards").iterdir())
        if path.suffix == ".npz"
        for name, value in np.load(path).items()
    }
    return (store.path(out) / "results.jsonl").read_bytes(), arrays


def started(out: pathlib.Path, cache: str) -> int:
    """Starts the job in a fork; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work(out, cache)
        code = 0
    finally:
        # Not the end of the parent, whose clean-up is not this process's to do.
        os._exit(code)


def main() -> None:
    """Prints how many kills there were and what they changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    cache = str(given.out / "programs")
    # Fills the cache of programs, so that the next run's time is what a start really takes.
    os.waitpid(started(given.out / "warm", cache), 0)
    began = time.monotonic()
    status = os.waitpid(started(given.out / "whole", cache), 0)[1]
    whole_time = time.monotonic() - began
    if status:
        raise SystemExit("the job itself failed")
    whole = tables(given.out / "whole")
    # Nothing would be equal to nothing.
    if not whole[1]:
        raise SystemExit("no arrays found in shards/")
    rng, kills, runs, same = random.Random(0), 0, 0, 0
    while kills < given.kills:
        out = given.out / f"run{runs}"
        done = False
        while not done:
            process = started(out, cache)
            # Once there were enough kills the last run is left to end.
            at = time.monotonic() + rng.uniform(0, whole_time) if kills < given.kills else np.inf
            while time.monotonic() < at and not done:
                done, status = (
                    bool(x) if i == 0 else x for i, x in enumerate(os.waitpid(process, os.WNOHANG))
                )
                time.sleep(0.01)
            if done and status:
                raise SystemExit(f"a continued run failed with status {status}")
            if not done:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                kills += 1
        runs += 1
        rows, arrays = tables(out)
        same += (
            rows == whole[0]
            and arrays.keys() == whole[1].keys()
            # NaN is equal to itself here: a unit without a score has none in both runs.
            and all(np.array_equal(v, whole[1][k], equal_nan=True) for k, v in arrays.items())
        )
        shutil.rmtree(out)
    print(
        f"{kills} kills in {runs} runs; {same} of {runs} left the tables of the whole run, bit for "
        "bit"
    )
    print(f"{len(whole[1])} arrays, a whole run takes {whole_time:.1f} s")


if __name__ == "__main__":
    main()
