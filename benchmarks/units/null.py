"""Which units pass, in the honest network, the cheat, and in random networks and rotations of them.

  python -m benchmarks.units.null --pictures=300 --networks=30

The first ten random networks are the null, as in the launcher; each of the others is judged by it.
`risk` was chosen on the first ten alone, each judged by the nine others.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np

from benchmarks.units import data
from launch import demo
from perturb.internals import layer_tables, random_network, verdicts

LAYERS = ("relu", "relu#2", "relu#3", "relu#4", "relu#5", "relu#6")
AGAINST = 10
RISKS = (0.01, 0.005, 0.002, 0.001)

Tables = list[dict[str, Any]]


def chosen(random: Tables) -> None:
    """Prints, by risk, how often more than 5 % of a random layer's units pass, held against nine
    others.
    """
    data.row("risk", *(f"`{layer}`: layers of ten, and rotations, above 5 %" for layer in LAYERS))
    for risk in RISKS:
        cells = []
        for layer in LAYERS:
            above = 0
            for k, own in enumerate(random):
                others = [t[layer] for i, t in enumerate(random) if i != k]
                # The layer itself and a random rotation of its units.
                for name in (layer, f"@{layer}~0"):
                    above += verdicts(own[name], others, risk=risk).passes.mean() > 0.05
            cells.append(f"{above} of {2 * len(random)}")
        data.row(risk, *cells)


def splits(random: Tables, draws: int = 30) -> None:
    """Prints how often that happens where other ten networks are the null, of those that nothing
    was chosen on.
    """
    rng, cells = np.random.default_rng(0), []
    for layer in LAYERS:
        above = tests = 0
        for _ in range(draws):
            order = rng.permutation(len(random))
            # Ten of those left as the null, the others judged by it.
            null = [random[i][layer] for i in order[:AGAINST]]
            for i in order[AGAINST:]:
                for name in (layer, f"@{layer}~0"):
                    above += verdicts(random[i][name], null).passes.mean() > 0.05
                    tests += 1
        cells.append(f"{above / tests:.2%}")
    data.row("other tens as the null: layers and rotations above 5 %", *cells)


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--enlarge", default="nearest")
    given = parser.parse_args()
    began = time.process_time()
    images, masks, _ = data.stamped(given.pictures)
    common: dict[str, Any] = {
        "layers": LAYERS,
        "masks": masks,
        "concepts": data.NAMES,
        "replicates": 0,
        "batch_size": 50,
        "enlarge": given.enlarge,
    }
    model = demo.load("demo")
    random: Tables = [
        layer_tables(
            random_network(model, jax.random.key(1 + k)),
            images,
            rotations=1,
            key=jax.random.key(k),
            **common,
        )
        for k in range(given.networks)
    ]
    chosen(random[:AGAINST])
    print()
    data.row(
        "layer",
        "random: by the rule",
        "pass, mean",
        "most",
        "rotated: pass, mean",
        "most",
    )
    for layer in LAYERS:
        null = [r[layer] for r in random[:AGAINST]]
        rule, plain, turned = [], [], []
        # None of these was looked at when the risk was chosen.
        for own in random[AGAINST:]:
            plain.append(verdicts(own[layer], null).passes.mean())
            turned.append(verdicts(own[f"@{layer}~0"], null).passes.mean())
            rule.append(own[layer].interpretable.mean())
        cells = [np.mean(rule), np.mean(plain), np.max(plain), np.mean(turned), np.max(turned)]
        data.row(f"`{layer}`", *(f"{c:.1%}" for c in cells))
    splits(random[AGAINST:])
    print()
    data.row("network", "layer", "units", "by the rule", "pass", "a shape", "the stamp")
    for name in demo.NAMES:
        own = layer_tables(demo.load(name), images, **common)
        for layer in LAYERS:
            found = verdicts(own[layer], [r[layer] for r in random[:AGAINST]])
            best = found.table.best[found.passes]
            # The names begin with the ten classes and end with the stamp.
            shapes, stamp = (best < 10).sum(), (best == len(data.NAMES) - 1).sum()
            rule = found.table.interpretable.sum()
            data.row(name, f"`{layer}`", len(found.passes), rule, found.passes.sum(), shapes, stamp)
    print(f"{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
