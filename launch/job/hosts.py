"""Which part of a job this process does, and how it joins the others.

A process works on shards of its own over its own devices; no result crosses between processes but
through the folder of the run. That needs no more of `jax.distributed` than to know which process
this is.
"""

from __future__ import annotations

import logging as python_logging
import re
import socket
import time

import jax
from absl import logging

from launch.job import faults, meeting
from launch.job.run import Place

__all__ = ["join", "share"]

# Seconds that processes wait for each other at the start, the only time that they meet.
JOIN = 300


def share(text: str) -> Place:
    """Returns the place that `--shard=k/K` asks for.

    >>> share("3/8")
    Place(process=3, processes=8, helps=False)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard={text}: expected k/K with k from 0 to K - 1, like 0/4")
    return Place(int(match[1]), int(match[2]))


def join(
    *,
    shard: str | None = None,
    multiprocess: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Place:
    """Joins the job and returns this process's place; call it before anything asks for a device.

    Args:
      shard: `k/K`, for processes that know nothing of each other.
      multiprocess: ask the cluster: Cloud TPU, Kubernetes, Slurm and MPI are found by themselves.
      coordinator: `host:port` of process 0, with `processes` and `process`, where nothing is found.
    Raises:
      ValueError: for a malformed shard, for both ways at once, or if no cluster is found.
    """
    place = Place()
    if shard is not None:
        if multiprocess:
            raise ValueError("--shard and --multiprocess: give one of them")
        place = share(shard)
    elif multiprocess:
        try:
            place = _met(coordinator, processes, process)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--multiprocess: {error} Where no cluster is found, give --coordinator=HOST:PORT "
                "--num_processes=N --process_id=I, or use --shard=k/K"
            ) from error
    elif coordinator is not None or processes is not None or process is not None:
        raise ValueError("--coordinator, --num_processes and --process_id need --multiprocess")
    # After the meeting: where the caller has begun `jax.distributed`, that has installed a handler
    # of its own.
    faults.leave_on_notice()
    if place.processes > 1:
        python_logging.getLogger("jax").setLevel(python_logging.WARNING)
        kind = jax.local_devices()[0].device_kind
        logging.info("process %d of %d with %d x %s", *place[:2], len(jax.local_devices()), kind)
    return place


def _met(coordinator: str | None, processes: int | None, process: int | None) -> Place:
    """Meets the others, once, and learns which process this is."""
    # Nothing crosses between processes from here on: who is left does what is left.
    if jax.distributed.is_initialized():
        return Place(jax.process_index(), jax.process_count(), True)
    if coordinator is not None and process:
        _answered(coordinator)
    seat = meeting.meet(coordinator, processes, process, JOIN)
    for name, value in seat.visible.items():
        jax.config.update(name, value)
    return Place(seat.process, seat.processes, True)


def _answered(coordinator: str) -> None:
    """Waits until process 0 listens: who is missed is named, which JAX does not do."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + JOIN
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until:
                raise RuntimeError(
                    f"process 0 has not answered at {coordinator} for {JOIN} s ({error})."
                ) from error
        time.sleep(1)
