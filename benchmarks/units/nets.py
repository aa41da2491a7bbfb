"""SqueezeNet 1.1 and MobileNetV2 on street frames with true masks and on photographs with colours.

  python -m benchmarks.units.nets --networks=6

A null of random networks each; the best unit of every layer with its interval.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np

import perturb
from benchmarks.units import data
from launch import generators
from perturb.internals import dissect_pictures
from perturb.units import concepts

NETS = {
    "squeezenet1_1": (
        "squeezenet1_1",
        "squeezenet1_1",
        ("features.3", "features.6", "features.12"),
    ),
    "mobilenet_v2": ("mobilenet_v2_tf", "mobilenet_v2_1.0_224", None),
}
COLOURS = "red,orange,yellow,green,blue,white,black"


def main() -> None:
    """Prints a row a network, data set and layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--list", action="store_true", help="layers of the networks")
    given = parser.parse_args()
    frames, masks, names = data.camvid()
    photographs = data.photographs()
    coloured = concepts.colours(generators.colours(COLOURS), tolerance=generators.TOLERANCE)
    sets: dict[str, tuple[Any, dict[str, Any]]] = {
        "street": (frames, {"masks": masks, "concepts": names}),
        "photographs": (photographs, {"concepts": coloured}),
    }
    data.row(
        "network",
        "pictures",
        "layer",
        "units",
        "by the rule",
        "random networks, by the rule",
        "pass",
        "best unit",
        "IoU",
        "by chance",
        "CPU, s",
    )
    for name in given.nets.split(","):
        kind, weights, layers = NETS[name]
        model = perturb.load_model(
            kind, weights=data.folder() / "weights" / f"{weights}.safetensors"
        )
        if given.list or layers is None:
            known = perturb.taps.names(model, frames[:2])
            # Layers with places: a unit of the others has no map to compare with masks.
            spatial = [n for n, s in known.items() if len(s.shape) == 4]
            if given.list:
                print(name, spatial)
                continue
            layers = tuple(n for n in spatial if "project" in n or "add" in n)
            # At a quarter, at half and at the end of the network.
            layers = tuple(layers[i] for i in (len(layers) // 4, len(layers) // 2, -1))
        for pictures, (images, asked) in sets.items():
            began = time.process_time()
            found = dissect_pictures(
                model,
                images,
                layers=layers,
                networks=given.networks,
                rotations=0,
                key=jax.random.key(0),
                batch_size=22 if pictures == "street" else 30,
                replicates=100,
                **asked,
            )
            cpu = time.process_time() - began
            for layer, v in found.items():
                t = v.table
                # Units that pass come first, and the best scored of them.
                order = np.lexsort((-v.score, ~v.passes))
                u, k = order[0], t.best[order[0]]
                data.row(
                    name,
                    f"{len(images)} {pictures}",
                    f"`{layer}`",
                    len(v.passes),
                    t.interpretable.sum(),
                    f"{v.null_share:.0%}",
                    v.passes.sum(),
                    f"{u}: {t.concepts[k]}",
                    f"{t.iou[u, k]:.2f} ({t.iou_low[u, k]:.2f} to {t.iou_high[u, k]:.2f})",
                    f"{t.chance[u, k]:.2f}",
                    f"{cpu:.0f}",
                )


if __name__ == "__main__":
    main()
