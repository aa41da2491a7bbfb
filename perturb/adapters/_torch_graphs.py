"""Graphs of torch's autograd that wait between a forward call and its backward call.

A gradient asks a network twice: for its outputs, and for the way back. What torch needs for the way
back is kept from the first call, so that the second need not begin with the outputs once more. A
graph is only a saving: where it is gone or fits no longer, the outputs are worked out again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from perturb.types import PyTree

__all__ = ["Graphs", "gradients", "paired"]

# As many as programs run side by side; a graph whose backward call never comes makes room some day.
_MOST = os.cpu_count() or 1
# Numbers stay within int32, and begin again.
_LARGEST = 2**30


def paired(
    results: Sequence[PyTree], floats: Sequence[int], slopes: Sequence[PyTree]
) -> list[tuple[PyTree, PyTree]]:
    """Returns each result that has a way back, with its slope; integer results have no slope."""
    pairs = [(results[i], g) for i, g in zip(floats, slopes, strict=True)]
    return [(y, g) for y, g in pairs if y.requires_grad]


def gradients(
    torch: ModuleType, pairs: Sequence[tuple[PyTree, PyTree]], inputs: Sequence[PyTree]
) -> list[PyTree]:
    """Returns the gradients of the inputs, zeros where no way leads to one or none is sought."""
    sought = [v for v in inputs if v.requires_grad]
    results, slopes = [y for y, _ in pairs], [g for _, g in pairs]
    # A layer set by hand may have cut the path from the input: its gradient is zero, no error.
    found = iter(
        torch.autograd.grad(results, sought, slopes, allow_unused=True)
        if pairs
        else [None] * len(sought)
    )
    each = [next(found) if v.requires_grad else None for v in inputs]
    return [torch.zeros_like(v) if g is None else g for v, g in zip(inputs, each, strict=True)]


class _Changed(Exception):
    """A value that the way back needs was written over."""


class _Graph:
    """Inputs and results of a forward call, and the weights as long as someone lends them."""

    def __init__(self, torch: ModuleType, weights: Sequence[PyTree]) -> None:
        self.torch = torch
        self.weights: Sequence[PyTree] = weights
        self.inputs: list[PyTree] = []
        self.results: list[PyTree] = []
        self._places = {w.untyped_storage().data_ptr(): i for i, w in enumerate(weights)}

    def pack(self, t: Any) -> Any:
        """What to keep of a value: of a weight only which it is, for its memory is lent."""
        place = self._places.get(t.untyped_storage().data_ptr())
        if place is None:
            return t, t._version
        return place, t.shape, t.stride(), t.storage_offset()

    def unpack(self, kept: Any) -> Any:
        if len(kept) == 2:
            t, version = kept
            # Torch itself looks no longer, once it has handed a value to hooks.
            if t._version != version:
                raise _Changed
            return t
        place, *view = kept
        return self.torch.as_strided(self.weights[place], *view)

    def whole(self) -> bool:
        """Whether all of the way is torch's own: functions of others may hold weights
        themselves.
        """
        foreign = self.torch.autograd.function.BackwardCFunction
        ahead, seen = [y.grad_fn for y in self.results if y.requires_grad], set()
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            if isinstance(node, foreign):
                return False
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
        return bool(seen)


class Graphs:
    """The graphs of one network; used in one thread."""

    def __init__(self, torch: ModuleType) -> None:
        self.torch = torch
        self._kept: dict[int, _Graph] = {}
        self._next = 0

    def record(self, weights: Sequence[PyTree]) -> Any:
        """Returns a graph and the context to run the forward call in."""
        graph = _Graph(self.torch, weights)
        return graph, self.torch.autograd.graph.saved_tensors_hooks(graph.pack, graph.unpack)

    def keep(self, graph: _Graph, rows: int) -> np.ndarray:
        """Returns `[rows]` int32 that tell the graph and the row, -1 where it cannot be kept."""
        # The caller's memory, read no longer.
        graph.weights = ()
        if not graph.whole():
            return np.full(rows, -1, np.int32)
        if self._next > _LARGEST - rows:
            self._next = 0
        first, self._next = self._next, self._next + rows
        self._kept.pop(first, None)
        self._kept[first] = graph
        while len(self._kept) > _MOST:
            self._kept.pop(next(iter(self._kept)))
        return np.arange(first, first + rows, dtype=np.int32)

    def slopes(
        self,
        token: np.ndarray,
        weights: Sequence[PyTree],
        floats: Sequence[int],
        given: Sequence[PyTree],
    ) -> list[PyTree] | None:
        """Returns the gradients of a kept graph's inputs, None where it cannot tell.

        Args:
          token: `[rows]` of `keep`.
          weights: the same as in the forward call.
          floats: which results have a slope.
          given: those slopes.
        """
        first = int(token[0]) if len(token) else -1
        graph = self._kept.pop(first, None)
        # Rows in another order, or not all of them, are another call.
        if graph is None or not np.array_equal(token, np.arange(first, first + len(token))):
            return None
        pairs = paired(graph.results, floats, given)
        if not pairs or any(y.shape != g.shape for y, g in pairs):
            return None
        graph.weights = weights
        try:
            return gradients(self.torch, pairs, graph.inputs)
        except _Changed:
            return None
