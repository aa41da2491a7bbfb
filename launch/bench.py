"""Times the mask optimizer against torchray and against the bare network, in one interleaved run.

  python -m launch.bench --out=out/bench        # every row, some ten minutes on two cores
  python -m launch.bench --out=out/bench --rows=step,whole
  .oracles/bin/python -m launch.bench --out=out/bench   # with torchray beside it (`make oracles` installs it)

Networks have random weights: time does not depend on them. Every row is a ratio of medians of things that took turns
in this run. Leaves bench.md, and bench.json with the seconds of every turn, in --out.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from absl import flags as absl_flags

import perturb
from launch import flags, rival
from perturb import solver
from perturb.methods.extremal import exact_recipe

(_OUT,) = flags.shared("out")
_REPEATS = absl_flags.DEFINE_integer("repeats", 5, "Turns of every case.", lower_bound=2)
_ROWS = absl_flags.DEFINE_list(
    "rows", ["step", "whole", "areas", "resnet50", "cold", "memory", "growth"], "Rows to measure."
)
_SLOTS = absl_flags.DEFINE_integer("slots", 8, "Masks side by side in one step.", lower_bound=2)
_MASK_STEPS = absl_flags.DEFINE_integer(
    "mask_steps", 100, "Steps of a whole mask: those that reach torchray's quality.", lower_bound=1
)


class Row(NamedTuple):
    """One line of the table."""

    what: str
    figure: str
    seconds: dict[str, list[float]]


def _turns(cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every case, `repeats` turns after one that compiles; a case may time itself."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            begin = time.perf_counter()
            own = jax.block_until_ready(case())
            spent = own if isinstance(own, float) else time.perf_counter() - begin
            if turn:
                found[name].append(spent)
    return found


def _middle(found: dict[str, list[float]], name: str) -> float:
    return statistics.median(found[name])


def _slots(model: perturb.Model, side: int, slots: int, area: float = 0.1) -> tuple[Any, ...]:
    size = (side, side)
    images = jnp.asarray(np.random.default_rng(0).random((slots, *size, 3)), jnp.float32)
    recipe = exact_recipe(size)
    count = jnp.full(slots, round(area * side * side), jnp.int32)
    targets, steps = jnp.zeros(slots, jnp.int32), jnp.full(slots, 10_000, jnp.int32)
    keys = jax.random.split(jax.random.key(0), slots)
    begun = solver.start(model, recipe, images, targets, jnp.full(slots, area), count, keys, steps)
    return recipe, *begun, images


@jax.jit
def _network(model: perturb.Model, images: jax.Array) -> jax.Array:
    """The limit: forward and input gradient of the bare network."""
    return jax.grad(lambda x: model(x)[:, 0].sum())(images)


def _step_cases(model: perturb.Model, side: int, slots: int, steps: int = 10) -> dict[str, Any]:
    recipe, items, state, images = _slots(model, side, slots)
    return {
        "network": lambda: [_network(model, images) for _ in range(steps)],
        "step": lambda: solver.advance(model, recipe, items, state, steps),
    }


def _step(name: str = "squeezenet1_1") -> list[Row]:
    model = perturb.load_model(name, key=jax.random.key(0))
    found = _turns(_step_cases(model, 224, _SLOTS.value), _REPEATS.value)
    share = 1 - _middle(found, "network") / _middle(found, "step")
    each = 1e3 * _middle(found, "step") / 10 / _SLOTS.value
    return [
        Row(
            f"{name}: share of a step outside the network, {_SLOTS.value} slots, looks included",
            f"{share:.0%} ({each:.1f} ms a mask and step)",
            found,
        )
    ]


def _whole(name: str = "squeezenet1_1", areas: tuple[float, ...] = (0.1,)) -> list[Row]:
    """A whole call of `extremal` for one picture against torchray's iterations times 800."""
    model = perturb.load_model(name, key=jax.random.key(0))
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    steps = _MASK_STEPS.value
    cases: dict[str, Callable[[], Any]] = {
        "ours": lambda: perturb.extremal(model, image, [0], areas=areas, steps=steps).masks
    }
    missing = rival.available()
    if missing is None:
        cases["torchray's iteration"] = rival.iterations(name, areas, 10)
    found = _turns(cases, _REPEATS.value)
    what = (
        f"{name}: {len(areas)} area{'s' * (len(areas) > 1)}, {steps} steps against torchray's 800"
    )
    if missing is not None:
        return [Row(what, f"{_middle(found, 'ours'):.1f} s; no torchray: {missing}", found)]
    theirs = rival.STEPS * _middle(found, "torchray's iteration")
    ratio = theirs / _middle(found, "ours")
    return [Row(what, f"{ratio:.1f} x ({_middle(found, 'ours'):.1f} s, {theirs:.0f} s)", found)]


