"""Patterns of the embedded classifier's units: rho of two-sided patterns against that of the
weights.

`python -m benchmarks.pattern_figures [--fit=600] [--judged=200]`: every unit of every layer, on
pictures that the patterns were not fitted on.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from launch import demo
from launch.demo import world
from perturb.internals import patterns
from perturb.taps.swapping import LAYER, swap


def inputs(model, images):
    """Of each layer what its units see, `[N, D]`, kernels `[D, units]` and biases."""
    seen = []

    def note(layer, x, kernel, *bias):
        seen.append((layer, x, kernel, bias))
        return layer(x, kernel, *bias)

    swap(lambda x: model(x), {LAYER: note})(jnp.asarray(images))
    found = []
    for layer, x, kernel, bias in seen:
        cut = x
        if kernel.ndim == 4:
            cut = jax.lax.conv_general_dilated_patches(
                x,
                kernel.shape[:2],
                layer.params["window_strides"],
                layer.params["padding"],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            # Patches have the channel first; kernels have it behind the places.
            cut = np.asarray(cut).reshape(-1, kernel.shape[2], kernel.shape[0] * kernel.shape[1])
            cut = cut.transpose(0, 2, 1).reshape(len(cut), -1)
        shift = np.ravel(bias[0]) if bias else np.zeros(kernel.shape[-1])
        found.append((np.asarray(cut), np.asarray(kernel).reshape(-1, kernel.shape[-1]), shift))
    return found


def rho(cut, w, shift, plus, minus):
    """Quality of the two-sided pattern and of the weights, for one unit; None where it is always on
    or off: then there is one regime only.
    """
    y = cut @ w
    on = y + shift > 0
    if min(on.mean(), 1 - on.mean()) < 0.005:
        return None
    two_sided = np.where(on[:, None], np.outer(y, plus), np.outer(y, minus))
    both = (two_sided, np.outer(y, w / (w @ w)))
    return [patterns.signal_quality(cut, w, s) for s in both]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", type=int, default=600)
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument("--places", type=int, default=6000)
    given = parser.parse_args()
    begun = time.process_time()
    model = demo.load("demo")
    pictures = world.render_batch(21, range(given.fit)).image
    fitted = patterns.fit_patterns(
        model, [pictures[i : i + 50] for i in range(0, given.fit // 50 * 50, 50)]
    )
    rng, rows = np.random.default_rng(0), []
    for i, (cut, w, shift) in enumerate(
        inputs(model, world.render_batch(22, range(given.judged)).image)
    ):
        cut = cut[rng.permutation(len(cut))[: given.places]].astype(np.float64)
        plus, minus = (
            np.asarray(v[i], np.float64).reshape(w.shape)
            for v in (fitted.positive, fitted.negative)
        )
        here = [
            r
            for u in range(w.shape[1])
            if (r := rho(cut, w[:, u].astype(np.float64), shift[u], plus[:, u], minus[:, u]))
        ]
        pairs = np.array(here)
        rows.append(pairs)
        better = (pairs[:, 0] >= pairs[:, 1]).mean()
        print(
            f"layer {i + 1}: {len(pairs)} of {w.shape[1]} units with both regimes, two-sided at "
            f"least as good in {better:.2f}; medians {np.median(pairs, 0).round(3).tolist()}",
            flush=True,
        )
    pairs = np.concatenate(rows)
    print(f"all {len(pairs)} units: {(pairs[:, 0] >= pairs[:, 1]).mean():.3f}")
    print(f"{time.process_time() - begun:.0f} s of one core")


if __name__ == "__main__":
    main()
