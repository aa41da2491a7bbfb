"""The figures of evidence, attributions and metrics, one command each: `python -m benchmarks.league
NAME`.

  cost       processor time of the default evidence card as a share of the optimisation
  transfer   transfer ratio to held-out fills, ours against torchray's masks
  carried    the same on more photographs, against torchray's solver as we have it
  fills      what regions sought under one, two or three fills keep under ten, on other photographs
  tried      what else was tried to raise that ratio, and what it does to the gain
  cheat      how often each method reveals the cheating classifier of the demo world
  cascade    rank correlation of maps when the network's layers are drawn anew
  roar       remove and retrain on the demo world, pictures with stamps
  defence    heat maps and pixels telling attacked pictures from clean ones
  grid       grid pointing of torchray's masks, which our port of its solver finds, and others
  lists      the photographs of the league table, as lists for launch.evaluate

`--number=N` (pictures, default per figure) makes a shorter run; every table says what it was run
on. `--methods=a,b` restricts cheat, cascade, roar and grid. The league table itself is `python -m
launch.evaluate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import perturb
from benchmarks import fills, quality
from launch import demo
from launch.demo import world
from perturb import attribution, defence, evidence, metrics
from perturb.metrics.sanity import layers, randomised

KEY = jax.random.key(0)
OPTIONS: dict[str, dict[str, Any]] = {
    "rise": {"samples": 500},
    "contrastive_excitation": {"layer": "relu#3"},
}


def _maps(
    name: str,
    model: perturb.Model,
    images: Any,
    targets: Any,
    *,
    steps: int = 100,
    area: Any = 0.1,
) -> np.ndarray:
    """Maps `[B, H, W]` of any method; "extremal" is our masks of one area, "torchray" its
    solver's.
    """
    if name == "extremal":
        return _ours(model, images, targets, np.broadcast_to(area, len(images)), steps)
    if name == "torchray":
        return quality.ported(model, images, targets, area)[:, 0]
    call = functools.partial(attribution.get(name), **OPTIONS.get(name, {}))
    # Fifty at a time, which bounds the memory.
    parts = [slice(at, at + 50) for at in range(0, len(images), 50)]
    return np.concatenate([call(model, images[p], targets[p]) for p in parts])


def _ours(model: perturb.Model, images: Any, targets: Any, area: Any, steps: int = 100) -> Any:
    """Scores of our extremal masks at one area an image."""
    found = perturb.extremal(
        model,
        images,
        targets,
        areas=np.reshape(area, (-1, 1)),
        steps=steps,
        reward="logit",
        key=KEY,
    )
    return np.asarray(found.scores)[:, 0]


# --------------------------------------------------------------------------------------------------


def cost(number: int, steps: int = 100) -> dict[str, float]:
    """Processor seconds of 100 steps and of the card, compiled before, on photographs of one area
    each.
    """
    data = pathlib.Path(os.environ["PERTURB_DATA"])
    photographs, model = quality.load(data, number), quality.network(data, quality.NET)
    images, targets = photographs.images, photographs.targets
    # The first round compiles both.
    for _ in range(2):
        begin = time.process_time()
        result = perturb.extremal(model, images, targets, areas=0.1, steps=steps, key=KEY)
        optimisation = time.process_time() - begin
        begin = time.process_time()
        evidence.card(model, images, targets, result, key=KEY)
        card = time.process_time() - begin
    return {"optimisation": optimisation, "card": card, "share": card / optimisation}


def cheat(
    number: int,
    methods: tuple[str, ...] = (
        "extremal",
        "gradient",
        "input_gradient",
        "smoothgrad",
        "integrated_gradients",
        "guided_backprop",
        "deconvnet",
        "linear_approx",
        "excitation",
        "grad_cam",
        "occlusion",
        *attribution.CONTROLS,
    ),
) -> Iterator[tuple[str, float, float, float]]:
    """Yields the share of pictures on which a method reveals the cheat, and what it says of the
    honest network.

    Revealed: of the binarised map, at the watermark's true area, at least half lies inside the
    watermark on the cheat, and at most 5 % on the honest network's map of the same pictures.
    Columns: both, the first, the second.
    """
    # A world of another seed than the one trained on.
    batch = world.render_batch(11, range(number), watermark="right")
    marks = batch.label == world.WATERMARK
    # Each map is cut at the stamp's own area, so a perfect one would be the stamp.
    areas = marks.mean((1, 2))
    for name in methods:
        inside = []
        for net in (demo.load(n) for n in demo.NAMES):
            # Each network is asked about its own answer, which is what a map explains.
            targets = np.asarray(net(jnp.asarray(batch.image))).argmax(1)
            maps = _maps(name, net, batch.image, targets, area=areas)
            inside.append(metrics.rank_accuracy(maps, marks))
        found, clear = inside[1] >= 0.5, inside[0] <= 0.05
        yield name, float((found & clear).mean()), float(found.mean()), float(clear.mean())


def cascade(
    number: int,
    methods: tuple[str, ...] = (
        "extremal",
        "gradient",
        "grad_cam",
        "guided_backprop",
        "occlusion",
        "sobel",
    ),
    draws: int = 8,
) -> list[tuple[str, str, metrics.Interval, float, float]]:
    """Rank correlation with the last layer, and with every layer, of the demo network drawn anew.

    One draw of weights says little: the maps of a smooth region are some ten numbers, and a random
    network likes the same colours in every picture. So the mean is over `draws` sets of weights,
    its interval resamples weights and pictures. The last but one column compares with maps of other
    pictures under the same random weights: what all maps have in common, whatever they are of. For
    the last one each side's mean over the pictures is taken away first: what is left once that is
    gone.
    """
    batch = world.render_batch(12, range(number))
    net = demo.load("demo")
    known = list(layers(net.variables))
    # From the last layer to the first, as the published test draws them anew.
    order = [n for n in known if "classes" in n]
    order += [n for n in known[::-1] if "classes" not in n]
    keys = [jax.random.fold_in(KEY, draw) for draw in range(draws)]
    rows = []
    for name in methods:
        trained = _maps(name, net, batch.image, batch.target, steps=60)
        for part, names in (("last layer", order[:1]), ("all layers", order)):
            found, others, apart = [], [], []
            for key in keys:
                drawn = dataclasses.replace(net, variables=randomised(net.variables, names, key))
                maps = _maps(name, drawn, batch.image, batch.target, steps=60)
                found.append(metrics.spearman(trained, maps))
                # The map of another picture under the same random weights.
                others.append(metrics.spearman(trained, np.roll(maps, 1, 0)))
                apart.append(metrics.spearman(trained - trained.mean(0), maps - maps.mean(0)))
            mean, common, rest = _two_way(np.stack(found)), np.nanmean(others), np.nanmean(apart)
            rows.append((name, part, mean, float(common), float(rest)))
    return rows


def _two_way(values: np.ndarray, repeats: int = 10_000) -> metrics.Interval:
    """The mean of `[draws, pictures]` with an interval that resamples both."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(repeats):
        # Weights and pictures are both samples: resampling one alone would make the interval too
        # small.
        rows, columns = (rng.integers(0, n, n) for n in values.shape)
        means.append(np.nanmean(values[np.ix_(rows, columns)]))
    low, high = np.quantile(means, [0.025, 0.975])
    return metrics.Interval(float(np.nanmean(values)), float(low), float(high), values.size)


