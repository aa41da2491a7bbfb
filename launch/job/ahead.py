"""Work done ahead of whoever asks for it, by threads."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R], items: Iterable[T], *, workers: int, window: int
) -> Generator[R, None, None]:
    """Yields `function(item)` in order, worked out by threads up to `window` items ahead.

    >>> list(ahead(abs, [-1, -2, 3], workers=2, window=2))
    [1, 2, 3]
    """
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        queue: collections.deque[concurrent.futures.Future[R]] = collections.deque()
        try:
            for item in items:
                queue.append(pool.submit(function, item))
                if len(queue) > window:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                # Whoever asked has stopped: what has not begun need not.
                future.cancel()
