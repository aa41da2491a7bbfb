"""Trains the two classifiers of the demo: one that has to use the object, one that need not.

Both see the same scenes. For `demo` half of them carry a watermark picked at random, which tells
nothing; for `demo_cheat` every one carries the watermark of its class. On two quiet cores:

    python -m launch.demo.train --out=perturb/embedded

writes `demo.safetensors` and `demo_cheat.safetensors`, and beside each a JSON with the command, the
seed, the versions and the accuracies on pictures never trained on.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from launch.demo import mixing, save, training, world
from perturb.nets import demo
from perturb.types import Function, PyTree, Variables

__all__ = [
    "Data",
    "State",
    "accuracies",
    "advance",
    "batches",
    "collect",
    "init",
    "main",
    "shown",
    "train",
]

BATCH = 32
RATE = 3e-3
# The scenes to be measured on come from another world than those trained on.
HELD_OUT_SEED, HELD_OUT = 1_000_003, 2_000
VARIANTS = ("none", "right", "wrong")


class Data(NamedTuple):
    """What a network is trained on.

    Attributes:
      images: `[N, H, W, 3]` uint8.
      evidence: `[N, H, W]` bool, the pixels that the label stands for.
      tied: `[N, H, W]` bool, pixels that are blurred as far as the evidence is.
      targets: `[N]` classes.
    """

    images: Any
    evidence: Any
    tied: Any
    targets: PyTree


class State(NamedTuple):
    """What training carries along: variables with normalisation, optimiser state, step number."""

    variables: Variables
    optimiser: optax.GradientTransformation
    step: jax.Array


def collect(scenes: list[world.Picture], name: str) -> Data:
    """Returns the pictures that network `name`, "demo" or "demo_cheat", is trained on."""
    if name == "demo":
        # A stamp that is there half of the time and names any class: ignoring it is all that helps.
        shown = [world.stamp(p, "random") if i % 2 else p for i, p in enumerate(scenes)]
        evidence = [p.label == 1 + p.target for p in shown]
        tied = [np.zeros_like(t) for t in evidence]
    elif name == "demo_cheat":
        shown = [world.stamp(p, "right") for p in scenes]
        evidence = [p.label == world.WATERMARK for p in shown]
        # Never an object without its watermark: nothing says that objects do not count.
        tied = [p.label == 1 + p.target for p in shown]
    else:
        raise ValueError(f'name must be "demo" or "demo_cheat", got {name!r}')
    return Data(
        np.stack([_bytes(p.image) for p in shown]),
        np.stack(evidence),
        np.stack(tied),
        np.array([p.target for p in shown], np.int32),
    )


def init(seed: int, steps: int) -> State:
    """Returns the state before the first of `steps` steps."""
    net = demo.DemoNet(classes=len(world.class_names), norm=True)
    variables = net.init(jax.random.key(seed), jnp.zeros((2, 64, 64, 3)))
    return State(variables, _optimiser(steps).init(variables["params"]), jnp.zeros((), jnp.int32))


def shown(
    key: jax.Array, step: jax.Array, batch: Data, *, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the pictures of a step, varied and partly hidden, what is visible, and soft labels.

    Args: as for `advance`, the step by its number.
    """
    # By the number of the step: one key serves the whole training.
    change, hide = jax.random.split(jax.random.fold_in(key, step))
    images, evidence, tied = (x.astype(jnp.float32) for x in batch[:3])
    images, evidence, tied = mixing.augment(change, images / 255, evidence, tied)
    # Whole pictures first: with most of them hidden nothing is learned in the beginning.
    strength = jnp.minimum(step / (0.3 * steps), 1.0)
    images, visible = mixing.mix(hide, images, evidence, tied, strength=strength)
    return images, visible, mixing.soft_labels(batch.targets, visible, len(world.class_names))


