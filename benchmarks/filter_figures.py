"""Filters of the embedded classifier trained to be read, against as much ordinary fine-tuning.

`python -m benchmarks.filter_figures [--size=128] [--seeds=3] [--choose] [--out=out/filters]`: crops
of all ten classes; the first three convolutions stay as they are, the others are trained. One arm
is ordinary fine-tuning, one has masks and the filter loss, one has masks and weight 0. Every arm
that is done lies in the folder `--out` and is not trained again. `--choose` takes other seeds and
other pictures to judge by: settings are chosen on those.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parts import crops
from launch import demo
from perturb import Model, taps
from perturb.internals import interpretable
from perturb.internals.filter_training import filter_maps, train_filters
from perturb.metrics.parts import location_instability, part_interpretability
from perturb.nets.demo import LAYERS

# Side of what one place of the last convolution sees, and pixels from one place to the next.
FIELD, STRIDE, KEPT = 57, 8, 3
ARMS = {
    "ordinary": {"weight": 0.0, "masked": False},
    "masks, weight 0": {"weight": 0.0, "masked": True},
    "filter loss": {"weight": 5.0, "masked": True},
}
# Of the pictures that judge; settings are chosen on others, and with other seeds.
TEST, CHOICE = 1_000_003, 2_000_003


class Top(nn.Module):
    """The embedded classifier above its first three convolutions, under the same names."""

    @nn.compact
    def __call__(self, x):
        for i, (channels, side, stride) in list(enumerate(LAYERS, 1))[KEPT:]:
            x = nn.relu(nn.Conv(channels, (side, side), (stride, stride), name=f"conv{i}")(x))
        return nn.Dense(10, name="classes")(jnp.sqrt((x * x).mean((1, 2)) + 1e-4))


def apply(variables, x):
    return Top().apply(variables, x)


LAYER = "relu#3"  # the last of the three in `Top`


def below(images):
    """What the layers that are not trained make of the images, in half precision."""
    read = jax.jit(taps.read(demo.load("demo"), "relu#3"))
    parts = (images[i : i + 100] for i in range(0, len(images), 100))
    return np.concatenate([np.float16(read(np.float32(p) / 255)[1]["relu#3"]) for p in parts])


def places(maps):
    """Where each filter is, finer than a cell: the centre of its masked map, `[N, F, 2]` px."""
    cut = np.concatenate(
        [np.asarray(interpretable.mask_maps(maps[i : i + 100])) for i in range(0, len(maps), 100)]
    )
    line = (np.arange(maps.shape[1]) + 0.5) * STRIDE
    total = np.maximum(cut.sum((1, 2)), 1e-12)
    return (
        np.stack([(cut * line[:, None, None]).sum((1, 2)), (cut * line[:, None]).sum((1, 2))], -1)
        / total[..., None]
    )


def measure(model, classes, x, shown, size):
    """All figures of one arm on pictures that it was not trained on."""
    maps = filter_maps(model, x, LAYER)
    logits = np.concatenate(
        [np.asarray(model(np.float32(x[i : i + 100]))) for i in range(0, len(x), 100)]
    )
    peaks, where = maps.max((1, 2)), places(maps)
    live = peaks.mean(0) > 1e-3
    steady, kept, share = [], [], []
    for c in np.flatnonzero(live):
        # A filter is judged on the images of its own class.
        own = shown.labels == classes[c]
        found = location_instability(
            where[own][:, [c]], peaks[own][:, [c]], shown.marks[own], diagonal=size * 2**0.5
        )
        steady.append(float(found.distance[0]))
        share.append(float(interpretable.concentration(maps[own][..., [c]])[0]))
        covered = part_interpretability(
            maps[own][..., [c]], shown.halves[own], stride=STRIDE, field=FIELD
        )
        kept.append(float(covered[0]))
    ratio = interpretable.own_class_ratio(maps, shown.labels, classes)
    # Even a perfect filter whose places are whole cells is off by this much.
    floor = STRIDE / 12**0.5 / (size * 2**0.5)
    return {
        "accuracy": float((logits.argmax(1) == shown.labels).mean()),
        "own class": float(np.nanmean(ratio[live])),
        "concentration": float(np.mean(share)),
        "instability": float(np.mean(steady)),
        "above the floor": float(np.mean(steady) - floor),
        "part": float(np.nanmean(kept)),
        "live": int(live.sum()),
        "classes": len(set(classes[live].tolist())),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--weight", type=float, default=ARMS["filter loss"]["weight"])
    parser.add_argument("--halving", type=float, default=240.0, help="steps until it is half")
    parser.add_argument("--others", default="peak", help="what falls on other classes, or mean")
    parser.add_argument("--choose", action="store_true", help="seeds from 10 on, other pictures")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/filters"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    stem = f"{given.size}-{given.pictures}-{given.steps}"
    judged = CHOICE if given.choose else TEST
    cache = given.out / f"pictures-{given.size}-{given.pictures}-{judged}.npz"
    train = crops(given.pictures, size=given.size, seed=11, distractors=True)
    test = crops(600, size=given.size, seed=judged, distractors=True)
    if cache.exists():
        x, held_out = (np.load(cache)[name] for name in ("train", "test"))
    else:
        x, held_out = below(train.images), below(test.images)
        np.savez(cache, train=x, test=held_out)
    params = demo.load("demo").variables["params"]
    start = {k: params[k] for k in ("classes", *(f"conv{i}" for i in range(KEPT + 1, 7)))}
    model = Model(apply, {"params": start}, channels=x.shape[-1], name="top")
    table = {}
    # All arms of a seed before the next, so that half a run compares them too.
    for seed in range(10 * given.choose, 10 * given.choose + given.seeds):
        for name, options in ARMS.items():
            if name == "filter loss":
                options = options | {
                    "weight": given.weight,
                    "halving": given.halving,
                    "others": given.others,
                }
            path = given.out / f"{stem}-{'-'.join(map(str, (name, *options.values(), seed)))}.json"
            if not path.exists():
                begun = time.process_time()
                found = train_filters(
                    model, x, train.labels, layer=LAYER, steps=given.steps, seed=seed, **options
                )
                figures = measure(found.model, found.classes, held_out, test, given.size)
                figures["cpu s"] = round(time.process_time() - begun, 1)
                path.write_text(json.dumps(figures))
            figures = json.loads(path.read_text())
            table.setdefault(name, []).append(figures)
            print(name, seed, {k: round(v, 4) for k, v in figures.items()}, flush=True)
    for key in table["ordinary"][0]:
        print(key)
        for name, rows in table.items():
            values = [row[key] for row in rows]
            by = np.divide(values, [row[key] for row in table["ordinary"]])
            low, high = min(values), max(values)
            print(
                f"  {name:16} {np.mean(values):.4f} [{low:.4f}, {high:.4f}], over ordinary "
                f"{by.mean():.2f} [{by.min():.2f}, {by.max():.2f}]"
            )


if __name__ == "__main__":
    main()
