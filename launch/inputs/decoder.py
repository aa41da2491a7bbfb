"""A process that does nothing but decode pictures, and the messages in which it is asked.

It knows Pillow and NumPy, not JAX, so that it starts in a fraction of a second. Time and memory of
a picture are limited by the kernel: no decoder outlives its alarm, whatever becomes of the process
that asked. When that one goes, standard input ends and so does this.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import struct
import sys
import types
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    # Not when it runs: see `serve`.
    from perturb.types import Record

__all__ = ["CLOCK", "MEMORY", "ROOT", "SECONDS", "receive", "send", "serve"]

SECONDS = (
    10.0  # of processor time for a picture: a busy machine must not turn good ones into errors
)
CLOCK = 60.0  # seconds on the clock, for what waits instead of computing
MEMORY = 4 << 30  # bytes of address space; 50 million pixels of 16 bits take 1.5 GB on the way
ROOT = pathlib.Path(__file__).parents[2]
_LENGTHS = struct.Struct(">QQ")  # of a message's JSON and of its bytes


def send(pipe: IO[bytes], head: Record, data: bytes | memoryview) -> None:
    """Writes a message: numbers and words, and bytes."""
    text = json.dumps(head).encode()
    pipe.write(_LENGTHS.pack(len(text), len(data)) + text)
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[Record, bytes]:
    """Reads a message.

    Raises:
      EOFError: if there is none, or not a whole one.
      ValueError: if it is no message.
    """
    lengths = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    if max(lengths) > MEMORY:
        raise ValueError("no message of ours")
    head = json.loads(_exactly(pipe, lengths[0]))
    return head, _exactly(pipe, lengths[1])


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve() -> None:
    """Decodes what comes through standard input until it ends."""
    # Ctrl-C and a scheduler's notice are the parent's to act on.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM, signal.SIGPROF))
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # `import perturb` would load JAX, of which a picture needs nothing.
    package = types.ModuleType("perturb")
    package.__path__ = [str(ROOT / "perturb")]
    sys.modules.setdefault("perturb", package)
    from launch.inputs import images  # noqa: F401  now, and not on the first picture's time

    source = sys.stdin.buffer
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into the answers
    while True:
        try:
            request, data = receive(source)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, CLOCK)
        reply, pixels = _decoded(request, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(sink, reply, pixels)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _decoded(request: Record, data: bytes) -> tuple[Record, bytes]:
    from launch.inputs import images
    from perturb.geometry import Geometry

    geometry = Geometry(tuple((name, value) for name, value in request["steps"]))
    try:
        found = images.picture(data, geometry, request["channels"])
    except images.BadImage as error:
        return {"stage": error.stage, "error": str(error)}, b""
    except MemoryError:
        return {"stage": "decode", "error": f"needs more than {MEMORY >> 30} GiB"}, b""
    reply = {"shape": found.pixels.shape, "crop": found.crop, "size": found.size}
    return reply, np.ascontiguousarray(found.pixels).tobytes()
