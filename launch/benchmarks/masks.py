"""The mask optimizer against the bare network, its limit, and against torchray, what it
replaces.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from launch import rival
from launch.benchmarks.turns import Row, exponent, middle, process, turns
from perturb import masks, operators, solver
from perturb.methods.extremal import exact_recipe
from perturb.types import Function, PyTree

__all__ = [
    "Settings",
    "batches",
    "cold",
    "four_areas",
    "growth",
    "memory",
    "profile",
    "resnet50",
    "step",
    "step_cases",
    "whole",
]

_SIDE = 224
# That one case takes: enough that what begins and ends it does not count.
_STEPS = 40
_AREA = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Attributes:
      repeats: turns of every case.      slots: masks side by side.      clock: see `turns.CLOCKS`.
      mask_steps: of a whole mask, those that reach torchray's quality
        (`benchmarks.quality --steps`).
    """

    repeats: int = 5
    slots: int = 8
    mask_steps: int = 100
    clock: str = "wall"


def _net(name: str) -> perturb.Model:
    # Random weights take the time of trained ones.
    return perturb.load_model(name, key=jax.random.key(0))


def _slots(side: int, slots: int) -> tuple[np.ndarray, ...]:
    images = np.random.default_rng(0).random((slots, side, side, 3), np.float32)
    return images, np.full(slots, round(_AREA * side * side), np.int32)


def _begun(
    model: perturb.Model, recipe: solver.Recipe, side: int, slots: int
) -> tuple[solver.Items, solver.State]:
    """Slots after 5 of 100 steps."""
    images, count = _slots(side, slots)
    area, steps = jnp.full(slots, _AREA), jnp.full(slots, 100, jnp.int32)
    keys = jax.random.split(jax.random.key(0), slots)
    target = jnp.zeros(slots, jnp.int32)
    items, state = solver.start(model, recipe, images, target, area, count, keys, steps)
    # Begun: the first steps compile, and start from a state that no later one has.
    return items, solver.advance(model, recipe, items, state, 5)


@jax.jit
def _forward(model: perturb.Model, images: jax.Array) -> jax.Array:
    # The sum over the pictures: its gradient is that of each of them, in one pass.
    found: jax.Array = model(images)[:, 0].sum()
    return found


# The limit of a step: forward and input gradient of the bare network.
_network = jax.jit(jax.grad(_forward, argnums=1))


