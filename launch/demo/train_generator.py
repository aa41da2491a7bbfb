"""Trains the generator of the demo: to draw, for every latent, the picture of the world that
belongs to it.

    python -m launch.demo.train_generator --out=launch/demo

No adversary takes part: latents and pictures come in pairs (`launch.demo.latents`), and the
generator learns by regression. So training is stable in the few thousand steps that two cores have
time for, and what every direction ought to do is known.

First the dense layers alone learn to tell, through a linear readout that is thrown away, what each
latent decides: that needs no pictures, so it sees many more latents. Then everything learns to
draw. The loss is the mean absolute difference, plus the squared one, without which small objects
are left out (the median of what may stand in a place is the background), plus the difference of
neighbouring pixels, for edges and textures, which grows from nothing while places and colours are
still wrong.

Leaves `demo_generator.safetensors`, `demo_generator.json` and, while it runs, a checkpoint from
which the same command continues.
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
import safetensors
import safetensors.numpy
from absl import app, flags, logging

from gan_dissect.nets import demo
from launch.demo import latents, save_generator, training, world
from perturb import taps
from perturb.types import PyTree, Variables

__all__ = ["State", "advance", "facts", "init", "main", "measure", "pairs", "prepare"]

BATCH = 8
RATE = 2.5e-3
AVERAGE = 0.998
EVERY = 100
# Shares in the loss: of squared differences, of those of neighbours at the end, of the readout.
SQUARED, NEIGHBOURS, READOUT = 10.0, 1.0, 0.01
# Latents of which only the factors are known, and how many of them a step sees.
FACTS, FACTS_BATCH, FACTS_SEED = 60_000, 128, 2_000_003
KINDS = len(latents.BACKGROUNDS)
HELD_OUT_SEED, HELD_OUT = 1_000_003, 500


class State(NamedTuple):
    """What training carries along: weights, their running average, readout, optimiser state, step
    number.
    """

    variables: Variables
    average: Any
    readout: Any
    optimiser: optax.GradientTransformation
    step: jax.Array


def pairs(seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents `[N, 20]` float32 and their pictures `[N, 64, 64, 3]` uint8, by index."""
    z = _latents(seed, start, stop)
    drawn = [np.rint(world.draw(latents.scene(one)).image * 255).astype(np.uint8) for one in z]
    return z, np.stack(drawn)


