"""Planted pictures of one cause and of two equal ones: the table `planted` of
`benchmarks.verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturb


def share(good: np.ndarray) -> str:
    """Writes how many of so many are true."""
    return f"{good.mean():.0%} of {good.size}" if good.size else "none"


def planted(bench: Any) -> Iterator[dict[str, Any]]:
    """Yields how often both of two equal causes are found, and how often none is invented of one.

    Pictures of 32 px, bright in discs of 6 % at places drawn without overlap; four fifths of any
    one disc convince the model.
    """
    rng = np.random.default_rng(bench.half)
    y, x = np.mgrid[:32, :32] + 0.5
    for causes in (2, 1):
        good, others = [], []
        for n in range(bench.number):
            centres: list[np.ndarray] = []
            while len(centres) < 2:
                one = rng.uniform(5, 27, 2)
                if all(np.hypot(*(one - c)) > 11 for c in centres):
                    centres.append(one)
            discs = np.stack([np.hypot(y - a, x - b) < 4.4 for a, b in centres])
            # Of one cause the second disc is the first again, so that one program serves both.
            discs = discs if causes == 2 else np.stack([discs[0]] * 2)
            image = np.where(discs.any(0), 0.9, 0.1)[..., None] * np.ones(3)
            result = perturb.extremal(
                perturb.Model(_convinced, jnp.asarray(discs, jnp.float32)),
                image[None].astype(np.float32),
                [0],
                areas=0.08,
                steps=bench.steps,
                alternatives=2,
                key=jax.random.key(n),
            )
            listed = [np.asarray(result.masks)[0, 0] > 0.5]
            listed += [other.mask for other in result.alternatives[0][0]]
            held = [[bool((m & d).sum() > 0.7 * d.sum()) for m in listed] for d in discs]
            good.append(len(listed) == causes and all(any(h) for h in held[:causes]))
            others.append(len(listed) - 1)
        yield {
            "causes": causes,
            "each found, and nothing else": share(np.array(good)),
            "other regions listed": " ".join(map(str, np.bincount(others, minlength=3))),
        }


def _convinced(discs: jax.Array, x: jax.Array) -> jax.Array:
    """Two logits: the brighter of the discs decides, and four fifths of it are needed."""
    seen = (x.mean(-1)[:, None] * discs).sum((2, 3)) / discs.sum((1, 2))
    best = 60 * (seen.max(1) - 0.7)
    return jnp.stack([best, 0 * best], 1)
