"""Trains the embedded language model of characters on the project's own words.

    python -m launch.demo.train_text --out=launch/demo

The text is that of the documents and of the docstrings, in the order of their paths; every tenth
stretch of 2,000 characters is held out. Leaves `demo_text.safetensors` (half precision) and
`demo_text.json`: the loss on both parts, in bits a character, and the digest of the text.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from absl import app, flags, logging

from launch.demo import training
from perturb.text import characters
from perturb.types import PyTree, Variables

__all__ = ["collect", "main", "stretches"]

STRETCH = 2_000
LENGTH, BATCH, RATE = 150, 32, 4e-3
ROOT = pathlib.Path(__file__).parents[2]


def collect(root: pathlib.Path = ROOT) -> str:
    """Returns the documents and the docstrings under `root`, joined by empty lines."""
    # Sorted, so that the text, and its digest, is the same on every file system.
    documents = [root / "LICENSE", *sorted(root.glob("*.md")), *sorted(root.glob("docs/**/*.md"))]
    parts = [path.read_text() for path in documents]
    for package in ("perturb", "gan_dissect", "launch"):
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    parts.append(ast.get_docstring(node) or "")
    return "\n\n".join(part for part in parts if part)


def stretches(text: str) -> tuple[list[str], list[str]]:
    """Returns the stretches of `STRETCH` characters that are trained on and those held out."""
    cut = [text[i : i + STRETCH] for i in range(0, len(text) - STRETCH + 1, STRETCH)]
    # Stretches from everywhere: the end of the text alone would be one file's.
    return [s for i, s in enumerate(cut) if i % 10 != 9], cut[9::10]


def _loss(variables: Variables, read: jax.Array, following: jax.Array) -> jax.Array:
    logits = characters.apply(variables, read)
    # The first characters have next to no context: they are read, not scored.
    found: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, following)[
        :, 20:
    ].mean()
    return found


def _optimiser(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, 100, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.02))


@functools.partial(jax.jit, static_argnames="steps")
def _advance(
    state: PyTree, tokens: jax.Array, key: jax.Array, *, steps: int
) -> tuple[optax.GradientTransformation, jax.Array]:
    variables, optimiser = state
    # A twentieth of what is read is replaced: a model of 400,000 characters learns them by heart.
    where, what = jax.random.split(key)
    noise = jax.random.randint(what, tokens.shape, 0, len(characters.ALPHABET))
    read = jnp.where(jax.random.uniform(where, tokens.shape) < 0.05, noise, tokens)

    def loss(variables: Variables) -> jax.Array:
        return _loss(variables, read[:, :-1], tokens[:, 1:])

    value, gradient = jax.value_and_grad(loss)(variables)
    update, optimiser = _optimiser(steps).update(gradient, optimiser, variables)
    return (optax.apply_updates(variables, update), optimiser), value


def main(argv: list[str]) -> None:
    """Trains, measures and writes."""
    out, start, steps = training.begin(argv), time.monotonic(), flags.FLAGS.steps
    text = collect()
    train, held_out = stretches(text)
    encoded = np.stack([characters.encode(s) for s in train])
    variables = characters.init(jax.random.key(0))
    state = variables, _optimiser(steps).init(variables)
    rng = np.random.default_rng(0)
    for i in range(steps):
        rows = rng.integers(0, len(encoded), BATCH)
        # One more than is read: each character is to tell the next.
        columns = rng.integers(0, STRETCH - LENGTH, BATCH)[:, None] + np.arange(LENGTH + 1)
        batch = encoded[rows[:, None], columns]
        state, value = _advance(state, batch, jax.random.key(i), steps=steps)
        if i % 100 == 0 or i == steps - 1:
            logging.info("step %d: %.3f bits a character", i, float(value) / np.log(2))
    half = {name: np.asarray(w, np.float16) for name, w in state[0].items()}
    # Measured as it is saved, in half precision.
    kept = {name: w.astype(np.float32) for name, w in half.items()}
    measure = jax.jit(_loss)
    bits = {}
    for name, part in (("train", train), ("held_out", held_out)):
        tokens = np.stack([characters.encode(s) for s in part])
        bits[name] = float(measure(kept, tokens[:, :-1], tokens[:, 1:])) / np.log(2)
    safetensors.numpy.save_file(half, out / "demo_text.safetensors")
    command = f"python -m launch.demo.train_text --steps={steps}"
    record = training.record("demo_text", command, start, seed=0, pictures=0)
    record["held_out"] = {"stretches": len(held_out), "characters": STRETCH}
    record |= {
        "characters": len(text),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "bits_a_character": {name: round(value, 3) for name, value in bits.items()},
    }
    (out / "demo_text.json").write_text(json.dumps(record, indent=1) + "\n")
    logging.info("%s", record)


if __name__ == "__main__":
    flags.DEFINE_string("out", "out/text", "Folder for the weights and their record.")
    flags.DEFINE_integer(
        "steps", 1500, "Steps of training, each on 32 stretches of 150 characters."
    )
    app.run(main)
