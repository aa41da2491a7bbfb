"""The figures of evidence, attributions and metrics, one command each: `python -m tests.league NAME`.

  cost       processor time of the default evidence card as a share of the optimisation
  transfer   transfer ratio to held-out fills, ours against torchray's masks
  cheat      how often each method reveals the cheating classifier of the demo world
  cascade    rank correlation of maps when the network's layers are drawn anew
  roar       remove and retrain on the demo world
  defence    heat maps and pixels telling attacked pictures from clean ones

`--number=N` (pictures, default per figure) makes a shorter run; every table says what it was run on.
The league table itself is `python -m launch.evaluate`.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import perturb
from launch import demo
from launch.demo import world
from perturb import attribution, defence, evidence, metrics
from perturb.metrics.sanity import layers
from tests import quality

KEY = jax.random.key(0)
CHEAP = ("gradient", "input_gradient", "integrated_gradients", "grad_cam", "occlusion")


def _squeezenet() -> perturb.Model:
    weights = pathlib.Path(os.environ["PERTURB_DATA"], "weights", "squeezenet1_1.safetensors")
    return perturb.load_model("squeezenet1_1", weights=weights)


def _ours(model: perturb.Model, images: Any, targets: Any, area: Any, steps: int = 100) -> Any:
    """Scores of our extremal masks at one area an image."""
    found = perturb.extremal(
        model, images, targets, areas=np.reshape(area, (-1, 1)), steps=steps, key=KEY
    )
    return np.asarray(found.scores)[:, 0]


# ---------------------------------------------------------------------------------------------------


def cost(number: int, steps: int = 100) -> dict[str, float]:
    """Processor seconds of 100 steps and of the card, compiled before, on photographs of one area each."""
    photographs = quality.load(pathlib.Path(os.environ["PERTURB_DATA"]), number)
    model = _squeezenet()
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


def transfer(number: int) -> dict[str, Any]:
    """Median transfer ratios, of logits and of probabilities, and the paired difference."""
    photographs = quality.load(pathlib.Path(os.environ["PERTURB_DATA"]), number)
    model = _squeezenet()
    images, targets = photographs.images, photographs.targets
    own = perturb.extremal(model, images, targets, areas=0.1, key=KEY)
    place = quality.AREAS.index(0.1)
    theirs = own._replace(
        masks=quality.binary(photographs.masks[:, place : place + 1], (0.1,)), scores=None
    )
    border = perturb.operators.Blur(pixels=20.0, padding=quality.IMAGENET_MEAN)
    found = {}
    for reward in ("logit", "probability"):
        a = evidence.card(model, images, targets, own, reward=reward, key=KEY)
        b = evidence.card(model, images, targets, theirs, operator=border, reward=reward, key=KEY)
        ratios = [np.nan_to_num(card.transfer_ratio[:, 0]) for card in (a, b)]
        least = [
            np.nanmin(np.stack([v[:, 0] for v in card.transfer.values()]), 0) for card in (a, b)
        ]
        found[reward] = {
            "ours": metrics.mean_interval(ratios[0], statistic="median"),
            "torchray": metrics.mean_interval(ratios[1], statistic="median"),
            "difference": metrics.paired(*ratios, statistic="median"),
            "least gain, difference": metrics.paired(*least),
            "verdicts": [
                dict(zip(*np.unique(c.verdict, return_counts=True), strict=True)) for c in (a, b)
            ],
        }
    return found


def cheat(number: int, methods: tuple[str, ...] = CHEAP) -> list[tuple[str, float, float, float]]:
    """Share of pictures on which a method reveals the cheat, and what it says of the honest network.

    Revealed: of the binarised map, at the watermark's true area, at least half lies inside the watermark
    on the cheat, and at most 5 % on the honest network's map of the same pictures.
    """
    batch = world.render_batch(11, range(number), watermark="right")
    marks = batch.label == world.WATERMARK
    areas = marks.mean((1, 2))
    nets = [demo.load(name) for name in demo.NAMES]
    rows = []
    for name in ("extremal", *methods, *attribution.CONTROLS):
        inside = []
        for net in nets:
            targets = np.asarray(net(jnp.asarray(batch.image))).argmax(1)
            if name == "extremal":
                maps = _ours(net, batch.image, targets, areas)
            else:
                maps = attribution.get(name)(net, batch.image, targets)
            inside.append(metrics.rank_accuracy(maps, marks))
        honest, cheating = inside
        both = (cheating >= 0.5) & (honest <= 0.05)
        rows.append(
            (
                name,
                float(both.mean()),
                float((cheating >= 0.5).mean()),
                float((honest <= 0.05).mean()),
            )
        )
    return rows


def cascade(
    number: int,
    methods: tuple[str, ...] = ("extremal", "gradient", "grad_cam", "guided_backprop", "sobel"),
) -> list[tuple[str, float, float]]:
    """Mean rank correlation with the last layer and with every layer of the demo network drawn anew."""
    batch = world.render_batch(12, range(number))
    net = demo.load("demo")
    targets = batch.target
    order = sorted(layers(net.variables), key=lambda n: ("classes" not in n, n), reverse=False)
    order = [n for n in order if "classes" in n] + sorted(
        (n for n in order if "classes" not in n), reverse=True
    )
    rows = []
    for name in methods:

        def maps(model: perturb.Model, x: Any, t: Any, name: str = name) -> np.ndarray:
            if name == "extremal":
                return _ours(model, x, t, np.full(len(x), 0.1), steps=60)
            return attribution.get(name)(model, x, t)

        found = metrics.cascade(maps, net, batch.image, targets, order=order, stages=2, key=KEY)
        means = np.nanmean(found.likeness.spearman, 1)
        rows.append((name, float(means[0]), float(means[-1])))
    return rows


class _Tiny(nn.Module):
    """A classifier small enough to be trained some dozens of times on a CPU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = 4 * x - 2
        for width in (16, 32, 32):
            x = nn.relu(nn.Conv(width, (3, 3), (2, 2))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


@jax.jit
def _fit(key: jax.Array, images: jax.Array, targets: jax.Array, order: jax.Array) -> Any:
    optimiser = optax.adam(2e-3)
    variables = _Tiny().init(key, images[:2])

    def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
        v, moments = state

        def loss(v: Any) -> jax.Array:
            logits = _Tiny().apply(v, images[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets[rows]).mean()

        update, moments = optimiser.update(jax.grad(loss)(v), moments)
        return (optax.apply_updates(v, update), moments), None

    return jax.lax.scan(step, (variables, optimiser.init(variables)), order)[0][0]


def retrainer(train: np.ndarray, test: np.ndarray, steps: int) -> Callable[..., float]:
    """Returns `retrain(train images, test images, seed) -> accuracy` for targets `train`, `test`."""

    def retrain(images: np.ndarray, checked: np.ndarray, seed: int) -> float:
        key = jax.random.key(seed)
        order = jax.random.randint(key, (steps, 32), 0, len(images))
        v = _fit(key, jnp.asarray(images), jnp.asarray(train), order)
        return float((np.asarray(_Tiny().apply(v, checked)).argmax(1) == test).mean())

    return retrain


def roar(
    number: int,
    *,
    retrains: int = 5,
    steps: int = 300,
    shares: tuple[float, ...] = (0.1, 0.3, 0.5),
    methods: tuple[str, ...] = ("extremal", "gradient", "random"),
) -> dict[str, np.ndarray]:
    """Accuracies `[shares, retrains]` of networks trained without what each method marks."""
    train = world.render_batch(13, range(number))
    test = world.render_batch(14, range(max(32, number // 4)))
    net = demo.load("demo")
    found = {}
    for name in methods:
        maps = [
            _ours(net, b.image, b.target, np.full(len(b.image), 0.1), steps=60)
            if name == "extremal"
            else attribution.get(name)(net, b.image, b.target)
            for b in (train, test)
        ]
        found[name] = metrics.roar(
            retrainer(train.target, test.target, steps),
            (train.image, maps[0]),
            (test.image, maps[1]),
            shares=shares,
            retrains=retrains,
        )
    return found


def detect(number: int, *, method: str = "gradient", steps: int = 300) -> dict[str, Any]:
    """Areas under the ROC curve of a detector on heat maps and of the same network on pixels."""
    batch = world.render_batch(15, range(number))
    net = demo.load("demo")
    half = number // 2
    attacked = np.arange(number) % 2 == 1
    images = batch.image.copy()
    images[attacked] = defence.pgd(net, batch.image[attacked], batch.target[attacked], key=KEY)
    answers = np.asarray(net(jnp.asarray(images))).argmax(1)
    function = attribution.get(method)
    maps = np.concatenate(
        [function(net, images[i : i + 50], answers[i : i + 50]) for i in range(0, number, 50)]
    )
    maps = maps / np.maximum(np.abs(maps).max((1, 2), keepdims=True), 1e-12)
    found: dict[str, Any] = {
        "attack succeeds": float((answers[attacked] != batch.target[attacked]).mean())
    }
    for name, inputs in (("heat maps", maps), ("pixels", images)):
        detector = defence.train(
            inputs[:half], answers[:half], attacked[:half], batch.target[:half],
            classes=10, steps=steps, key=KEY,
        )  # fmt: skip
        told = defence.predict(detector, inputs[half:], answers[half:])
        marks = attacked[half:]
        found[name] = {
            "area": defence.area_under_roc(told.attacked, marks),
            "label recovered on attacked": float((told.label == batch.target[half:])[marks].mean()),
        }
    return found


FIGURES: dict[str, tuple[Callable[[int], Any], int]] = {
    "cost": (cost, 2),
    "transfer": (transfer, 14),
    "cheat": (cheat, 100),
    "cascade": (cascade, 8),
    "roar": (roar, 400),
    "defence": (detect, 600),
}


def main() -> None:
    """Prints one figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=FIGURES)
    parser.add_argument("--number", type=int)
    given = parser.parse_args()
    function, number = FIGURES[given.name]
    begin = time.monotonic()
    found = function(given.number or number)
    print(f"{given.name}, {given.number or number} pictures, {time.monotonic() - begin:.0f} s")
    for line in found.items() if isinstance(found, dict) else found:
        print(*line)


if __name__ == "__main__":
    main()
