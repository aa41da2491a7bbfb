"""Keeps the slots of the solver full: where a mask has ended the next one begins, on every device.

Each device has slots of its own and works at its own pace; jobs go to whichever has room. With
one device that happens in the caller's thread, with several in one thread each. A device may be
given several times: then as many programs run on it side by side, each with slots of its own.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from perturb import solver
from perturb.model import Model
from perturb.types import PyTree

__all__ = ["CHUNK", "Event", "Part", "Slots", "run"]

# Steps between two returns to the host: long enough to hide the call, short enough for a progress
# line.
CHUNK = 10

Job = TypeVar("Job")
Slots = tuple[solver.Items, solver.State]


class Event(NamedTuple):
    """What a device has done.

    Attributes:
      steps: steps that are done, including those that an early end has saved.
      jobs: jobs that have ended.
      outcome: of the slots whose first ones are `jobs`, on the host.
    """

    steps: int = 0
    jobs: Sequence[PyTree] = ()
    outcome: solver.Outcome | None = None


class Part(NamedTuple):
    """A device, with model and recipe as they lie there."""

    model: Model
    recipe: solver.Recipe
    device: jax.Device


def run(
    parts: Sequence[Part],
    begin: Callable[[Part, Sequence[Job]], Slots],
    jobs: Iterator[Job],
    *,
    slots: int,
    steps: int,
    patience: int | None = None,
) -> Iterator[Event]:
    """Yields what happens until every job has ended.

    Args:
      parts: one a device, or several of them.
      begin: `(part, jobs) -> slots`: `slots` of them on the device, padded if there are fewer jobs.
      jobs: taken one after the other, in the caller's thread.
      slots: of each part.
      steps: of every job.
      patience: see `perturb.extremal`.
    """
    if len(parts) == 1:

        def take(number: int, wait: bool) -> list[Job]:
            return list(itertools.islice(jobs, number))

        yield from _fill(parts[0], begin, take, slots, steps, patience, _Compiling())
        return
    counter = _Counter[Job]()
    compiling = {part.device: _Compiling() for part in parts}
    fills = [
        _fill(part, begin, counter.take, slots, steps, patience, compiling[part.device])
        for part in parts
    ]
    yield from _together(fills, counter, jobs, ahead=2 * slots * len(parts))


def _fill(
    part: Part,
    begin: Callable[[Part, Sequence[Job]], Slots],
    take: Callable[[int, bool], list[Job]],
    slots: int,
    steps: int,
    patience: int | None,
    compiling: _Compiling,
) -> Iterator[Event]:
    """The events of one device, or of one of several programs that it runs side by side.

    A slot that has ended takes the next job while its neighbours go on. Slots are begun and
    finished `slots` at a time, in one program each; rows are copied in between, which changes no
    bit.
    """
    there = jax.device_put(part.recipe, part.device)
    part = Part(*solver.ready(part.model, there), part.device)
    who: list[Job | None] = [None] * slots
    # An empty slot counts as one that has taken all its steps.
    taken = [steps] * slots
    ready: collections.deque[tuple[int, Job]] = collections.deque()
    fresh: Slots | None = None
    running: Slots | None = None
    bank: Slots | None = None
    ended: list[Job] = []
    under_way: collections.deque[tuple[jax.Array, int]] = collections.deque()

    def finish() -> Event:
        with compiling.once("finish"):
            outcome = solver.finish(part.model, part.recipe, *bank)  # type: ignore[misc]
        return Event(0, ended, jax.device_get(outcome))

    while True:
        while not all(who):
            if not ready:
                batch = take(slots, not any(who))
                if not batch:
                    break
                with compiling.once("begin"):
                    fresh = begin(part, batch)
                ready.extend(enumerate(batch))
            moves = {}
            for s in range(slots):
                if who[s] is None and ready:
                    moves[s], who[s] = ready.popleft()
                    taken[s] = 0
            running = _move(cast(Slots, fresh), running, moves)
        live = [s for s in range(slots) if who[s] is not None]
        if not live:
            break
        k = min(CHUNK, max(steps - taken[s] for s in live))
        items, state = running  # type: ignore[misc]
        counts = {"taken": np.array(taken), "steps": np.full(slots, steps)}
        # Which programs a chunk needs depends on how far it is: a check is a separate one.
        with compiling.once(f"advance from {max(taken[s] for s in live)}"):
            state = solver.advance_in_place(part.model, part.recipe, items, state, k, **counts)
        running = (items, state)
        done = sum(min(k, steps - taken[s]) for s in live)
        for s in live:
            taken[s] += k
        over = [s for s in live if taken[s] >= steps]
        if patience is not None:
            # Every slot began a chunk, so what is seen of it here does not depend on the others.
            step, best, finite = jax.device_get((state.step, state.best_step, state.finite))
            late = (step > 2 * steps // 3) & (step - best >= patience)
            over = [s for s in live if taken[s] >= steps or late[s] or not finite[s]]
            done += sum(max(0, steps - taken[s]) for s in over)
        # The next chunk is given out while this one is under way: a device need not wait for the
        # host.
        under_way.append((jnp.copy(state.step), done))
        while under_way and (over or patience is not None or len(under_way) > 1):
            step, done = under_way.popleft()
            jax.block_until_ready(step)
            yield Event(done)
        while over:
            some, over = over[: slots - len(ended)], over[slots - len(ended) :]
            moves = {len(ended) + n: s for n, s in enumerate(some)}
            bank = _move(running, bank, moves)
            for s in some:
                ended.append(who[s])  # type: ignore[arg-type]
                who[s], taken[s] = None, steps
            if len(ended) == slots:
                yield finish()
                ended = []
    if ended:
        yield finish()


def _move(source: Slots, into: Slots | None, moves: dict[int, int]) -> Slots:
    """Returns `into` with its slots `moves` taken from those of `source`, `{to: from}`; its state
    is its own.
    """
    slots = len(source[1].step)
    # A whole batch that keeps its places needs no gather, only a copy: a step reuses the memory of
    # the state that it is called with.
    straight = all(a == b for a, b in moves.items())
    if straight and (into is None or len(moves) == slots):
        return source[0], solver.own(source[1])
    which, place = np.zeros(slots, bool), np.zeros(slots, np.int32)
    for to, start in moves.items():
        which[to], place[to] = True, start
    found: Slots = _copy(source, source if into is None else into, which, place)
    return found


@jax.jit
def _copy(source: Slots, into: Slots, which: jax.Array, place: jax.Array) -> Slots:
    def rows(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x[place], y)

    found: Slots = jax.tree.map(rows, source, into)
    return found


class _Compiling:
    """Lets one thread compile what the others need too; each would do it again by itself."""

    def __init__(self) -> None:
        self._lock, self._done = threading.Lock(), set[str]()

    @contextlib.contextmanager
    def once(self, name: str) -> Iterator[None]:
        """For a block of code that compiles when it runs for the first time under this name."""
        if name in self._done:
            yield
            return
        with self._lock:
            yield
            self._done.add(name)


class _Counter(list[Job]):
    """Where threads fetch jobs, in the order in which they were put there."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, job: Job) -> None:
        with self._changed:
            self.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Says that no more jobs come, and wakes the threads that wait for one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, number: int, wait: bool) -> list[Job]:
        """Returns up to `number` jobs; none only if there are none, and with `wait`, none will
        come.
        """
        with self._changed:
            while wait and not self and not self._closed:
                self._changed.wait()
            taken = self[:number]
            del self[:number]
            return taken


