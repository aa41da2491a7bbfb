"""Deep image prior: noise and holes taken out of photographs, and where it stops without the truth.

  python -m benchmarks.features.restoring --photographs=3 --steps=1500

The photographs are the first ones by name that settings were not chosen on. "Best step" is by the
truth; the rule sees only the noisy picture.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from benchmarks.units import data
from perturb.internals import features

CHOSEN_ON = 3  # the first photographs, on which width, share and patience were chosen


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """dB of one picture beside another."""
    return float(-10 * np.log10(((picture - truth) ** 2).mean()))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=3)
    parser.add_argument("--first", type=int, default=CHOSEN_ON)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--patience", type=int, default=300)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--holes", type=float, default=0.0, help="share of pixels lost, no noise")
    given = parser.parse_args()
    whole = data.photographs()[given.first : given.first + given.photographs]
    shape = (len(whole), given.size, given.size, 3)
    # Antialiased: what is left of finer detail would be noise of its own.
    truth = np.asarray(jax.image.resize(whole, shape, "linear")).clip(0, 1)
    rng = np.random.default_rng(0)
    known = None
    if given.holes:
        known = rng.random(truth.shape[:3]) >= given.holes
        bad = truth * known[..., None]
    else:
        bad = (truth + 25 / 255 * rng.normal(size=truth.shape)).clip(0, 1).astype(np.float32)
    before = time.process_time()
    found = features.restore(
        bad,
        known=known,
        steps=given.steps,
        patience=given.patience,
        share=given.share,
        prior=features.Deep(width=given.width),
        truth=truth,
        key=jax.random.key(0),
    )
    spent = time.process_time() - before
    data.row("picture", "given, dB", "restored, dB", "step", "best step, dB", "at", "steps run")
    for b in range(len(truth)):
        best = int(np.nanargmax(found.psnr[b]))
        data.row(
            given.first + b,
            f"{psnr(bad[b], truth[b]):.2f}",
            f"{psnr(found.images[b], truth[b]):.2f}",
            found.step[b],
            f"{found.psnr[b][best]:.2f}",
            found.checked[best],
            int(np.isfinite(found.held_out[b]).sum()) * 10,
        )
    print(f"{spent:.0f} CPU s")


if __name__ == "__main__":
    main()
