"""How far a long call is: a bar where someone watches, silence elsewhere.

The bar is tqdm's, where it is installed (`pip install tqdm`; `TQDM_DISABLE=1` switches it off). It
is drawn in terminals and notebooks, after the first second, for the call that a person made and not
for those that it makes itself. A callback `progress=` takes its place.

Where someone interrupts such a call (Ctrl-C), it returns the masks or pictures that are finished,
with an `Interrupted` warning; a second Ctrl-C, or one before anything is finished, is raised.

>>> told = []
>>> with shown("masks", lambda done, total: told.append((done, total))) as tell:
...     tell(1, 2)
>>> told
[(1, 2)]
>>> list(each("abc", "letters"))
['a', 'b', 'c']
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import numpy as np

from perturb.types import PyTree

__all__ = [
    "Interrupted",
    "completed",
    "each",
    "give_back",
    "nobody",
    "quiet",
    "shown",
    "until_interrupted",
]

Report = Callable[[int, int], None]
T = TypeVar("T")

# What a call makes of inner calls: those neither draw a bar nor answer Ctrl-C.
_inner: contextvars.ContextVar[bool] = contextvars.ContextVar("perturb_inner_call", default=False)


class Interrupted(UserWarning):
    """A call was interrupted, and what it returned is a part of what was asked."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No call within draws a bar, and Ctrl-C is raised at once: for programs that report
    themselves.
    """
    token = _inner.set(True)
    try:
        yield
    finally:
        _inner.reset(token)


@contextlib.contextmanager
def shown(what: str, progress: Report | None = None) -> Iterator[Report]:
    """Yields the function that a call tells `(done, total)`.

    Args:
      what: is counted, in the plural.
      progress: the caller's own function, in place of a bar.
    """
    bar = None if progress is not None or _inner.get() else _bar(what)
    with quiet():
        try:
            yield progress or (nobody if bar is None else _updating(bar))
        finally:
            if bar is not None:
                bar.close()


def each(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, and counts those that are done with.

    Args:
      items: to be worked through.
      what: they are, in the plural.
      total: how many, where they have no `len()`.
    """
    bar = None if _inner.get() else _bar(what)
    if bar is None:
        yield from items
        return
    number = len(items) if isinstance(items, Sized) else total
    tell = _updating(bar)
    # A generator shares the context of the loop around it: calls in the loop are inner ones.
    token = _inner.set(True)
    try:
        for done, item in enumerate(items):
            tell(done, number or done + 1)
            yield item
    finally:
        _inner.reset(token)
        bar.close()


@contextlib.contextmanager
def until_interrupted(done: Sized) -> Iterator[None]:
    """Ends the block at Ctrl-C where something is done already, see `completed`.

    Args:
      done: what the block has finished, a list that it adds to.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not done:
            raise


def completed(parts: Sequence[np.ndarray], total: int, what: str) -> list[np.ndarray]:
    """Returns arrays of leading size `total`: what Ctrl-C came before is NaN, or False.

    Args:
      parts: `[n, ...]` each, of the first n.
      total: how many were asked.
      what: they are, in the plural.
    Raises:
      KeyboardInterrupt: see `give_back`.
    """
    lost = total - len(parts[0])
    if not lost:
        return list(parts)
    give_back(len(parts[0]), total, what)
    return [np.concatenate([p, np.full((lost, *p.shape[1:]), _missing(p), p.dtype)]) for p in parts]


def _missing(like: np.ndarray) -> float:
    # Integers and booleans have no NaN: what is missing is 0, or False.
    return np.nan if np.issubdtype(like.dtype, np.floating) else 0


def give_back(finished: int, total: int, what: str) -> None:
    """Warns that a call returns a part of what was asked; call it where `KeyboardInterrupt` is
    caught.

    Args:
      finished: how many are.
      total: how many were asked.
      what: they are, in the plural.
    Raises:
      KeyboardInterrupt: nothing is finished, or the call was made by another that needs all.
    """
    if not finished or _inner.get():
        raise KeyboardInterrupt
    warnings.warn(
        f"interrupted: {finished} of {total} {what} are finished, the others are NaN",
        Interrupted,
        stacklevel=4,
    )


def nobody(done: int, total: int) -> None:
    """Takes `(done, total)` and does nothing, where nobody watches."""


def _watched() -> bool:
    """Whether standard error is a terminal, or a notebook's cell."""
    stream = sys.stderr
    if stream is None:
        return False
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


def _bar(what: str) -> PyTree:
    """A bar, or None where nobody watches or tqdm is not installed."""
    # A call in a thread is part of a job or a server: no person waits for that very call.
    if not _watched() or threading.current_thread() is not threading.main_thread():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(desc=what, delay=1.0, leave=False, mininterval=0.2, dynamic_ncols=True)


def _updating(bar: Any) -> Report:
    def tell(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return tell