def _together(
    fills: Sequence[Iterator[Event]], counter: _Counter[Job], jobs: Iterator[Job], *, ahead: int
) -> Iterator[Event]:
    """Runs every device in a thread, and in this one fetches jobs and yields what happens.

    The others begin when the first one has taken its first steps: tracing is done once that way,
    and compiling, of which each device needs its own, side by side.
    """
    events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    led, stopped = threading.Event(), threading.Event()
    # What the caller has set for a block of code is set for its thread only.
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

    def work(n: int) -> None:
        try:
            if n:
                led.wait()
            with jax.enable_x64(wide), jax.default_matmul_precision(precision):
                for event in fills[n]:
                    events.put(event)
                    led.set()
                    if stopped.is_set():
                        return
        except BaseException as error:  # goes on in the caller's thread
            events.put(error)
        finally:
            led.set()
            events.put(None)

    def feed() -> None:
        wanted, found = max(0, ahead - len(counter)), 0
        for job in itertools.islice(jobs, wanted):
            counter.put(job)
            found += 1
        # By what was found, not by what lies there now: threads take jobs while more are put.
        if found < wanted:
            counter.close()

    # Daemons: a device that hangs must not keep the process from ending.
    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(fills))]
    alive = len(threads)
    try:
        feed()
        for thread in threads:
            thread.start()
        while alive:
            event = events.get()
            if event is None:
                alive -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                feed()
                yield event
    finally:
        stopped.set()
        counter.clear()
        counter.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