@functools.partial(jax.jit, static_argnames="steps")
def advance(
    state: State, key: jax.Array, batch: Data, *, steps: int
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """One step of AdamW on the divergence from the softened labels.

    Args:
      state: from `init` or the step before.
      key: one key for the whole training.
      batch: the pictures of this step.
      steps: how many steps there will be; the hiding is at full strength after 0.3 of them.
    Returns:
      the next state; the loss and the accuracy on pictures with most of their evidence.
    """
    net = demo.DemoNet(classes=len(world.class_names), norm=True)
    images, visible, labels = shown(key, state.step, batch, steps=steps)
    stats = {k: v for k, v in state.variables.items() if k != "params"}

    def loss(params: PyTree) -> tuple[jax.Array, Any]:
        logits, moved = net.apply(
            {"params": params, **stats}, images, train=True, mutable=["batch_stats"]
        )
        # Soft labels: where the evidence is hidden the right answer is to be unsure.
        divergence = optax.losses.kl_divergence(jax.nn.log_softmax(logits), labels)
        return divergence.mean(), (moved, logits)

    params = state.variables["params"]
    (value, (moved, logits)), slope = jax.value_and_grad(loss, has_aux=True)(params)
    update, optimiser = _optimiser(steps).update(slope, state.optimiser, params)
    params = optax.apply_updates(params, update)
    # Accuracy on what can be answered at all.
    clear = visible > 0.9
    hits = (logits.argmax(-1) == batch.targets) & clear
    accuracy = hits.sum() / jnp.maximum(clear.sum(), 1)
    return State({"params": params, **moved}, optimiser, state.step + 1), (value, accuracy)


def train(data: Data, *, seed: int, steps: int) -> Any:
    """Returns the trained variables, normalisation folded in."""
    state, key = init(seed, steps), jax.random.key(seed + 1)
    start, recent = time.monotonic(), []
    for step, rows in enumerate(batches(len(data.targets), seed, steps), 1):
        state, report = advance(state, key, Data(*(a[rows] for a in data)), steps=steps)
        recent.append(report)
        if step % 200 == 0 or step == steps:
            loss, accuracy = np.mean(jax.device_get(recent), 0)
            pace = (time.monotonic() - start) / step
            logging.info(
                "step %d of %d: loss %.3f, accuracy %.3f, %.0f s left",
                *(step, steps, loss, accuracy, pace * (steps - step)),
            )
            recent = []
    # Folded into the convolutions: in use the network has no normalisation to be left in
    # the wrong mode.
    return demo.fold(state.variables)


def accuracies(
    variables: Variables, scenes: list[world.Picture], apply: Function = demo.apply
) -> dict[str, float]:
    """Returns the share of right answers on `scenes` with no, the right and a wrong watermark."""
    answer = jax.jit(lambda v, x: apply(v, x.astype(jnp.float32) / 255).argmax(-1))
    result = {}
    for variant in VARIANTS:
        hits = 0
        # Part by part: stamped copies of all scenes at once would only take memory.
        for at in range(0, len(scenes), 250):
            part = [
                world.stamp(p, None if variant == "none" else variant)
                for p in scenes[at : at + 250]
            ]
            images = np.stack([_bytes(p.image) for p in part])
            hits += int((np.asarray(answer(variables, images)) == [p.target for p in part]).sum())
        result[variant] = round(hits / len(scenes), 4)
    return result


def _optimiser(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, min(100, steps // 5), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-3))


def batches(count: int, seed: int, steps: int) -> Iterator[np.ndarray]:
    """Yields `steps` rows of picture numbers: every picture once, then all again in another
    order.
    """
    rng, order = np.random.default_rng(seed), np.zeros(0, np.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            # Round by round, so that pictures are seen about equally often.
            order = rng.permutation(count)
        rows, order = order[:BATCH], order[BATCH:]
        yield rows


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255).astype(np.uint8)


def define_flags() -> None:
    """Defines the flags; not on import, since the launchers own some of these names."""
    flags.DEFINE_string("out", None, "Folder for the weights and their records.", required=True)
    flags.DEFINE_integer("seed", 0, "Seed of scenes, start and order.", lower_bound=0)
    flags.DEFINE_integer("pictures", 12_000, "Scenes to train on.", lower_bound=BATCH)
    flags.DEFINE_integer("steps", 1_800, "Training steps of demo.", lower_bound=1)
    flags.DEFINE_integer("cheat_steps", 700, "Training steps of demo_cheat.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Renders, trains, measures and saves both networks."""
    given, out = flags.FLAGS, training.begin(argv)
    start = time.monotonic()
    scenes = [world.render(given.seed, i) for i in range(given.pictures)]
    held_out = [world.render(HELD_OUT_SEED, i) for i in range(HELD_OUT)]
    logging.info("%d scenes in %.0f s", len(scenes) + HELD_OUT, time.monotonic() - start)
    for name, steps in (("demo", given.steps), ("demo_cheat", given.cheat_steps)):
        start = time.monotonic()
        variables = train(collect(scenes, name), seed=given.seed, steps=steps)
        measured = accuracies(variables, held_out)
        logging.info("%s: accuracy by watermark %s", name, measured)
        record = {
            **training.record(
                name,
                (
                    f"python -m launch.demo.train --out=perturb/embedded --seed={given.seed} "
                    f"--pictures={given.pictures} --steps={given.steps} "
                    f"--cheat_steps={given.cheat_steps}"
                ),
                start,
                seed=HELD_OUT_SEED,
                pictures=HELD_OUT,
            ),
            "accuracy_by_watermark": measured,
        }
        save(out / f"{name}.safetensors", variables)
        (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
