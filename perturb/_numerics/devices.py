"""The devices of this process: each runs the program for a single device, on its own slots.

The mesh has one axis, "data", along which slots lie; weights are the same everywhere. A program
that XLA splits over the mesh (by itself or through `jax.shard_map`) goes through other passes than
one for a single device: gradients of the embedded classifier differed by 2e-7 after a step, its
masks by
1.0 after 40. So each device is given the very same program, and nothing is exchanged between them.
"""

from __future__ import annotations

import collections
import functools
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from perturb.types import PyTree

__all__ = ["Mesh", "alike", "each", "is_cpu", "least", "local", "processors", "spread"]

S = TypeVar("S")
T = TypeVar("T")


def local(most: int | None = None, *, like: PyTree = ()) -> Mesh:
    """Returns a mesh over this process's devices, or over the first `most` of them.

    `jax.default_device` is heeded, and so are arrays among the leaves of `like` that were put on a
    device by name: then there are no others.

    >>> dict(local(1).shape)
    {'data': 1}
    """
    # May be a device, or the name of a platform ("cpu"), which is also the name of its backend.
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    devices = [chosen] if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)
    for leaf in jax.tree.leaves(like):
        # A committed array was put on its devices by name: JAX refuses to compute with it
        # elsewhere.
        if isinstance(leaf, jax.Array) and leaf.committed:
            devices = sorted(leaf.sharding.addressable_devices, key=lambda d: d.id)
            break
    return _mesh(tuple(devices[:most]))


@functools.cache
def _mesh(devices: tuple[jax.Device, ...]) -> Mesh:
    # Auto: the default, Explicit, would ask the user's model to say how its arrays lie.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def is_cpu(mesh: Mesh) -> bool:
    """Returns whether the devices of the mesh are CPUs."""
    return bool(mesh.devices.flat[0].platform == "cpu")


def least(mesh: Mesh) -> int:
    """Returns how many slots a device has at least, so that results are those of any other number.

    Two: a batch of one is compiled to other arithmetic. With many threads a CPU splits the inner
    sums of a convolution between them, with eight those of the embedded classifier for batches of
    two.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return 2
    # XLA's pool has a thread for every core, and one for every device that there is said to be.
    return 2 if max(os.cpu_count() or 1, jax.local_device_count()) <= 4 else 3


def processors() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def alike(tree: PyTree, mesh: Mesh) -> list[PyTree]:
    """Returns `tree` once for every device of the mesh, with its arrays there; plain numbers
    stay.
    """
    # Replicated, and then taken apart: each shard of such an array is all of it, on one device.
    # Sharding inside a program would send it through other passes of the compiler (see above).
    whole = NamedSharding(mesh, jax.P())

    def put(leaf: PyTree) -> PyTree:
        return jax.device_put(leaf, whole) if isinstance(leaf, jax.Array | np.ndarray) else leaf

    def on(leaf: PyTree, n: int) -> PyTree:
        return leaf.addressable_shards[n].data if isinstance(leaf, jax.Array) else leaf

    everywhere = jax.tree.map(put, tree)
    return [jax.tree.map(functools.partial(on, n=n), everywhere) for n in range(mesh.size)]


def spread(function: Callable[[PyTree, int], T], model: PyTree, number: int) -> list[T]:
    """Returns `function(model, i)` for `i` below `number`, each worked out on one device, in turn.

    >>> spread(lambda weight, i: weight * i, 2.0, 3)
    [0.0, 2.0, 4.0]
    """
    mesh = local(max(1, number), like=model)
    if mesh.size == 1:
        return [function(model, i) for i in range(number)]
    there = alike(model, mesh)

    def one(i: int) -> T:
        # The default device is a setting of the thread, so it is set in the one that works.
        with jax.default_device(mesh.devices.flat[i % mesh.size]):
            return function(there[i % mesh.size], i)

    with ThreadPoolExecutor(mesh.size) as threads:
        return list(threads.map(one, range(number)))


def each(function: Callable[[PyTree, int, S], T], tree: PyTree, items: Iterable[S]) -> Iterator[T]:
    """Yields `function(tree, n, item)` of every item in order, `n` the number of the device it is
    worked out on, with `tree` there.

    Items are taken in the caller's thread, as many ahead as there are devices. A device works on
    one at a time, so what a function keeps for each `n` needs no lock.

    >>> list(each(lambda weight, n, item: weight * item, 2.0, [1.0, 3.0]))
    [2.0, 6.0]
    """
    mesh = local(like=tree)
    if mesh.size == 1:
        for item in items:
            yield function(tree, 0, item)
        return
    free: queue.SimpleQueue[tuple[int, PyTree]] = queue.SimpleQueue()
    for there in enumerate(alike(tree, mesh)):
        free.put(there)

    def one(item: S) -> T:
        n, there = free.get()
        try:
            # The default device is a setting of the thread, so it is set in the one that works.
            with jax.default_device(mesh.devices.flat[n]):
                return function(there, n, item)
        finally:
            free.put((n, there))

    with ThreadPoolExecutor(mesh.size) as threads:
        under: collections.deque[Future[T]] = collections.deque()
        try:
            for item in items:
                under.append(threads.submit(one, item))
                if len(under) > mesh.size:
                    yield under.popleft().result()
            while under:
                yield under.popleft().result()
        finally:
            for future in under:
                # Whoever asked has stopped: what has not begun need not.
                future.cancel()


def side_by_side(mesh: Mesh, slots: int, reproducible: bool | None) -> tuple[int, int]:
    """Returns how many programs run side by side on each device, and the slots of each.

    Where results are to be reproducible a program has one slot. On a CPU there are as many as
    processors, for each is compiled for one thread. An accelerator runs its programs one after the
    other, whichever thread has launched them.
    """
    cpu = is_cpu(mesh)
    if not (cpu if reproducible is None else reproducible):
        # Never a single slot: XLA compiles a batch of one to other arithmetic than any larger one.
        return 1, max(2, slots)
    return (max(1, min(slots, processors() // mesh.size)) if cpu else 1), 1