_COLD = """
import time; begin = time.perf_counter()
import jax
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
import launch.demo, perturb
from launch.demo import world
model, picture = launch.demo.load("demo"), world.render(7, 4)
perturb.extremal(model, picture.image[None], [picture.target], areas=0.1)
print(time.perf_counter() - begin)
"""


def _cold() -> list[Row]:
    """First mask of a fresh process on the embedded network, compile cache empty and warm."""
    found: dict[str, list[float]] = {"empty": [], "warm": []}
    for _ in range(max(2, _REPEATS.value // 2)):
        with tempfile.TemporaryDirectory() as cache:
            for name in found:
                found[name].append(_process(_COLD.format(cache=cache)))
    figure = f"{_middle(found, 'empty'):.1f} s / {_middle(found, 'warm'):.1f} s"
    return [Row("first mask from a cold start, compile cache empty / warm", figure, found)]


def _process(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.strip().splitlines()[-1])


_MEMORY = """
import resource
import jax
import perturb
from launch import bench
model = perturb.load_model("squeezenet1_1", key=jax.random.key(0))
case = bench._step_cases(model, 224, {slots}, 2)[{name!r}]
jax.block_until_ready(case())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def _memory() -> list[Row]:
    """Peak memory a further picture in flight costs, in processes of their own."""
    slots = (4, 16)
    peak = {
        name: [_process(_MEMORY.format(slots=n, name=name)) for n in slots]
        for name in ("network", "step")
    }
    each = {name: (high - low) / (slots[1] - slots[0]) for name, (low, high) in peak.items()}
    figure = (
        f"{each['step'] / each['network']:.2f} x ({each['step']:.0f} MB, {each['network']:.0f} MB)"
    )
    return [Row("memory of a further picture in flight against the bare network's", figure, peak)]


def _growth() -> list[Row]:
    """Time of a step against pixels and slots, with the exponent of a straight line in logarithms."""
    model = perturb.load_model("squeezenet1_1", key=jax.random.key(0))
    rows = []
    series = {
        "pixels, side 64 to 512": [(side**2, side, 2) for side in (64, 128, 256, 512)],
        "slots (images x areas), 2 to 16": [(slots, 224, slots) for slots in (2, 4, 8, 16)],
    }
    for what, points in series.items():
        cases = {str(x): _step_cases(model, side, slots, 2)["step"] for x, side, slots in points}
        found = _turns(cases, max(2, _REPEATS.value // 2))
        x = np.log([p[0] for p in points])
        slope = np.polyfit(x, np.log([_middle(found, name) for name in cases]), 1)[0]
        rows.append(Row(f"growth of a step with {what}", f"exponent {slope:.2f}", found))
    return rows


_MEASURED: dict[str, Callable[[], list[Row]]] = {
    "step": _step,
    "whole": _whole,
    "areas": lambda: _whole(areas=(0.05, 0.1, 0.2, 0.3)),
    "resnet50": lambda: [*_step("resnet50"), *_whole("resnet50")],
    "cold": _cold,
    "memory": _memory,
    "growth": _growth,
}


def machine() -> dict[str, Any]:
    """Returns where this was measured."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def main() -> int:
    """Measures the rows asked for and writes the table; returns the exit code."""
    unknown = [name for name in _ROWS.value if name not in _MEASURED]
    if unknown:
        raise ValueError(f"--rows must be of {', '.join(_MEASURED)}, got {unknown[0]!r}")
    out = pathlib.Path(_OUT.value or "out/bench")
    out.mkdir(parents=True, exist_ok=True)
    lines = ["| what | figure |", "|---|---|"]
    rows = []
    for name in _ROWS.value:
        for row in _MEASURED[name]():
            rows.append(row._asdict())
            lines.append(f"| {row.what} | {row.figure} |")
            print(lines[-1], flush=True)
    about = machine()
    lines += ["", ", ".join(f"{k} {v}" for k, v in about.items())]
    (out / "bench.md").write_text("\n".join(lines) + "\n")
    (out / "bench.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    print(lines[-1])
    return 0


if __name__ == "__main__":
    flags.run(main)
