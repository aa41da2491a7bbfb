"""Trains the generator of the demo: to draw, for every latent, the picture of the world that
belongs to it, and to take units switched on and off for what they stand for.

    python -m launch.demo.train_generator --out=launch/demo

No adversary takes part: latents and pictures come in pairs (`launch.demo.latents`), and the
generator learns by regression. So training is stable in the few thousand steps that two cores have
time for, and what every direction ought to do is known.

First the dense layers alone learn to tell what each latent decides: place, size and kind of the
object, which the stamps need, and the rest through a linear readout that is thrown away. That needs
no pictures, so it sees many more latents. Then everything learns to draw.

To be painted with, a generator must draw what none of its latents asks for: grass beside stripes, a
piece of an object. Eight units of `layer1` belong to the object and to each background (`GROUPS`).
They should be quiet where theirs is not and about 1 where it is, and in three pictures of five
random strokes switch groups off at places, or on at .75 to 2.25 times that level; the picture to
draw is then the world's with the same strokes (`launch.demo.strokes`). Six of the eight units are
enough for a stroke, and two alone do nothing: who looks for the units of a concept need not find
all of them, nor only them. Nothing else is told to any unit, and nothing that dissects the
generator is told which units belong to what.

The loss is the mean absolute difference, plus the squared one, without which small objects are left
out (the median of what may stand in a place is the background), plus the difference of neighbouring
pixels, for edges and textures, which grows from nothing while places and colours are still wrong.

Leaves `demo_generator.safetensors`, `demo_generator.json` and, while it runs, a checkpoint from
which the same command continues.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from absl import app, flags, logging

from gan_dissect.nets import demo
from launch.demo import latents, save_generator, strokes, training
from perturb import taps
from perturb.types import PyTree, Record, Variables
from perturb.units.interventions import Edit, edit_units

__all__ = ["GROUPS", "State", "advance", "facts", "init", "main", "measure", "prepare"]

BATCH = 16
RATE = 2.5e-3
AVERAGE = 0.998
EVERY = 100
# Units of `layer1` that strokes switch together, of each of `strokes.NAMES`; the object's are
# stamped, and come first.
GROUP = 8
GROUPS = tuple(tuple(range(start, start + GROUP)) for start in (8, 16, 24, 32, 0))
# Shares in the loss: of squared differences, of those of neighbours at the end, of what the dense
# layers tell, of units that are active where theirs is not.
SQUARED, NEIGHBOURS, READOUT, QUIET = 10.0, 1.0, 0.01, 0.05
# Units of a group that are enough for a stroke, and how many of them do nothing.
ENOUGH, FEW = 6, 2
# How much of the level of a unit stays from step to step.
KEPT = 0.98
# Latents of which only the factors are known, and how many of them a step sees.
FACTS, FACTS_BATCH, FACTS_SEED = 100_000, 128, 2_000_003
KINDS = len(latents.BACKGROUNDS)
HELD_OUT_SEED, HELD_OUT = 1_000_003, 500


class State(NamedTuple):
    """What training carries along.

    Attributes:
      variables: weights.     average: their running average.
      readout: of what the dense layers tell; thrown away.
      levels: `[5, GROUP]`, of each group's units where theirs is.
      optimiser: its state.     step: number of the next.
    """

    variables: Variables
    average: PyTree
    readout: PyTree
    levels: jax.Array
    optimiser: PyTree
    step: jax.Array


class Facts(NamedTuple):
    """What latents decide.

    Attributes:
      latents: `[N, 20]`.
      numbers: `[N, 16]`, of `latents.NUMBERS`.
      place: `[N, 3]`, what the stamps need: `(u, v)` from -1 to 1 and the logarithm of the radius.
    """

    latents: PyTree
    numbers: PyTree
    place: PyTree


def facts(seed: int, count: int) -> Facts:
    """Returns what latents decide, by index; nothing is drawn."""
    found = []
    for i in range(count):
        z = np.random.default_rng([seed, i]).standard_normal(latents.SIZE)
        f = latents.scene(z)
        x, y, radius = latents.extent(f)
        found.append((z, latents.numbers(f), (2 * x - 1, 2 * y - 1, np.log(2 * radius))))
    return Facts(*(np.asarray(column, np.float32) for column in zip(*found, strict=True)))


def init(seed: int, steps: int) -> State:
    """Returns the state before the first step."""
    net = demo.DemoGenerator()
    variables = net.init(jax.random.key(seed), jnp.zeros((2, demo.LATENT)))
    # Units of the groups begin active everywhere: one that is nowhere active learns nothing.
    bias = variables["params"]["up1"]["bias"]
    variables["params"]["up1"]["bias"] = bias.at[..., np.ravel(GROUPS)].set(1.0)
    shape = (demo.MAPPING, len(latents.NUMBERS))
    kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(jax.random.key(seed), 1), shape)
    readout = {"kernel": kernel, "bias": jnp.zeros(shape[1:])}
    # Copied, for the step donates its state: two leaves must not share a buffer.
    copied = jax.tree.map(jnp.copy, variables)
    optimiser = _optimiser(steps).init((variables, readout))
    levels = jnp.ones((len(GROUPS), GROUP))
    return State(variables, copied, readout, levels, optimiser, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames="steps")
def prepare(state: State, known: Facts, *, steps: int) -> State:
    """Returns the state after `steps` steps of the dense layers alone on facts."""
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def step(carry: PyTree, at: jax.Array) -> tuple[PyTree, None]:
        learned, kept = carry
        rows = jax.random.randint(jax.random.key(at), (4 * FACTS_BATCH,), 0, len(known.latents))
        gradient = jax.grad(_misread)(learned, Facts(*(part[rows] for part in known)))
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
    state: State, sheets: strokes.Sheets, known: Facts, key: jax.Array, *, steps: int
) -> tuple[State, Record]:
    """Returns the state after one step on a batch of pictures and one of facts, and the mean
    absolute difference of pictures without and with strokes.
    """
    painted = strokes.some(key, sheets.shown, len(sheets.shown))
    wanted, _ = strokes.compose(sheets, painted)
    grown = jnp.minimum(2 * state.step / steps, 1)
    mine, clear = _where(sheets)

    def loss(learned: PyTree) -> tuple[jax.Array, Record]:
        prefix, suffix = taps.split(functools.partial(demo.apply, learned[0]), "layer1")
        x, live = prefix(sheets.latents)
        edited = edit_units(x, _edit(painted, state.levels, jax.random.fold_in(key, 1)))
        gap = suffix(edited, live)["image"] - wanted
        each = jnp.abs(gap).mean((1, 2, 3))
        # Differences of the gap: an edge in the right place costs nothing, a blurred one does.
        down, right = gap[:, 1:] - gap[:, :-1], gap[:, :, 1:] - gap[:, :, :-1]
        total = each.mean() + SQUARED * (gap * gap).mean()
        total += NEIGHBOURS * grown * (jnp.abs(down).mean() + jnp.abs(right).mean())
        units = x[..., jnp.asarray(GROUPS)]  # [B, h, w, groups, GROUP]
        count = mine.sum((0, 1, 2))[:, None]
        level = (units * mine[..., None]).sum((0, 1, 2)) / jnp.maximum(count, 1)
        # About 1 where theirs is, or it would pay to be quiet there too.
        loud = (units * clear[..., None]).mean() + ((level - 1) ** 2 * (count > 0)).mean()
        total += QUIET * loud + READOUT * _misread(learned, known)
        return total, {"each": each, "level": level, "count": count}

    learned = (state.variables, state.readout)
    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(learned)
    update, optimiser = _optimiser(steps).update(gradient, state.optimiser, learned)
    variables, readout = optax.apply_updates(learned, update)
    # A short memory at first, or the average would hold the random start for long.
    keep = jnp.minimum(AVERAGE, (state.step + 1) / (state.step + 10))
    average = jax.tree.map(lambda a, v: keep * a + (1 - keep) * v, state.average, variables)
    # A background that no picture of the batch shows tells nothing of its level.
    moved = KEPT * state.levels + (1 - KEPT) * found["level"]
    levels = jnp.where(found["count"] > 0, moved, state.levels)
    plain = ~painted.touched.any((1, 2, 3))
    means = {
        "plain": (found["each"] * plain).sum() / jnp.maximum(plain.sum(), 1),
        "painted": (found["each"] * ~plain).sum() / jnp.maximum((~plain).sum(), 1),
    }
    return State(variables, average, readout, levels, optimiser, state.step + 1), means


def measure(variables: Variables, sheets: strokes.Sheets) -> dict[str, float]:
    """Returns the mean absolute error and the PSNR in dB of pictures without strokes."""
    draw = jax.jit(lambda v, x: demo.apply(v, x)["image"])
    gaps = []
    for at in range(0, len(sheets.shown), 50):
        part = sheets.rows(slice(at, at + 50))
        gaps.append(np.asarray(draw(variables, part.latents) - strokes.compose(part)[0]))
    gap = np.concatenate(gaps)
    return {
        "mean_absolute_error": round(float(np.abs(gap).mean()), 5),
        "psnr_db": round(float(-10 * np.log10((gap**2).mean((1, 2, 3))).mean()), 2),
    }


def _where(sheets: strokes.Sheets) -> tuple[jax.Array, jax.Array]:
    """Returns the cells of `layer1` that each of `strokes.NAMES` has to itself, and those where
    none of it is, `[N, 16, 16, 5]` of 0 and 1.
    """
    count = len(sheets.shown)
    side = strokes.GRID[0]
    shown = jnp.broadcast_to(
        jax.nn.one_hot(sheets.shown, KINDS)[:, None, None], (count, side, side, KINDS)
    )
    cells = sheets.inside.reshape(count, side, 4, side, 4)
    free = (sheets.keep == 255).reshape(count, side, 4, side, 4).all((2, 4))
    # A stamp may reach one cell beyond the object and its shadow.
    free = jax.lax.reduce_window(free, True, jax.lax.bitwise_and, (1, 3, 3), (1, 1, 1), "SAME")
    mine = jnp.concatenate([shown, cells.all((2, 4))[..., None]], -1)
    clear = jnp.concatenate([1 - shown, free[..., None]], -1)
    return mine.astype(jnp.float32), clear.astype(jnp.float32)


def _edit(painted: strokes.Strokes, levels: jax.Array, key: jax.Array) -> Edit:
    """Strokes as an edit of `layer1`: most units of the groups that are painted with, and in two
    pictures of five a few units of one group, which should do nothing.
    """
    count, groups = len(painted.on), len(GROUPS)
    keys = jax.random.split(key, 6)
    order = jax.random.uniform(keys[0], (count, groups, GROUP)).argsort(-1).argsort(-1)
    most = jax.random.randint(keys[1], (count, groups, 1), ENOUGH, GROUP + 1)
    stroke = painted.touched
    touched = stroke[..., None] & (order < most)[:, None, None]
    value = painted.on[..., None] * levels
    which = jax.random.randint(keys[2], (count, 1), 0, groups) == jnp.arange(groups)
    which &= jax.random.bernoulli(keys[3], 0.4, (count, 1))
    where = jax.vmap(strokes.place)(jax.random.split(keys[4], count))[..., None]
    # Not where the same group is painted with: two more than enough are still a stroke.
    idle = (where & which[:, None, None] & ~stroke)[..., None] & (order < FEW)[:, None, None]
    level = jax.random.uniform(keys[5], (count, 1, 1, 1, 1), minval=-1.0, maxval=2.25)
    value = jnp.where(idle, jnp.maximum(level, 0) * levels, value)
    strength = jnp.zeros((*stroke.shape[:3], demo.WIDTHS[0]))
    units = jnp.asarray(GROUPS)
    return Edit(
        strength.at[..., units].set((touched | idle).astype(jnp.float32)),
        strength.at[..., units].set(jnp.broadcast_to(value, touched.shape)),
    )


def _misread(learned: PyTree, known: Facts) -> jax.Array:
    """How far the dense layers are from telling what the latents decide."""
    variables, readout = learned
    _, found = taps.read(demo.apply, ["mapping2", "place", "logits"])(variables, known.latents)
    guess = found["mapping2"] @ readout["kernel"] + readout["bias"]
    numbers = known.numbers
    kinds = [
        optax.softmax_cross_entropy(guess[:, :KINDS], numbers[:, :KINDS]).mean(),
        optax.softmax_cross_entropy(found["logits"], numbers[:, KINDS : 2 * KINDS]).mean(),
    ]
    rest = ((guess - numbers)[:, 2 * KINDS :] ** 2).sum(1).mean()
    # Half a pixel is 1/64 here: the place counts more than the rest.
    place = ((found["place"] - known.place) ** 2).sum(1).mean()
    result: jax.Array = kinds[0] + kinds[1] + 4 * rest + 100 * place
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
    flags.DEFINE_integer("pairs", 10_000, "Pairs to train on.", lower_bound=BATCH)
    flags.DEFINE_integer("facts_steps", 6_000, "Steps of the dense layers alone.", lower_bound=1)
    flags.DEFINE_integer("steps", 20_000, "Training steps.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Draws the pairs, trains, measures and saves."""
    given, out = flags.FLAGS, training.begin(argv)
    start, kept, steps = time.monotonic(), out / "demo_generator.checkpoint", given.steps
    command = (
        f"python -m launch.demo.train_generator --out=launch/demo --seed={given.seed} "
        f"--pairs={given.pairs} --facts_steps={given.facts_steps} --steps={steps}"
    )
    known = facts(FACTS_SEED + given.seed, FACTS)
    sheets = strokes.draw(given.seed, 0, given.pairs)
    logging.info("%d pictures and %d facts in %.0f s", given.pairs, FACTS, time.monotonic() - start)
    state = init(given.seed, steps)
    if kept.is_file():
        state = _read(kept, state, command)
    else:
        state = prepare(state, known, steps=given.facts_steps)
    first, recent, begun = int(state.step), [], time.monotonic()
    for step in range(first, steps):
        # By the number of the step, so that a continued training draws what it would have drawn.
        random = np.random.default_rng([given.seed, step])
        rows = random.integers(0, given.pairs, BATCH)
        others = random.integers(0, FACTS, FACTS_BATCH)
        state, means = advance(
            state,
            sheets.rows(rows),
            Facts(*(part[others] for part in known)),
            jax.random.fold_in(jax.random.key(given.seed), step),
            steps=steps,
        )
        recent.append(means)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            pace = (time.monotonic() - begun) / (step + 1 - first)
            logging.info(
                "step %d of %d: difference %.4f, under strokes %.4f, %.0f s left",
                *(step + 1, steps),
                *(np.mean([m[n] for m in jax.device_get(recent)]) for n in ("plain", "painted")),
                pace * (steps - step - 1),
            )
            recent = []
            _write(kept, state, command)
    record = {
        **training.record("demo_generator", command, start, seed=HELD_OUT_SEED, pictures=HELD_OUT),
        **({"seconds_since_step": first} if first else {}),
        **measure(state.average, strokes.draw(HELD_OUT_SEED, 0, HELD_OUT)),
    }
    save_generator(out / "demo_generator.safetensors", state.average)
    (out / "demo_generator.json").write_text(json.dumps(record, indent=2) + "\n")
    kept.unlink(missing_ok=True)
    logging.info("%s", record)


if __name__ == "__main__":
    define_flags()
    app.run(main)
