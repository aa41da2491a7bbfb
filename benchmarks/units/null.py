"""Which units pass, in the honest network, the cheat, and in random networks and rotations of them.

  python -m benchmarks.units.null --pictures=300 --networks=20

Every random network is held against four others, as the launcher does.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from benchmarks.units import data
from launch import demo
from perturb.internals import layer_tables, random_network, verdicts

LAYERS = ("relu", "relu#2", "relu#3", "relu#4", "relu#5", "relu#6")
AGAINST = 4


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--networks", type=int, default=20)
    given = parser.parse_args()
    began = time.process_time()
    images, masks, _ = data.stamped(given.pictures)
    common = {
        "layers": LAYERS,
        "masks": masks,
        "concepts": data.NAMES,
        "replicates": 0,
        "batch_size": 50,
    }
    model = demo.load("demo")
    random = [
        layer_tables(
            random_network(model, jax.random.key(1 + k)),
            images,
            rotations=1,
            key=jax.random.key(k),
            **common,
        )
        for k in range(given.networks)
    ]
    data.row("layer", "random: by the rule", "pass, mean", "most", "rotated: pass, mean", "most")
    for layer in LAYERS:
        rule, plain, turned = [], [], []
        for k, own in enumerate(random):
            others = [random[(k + 1 + i) % given.networks][layer] for i in range(AGAINST)]
            plain.append(verdicts(own[layer], others).passes.mean())
            turned.append(verdicts(own[f"@{layer}~0"], others).passes.mean())
            rule.append(own[layer].interpretable.mean())
        cells = [np.mean(rule), np.mean(plain), np.max(plain), np.mean(turned), np.max(turned)]
        data.row(f"`{layer}`", *(f"{c:.1%}" for c in cells))
    data.row("network", "layer", "units", "by the rule", "pass", "a shape", "the stamp")
    for name in demo.NAMES:
        own = layer_tables(demo.load(name), images, **common)
        for layer in LAYERS:
            found = verdicts(own[layer], [r[layer] for r in random[:AGAINST]])
            best = found.table.best[found.passes]
            shapes, stamp = (best < 10).sum(), (best == len(data.NAMES) - 1).sum()
            rule = found.table.interpretable.sum()
            data.row(name, f"`{layer}`", len(found.passes), rule, found.passes.sum(), shapes, stamp)
    print(f"{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
