"""A small language model of characters: one gated recurrent layer, read from left to right.

Small enough (about 0.5 MB in half precision) to be embedded and to be asked thousands of questions
on a CPU, which is what curves over contexts need. The cell is the gated recurrent unit of Cho et
al. 2014, with the reset gate applied after the recurrent product, so that a step is one product.

>>> encode("a\\tb").tolist()
[66, 96, 67]
>>> decode(encode("two words"))
'two words'
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from perturb.types import ArrayLike

__all__ = ["ALPHABET", "apply", "decode", "encode", "init", "next_loss"]

ALPHABET = "\n" + "".join(chr(i) for i in range(32, 127))
_OTHER = len(ALPHABET)
_INDEX = {c: i for i, c in enumerate(ALPHABET)}

Variables = Mapping[str, jax.Array]


def encode(text: str) -> np.ndarray:
    """Returns `[n]` int32 indices of `ALPHABET`; a character that is not in it is one more
    index.
    """
    return np.array([_INDEX.get(c, _OTHER) for c in text], np.int32)


def decode(tokens: ArrayLike) -> str:
    """Returns the text of `[n]` indices; characters outside the alphabet come back as "?"."""
    return "".join(ALPHABET[i] if i < _OTHER else "?" for i in np.asarray(tokens).tolist())


def init(key: jax.Array, *, embedding: int = 48, hidden: int = 256) -> dict[str, jax.Array]:
    """Returns random variables.

    Args:
      key: consumed.
      embedding, hidden: number of features of a character and of the state.
    """
    keys = jax.random.split(key, 4)
    size = _OTHER + 1

    def normal(key: jax.Array, rows: int, columns: int) -> jax.Array:
        # Variance 1 / inputs keeps a layer's answers at the size of its inputs.
        found: jax.Array = jax.random.normal(key, (rows, columns)) / rows**0.5
        return found

    return {
        "embedding": jax.random.normal(keys[0], (size, embedding)) * 0.5,
        "input": normal(keys[1], embedding, 3 * hidden),
        "recurrent": normal(keys[2], hidden, 3 * hidden),
        "bias": jnp.zeros(3 * hidden),
        "recurrent_bias": jnp.zeros(hidden),
        "output": normal(keys[3], hidden, size),
        "output_bias": jnp.zeros(size),
    }


def apply(variables: Variables, tokens: jax.Array) -> jax.Array:
    """Returns logits `[B, n, V]` of the character after each one.

    Args:
      variables: as from `init`.
      tokens: `[B, n]` indices; the state before the first character is zero.
    """
    w = variables
    # The state plays no part in these products: one large one before the loop, not one a step.
    entering = w["embedding"][tokens] @ w["input"] + w["bias"]
    hidden = w["recurrent"].shape[0]

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        back = h @ w["recurrent"]
        update, reset = jnp.split(jax.nn.sigmoid((x + back)[:, : 2 * hidden]), 2, axis=1)
        new = jnp.tanh(x[:, 2 * hidden :] + reset * (back[:, 2 * hidden :] + w["recurrent_bias"]))
        h = update * h + (1 - update) * new
        return h, h

    start = jnp.zeros((len(tokens), hidden), entering.dtype)
    _, states = jax.lax.scan(step, start, entering.swapaxes(0, 1))
    return states.swapaxes(0, 1) @ w["output"] + w["output_bias"]


def next_loss(variables: Variables, contexts: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns `[B]`, the loss in nats of `targets` `[B]` after `contexts` `[B, n]`, n may be 0."""
    if not contexts.shape[1]:
        # Without a context the state is 0, and of the output only its bias is left.
        logits = jnp.broadcast_to(variables["output_bias"], (len(targets), _OTHER + 1))
    else:
        logits = apply(variables, contexts)[:, -1]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1)[:, 0]
