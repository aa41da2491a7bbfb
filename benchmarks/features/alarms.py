"""Are units of a network of photographs, which nobody built to fool, let through?

python -m benchmarks.features.alarms
"""

from __future__ import annotations

import jax
import numpy as np

from benchmarks.features.channels import network
from benchmarks.units import data
from perturb.internals import features

SIZE, LAYERS, LAYER = 96, ("features.4", "features.6", "features.7"), "features.9"


def main() -> None:
    """Prints a table."""
    model = network("squeezenet1_1", SIZE)
    shape = (64, SIZE, SIZE, 3)
    natural = np.asarray(jax.image.resize(data.photographs()[:64], shape, "linear")).clip(0, 1)
    wanted = features.channel(LAYER, np.arange(3, 203, 25))
    found = features.visualise(
        model, wanted, preset="maco", steps=24, batch_size=8, key=jax.random.key(0)
    )
    known = features.quality(model, wanted, found, natural, layers=LAYERS)
    flagged = sum(v.startswith("takes another way") for v in known.verdict)
    data.row("units", "flagged", *(f"route, `{n}`: least" for n in LAYERS))
    data.row(len(known.verdict), flagged, *(f"{x:.2f}" for x in known.route.min(0)))


if __name__ == "__main__":
    main()
