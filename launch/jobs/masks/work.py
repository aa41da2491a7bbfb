"""From pictures to masks: the method runs batch after batch, and its slots go on from shard to
shard.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import perturb
from launch import results
from launch.inputs import images
from launch.job import faults, store
from launch.job.progress import Progress
from launch.jobs import batches
from launch.jobs.batches import Block, Done, Ready
from perturb.types import Function

__all__ = ["Solved", "Worker"]


class Solved(NamedTuple):
    """What a block's masks are: of the method, of the evidence or None, and pictures with all
    removed.
    """

    result: Any
    evidence: Any
    removed: np.ndarray | list[None]


class Worker(batches.Worker):
    """Computes the shards of a run of masks.

    Args:
      model, root, target, seed, parity: as for `batches.Worker`.
      method: as `perturb.stream` takes it.
      removal: name and operator of what is taken away, the operator None for channel masks.
      evidence: `(model, images, targets, result, keys=) -> evidence` on the masks, or None.
    """

    def __init__(
        self,
        model: perturb.Model,
        method: Function,
        *,
        root: store.Path,
        target: str,
        removal: tuple[str, Any],
        seed: int,
        parity: str | None = None,
        evidence: Function | None = None,
    ):
        super().__init__(model, root=root, target=target, seed=seed, parity=parity)
        self._method, self._removal, self._evidence = method, removal, evidence

    def _solved(
        self, blocks: Iterator[Block], progress: Progress, tick: Callable[[], None]
    ) -> Generator[tuple[Block, Solved], None, None]:
        """Yields every block with what the method and the evidence say of it.

        Slots go on across blocks and so across shards. Where the memory is too small there are
        fewer.
        """
        under: collections.deque[Block] = collections.deque()
        broken: list[BaseException] = []

        def given(begun: Sequence[Block]) -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array]]:
            begun = list(begun)
            while True:
                try:
                    block = begun.pop(0) if begun else next(blocks)
                except StopIteration:
                    return
                except BaseException as error:
                    # A generator that has failed ends: it cannot be resumed.
                    broken.append(error)
                    raise
                # What the solver has been given and has not returned: begun again if memory
                # runs out.
                under.append(block)
                yield block.pixels, block.targets, block.keys

        def show(steps: int, total: int) -> None:
            tick()
            progress.show(sum(len(b.batch) for b in under) * steps / max(total, 1))

        while True:
            begun = list(under)
            under.clear()
            stream = perturb.stream(self._method, self._model, given(begun), progress=show)
            try:
                with contextlib.closing(stream):
                    for result in stream:
                        # Results come in the order in which the blocks were given.
                        block, found = under[0], None
                        if self._evidence is not None:
                            found = self._evidence(
                                self._model, block.pixels, block.targets, result, keys=block.keys
                            )
                        solved = Solved(result, found, self._removed(block))
                        # Only now: if the evidence runs out of memory the block is begun again.
                        under.popleft()
                        yield block, solved
                return
            except (RuntimeError, MemoryError) as error:
                slots = getattr(self._method, "keywords", {}).get("batch_size", 2)
                if broken or not faults.exhausted(error):
                    raise
                # Two are the fewest: a batch of one is another program, with other bits.
                if slots <= 2:
                    raise ValueError(
                        "two masks side by side do not fit into the device's memory: give a "
                        f"smaller model or smaller images ({str(error)[:200]})"
                    ) from error
            # Results do not depend on the number of slots, so the items are begun anew with fewer.
            fewer = max(2, slots // 2)
            logging.warning("out of memory: from %d slots to %d", slots, fewer)
            self._method = functools.partial(self._method, batch_size=fewer)

    def _removed(self, block: Block) -> np.ndarray | list[None]:
        operator = self._removal[1]
        if operator is None:
            return [None] * len(block.pixels)
        removed = functools.partial(_all_removed, operator)
        # Under the picture's own key, so that a noise fill does not depend on the batch.
        return batches.filled(removed, block.pixels, block.keys)

    def _done(self, ready: Ready, target: int, block: Block, row: int, found: Solved) -> Done:
        result, removed = found.result, found.removed[row]
        picture, names = ready.picture, self._model.class_names
        identity = self._identity(ready, target)
        rows = results.rows(
            result,
            row,
            identity=identity,
            crop=picture.crop,
            removal=self._removal[0],
            evidence=found.evidence,
        )
        for one in rows:
            rival = one["evidence"].get("rival")
            if rival and names:
                rival["target_name"] = names[rival["target"]]
        arrays = results.arrays(result, row)
        # Kept beside the mask, so that a page can be written without the photographs.
        arrays["image"] = images.encode(block.pixels[row])
        if removed is not None:
            arrays["removed"] = images.encode(removed)
        entry = {
            "id": identity["id"],
            "target": target,
            "sha256": picture.sha256,
            "size": list(picture.size),
            "areas": [one["area"] for one in rows],
        }
        if result.kind == "channels":
            entry["channels"] = int(np.shape(result.channels)[-1])
        return Done(entry, arrays, rows)


@jax.jit
def _all_removed(operator: Any, pixels: jax.Array, keys: jax.Array) -> jax.Array:
    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        found: jax.Array = operator.apply(operator.prepare(image, key), jnp.zeros(image.shape[:-1]))
        return found

    return jax.vmap(one)(pixels, keys)
