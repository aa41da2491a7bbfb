"""Symmetric relevance gain of attributions on the small embedded transformer, with intervals.

    python -m benchmarks.transformers --pictures=40 --out=out/transformers

Pictures were never trained on; only those that the network answers rightly with a probability above
0.5 count. Prints a Markdown table and writes it to --out.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import jax
import numpy as np

import perturb
from launch import demo
from launch.demo import world
from perturb import attribution, metrics, statistics

NAMES = (
    *("libragrad", "legrad", "attn_lrp", "rollout", "grad_cam"),
    *("integrated_gradients", "input_gradient", "occlusion", "random", "centre"),
)
# Fewer windows, each of which is a pass.
FEWER = {"occlusion": {"window": 8}}


def chosen(model: perturb.Model, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and classes of the first `number` pictures that are answered rightly and
    surely.
    """
    # The seed that training kept apart; four times as many, for not all are answered surely.
    batch = world.render_batch(1_000_003, range(4 * number))
    chance = np.asarray(jax.nn.softmax(model(batch.image)))
    good = chance[np.arange(len(chance)), batch.target] > 0.5
    return batch.image[good][:number], batch.target[good][:number]


def maps(model: perturb.Model, images: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns every method's map of every picture, and that of the field of scores."""
    found = {}
    for name in NAMES:
        began = time.monotonic()
        found[name] = attribution.get(name)(model, images, targets, **FEWER.get(name, {}))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    found["libragrad, plain gradient"] = attribution.libragrad(
        model, images, targets, balanced=False
    )
    for question in ("enough", "both"):
        began = time.monotonic()
        heat = perturb.importance_map(model, images, targets, question=question).heat
        found[f"map, {question}"] = heat
        print(f"map {question}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/transformers"))
    given = parser.parse_args()
    model = demo.load("demo_vit")
    images, targets = chosen(model, given.pictures)
    gains = {}
    for name, found in maps(model, images, targets).items():
        gains[name] = metrics.relevance_gain(model, images, targets, found).value
    rows = ["| map | SRG | 95 % | libragrad less this |", "|---|---|---|---|"]
    for name in sorted(gains, key=lambda n: -gains[n].mean()):
        own = statistics.mean_interval(gains[name])
        # Picture by picture: both methods explain the same ones.
        less = statistics.paired(gains["libragrad"], gains[name])
        rows.append(
            f"| {name} | {own.value:.3f} | {own.low:.3f} to {own.high:.3f} | "
            f"{less.value:+.3f} ({less.low:+.3f} to {less.high:+.3f}) |"
        )
    text = f"{len(images)} pictures\n\n" + "\n".join(rows) + "\n"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "srg.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
