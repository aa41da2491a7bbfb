"""How every training of the embedded world starts, and what each writes down of itself."""

from __future__ import annotations

import logging as stdlib_logging
import pathlib
import time

import flax
import jax
import numpy as np
import optax
from absl import app, flags, logging

from perturb.types import Record

__all__ = ["begin", "record"]


def begin(argv: list[str]) -> pathlib.Path:
    """Refuses arguments that are no flags, sets the log up, and returns the folder of --out,
    made.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: every option is a flag")
    logging.set_verbosity(logging.INFO)
    # JAX's own notes would drown the lines of progress.
    stdlib_logging.getLogger("jax").setLevel(stdlib_logging.WARNING)
    out = pathlib.Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def record(name: str, command: str, start: float, *, seed: int, pictures: int) -> Record:
    """Returns what a training says of itself: command, seconds since `start`, versions, what was
    held out.
    """
    return {
        "name": name,
        "command": command,
        "seconds": round(time.monotonic() - start),
        # The same command under other versions trains to other bits.
        "versions": {m.__name__: m.__version__ for m in (jax, flax, optax, np)},
        "held_out": {"seed": seed, "pictures": pictures},
    }
