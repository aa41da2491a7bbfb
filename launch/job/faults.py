"""What goes wrong around a job: disks that stutter, machines that are taken away, devices that are
full.

A notice to leave (SIGTERM, and SIGUSR1 as Slurm sends it) ends the process with exit code 75: what
is under way is dropped, for nothing uncommitted counts, and the same command continues. A second
notice, or 20 seconds in code that does not listen, ends it at once; commits are safe against that
too.

>>> retried(lambda: 3)
3
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

__all__ = [
    "FULL",
    "PREEMPTED",
    "TRANSIENT",
    "Preempted",
    "exhausted",
    "heed",
    "leave_on_notice",
    "leaving",
    "retried",
]

PREEMPTED = 75  # exit code: asked to stop; EX_TEMPFAIL, which schedulers take as "start me again"
GRACE = 20.0  # seconds; clouds give about 30
TRIES = 5
# A network disk gives these for a while and then works again; a missing file does not come back.
TRANSIENT = frozenset(
    [errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN]
)
# The disk takes nothing more: what is committed stays, the rest needs someone's help.
FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO])

R = TypeVar("R")

# Set by the first notice. What its handler raises may be lost: Python drops what is raised while it
# collects garbage, and foreign code may turn it into an error of its own.
_told = threading.Event()


class Preempted(BaseException):
    """The process has been asked to stop. No `Exception`, so that no handler of those keeps it."""


def leaving(error: BaseException | None) -> bool:
    """Returns whether an error comes of a notice: `Preempted`, or what was raised on its way out.

    An archive that is half written, for one, cannot be closed and says so instead.

    Once a notice has come, any error is one of leaving: the same command, started again, says what
    else is wrong.

    >>> try:
    ...     try:
    ...         raise Preempted
    ...     finally:
    ...         raise ValueError("cannot be closed")
    ... except ValueError as error:
    ...     leaving(error), leaving(error.__context__), leaving(ValueError())
    (True, True, False)
    """
    if _told.is_set():
        return True
    while error is not None and not isinstance(error, Preempted):
        error = error.__context__
    return error is not None


@functools.cache
def leave_on_notice(grace: float = GRACE) -> None:
    """Makes SIGTERM raise `Preempted` in the main thread, and end the process if that does not
    help.

    Call it in the main thread and after `jax.distributed.initialize`, which installs a handler of
    its own that would wait for all processes to reach the same step.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # a caller's thread cannot, and its process has ways of its own
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    for notice in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(notice, _raise)
    # The number of every signal is written there by the C handler, however busy the main thread is.
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(told, grace), daemon=True).start()


def heed() -> None:
    """Raises `Preempted` if a notice has come, whatever became of what was raised then.

    Called between two items, chunks of steps or shards.

    >>> heed()
    """
    if _told.is_set():
        raise Preempted


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    for notice in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(notice, _heard)
    _told.set()
    raise Preempted


def _heard(number: int, frame: FrameType | None) -> None:
    # Not SIG_IGN, which would keep the next notice from the watching thread.
    return None


def _watch(told: int, grace: float) -> None:
    notices = 0
    while True:
        number = os.read(told, 1)[0]
        if number not in (signal.SIGTERM, signal.SIGUSR1):
            continue
        notices += 1
        if notices > 1:
            os._exit(PREEMPTED)
        timer = threading.Timer(grace, os._exit, (PREEMPTED,))
        timer.daemon = True
        timer.start()


def retried(
    call: Callable[[], R],
    *,
    tries: int = TRIES,
    wait: float = 0.2,
    passing: frozenset[int] = TRANSIENT,
    sleep: Callable[[float], None] = time.sleep,
) -> R:
    """Returns `call()`, repeated up to `tries` times while it meets transient errors of input or
    output.

    Args:
      passing: the numbers of errors that count as such.
      wait: seconds before the second try; twice as long before each further one.
    """
    for attempt in range(tries - 1):
        try:
            return call()
        except OSError as error:
            if error.errno not in passing:
                raise
        sleep(wait * 2**attempt)
    return call()


def exhausted(error: BaseException) -> bool:
    """Returns whether a device, or the host on its behalf, ran out of memory.

    >>> exhausted(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"))
    True
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )
