"""The processes of a cluster meet once, each through a child process that JAX may end.

`jax.distributed` aborts a process whose coordinator or whose fellows do not come, or go while all
wait for each other: with SIGABRT and a page of stack. A job wants no more of it than to know which
process this is, so a child asks, and what becomes of the child is said in a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import NamedTuple

import jax

__all__ = ["Seat", "meet"]

ROOT = pathlib.Path(__file__).parents[2]
# Not `-m`, which would need the folder that this was started from.
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from launch.job import meeting; "
    "meeting.attend(*sys.argv[1:])",
)
# Seconds beyond those asked for, in which JAX starts, gives up and writes its page.
MORE = 20
# By these the process of a cluster's node is kept to a card of its own.
VISIBLE = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")


class Seat(NamedTuple):
    """What a process learns at the meeting.

    Attributes:
      process: its number, from 0.
      processes: how many there are.
      visible: settings of JAX by name, the cards that are this process's.
    """

    process: int
    processes: int
    visible: dict[str, str]


def meet(coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> Seat:
    """Waits until all processes of the job are there; returns which of them this is.

    Args:
      coordinator, processes, process: as `jax.distributed.initialize` takes them; None asks the
        cluster.
      seconds: that they wait for each other.
    Raises:
      RuntimeError: if no cluster is found, or not all have come.
    """
    asked = json.dumps([coordinator, processes, process, seconds])
    child = subprocess.Popen(
        [*COMMAND, asked],
        # Its end tells the child that this process is gone.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    # Read beside the answer: a page longer than a pipe holds would keep the child from ending.
    reader = threading.Thread(target=lambda: said.extend(child.stderr or ()))
    reader.start()
    timer = threading.Timer(seconds + MORE, child.kill)
    timer.start()
    try:
        answer = child.stdout.readline() if child.stdout else ""
        # Others may still be on their way to it: it leaves when all have come.
        child.wait()
    finally:
        child.kill()
        child.wait()
        timer.cancel()
        reader.join()
        for pipe in (child.stdin, child.stdout, child.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
    if not answer:
        raise RuntimeError(_why("".join(said), child.returncode, seconds))
    found: Seat = Seat(*json.loads(answer))
    return found


def _why(text: str, code: int, seconds: int) -> str:
    """Returns what became of a child, from what it wrote."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if code > 0:
        # An exception of Python's: its last line says it.
        return lines[-1].partition(": ")[2] or lines[-1] if lines else f"exit code {code}"
    marks = [line.partition("absl::Status: ")[2] for line in lines if "absl::Status: " in line]
    reason = f" ({marks[0]})" if marks else ""
    return (
        f"the processes of this job have not all met within {seconds} s{reason}: one was not "
        "started, was lost, or cannot be reached."
    )


def attend(asked: str) -> None:
    """Meets the others and prints the seat, in a process of its own."""
    coordinator, processes, process, seconds = json.loads(asked)

    def orphaned() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=orphaned, daemon=True).start()
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        initialization_timeout=seconds,
        shutdown_timeout_seconds=seconds,
    )
    # No public name tells these without opening the devices, which are the parent's.
    state = jax._src.distributed.global_state
    visible = {name: jax.config.values[name] for name in VISIBLE}
    kept = {name: value for name, value in visible.items() if value != "all"}
    seat = Seat(state.process_id, state.num_processes, kept)
    print(json.dumps(seat), flush=True)
    # Waits for all: the last to come has to find the coordinator there.
    jax.distributed.shutdown()