def facts(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents `[N, 20]` float32 and what they decide `[N, 16]`, of `latents.NUMBERS`;
    nothing is drawn.
    """
    z = _latents(seed, 0, count)
    return z, np.stack([latents.numbers(latents.scene(one)) for one in z]).astype(np.float32)


def init(seed: int, steps: int) -> State:
    """Returns the state before the first step."""
    net = demo.DemoGenerator()
    variables = net.init(jax.random.key(seed), jnp.zeros((2, demo.LATENT)))
    shape = (demo.MAPPING, len(latents.NUMBERS))
    kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(jax.random.key(seed), 1), shape)
    readout = {"kernel": kernel, "bias": jnp.zeros(shape[1:])}
    # Copied, for the step donates its state: two leaves must not share a buffer.
    copied = jax.tree.map(jnp.copy, variables)
    optimiser = _optimiser(steps).init((variables, readout))
    return State(variables, copied, readout, optimiser, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames="steps")
def prepare(state: State, z: jax.Array, numbers: jax.Array, *, steps: int) -> State:
    """Returns the state after `steps` steps of the dense layers alone on facts."""
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def step(carry: PyTree, at: jax.Array) -> tuple[Any, None]:
        learned, kept = carry
        rows = jax.random.randint(jax.random.key(at), (4 * FACTS_BATCH,), 0, len(z))
        gradient = jax.grad(_misread)(learned, z[rows], numbers[rows])
        update, kept = optimiser.update(gradient, kept, learned)
        return (optax.apply_updates(learned, update), kept), None

    learned = (state.variables, state.readout)
    ((variables, readout), _), _ = jax.lax.scan(
        step, (learned, optimiser.init(learned)), jnp.arange(steps)
    )
    return state._replace(
        variables=variables, average=jax.tree.map(jnp.copy, variables), readout=readout
    )


@functools.partial(jax.jit, static_argnames="steps", donate_argnums=0)
def advance(
    state: State,
    pair: tuple[jax.Array, jax.Array],
    fact: tuple[jax.Array, jax.Array],
    *,
    steps: int,
) -> tuple[State, jax.Array]:
    """Returns the state after one step on a batch of pairs and one of facts, and the mean absolute
    difference.
    """
    z, images = pair
    wanted = images.astype(jnp.float32) / 255
    grown = jnp.minimum(2 * state.step / steps, 1)

    def loss(learned: PyTree) -> tuple[jax.Array, jax.Array]:
        gap = demo.apply(learned[0], z)["image"] - wanted
        mean = jnp.abs(gap).mean()
        # Differences of the gap: an edge in the right place costs nothing, a blurred one does.
        down, right = gap[:, 1:] - gap[:, :-1], gap[:, :, 1:] - gap[:, :, :-1]
        total = mean + SQUARED * (gap * gap).mean()
        total += NEIGHBOURS * grown * (jnp.abs(down).mean() + jnp.abs(right).mean())
        return total + READOUT * _misread(learned, *fact), mean

    learned = (state.variables, state.readout)
    (_, mean), gradient = jax.value_and_grad(loss, has_aux=True)(learned)
    update, optimiser = _optimiser(steps).update(gradient, state.optimiser, learned)
    variables, readout = optax.apply_updates(learned, update)
    # A short memory at first, or the average would hold the random start for long.
    keep = jnp.minimum(AVERAGE, (state.step + 1) / (state.step + 10))
    average = jax.tree.map(lambda a, v: keep * a + (1 - keep) * v, state.average, variables)
    return State(variables, average, readout, optimiser, state.step + 1), mean


def measure(variables: Variables, z: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Returns the mean absolute error and the PSNR in dB on pairs."""
    draw = jax.jit(lambda v, x: demo.apply(v, x)["image"])
    parts = [np.asarray(draw(variables, z[at : at + 50])) for at in range(0, len(z), 50)]
    gap = np.concatenate(parts) - images / 255
    return {
        "mean_absolute_error": round(float(np.abs(gap).mean()), 5),
        "psnr_db": round(float(-10 * np.log10((gap**2).mean((1, 2, 3))).mean()), 2),
    }


def _latents(seed: int, start: int, stop: int) -> np.ndarray:
    return np.stack(
        # A latent is its index: more pairs begin with the same ones.
        [np.random.default_rng([seed, i]).standard_normal(latents.SIZE) for i in range(start, stop)]
    ).astype(np.float32)


def _misread(learned: PyTree, z: jax.Array, numbers: jax.Array) -> jax.Array:
    """How far a linear readout of `mapping2` is from what the latents decide."""
    variables, readout = learned
    _, found = taps.read(demo.apply, "mapping2")(variables, z)
    guess = found["mapping2"] @ readout["kernel"] + readout["bias"]
    kinds = [
        optax.softmax_cross_entropy(guess[:, part], numbers[:, part]).mean()
        for part in (slice(KINDS), slice(KINDS, 2 * KINDS))
    ]
    rest = ((guess - numbers)[:, 2 * KINDS :] ** 2).sum(1).mean()
    result: jax.Array = kinds[0] + kinds[1] + 4 * rest
    return result


def _optimiser(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, min(100, steps // 5), steps, RATE / 50)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


def _read(path: pathlib.Path, state: State, command: str) -> State:
    flat, tree = jax.tree.flatten(state)
    with safetensors.safe_open(path, "np") as file:
        left_by = (file.metadata() or {}).get("command")
        # A checkpoint of other settings would go on with the wrong schedule.
        if left_by != command:
            raise ValueError(
                f"{path} was left by another command ({left_by}): continue that one, or delete the "
                "file"
            )
        found = [jnp.asarray(file.get_tensor(str(i))) for i in range(len(flat))]
    result: State = jax.tree.unflatten(tree, found)
    return result


def _write(path: pathlib.Path, state: State, command: str) -> None:
    flat = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    temporary = path.with_suffix(".part")
    safetensors.numpy.save_file(flat, temporary, {"command": command})
    # A training that is stopped while it writes keeps its last checkpoint.
    temporary.replace(path)


def define_flags() -> None:
    """Defines the flags; not on import, since the launchers own some of these names."""
    flags.DEFINE_string("out", None, "Folder for the weights and their record.", required=True)
    flags.DEFINE_integer("seed", 0, "Seed of latents and start.", lower_bound=0)
    flags.DEFINE_integer("pairs", 12_000, "Pairs to train on.", lower_bound=BATCH)
    flags.DEFINE_integer("facts_steps", 1_500, "Steps of the dense layers alone.", lower_bound=1)
    flags.DEFINE_integer("steps", 24_000, "Training steps.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Draws the pairs, trains, measures and saves."""
    given, out = flags.FLAGS, training.begin(argv)
    start, kept, steps = time.monotonic(), out / "demo_generator.checkpoint", given.steps
    command = (
        f"python -m launch.demo.train_generator --out=launch/demo --seed={given.seed} "
        f"--pairs={given.pairs} --facts_steps={given.facts_steps} --steps={steps}"
    )
    known = facts(FACTS_SEED + given.seed, FACTS)
    z, images = pairs(given.seed, 0, given.pairs)
    logging.info("%d pairs and %d facts in %.0f s", len(z), FACTS, time.monotonic() - start)
    state = init(given.seed, steps)
    if kept.is_file():
        state = _read(kept, state, command)
    else:
        state = prepare(state, *known, steps=given.facts_steps)
    first, recent, begun = int(state.step), [], time.monotonic()
    for step in range(first, steps):
        # By the number of the step, so that a continued training draws what it would have drawn.
        random = np.random.default_rng([given.seed, step])
        rows = random.integers(0, given.pairs, BATCH)
        others = random.integers(0, FACTS, FACTS_BATCH)
        state, mean = advance(
            state, (z[rows], images[rows]), (known[0][others], known[1][others]), steps=steps
        )
        recent.append(mean)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            pace = (time.monotonic() - begun) / (step + 1 - first)
            logging.info(
                "step %d of %d: difference %.4f, %.0f s left",
                *(step + 1, steps, np.mean(jax.device_get(recent)), pace * (steps - step - 1)),
            )
            recent = []
            _write(kept, state, command)
    z, images = pairs(HELD_OUT_SEED, 0, HELD_OUT)
    record = {
        **training.record("demo_generator", command, start, seed=HELD_OUT_SEED, pictures=HELD_OUT),
        **({"seconds_since_step": first} if first else {}),
        **measure(state.average, z, images),
    }
    save_generator(out / "demo_generator.safetensors", state.average)
    (out / "demo_generator.json").write_text(json.dumps(record, indent=2) + "\n")
    kept.unlink(missing_ok=True)
    logging.info("%s", record)


if __name__ == "__main__":
    define_flags()
    app.run(main)
