"""Times the mask optimizer against torchray and the bare network, and dissection against the
generator.

  python -m launch.bench --out=out/bench  # every row but `batches`, some ten minutes on two cores
  python -m launch.bench --out=out/bench --rows=step,whole
  python -m launch.bench --out=out/bench --rows=batches,whole,step   # on a GPU
  .oracles/bin/python -m launch.bench --out=out/bench  # torchray beside it, see `make oracles`

Networks have random weights: time does not depend on them. Every row is a ratio of medians of
things that took turns in this run. Leaves bench.md, and bench.json with the seconds of every turn,
in --out.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterable

import jax
import jaxlib.version
from absl import flags as absl_flags

from launch import flags
from launch.benchmarks import generators, masks, turns
from perturb.types import Record

_ROWS: dict[str, Callable[[masks.Settings], Iterable[turns.Row]]] = {
    "step": masks.step,
    "profile": masks.profile,
    "whole": masks.whole,
    "areas": masks.four_areas,
    "resnet50": masks.resnet50,
    "cold": masks.cold,
    "memory": masks.memory,
    "growth": masks.growth,
    "dissection": generators.dissection,
    "sweep": generators.sweep,
    "gan_growth": generators.growth,
    "batches": masks.batches,
}

(_OUT,) = flags.shared("out")
_ASKED = absl_flags.DEFINE_list(
    "rows",
    # Large batches of a ResNet-50 are for accelerators.
    [name for name in _ROWS if name != "batches"],
    f"Rows to measure, of {', '.join(_ROWS)}.",
)
_REPEATS = absl_flags.DEFINE_integer("repeats", 5, "Turns of every case.", lower_bound=2)
_SLOTS = absl_flags.DEFINE_integer("slots", 8, "Masks side by side in one step.", lower_bound=2)
_MASK_STEPS = absl_flags.DEFINE_integer(
    "mask_steps", 100, "Steps of a whole mask: those that reach torchray's quality.", lower_bound=1
)
_CLOCK = absl_flags.DEFINE_enum(
    "clock", "wall", list(turns.CLOCKS), "Time of the wall, or of this process's own threads."
)


def machine() -> Record:
    """Returns where this was measured."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        # A busy machine shows: its ratios are no measure.
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
    }


def main() -> int:
    """Measures the rows asked for and writes the table; returns the exit code."""
    unknown = [name for name in _ASKED.value if name not in _ROWS]
    if unknown:
        raise ValueError(f"--rows must be of {', '.join(_ROWS)}, got {unknown[0]!r}")
    out = pathlib.Path(_OUT.value or "out/bench")
    out.mkdir(parents=True, exist_ok=True)
    how = masks.Settings(
        repeats=_REPEATS.value,
        slots=_SLOTS.value,
        mask_steps=_MASK_STEPS.value,
        clock=_CLOCK.value,
    )
    lines = ["| what | figure |", "|---|---|"]
    rows = []
    for name in _ASKED.value:
        # Printed row by row: the whole table takes minutes.
        for row in _ROWS[name](how):
            rows.append(row._asdict())
            lines.append(f"| {row.what} | {row.figure} |")
            print(lines[-1], flush=True)
    # A figure without its machine cannot be compared with another.
    about = machine()
    lines += ["", ", ".join(f"{k} {v}" for k, v in about.items())]
    (out / "bench.md").write_text("\n".join(lines) + "\n")
    (out / "bench.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    print(lines[-1])
    return 0


if __name__ == "__main__":
    flags.run(main)
