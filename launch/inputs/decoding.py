"""Pictures decoded in processes of their own, so that a hostile one costs its own row and nothing
else.

A file that makes a decoder hang, crash or ask for all memory ends that process: the picture becomes
a `BadImage`, another process takes the place, and the pictures beside it are what they always are.

>>> with Decoders(1) as decoders:
...     decoders.picture(b"no picture", None)
Traceback (most recent call last):
perturb.photographs.BadImage: not a picture in ...
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import signal
import subprocess
import sys
import threading

import numpy as np

from launch.inputs import decoder, images
from launch.job import store
from perturb.geometry import Geometry
from perturb.types import Record

__all__ = ["COMMAND", "Decoders"]

# Not `-m`, which would need the folder that this was started from.
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(decoder.ROOT)!r}); from launch.inputs import decoder; "
    "decoder.serve()",
)
ENVIRONMENT = {
    # A decoder with threads would only be in the way of the others.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc is to keep the memory of the last picture: being given new pages takes half of the time
    # of a large one.
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}


class Decoders:
    """Up to `number` processes that decode; used by as many threads as like.

    Args:
      number: processes; one is started when all others are busy.
      command: what starts a process.
    """

    def __init__(self, number: int, command: tuple[str, ...] = COMMAND):
        self._command = command
        self._free = threading.Semaphore(number)
        self._idle: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the idle processes; the next picture starts new ones."""
        with contextlib.suppress(queue.Empty):
            while True:
                _end(self._idle.get_nowait())

    def read(
        self,
        path: str | os.PathLike[str] | store.Address,
        geometry: Geometry | None,
        channels: int = 3,
    ) -> images.Picture:
        """Reads a file here and decodes it there, as `images.read` does in one process.

        Raises:
          BadImage: where that would raise it, and where decoding took too long or ended its
            process.
        """
        return self.picture(images.fetch(path), geometry, channels)

    def picture(self, data: bytes, geometry: Geometry | None, channels: int = 3) -> images.Picture:
        """Decodes the bytes of a file; see `read`."""
        request = {"steps": geometry.steps if geometry else (), "channels": channels}
        # Hashed here: a picture may have taken the process over.
        sha256 = hashlib.sha256(data).hexdigest()
        with self._free:
            answer = self._ask(request, data)
            # Once more if the process died: it may have stood in someone's way. Time spent is
            # spent.
            if isinstance(answer, int) and answer != -signal.SIGPROF:
                answer = self._ask(request, data)
        if isinstance(answer, int):
            raise images.BadImage("decode", _words(answer), sha256)
        found, pixels = answer
        if "error" in found:
            raise images.BadImage(str(found["stage"]), str(found["error"]), sha256)
        shape = [int(n) for n in found["shape"]]
        left, top, right, bottom = (float(side) for side in found["crop"])
        width, height = (int(side) for side in found["size"])
        return images.Picture(
            np.frombuffer(pixels, np.float32).reshape(shape),
            (left, top, right, bottom),
            (width, height),
            sha256,
        )

    def _ask(self, request: Record, data: bytes) -> tuple[Record, bytes] | int:
        """Returns the answer, or the exit code of a process that died over it."""
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a decoder has no pipes")
        try:
            decoder.send(process.stdin, request, data)
            answer = decoder.receive(process.stdout)
        except (OSError, EOFError):
            # It is about to die, with an exit code of its own that the row is to name.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            process.kill()
            return _end(process)
        except ValueError:
            process.kill()
            return _end(process)
        except BaseException:  # asked to stop in the middle of an answer that nobody will read
            process.kill()
            _end(process)
            raise
        self._idle.put(process)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ENVIRONMENT,
        )


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends a process by ending its input; returns its exit code, negative for a signal."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what is left unsent does not matter
            if pipe is not None:
                pipe.close()
    return process.wait()


def _words(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"decoding took more than {decoder.SECONDS:g} s of processor time"
    if code == -signal.SIGALRM:
        return f"decoding took more than {decoder.CLOCK:g} s"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"decoding ended its process ({name})"
