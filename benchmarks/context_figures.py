"""How far back the embedded language model looks: `python -m benchmarks.context_figures` prints
bits a character.

256 characters, each with the 64 before it, of the documents as they are now: they have changed
since the model was trained, so that these stretches are not all new to it.
"""

import jax
import numpy as np

from launch import demo
from launch.demo import train_text
from perturb.text import characters, context

LENGTH, NUMBER = 64, 256
STARTS = (1, 2, 5, 10, 20, 40)


def main():
    variables = demo.load_text()
    _, shown = train_text.stretches(train_text.collect())
    rng = np.random.default_rng(0)
    contexts, targets = [], []
    for i in range(NUMBER):
        tokens = characters.encode(shown[i % len(shown)])
        # Far enough in that there is a whole context before it.
        at = rng.integers(LENGTH, len(tokens))
        contexts.append(tokens[at - LENGTH : at])
        targets.append(tokens[at])
    run = jax.jit(characters.next_loss)
    # What replaces a context comes from these documents, and not from random letters.
    bank = characters.encode(shown[0] + shown[1])
    for name in ("truncate", "shuffle", "replace"):
        found = context.curve(
            lambda c, t: run(variables, c, t), contexts, targets, name, STARTS, bank=bank
        )
        for start, rise in zip(found.starts, found.intervals, strict=True):
            # The loss is in nats: log2(e) makes bits of it.
            value, low, high = (np.log2(np.e) * v for v in rise[:3])
            print(f"{name:9} beyond {start:2}: {value:.3f} [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