def step_cases(
    model: perturb.Model,
    side: int,
    slots: int,
    steps: int = _STEPS,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> dict[str, Callable[[], Any]]:
    """Returns `steps` calls of the network, and steps before and after half the course of 100.

    Steps follow one another as in a run of the library. Ten of the second half hold one check of
    the binarised masks, those of the first none.
    """
    model, recipe = solver.ready(model, exact_recipe((side, side), dtype=dtype))
    items, state = _begun(model, recipe, side, slots)
    images = jnp.asarray(_slots(side, slots)[0], dtype)
    # From the middle of the course on the binary mask is checked every few steps.
    late = state._replace(step=jnp.full(slots, 55, jnp.int32))
    return {
        "network": lambda: [_network(model, images) for _ in range(steps)],
        "first half": lambda: solver.advance(model, recipe, items, state, steps),
        "second half": lambda: solver.advance(model, recipe, items, late, steps),
    }


def step(how: Settings, name: str = "squeezenet1_1") -> list[Row]:
    """The share of a step that is not the network's forward and input gradient."""
    found = turns(step_cases(_net(name), _SIDE, how.slots), how.repeats, how.clock)
    bare, first, second = (middle(found, n) for n in ("network", "first half", "second half"))
    mean = (first + second) / 2
    each = 1e3 * mean / _STEPS / how.slots
    figure = (
        f"{1 - bare / mean:.1%}, without the checks {1 - bare / first:.1%} "
        f"({each:.1f} ms of {how.clock} a mask and step)"
    )
    return [Row(f"{name}: share of a step outside the network, {how.slots} slots", figure, found)]


def profile(how: Settings, name: str = "squeezenet1_1") -> list[Row]:
    """One step by its parts, each compiled by itself, forward and back; what is left is the last
    line.
    """
    model, slots, size = _net(name), how.slots, (_SIDE, _SIDE)
    model, recipe = solver.ready(model, exact_recipe(size))
    items, state = _begun(model, recipe, _SIDE, slots)
    images = jnp.asarray(_slots(_SIDE, slots)[0])
    warm = jnp.full(slots, 0.1)

    def both(function: Function, *args: object) -> Callable[[], Any]:
        """The function and its gradient for the last argument."""
        *fixed, x = args

        @jax.jit
        def run(fixed: PyTree, x: jax.Array) -> object:
            # Forward and back in one program, as in a step.
            value, back = jax.vjp(lambda x: jax.vmap(function)(*fixed, x), x)
            return value, back(jnp.ones_like(value))

        return lambda: run(fixed, x)

    def spread(area: jax.Array, params: jax.Array) -> jax.Array:
        found: jax.Array = recipe.parametrisation.scores(params, size, area)
        return found

    def cut(area: jax.Array, temperature: jax.Array, scores: jax.Array) -> jax.Array:
        return masks.exact_area(scores, area, temperature=temperature)

    def show(reference: jax.Array, key: jax.Array, at: jax.Array, mask: jax.Array) -> jax.Array:
        view = operators.at_step(recipe.operator, reference, mask, at)
        return recipe.augment(view, mask, key, at)

    scores = jax.jit(jax.vmap(spread))(items.area, state.params)
    shown = jax.jit(jax.vmap(cut))(items.area, warm, scores)
    update = jax.jit(jax.vmap(recipe.rule.transform().update))
    cases = {
        "step": lambda: solver.advance(model, recipe, items, state, 1),
        "forward": lambda: _forward(model, images),
        "network": lambda: _network(model, images),
        "mask (spreading the scores)": both(spread, items.area, state.params),
        "projection to the area": both(cut, items.area, warm, scores),
        "operator and mirror": both(show, items.reference, items.key, state.step, shown),
        "optimizer": lambda: update(state.params, state.rule),
    }
    # Single steps are short: more turns for a steady median.
    found = turns(cases, 3 * how.repeats, how.clock)
    times = {part: 1e3 * middle(found, part) / slots for part in cases}
    whole = times.pop("step")
    # Not timed by itself: a gradient without its forward pass does not exist.
    times["backward"] = times.pop("network") - times["forward"]
    times["everything else"] = whole - sum(times.values())
    rows = [Row(f"{name}: one step, a mask, {slots} slots", f"{whole:.2f} ms", found)]
    return rows + [Row(f"- {k}", f"{t:.2f} ms, {t / whole:.1%}", {}) for k, t in times.items()]


def whole(
    how: Settings, name: str = "squeezenet1_1", areas: Sequence[float] = (_AREA,)
) -> list[Row]:
    """A whole call of `extremal` for one picture against torchray's iterations times 800."""
    model, steps = _net(name), how.mask_steps
    image = _slots(_SIDE, 1)[0]
    cases: dict[str, Callable[[], Any]] = {
        "ours": lambda: perturb.extremal(model, image, [0], areas=areas, steps=steps).masks
    }
    missing = rival.available()
    if missing is None:
        cases["torchray's iteration"] = rival.iterations(name, areas, 10, clock=how.clock)
    found = turns(cases, how.repeats, how.clock)
    number = f"{len(areas)} area{'s' * (len(areas) > 1)}"
    what = f"{name}: {number}, {steps} steps against torchray's {rival.STEPS}"
    ours = middle(found, "ours")
    if missing is not None:
        return [Row(what, f"{ours:.1f} s; no torchray: {missing}", found)]
    # Ten iterations are timed and multiplied: 800 of them take minutes, all of equal length.
    theirs = rival.STEPS * middle(found, "torchray's iteration")
    figure = f"{theirs / ours:.1f} x ({ours:.1f} s, {theirs:.0f} s of {how.clock})"
    return [Row(what, figure, found)]


def batches(how: Settings, name: str = "resnet50") -> Iterator[Row]:
    """Masks a second over numbers of slots, float32 and bfloat16, against the bare network.

    For accelerators: also the share that the bare network and a step reach of the rate of a product
    of large matrices on the same device. What a step adds to the network's operations is not
    counted.
    """
    model, theirs = _net(name), None
    if rival.available() is None:
        theirs = rival.STEPS * middle(
            turns({"t": rival.iterations(name, (_AREA,), 50)}, how.repeats), "t"
        )
    for dtype in (jnp.float32, jnp.bfloat16):
        peak = _matrix_rate(dtype, how.repeats)
        for slots in (how.slots, 4 * how.slots, 16 * how.slots):
            cases = step_cases(model, _SIDE, slots, dtype=dtype)
            found = turns(cases, how.repeats, how.clock)
            bare, first, second = (
                middle(found, case) / _STEPS for case in ("network", "first half", "second half")
            )
            ours = (first + second) / 2
            rate = slots / ours / how.mask_steps
            x = jnp.zeros((slots, _SIDE, _SIDE, 3), dtype)
            work = _operations(_network, model, x)
            against = "" if theirs is None else f", torchray's x {rate * theirs:.0f}"
            figure = (
                f"{rate:.2f} masks/s{against}; {bare / ours:.1%} of the bare network's rate, "
                f"without the checks {bare / first:.1%} ({1e3 * bare:.2f} and {1e3 * first:.2f} "
                f"ms); of the matrix rate {peak / 1e12:.1f} TFLOP/s: network "
                f"{work / bare / peak:.0%}, step {work / ours / peak:.0%}"
            )
            what = f"{name}, {jnp.dtype(dtype).name}, {slots} slots, {how.mask_steps} steps"
            yield Row(what, figure, found)


def _operations(function: Any, *args: object) -> float:
    """Floating-point operations of the program as written, counted as for a CPU: a GPU's client
    cannot.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    with jax.default_device(jax.devices("cpu")[0]):
        cost = function.lower(*shapes).cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def _matrix_rate(dtype: jax.typing.DTypeLike, repeats: int) -> float:
    """Operations a second of a square product: 8192 on accelerators, 1024 on CPUs."""
    n = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    found = turns({"product": lambda: [product(x, x) for _ in range(10)]}, repeats)
    # Ten products of 2 n^3 operations each.
    return 20 * n**3 / middle(found, "product")


# The clock starts before the imports, for who starts cold waits for them too. Without the last
# setting JAX would keep only programs that take a second or more to compile.
_COLD = """
import time; begin = time.perf_counter(), time.process_time()
import jax
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
import launch.demo, perturb
from launch.demo import world
model, picture = launch.demo.load("demo"), world.render(7, 4)
perturb.extremal(model, picture.image[None], [picture.target], areas=0.1)
print(time.perf_counter() - begin[0] if {clock!r} == "wall" else time.process_time() - begin[1])
"""


def cold(how: Settings) -> list[Row]:
    """First mask of a fresh process on the embedded network, compile cache empty and warm."""
    found: dict[str, list[float]] = {"empty": [], "warm": []}
    for _ in range(max(2, how.repeats // 2)):
        # A fresh folder is the empty cache; the second process finds it filled.
        with tempfile.TemporaryDirectory() as cache:
            for name in found:
                found[name].append(process(_COLD.format(cache=cache, clock=how.clock)))
    figure = f"{middle(found, 'empty'):.1f} s / {middle(found, 'warm'):.1f} s of {how.clock}"
    return [Row("first mask from a cold start, compile cache empty / warm", figure, found)]


# `ru_maxrss` is in KiB on Linux; a Mac counts in bytes.
_MEMORY = """
import resource
import jax
import perturb
from launch.benchmarks import masks
model = perturb.load_model("squeezenet1_1", key=jax.random.key(0))
case = masks.step_cases(model, {side}, {slots}, 2)[{name!r}]
jax.block_until_ready(case())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def _peak(name: str, side: int, slots: int) -> float:
    return process(_MEMORY.format(side=side, slots=slots, name=name))


def memory(how: Settings) -> list[Row]:
    """Peak memory that a further picture in flight costs, in processes of their own."""
    del how
    # The difference of two batch sizes: what a process takes anyway falls out.
    slots = (4, 16)
    peak = {name: [_peak(name, _SIDE, n) for n in slots] for name in ("network", "first half")}
    bare, ours = ((high - low) / (slots[1] - slots[0]) for low, high in peak.values())
    figure = f"{ours / bare:.2f} x ({ours:.1f} MiB, {bare:.1f} MiB)"
    return [Row("memory of a further picture in flight against the bare network's", figure, peak)]


def growth(how: Settings) -> list[Row]:
    """Time and peak memory of a step against pixels and slots, with exponents."""
    model, rows = _net("squeezenet1_1"), []
    sides, counts = (64, 128, 256, 512), (2, 4, 8, 16)
    series = {
        "pixels, side 64 to 512": [(side**2, side, 2) for side in sides],
        "slots (images x areas), 2 to 16": [(slots, _SIDE, slots) for slots in counts],
    }
    for what, points in series.items():
        x = [p[0] for p in points]
        cases = {str(n): step_cases(model, side, k, 2)["first half"] for n, side, k in points}
        found = turns(cases, max(2, how.repeats // 2), how.clock)
        time = exponent(x, [middle(found, name) for name in cases])
        # Of the smallest and the largest only: each takes a process that compiles afresh.
        low, high = (_peak("first half", *points[i][1:]) for i in (0, -1))
        figure = (
            f"time to the power {time:.2f}; peak memory of the process {low:.0f} to {high:.0f} MiB"
        )
        rows.append(Row(f"growth of a step with {what}", figure, found))
    return rows


four_areas = functools.partial(whole, areas=(0.05, 0.1, 0.2, 0.3))
resnet50 = functools.partial(whole, name="resnet50")
