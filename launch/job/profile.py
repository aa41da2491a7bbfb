"""A trace of some steps under way, for xprof or Perfetto."""

from __future__ import annotations

from types import TracebackType

import jax
from absl import logging

__all__ = ["Profile"]

CHUNKS = 3  # calls that are traced


class Profile:
    """Traces what happens between two calls of `tick`, once compiling is behind.

    Args:
      folder: where the trace is written; None traces nothing.
    """

    def __init__(self, folder: str | None):
        self._folder, self._ticks, self._on = folder, 0, False

    def tick(self) -> None:
        """Says that a chunk of steps is done: after the first one the trace begins."""
        self._ticks += 1
        # The first chunk compiles, which would hide everything else in the trace.
        if self._folder is not None and self._ticks == 1:
            jax.profiler.start_trace(self._folder)
            self._on = True
        elif self._ticks > CHUNKS:
            self._end()

    def _end(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            logging.info("trace of %d chunks of steps: %s", self._ticks - 1, self._folder)

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
