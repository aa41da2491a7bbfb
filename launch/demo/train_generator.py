"""Trains the generator of the demo: to draw, for every latent, the picture of the world that belongs to it.

    python -m launch.demo.train_generator --out=launch/demo

No adversary takes part: latents and pictures come in pairs (`launch.demo.latents`), and the loss is the
mean absolute difference. So training is stable in the few thousand steps that two cores have time for,
and what every direction ought to do is known. Leaves `demo_generator.safetensors`, `demo_generator.json`
and, while it runs, a checkpoint from which the same command continues.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from absl import app, flags, logging

from gan_dissect.nets import demo
from launch.demo import latents, save_generator, training, world

__all__ = ["State", "advance", "init", "main", "measure", "pairs"]

BATCH = 16
RATE = 1.5e-3
AVERAGE = 0.995
GROW = 600  # pairs drawn every `EVERY` steps, until there are enough
EVERY = 100
HELD_OUT_SEED, HELD_OUT = 1_000_003, 500


class State(NamedTuple):
    """What training carries along: weights, their running average, optimiser state, step number."""

    variables: Any
    average: Any
    optimiser: Any
    step: jax.Array


def pairs(seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents `[N, 20]` float32 and their pictures `[N, 64, 64, 3]` uint8, by index."""
    z = np.stack(
        [np.random.default_rng([seed, i]).standard_normal(latents.SIZE) for i in range(start, stop)]
    ).astype(np.float32)
    drawn = [np.rint(world.draw(latents.scene(one)).image * 255).astype(np.uint8) for one in z]
    return z, np.stack(drawn)


def init(seed: int, steps: int) -> State:
    """Returns the state before the first step."""
    net = demo.DemoGenerator()
    variables = net.init(jax.random.key(seed), jnp.zeros((2, demo.LATENT)))
    copied = jax.tree.map(jnp.copy, variables)
    return State(variables, copied, _optimiser(steps).init(variables), jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames="steps", donate_argnums=0)
def advance(
    state: State, z: jax.Array, images: jax.Array, *, steps: int
) -> tuple[State, jax.Array]:
    """Returns the state after one step on a batch, and the loss."""

    def loss(variables: Any) -> jax.Array:
        drawn = demo.apply(variables, z)["image"]
        return jnp.abs(drawn - images.astype(jnp.float32) / 255).mean()

    value, gradient = jax.value_and_grad(loss)(state.variables)
    update, optimiser = _optimiser(steps).update(gradient, state.optimiser, state.variables)
    variables = optax.apply_updates(state.variables, update)
    keep = jnp.minimum(AVERAGE, (state.step + 1) / (state.step + 10))
    average = jax.tree.map(lambda a, v: keep * a + (1 - keep) * v, state.average, variables)
    return State(variables, average, optimiser, state.step + 1), value


def measure(variables: Any, z: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Returns the mean absolute error and the PSNR in dB on pairs."""
    draw = jax.jit(lambda v, x: demo.apply(v, x)["image"])
    parts = [np.asarray(draw(variables, z[at : at + 50])) for at in range(0, len(z), 50)]
    gap = np.concatenate(parts) - images / 255
    return {
        "mean_absolute_error": round(float(np.abs(gap).mean()), 5),
        "psnr_db": round(float(-10 * np.log10((gap**2).mean((1, 2, 3))).mean()), 2),
    }


def _optimiser(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, min(100, steps // 5), steps, RATE / 50)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


def _read(path: pathlib.Path, state: State) -> State:
    flat, tree = jax.tree.flatten(state)
    found = safetensors.numpy.load_file(path)
    return jax.tree.unflatten(tree, [jnp.asarray(found[str(i)]) for i in range(len(flat))])


def _write(path: pathlib.Path, state: State) -> None:
    flat = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    temporary = path.with_suffix(".part")
    safetensors.numpy.save_file(flat, temporary)
    temporary.replace(path)


def define_flags() -> None:
    """Defines the flags; not on import, since the launchers own some of these names."""
    flags.DEFINE_string("out", None, "Folder for the weights and their record.", required=True)
    flags.DEFINE_integer("seed", 0, "Seed of latents and start.", lower_bound=0)
    flags.DEFINE_integer("pairs", 12_000, "Pairs to train on.", lower_bound=BATCH)
    flags.DEFINE_integer("steps", 4_000, "Training steps.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Draws the pairs while it trains, measures and saves."""
    given, out = flags.FLAGS, training.begin(argv)
    start, kept, steps = time.monotonic(), out / "demo_generator.checkpoint", given.steps
    state = init(given.seed, steps)
    if kept.is_file():
        state = _read(kept, state)
    z = np.zeros((given.pairs, latents.SIZE), np.float32)
    images = np.zeros((given.pairs, 64, 64, 3), np.uint8)
    drawn, first, recent = 0, int(state.step), []
    for step in range(first, steps):
        if drawn < given.pairs and (step % EVERY == 0 or not drawn):
            stop = min(given.pairs, (step // EVERY + 1) * GROW)
            z[drawn:stop], images[drawn:stop] = pairs(given.seed, drawn, stop)
            drawn = stop
        rows = np.random.default_rng([given.seed, step]).integers(0, drawn, BATCH)
        state, loss = advance(state, z[rows], images[rows], steps=steps)
        recent.append(loss)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            pace = (time.monotonic() - start) / (step + 1 - first)
            logging.info(
                "step %d of %d: difference %.4f, %.0f s left",
                *(step + 1, steps, np.mean(jax.device_get(recent)), pace * (steps - step - 1)),
            )
            recent = []
            _write(kept, state)
    z, images = pairs(HELD_OUT_SEED, 0, HELD_OUT)
    record = {
        **training.record(
            "demo_generator",
            (
                f"python -m launch.demo.train_generator --out=launch/demo --seed={given.seed} "
                f"--pairs={given.pairs} --steps={steps}"
            ),
            start,
            seed=HELD_OUT_SEED,
            pictures=HELD_OUT,
        ),
        **measure(state.average, z, images),
    }
    save_generator(out / "demo_generator.safetensors", state.average)
    (out / "demo_generator.json").write_text(json.dumps(record, indent=2) + "\n")
    kept.unlink(missing_ok=True)
    logging.info("%s", record)


if __name__ == "__main__":
    define_flags()
    app.run(main)
