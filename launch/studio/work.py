"""Work in threads: answers are streamed line by line, and work stops when nobody listens any more.

A lane is a number of threads and a place to wait. Quick questions have one of their own, so that a
brush never waits behind a map. A stream is JSON lines: `{"progress": 0.4, "words": "..."}` as often
as there is news, then `{"result": ...}` or `{"error": "one line"}`. Whoever closes the connection
cancels the work at its next word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from absl import logging

from launch import words
from perturb.types import Record

__all__ = ["Busy", "Cancelled", "Lane", "Report", "line", "plain"]

Report = Callable[..., None]
# Between two signs of life: a connection that was closed shows when something is written to it.
BEAT = 1.0


class Busy(Exception):
    """More wait than the lane takes."""


class Cancelled(Exception):
    """Nobody listens any more; raised in the work itself, by its report."""


class Lane:
    """Threads that work, and how many may wait for them.

    Args:
      threads: work at the same time.      most: may wait or work.
    """

    def __init__(self, threads: int, most: int):
        self._threads = ThreadPoolExecutor(threads)
        self._most, self._there = most, 0

    def close(self) -> None:
        """Takes nothing more; what runs is let finish."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _place(self) -> Any:
        if self._there >= self._most:
            raise Busy
        self._there += 1
        try:
            yield
        finally:
            self._there -= 1

    async def once(self, function: Callable[[], Any]) -> Any:
        """Returns what `function` returns, called in a thread.

        Raises:
          Busy: if too many wait.
        """
        with self._place():
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def stream(self, function: Callable[[Report], Any]) -> AsyncIterator[bytes]:
        """Yields the lines of `function`, called with a `report(done, total, words)`.

        Raises:
          Busy: if too many wait, before the first line.
        """
        with self._place():
            news: asyncio.Queue[Record | None] = asyncio.Queue()
            loop, gone = asyncio.get_running_loop(), threading.Event()

            def tell(what: Record | None) -> None:
                with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                    # The work runs in a thread; an asyncio queue may only be touched in its loop.
                    loop.call_soon_threadsafe(news.put_nowait, what)

            def report(done: float, total: float = 1.0, said: str = "") -> None:
                if gone.is_set():
                    raise Cancelled
                tell({"progress": done / total, "words": said})

            ahead = self._there - 1
            running = self._threads.submit(_run, function, report, tell, gone)
            try:
                yield line({"progress": 0.0, "words": f"waiting behind {ahead}" if ahead else ""})
                while True:
                    try:
                        what = await asyncio.wait_for(news.get(), BEAT)
                    except TimeoutError:
                        yield line({})
                        continue
                    if what is None:
                        return
                    yield line(what)
            finally:
                gone.set()
                # What has begun ends by its next report; what still waits never begins.
                running.cancel()


def _run(
    function: Callable[[Report], Any],
    report: Report,
    tell: Callable[[Record | None], None],
    gone: threading.Event,
) -> None:
    try:
        if not gone.is_set():
            tell({"result": function(report)})
    except Cancelled:
        pass
    except ValueError as error:
        tell({"error": words.brief(str(error))})
    except Exception:  # a defect of ours: the page says so, the terminal has the rest
        logging.exception("studio: work failed")
        tell({"error": "this failed: the reason is in the terminal of the studio"})
    finally:
        tell(None)


def line(what: Record) -> bytes:
    """Returns a line of a stream.

    >>> line({"progress": 0.5, "p": float("nan")})
    b'{"progress": 0.5, "p": null}\\n'
    """
    return json.dumps(plain(what), allow_nan=False).encode() + b"\n"


def plain(value: object) -> Any:
    """Returns a tree of Python's own values: arrays as lists, what is not finite as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        # JSON has no NaN, and a page needs no more digits.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
