"""Trains the network that segments the demo's pictures and predicts what decided them.

    python -m launch.demo.train_reader --out=launch/demo

It sees pictures of the world with the exact label of every pixel, three of five with random strokes
(`launch.demo.strokes`), as a generator whose units are switched draws them, and some of them
blurred. What whole pictures show it learns from those without strokes. Leaves
`demo_reader.safetensors` and `demo_reader.json`: the IoU of every label and the correlation of
every number on pictures never trained on.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from gan_dissect.nets import demo_reader
from launch.demo import latents, save_reader, strokes, training
from perturb.types import PyTree, Record, Variables

__all__ = ["advance", "ious", "main", "measure"]

BATCH = 16
RATE = 3e-3
SEED = 7_000_000  # of the latents: other pictures than the generator learned from
HELD_OUT_SEED, HELD_OUT = 1_000_003, 500
KINDS = len(latents.BACKGROUNDS)


@functools.partial(jax.jit, static_argnames="steps", donate_argnums=0)
def advance(
    state: PyTree, key: jax.Array, batch: strokes.Sheets, *, steps: int
) -> tuple[PyTree, jax.Array]:
    """Returns variables and optimiser state after one step on a batch, and the loss."""
    variables, optimiser = state
    painted = strokes.some(jax.random.fold_in(key, 1), batch.shown, len(batch.shown))
    images, labels = strokes.compose(batch, painted)
    images = _blurred(images, key)
    # A stroke may hide what the picture shows, and then its numbers cannot be told.
    whole = 1 - painted.touched.any((1, 2, 3)).astype(jnp.float32)
    whole = whole / jnp.maximum(whole.sum(), 1)

    def loss(variables: Variables) -> jax.Array:
        logits, found = demo_reader.apply(variables, images)
        # Every pixel's label is known, for the world drew it.
        exact = jax.nn.one_hot(labels, len(latents.NAMES) + 1)
        pixels = optax.softmax_cross_entropy(logits, exact).mean()
        # Kinds are one of a few and learned as classes; the rest are plain numbers.
        kinds = optax.softmax_cross_entropy(found[:, :KINDS], batch.numbers[:, :KINDS])
        objects = optax.softmax_cross_entropy(
            found[:, KINDS : 2 * KINDS], batch.numbers[:, KINDS : 2 * KINDS]
        )
        rest = ((found - batch.numbers)[:, 2 * KINDS :] ** 2).mean(1)
        result: jax.Array = pixels + ((0.2 * (kinds + objects) + 2 * rest) * whole).sum()
        return result

    value, gradient = jax.value_and_grad(loss)(variables)
    update, optimiser = _optimiser(steps).update(gradient, optimiser, variables)
    return (optax.apply_updates(variables, update), optimiser), value


def _blurred(images: jax.Array, key: jax.Array) -> jax.Array:
    """Blends each image with a blurred copy, by a share of its own: generators do not draw
    sharply.
    """
    soft = images
    for _ in range(2):
        for axis in (1, 2):
            soft = (jnp.roll(soft, 1, axis) + 2 * soft + jnp.roll(soft, -1, axis)) / 4
    # Negative draws become 0: two pictures of five stay sharp.
    share = jnp.maximum(jax.random.uniform(key, (len(images), 1, 1, 1), minval=-0.7), 0)
    return images + share * (soft - images)


def ious(
    found: np.ndarray, labels: np.ndarray, names: Sequence[str] = latents.NAMES
) -> dict[str, float]:
    """Returns the IoU of every label over all pixels, and their mean."""
    each = {}
    for i, name in enumerate(names):
        both, either = ((found == i) & (labels == i)).sum(), ((found == i) | (labels == i)).sum()
        # A label that is neither drawn nor found anywhere counts 0, not NaN.
        each[name] = round(float(both / max(either, 1)), 4)
    return {**each, "mean": round(float(np.mean(list(each.values()))), 4)}


def measure(variables: Variables, sheets: strokes.Sheets) -> Record:
    """Returns IoUs without and with strokes, shares of right kinds, and correlations of the other
    numbers.
    """
    read = jax.jit(demo_reader.apply)
    compose = jax.jit(strokes.compose)
    rows: dict[str, list[np.ndarray]] = {"plain": [], "strokes": [], "numbers": []}
    for at in range(0, len(sheets.shown), 50):
        part = sheets.rows(slice(at, at + 50))
        painted = strokes.some(jax.random.key(at), jnp.asarray(part.shown), len(part.shown))
        for name, given in (("plain", None), ("strokes", painted)):
            images, labels = compose(part, given)
            logits, numbers = read(variables, images)
            rows[name].append(np.stack([logits.argmax(-1), labels]))
            if given is None:
                rows["numbers"].append(np.asarray(numbers))
    found = np.concatenate(rows["numbers"])
    right = {}
    for name, at in (("background", 0), ("object", KINDS)):
        kinds = slice(at, at + KINDS)
        same = found[:, kinds].argmax(-1) == sheets.numbers[:, kinds].argmax(-1)
        right[name] = round(float(same.mean()), 4)
    correlations = {
        name: round(float(np.corrcoef(found[:, i], sheets.numbers[:, i])[0, 1]), 4)
        for i, name in enumerate(latents.NUMBERS)
        if i >= 2 * KINDS
    }
    plain, painted = (np.concatenate(rows[name], 1) for name in ("plain", "strokes"))
    return {
        "iou": ious(plain[0], plain[1]),
        # Of a piece of an object nobody can tell the kind.
        "iou_under_strokes": ious(
            strokes.merged(painted[0]), strokes.merged(painted[1]), (*latents.SEGMENTS, "canvas")
        ),
        "right": right,
        "correlation": correlations,
    }


def _optimiser(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, min(50, steps // 5), steps, RATE / 50)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


def define_flags() -> None:
    """Defines the flags; not on import, since the launchers own some of these names."""
    flags.DEFINE_string("out", None, "Folder for the weights and their record.", required=True)
    flags.DEFINE_integer("pictures", 8_000, "Pictures to train on.", lower_bound=BATCH)
    flags.DEFINE_integer("steps", 6_000, "Training steps.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Draws, trains, measures and saves."""
    given, out = flags.FLAGS, training.begin(argv)
    start = time.monotonic()
    data = strokes.draw(SEED, 0, given.pictures)
    held_out = strokes.draw(HELD_OUT_SEED, 0, HELD_OUT)
    logging.info("%d pictures in %.0f s", given.pictures + HELD_OUT, time.monotonic() - start)
    net = demo_reader.DemoReader(labels=len(latents.NAMES) + 1, numbers=len(latents.NUMBERS))
    variables = net.init(jax.random.key(0), jnp.zeros((2, 64, 64, 3)))
    state: PyTree = (variables, _optimiser(given.steps).init(variables))
    recent = []
    for step in range(given.steps):
        # By the number of the step: more steps begin with the same ones.
        rows = np.random.default_rng([0, step]).integers(0, given.pictures, BATCH)
        key = jax.random.fold_in(jax.random.key(1), step)
        state, loss = advance(state, key, data.rows(rows), steps=given.steps)
        recent.append(loss)
        if (step + 1) % 100 == 0 or step + 1 == given.steps:
            logging.info("step %d: loss %.3f", step + 1, np.mean(jax.device_get(recent)))
            recent = []
    record = {
        **training.record(
            "demo_reader",
            (
                f"python -m launch.demo.train_reader --out=launch/demo --pictures={given.pictures} "
                f"--steps={given.steps}"
            ),
            start,
            seed=HELD_OUT_SEED,
            pictures=HELD_OUT,
        ),
        **measure(state[0], held_out),
    }
    save_reader(out / "demo_reader.safetensors", state[0])
    (out / "demo_reader.json").write_text(json.dumps(record, indent=2) + "\n")
    logging.info("%s", record)


if __name__ == "__main__":
    define_flags()
    app.run(main)
