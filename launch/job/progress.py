"""How far a run is: a bar where someone watches a terminal, a log line every few seconds
elsewhere.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from absl import logging

from launch.job import faults

__all__ = ["Progress", "duration"]


class Progress:
    """Reports items done, rate and the time left.

    Args:
      total: number of items of the run.
      done: how many of them an earlier run has committed.
      unit: what an item is, in the plural.
      every: seconds between two log lines.
      stream: where a bar is drawn if it is a terminal; standard error unless said otherwise.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        *,
        unit: str = "images",
        every: float = 5.0,
        stream: TextIO | None = None,
    ):
        self._total, self._first, self._done = total, done, done
        self._every, self._unit = every, unit
        self._stream = stream or sys.stderr
        # A bar rewrites its line, which would fill a log file with control characters.
        self._bar = self._stream.isatty()
        # Not the clock of the wall, which may be set while a run is under way.
        self._start = self._last = time.monotonic()

    def add(self, items: int) -> None:
        """Counts `items` more as done."""
        self._done += items
        self.show(0.0)

    def show(self, part: float) -> None:
        """Shows the state, with `part` more items' worth of work under way.

        Every job comes by here, at least once an item: a notice to leave that was lost is heeded.
        """
        faults.heed()
        now = time.monotonic()
        # The last state is always shown, however soon after the one before.
        if now - self._last < (0.2 if self._bar else self._every) and self._done < self._total:
            return
        self._last = now
        done = min(self._done + part, self._total)
        text = self.line(done, now - self._start)
        if self._bar:
            filled = int(30 * done / self._total)
            self._stream.write(f"\r{'█' * filled}{'░' * (30 - filled)} {text}\x1b[K")
            self._stream.flush()
        else:
            logging.info("%s", text)

    def line(self, done: float, seconds: float) -> str:
        """Returns the words: how many of how many, rate, and time left."""
        # Rate and time left are of this run alone: what an earlier one did took no time now.
        worked = done - self._first
        text = f"{int(done)}/{self._total} {self._unit}"
        if worked <= 0 or seconds <= 0:
            return text
        rate = worked / seconds
        one = self._unit.removesuffix("s")
        shown = f"{rate:.2f} {self._unit}/s" if rate >= 0.1 else f"{1 / rate:.0f} s/{one}"
        return f"{text}, {shown}, {duration((self._total - done) / rate)} left"

    def close(self) -> None:
        """Leaves the bar's line."""
        if self._bar:
            self._stream.write("\n")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Returns a time span in the two units that matter.

    >>> duration(42), duration(3900), duration(200_000)
    ('42 s', '1 h 05 min', '2 d 08 h')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"
