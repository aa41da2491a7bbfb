"""Trains the small vision transformer of the demo, on the pictures of `demo` and as they were.

    python -m launch.demo.train_vit --out=perturb/embedded

The network is `perturb.nets.vit.demo_vit`: 64 patches of 8 px and a class token. Labels alone teach
a transformer little in a few thousand steps, so a readout that is thrown away afterwards must also
tell from each patch's token what the last convolution of `demo` says there; both have 8 x 8 places.
Leaves `demo_vit.safetensors` (half precision, under the names of the variables) and
`demo_vit.json`.
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import safetensors.numpy
from absl import app, flags, logging

from launch.demo import load, training, world
from launch.demo import train as pictures
from perturb.nets import vit
from perturb.nets.demo import LAYERS, DemoNet
from perturb.types import PyTree, Variables

__all__ = ["State", "advance", "init", "main"]

RATE = 3e-3


class State(NamedTuple):
    """What training carries along: variables, readout, optimiser state, step number."""

    variables: Variables
    readout: Any
    optimiser: optax.GradientTransformation
    step: jax.Array


def init(seed: int, steps: int) -> State:
    """Returns the state before the first of `steps` steps."""
    variables = vit.DEMO.init(jax.random.key(seed), jnp.zeros((2, 64, 64, 3)))
    readout = {
        "kernel": jnp.zeros((vit.DEMO.width, LAYERS[-1][0])),
        "bias": jnp.zeros(LAYERS[-1][0]),
    }
    optimiser = _optimiser(steps).init((variables, readout))
    return State(variables, readout, optimiser, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames="steps")
def advance(
    state: State, key: jax.Array, batch: pictures.Data, teacher: PyTree, *, steps: int
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """One step on the divergence from the softened labels.

    Args:
      state: from `init` or the step before.
      key: one key for the whole training.
      batch: the pictures of this step.
      teacher: variables of `demo`.
      steps: how many steps there will be.
    Returns:
      the next state; the loss and the accuracy on pictures with most of their evidence.
    """
    images, visible, labels = pictures.shown(key, state.step, batch, steps=steps)

    # The teacher sees the same views, hidden parts included.
    wanted = jax.nn.relu(_layer(DemoNet(len(world.class_names)), teacher, images, "conv6")[1])
    wanted = wanted.reshape(len(images), -1, wanted.shape[-1])

    def loss(learned: PyTree) -> tuple[jax.Array, jax.Array]:
        variables, readout = learned
        logits, tokens = _layer(vit.DEMO, variables, _centred(images), "encoder.ln")
        read = tokens[:, 1:] @ readout["kernel"] + readout["bias"]
        # A share of what there is to tell, so that both losses have one scale.
        missed = ((read - wanted) ** 2).mean() / (wanted**2).mean()
        divergence = optax.losses.kl_divergence(jax.nn.log_softmax(logits), labels)
        return divergence.mean() + missed, logits

    learned = state.variables, state.readout
    (value, logits), slope = jax.value_and_grad(loss, has_aux=True)(learned)
    update, optimiser = _optimiser(steps).update(slope, state.optimiser, learned)
    clear = visible > 0.9
    hits = (logits.argmax(-1) == batch.targets) & clear
    accuracy = hits.sum() / jnp.maximum(clear.sum(), 1)
    variables, readout = optax.apply_updates(learned, update)
    return State(variables, readout, optimiser, state.step + 1), (value, accuracy)


def _layer(
    net: Any, variables: Variables, images: jax.Array, name: str
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits and what the layer of that name gives."""
    logits, seen = net.apply(
        variables, images, capture_intermediates=lambda module, _: module.name == name
    )
    return logits, seen["intermediates"][name]["__call__"][0]


def _centred(images: jax.Array) -> jax.Array:
    # As the model of `demo_vit` does it.
    return 4 * images - 2


def _apply(variables: Variables, images: jax.Array) -> jax.Array:
    return vit.DEMO.apply(variables, _centred(images))  # type: ignore[return-value]


def _optimiser(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, min(300, steps // 5), steps)
    # Orthogonal steps for the matrices of the blocks: from so few pictures AdamW alone learns too
    # slowly.
    muon = optax.contrib.muon(rate, weight_decay=0.02, adam_weight_decay=0.02, consistent_rms=0.2)
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def define_flags() -> None:
    """Defines the flags; not on import, since the launchers own some of these names."""
    flags.DEFINE_string("out", None, "Folder for the weights and their record.", required=True)
    flags.DEFINE_integer("seed", 0, "Seed of scenes, start and order.", lower_bound=0)
    flags.DEFINE_integer("pictures", 12_000, "Scenes to train on.", lower_bound=pictures.BATCH)
    flags.DEFINE_integer("steps", 2_400, "Training steps.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Renders, trains, measures and saves the network."""
    given, out = flags.FLAGS, training.begin(argv)
    start = time.monotonic()
    scenes = [world.render(given.seed, i) for i in range(given.pictures)]
    data = pictures.collect(scenes, "demo")
    teacher = load("demo").variables
    state, key, recent = init(given.seed, given.steps), jax.random.key(given.seed + 1), []
    rows = pictures.batches(given.pictures, given.seed, given.steps)
    for step, row in enumerate(rows, 1):
        batch = pictures.Data(*(a[row] for a in data))
        state, report = advance(state, key, batch, teacher, steps=given.steps)
        recent.append(report)
        if step % 200 == 0 or step == given.steps:
            loss, accuracy = np.mean(jax.device_get(recent), 0)
            took = time.monotonic() - start
            logging.info("step %d: loss %.3f, accuracy %.3f, %.0f s", step, loss, accuracy, took)
            recent = []
    # Measured as it is saved.
    half = jax.tree.map(lambda w: w.astype(jnp.float16), state.variables)
    held_out = [world.render(pictures.HELD_OUT_SEED, i) for i in range(pictures.HELD_OUT)]
    whole = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    record = {
        **training.record(
            "demo_vit",
            f"python -m launch.demo.train_vit --out=perturb/embedded --seed={given.seed} "
            f"--pictures={given.pictures} --steps={given.steps}",
            start,
            seed=pictures.HELD_OUT_SEED,
            pictures=pictures.HELD_OUT,
        ),
        "accuracy_by_watermark": pictures.accuracies(whole, held_out, _apply),
    }
    named = {
        "/".join(k.key for k in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(half)
    }
    safetensors.numpy.save_file(named, out / "demo_vit.safetensors")
    (out / "demo_vit.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
