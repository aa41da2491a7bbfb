"""What of a step is spent outside of the network: drawing, parametrisation, transforms and the
rule.

  python -m benchmarks.features.step --network=squeezenet1_1 --layer=features.11

CPU milliseconds of each program of a step, the least of interleaved rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from benchmarks.units import data
from perturb.internals import features
from perturb.internals.features import given as given_lib
from perturb.internals.features import loop, objectives
from perturb.types import PyTree


def main() -> None:
    """Prints a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="squeezenet1_1")
    parser.add_argument("--layer", default="features.11")
    parser.add_argument("--preset", default="lucid")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    # Random weights: they take the same time.
    size = None if given.network.startswith("vit") else given.size
    model = perturb.load_model(given.network, key=jax.random.key(0), size=size)
    shape = (given.size, given.size, 3)
    recipe = loop._at(features.preset(given.preset), shape)
    wanted, count = objectives.per_item(features.channel(given.layer, np.arange(given.pictures)))
    items = loop.Items(wanted, given_lib.item_keys(jax.random.key(0), wanted, count), jnp.int32(99))
    state = loop.begin(recipe, shape, items, 1)
    written, options = recipe.parametrisation, dataclasses.replace(recipe, parametrisation=None)
    drawn = loop._drawn(options, shape, 1, written.alpha, items.key, state.step, items.steps)
    pictures, to_params = loop._pictures(written, shape, state.params)
    views, to_pictures = loop._views(written, options, drawn, pictures)
    value, slopes, by_view = loop._slopes(model, False, wanted, pictures, views)
    found = value, loop._back(to_pictures, by_view, slopes), by_view
    parts: dict[str, Callable[[], PyTree]] = {
        "drawn": lambda: loop._drawn(
            options, shape, 1, written.alpha, items.key, state.step, items.steps
        ),
        "pictures": lambda: loop._pictures(written, shape, state.params),
        "views": lambda: loop._views(written, options, drawn, pictures),
        "network": lambda: loop._slopes(model, False, wanted, pictures, views),
        "slopes of pictures": lambda: loop._back(to_pictures, by_view, slopes),
        "slopes of parameters, rule": lambda: loop._move(written, options, to_params, found, state),
    }
    whole = "whole step"  # what lies between the parts shows here
    everything = parts | {whole: lambda: loop.step(model, recipe, shape, items, state, False)}
    least = dict.fromkeys(everything, np.inf)
    for _ in range(given.rounds + 1):
        for name, part in everything.items():
            before = time.process_time()
            for _ in range(3):
                jax.block_until_ready(part())
            # The first round compiles, and is never the least.
            least[name] = min(least[name], (time.process_time() - before) / 3)
    total = sum(least[name] for name in parts)
    data.row("network", "layer", *(f"{n}, ms" for n in everything), "outside of the network")
    data.row(
        given.network,
        f"`{given.layer}`",
        *(f"{1e3 * t:.1f}" for t in least.values()),
        f"{100 * (1 - least['network'] / total):.1f} %",
    )


if __name__ == "__main__":
    main()