class _Tiny(nn.Module):
    """A classifier that learns the stamps in a hundred steps, so that it can be trained many
    times.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = 4 * x - 2
        for width, side, stride in ((16, 5, 2), (32, 3, 2), (32, 3, 1)):
            x = nn.relu(nn.Conv(width, (side, side), (stride, stride))(x))
        # The largest value finds a stamp wherever it is; the offset keeps the root's slope finite.
        x = jnp.concatenate([x.max((1, 2)), jnp.sqrt((x * x).mean((1, 2)) + 1e-4)], 1)
        return nn.Dense(10)(x)


_ADAM = optax.adam(3e-3)


@jax.jit
def _train_step(v: Any, moments: Any, images: jax.Array, targets: jax.Array) -> Any:
    def loss(v: Any) -> jax.Array:
        logits: Any = _Tiny().apply(v, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    update, moments = _ADAM.update(jax.grad(loss)(v), moments)
    return optax.apply_updates(v, update), moments


@jax.jit
def _answers(v: Any, images: jax.Array) -> jax.Array:
    logits: Any = _Tiny().apply(v, images)
    return logits.argmax(1)


def retrainer(train: np.ndarray, test: np.ndarray, steps: int) -> Callable[..., float]:
    """Returns `retrain(train images, test images, seed) -> accuracy` for targets `train`,
    `test`.
    """

    def retrain(images: np.ndarray, checked: np.ndarray, seed: int) -> float:
        images = np.asarray(images, np.float32)
        v = _Tiny().init(jax.random.key(seed), images[:2])
        moments, rng = _ADAM.init(v), np.random.default_rng(seed)
        # A loop out here: inside a compiled one XLA's convolutions are ten times slower on a CPU.
        for _ in range(steps):
            rows = rng.integers(0, len(images), 32)
            v, moments = _train_step(v, moments, images[rows], train[rows])
        return float((np.asarray(_answers(v, np.asarray(checked, np.float32))) == test).mean())

    return retrain


def roar(
    number: int,
    *,
    retrains: int = 5,
    steps: int = 100,
    shares: tuple[float, ...] = (0.0, 0.025, 0.05),
    methods: tuple[str, ...] = ("extremal", "gradient", "random"),
) -> list[tuple[Any, ...]]:
    """Accuracies of networks trained without what each method marks, and the paired differences.

    Pictures that carry the stamp of their class, maps of the network that reads it: what it needs
    is known, and a network trained anew learns it from a few hundred pictures. A stamp covers 2.3 %
    of a picture.
    """
    train = world.render_batch(13, range(number), watermark="right")
    test = world.render_batch(14, range(number // 2), watermark="right")
    net = demo.load("demo_cheat")
    found = {}
    for name in methods:
        maps = [_maps(name, net, b.image, b.target, steps=30) for b in (train, test)]
        found[name] = metrics.roar(
            retrainer(train.target, test.target, steps),
            (train.image, maps[0]),
            (test.image, maps[1]),
            # Where nothing is removed all methods are the same: it is trained once.
            shares=shares if name == methods[0] else shares[1:],
            retrains=retrains,
        )
    rows: list[tuple[Any, ...]] = [("nothing removed", metrics.mean_interval(found[methods[0]][0]))]
    found[methods[0]] = found[methods[0]][1:]
    for n, share in enumerate(shares[1:]):
        rows += [(share, name, metrics.mean_interval(found[name][n])) for name in methods]
        for name in methods[1:]:
            ahead = metrics.paired(found[name][n], found[methods[0]][n])
            rows.append((share, f"{name} - {methods[0]}", ahead))
    return rows


def detect(number: int, *, steps: int = 2000) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields areas under the ROC curve of detectors, and how often each recovers an attacked
    picture's label.

    One network, on heat maps of the answer, on heat maps of every class, and on the pixels; half of
    the pictures train it. The second of the attacked network's answers is what recovering a label
    is measured against.
    """
    batch = world.render_batch(15, range(number))
    net = demo.load("demo")
    half = number // 2
    # Every other picture, so that both halves have as many of either kind.
    attacked = np.arange(number) % 2 == 1
    images = batch.image.copy()
    images[attacked] = np.concatenate(
        [
            defence.pgd(net, batch.image[rows], batch.target[rows], key=jax.random.fold_in(KEY, n))
            # In parts, which bounds the memory, each with a key of its own.
            for n, rows in enumerate(np.array_split(np.flatnonzero(attacked), -(-number // 500)))
        ]
    )
    parts = np.array_split(images, -(-number // 50))
    logits = np.concatenate([np.asarray(net(jnp.asarray(part))) for part in parts])
    # The two largest, in rising order.
    second, answers = np.argsort(logits, 1)[:, -2:].T
    marks, shown = attacked[half:], batch.target[half:]
    yield (
        "the network alone",
        {
            "attack succeeds": float((answers != batch.target)[attacked].mean()),
            "label recovered on attacked, by the second answer": metrics.mean_interval(
                (second[half:] == shown)[marks]
            ),
        },
    )
    maps = np.concatenate([defence.class_maps(net, part, classes=range(10)) for part in parts])
    own = np.take_along_axis(maps, answers[:, None, None, None], -1)
    # Only the shape of a map counts here, not its size.
    own = own / np.maximum(np.abs(own).max((1, 2, 3), keepdims=True), 1e-12)
    for name, inputs in (
        ("heat maps of the answer", own),
        ("heat maps of every class", maps),
        ("pixels", images),
    ):
        detector = defence.train(
            inputs[:half],
            answers[:half],
            attacked[:half],
            batch.target[:half],
            classes=10,
            steps=steps,
            batch=64,
            key=KEY,
        )
        told = defence.predict(detector, inputs[half:], answers[half:])
        yield (
            name,
            {
                "area": defence.area_under_roc(told.attacked, marks),
                "label recovered on attacked": metrics.mean_interval((told.label == shown)[marks]),
            },
        )


def grid(
    number: int, methods: tuple[str, ...] = ("torchray", "nested", "grad_cam", "occlusion")
) -> Iterator[tuple[str, metrics.Interval, metrics.Interval]]:
    """Yields the mean share of each map in the right cell of `number` mosaics, and by how much
    nested leads.

    torchray gives no masks of mosaics: these are ours, 800 steps at area .1, by
    `solver="torchray"`.
    """
    data = pathlib.Path(os.environ["PERTURB_DATA"])
    model = quality.network(data, quality.NET)
    images = np.stack([quality.picture(path) for path in quality.reportable(data)[0]])
    targets = quality.answers(model, images)
    made = metrics.mosaics(images, targets, n=2, number=number, size=224)

    shares: dict[str, np.ndarray] = {}
    for name in methods:
        shares[name] = metrics.grid_pointing(functools.partial(_maps, name, model), made)[:, 0]
    for name, share in shares.items():
        ahead = metrics.paired(shares.get("nested", share), share)
        yield name, metrics.mean_interval(share), ahead


def lists(number: int) -> list[tuple[str, int]]:
    """Writes tier1.csv, `number` photographs evenly spread, and tier2.csv, those with torchray's
    masks.
    """
    left, known = quality.reportable(pathlib.Path(os.environ["PERTURB_DATA"]))
    # Evenly spread over the whole list.
    places = np.linspace(0, len(left) - 1, min(number, len(left))).round().astype(int)
    written = []
    for name, paths in (
        ("tier1.csv", [left[p] for p in places]),
        ("tier2.csv", known),
    ):
        pathlib.Path(name).write_text("path\n" + "".join(f"{path}\n" for path in paths))
        written.append((name, len(paths)))
    return written


FIGURES: dict[str, tuple[Callable[..., Any], int]] = {
    "cost": (cost, 2),
    "transfer": (fills.transfer, 14),
    "carried": (fills.carried, 98),
    "fills": (fills.fills, 24),
    "tried": (fills.tried, 14),
    "cheat": (cheat, 100),
    "cascade": (cascade, 16),
    "roar": (roar, 200),
    "defence": (detect, 4000),
    "grid": (grid, 14),
    "lists": (lists, 32),
}


def _shown(value: Any) -> str:
    """Numbers to three places, intervals as `mean (low to high)`, a dictionary as its lines."""
    if isinstance(value, metrics.Interval | tuple):
        mean, low, high = value[:3]
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"
    if isinstance(value, dict):
        return "".join(f"\n    {name}: {_shown(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return "; ".join(" ".join(f"{n} {_shown(v)}" for n, v in entry.items()) for entry in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Prints one figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=FIGURES)
    parser.add_argument("--number", type=int)
    parser.add_argument(
        "--methods", help="cheat, cascade, roar, grid: names of attributions, or extremal"
    )
    given = parser.parse_args()
    function, number = FIGURES[given.name]
    options = {"methods": tuple(given.methods.split(","))} if given.methods else {}
    begin = time.monotonic()
    found = function(given.number or number, **options)
    for line in found.items() if isinstance(found, dict) else found:
        print(*map(_shown, line), flush=True)
    print(f"{given.name}, {given.number or number} pictures, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
