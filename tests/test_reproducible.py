"""What is promised of bits (docs/reproducibility.md): of programs of one slot everything, of others
closeness.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from launch.job import machine
from perturb import rewards, solver
from perturb._numerics import devices
from perturb.methods.extremal import exact_recipe
from tests import bits, planted

ROOT = pathlib.Path(__file__).parents[1]


def test_a_mask_has_the_same_bits_whatever_is_worked_out_beside_it():
    found = bits.digests(planted.small_network(), 16, steps=4, reproducible=True, operator="fade")
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
def test_a_cpu_is_reproducible_unless_told_otherwise():
    model, images = planted.small_network(), np.full((2, 16, 16, 3), 0.5, np.float32)
    images[:, 4:9, 4:9] = 1
    options = {"areas": 0.2, "steps": 2, "operator": "fade"}
    own, one = (
        perturb.extremal(model, images, [0, 1], **options, **more)
        for more in ({}, {"reproducible": True})
    )
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(own.masks, one.masks)
    side_by_side = perturb.extremal(model, images, [0, 1], **options, reproducible=False)
    # Two steps, and float32 sums of less than 10,000 terms each: rounding is all that differs.
    np.testing.assert_allclose(side_by_side.masks, one.masks, atol=1e-3)


@pytest.mark.slow_cases
@pytest.mark.parametrize("net", ["small", "demo"])
def test_the_gradient_of_one_slot_is_the_slope_of_its_score(net):
    """jaxlib 0.10 and 0.11 can get gradients of a batch of one wrong by most of their size."""
    model = (
        planted.small_network()
        if net == "small"
        else perturb.load_model("demo", key=jax.random.key(0))
    )
    side = 16 if net == "small" else 64
    recipe = exact_recipe((side, side), operator="fade", reward=rewards.logit())
    recipe = solver.Recipe(
        recipe.parametrisation, recipe.operator, recipe.reward, solver.Momentum(), check_every=0
    )
    rng = np.random.default_rng(2)
    image = jnp.asarray(rng.random((1, side, side, 3)), jnp.float32)
    shape = recipe.parametrisation.init((side, side)).shape
    start = jnp.asarray(rng.normal(size=(1, *shape)), jnp.float32)

    def one_step(params):
        areas, counts = jnp.array([0.3], jnp.float32), jnp.array([77], jnp.int32)
        keys, steps = jax.random.split(jax.random.key(0), 1), jnp.array([50], jnp.int32)
        items, state = solver.start(
            model, recipe, image, jnp.array([1]), areas, counts, keys, steps, params
        )
        return solver.advance(model, recipe, items, state, 1)

    # Momentum's first velocity is the gradient itself, so one step shows it without a hook.
    gradient = np.asarray(one_step(start).rule.velocity)  # of the loss, which is minus the score
    direction = gradient / np.linalg.norm(gradient)
    # Along the gradient's own way the slope is its norm, by central differences.
    h = 0.01
    ahead, behind = (float(one_step(start + sign * h * direction).reward[0]) for sign in (1, -1))
    slope = (behind - ahead) / (2 * h)
    # A wrong one was off by three quarters; maxima over pixels bend the score within h.
    np.testing.assert_allclose(np.linalg.norm(gradient), slope, rtol=0.15)


# Held before JAX is imported, and not by `preexec_fn`: that forks this process, in which JAX has
# threads.
HELD = """
import os, runpy, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv.pop(1))])
runpy.run_module("tests.bits", run_name="__main__")
"""


def run(*arguments, isa, processors, threads=None):
    """The digests that a process of its own prints, held to an instruction set, some processors
    and, where given, a number of XLA's threads.
    """
    flags = f"--xla_cpu_max_isa={isa}" if isa else ""
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(processors), *arguments],
        cwd=ROOT,
        # Compiled here and now: no program of another instruction set is read from a cache.
        env={
            **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            **({"PJRT_NPROC": str(threads)} if threads else {}),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ON_LINUX = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or platform.machine() != "x86_64",
    reason="processes are held to instruction sets of x86 and to processors by Linux",
)


def own_set() -> str:
    """The widest instruction set of this machine, as far as the tests tell them apart."""
    with open("/proc/cpuinfo") as file:
        return "AVX512" if "avx512f" in file.read() else "AVX2"


@pytest.mark.slow
@ON_LINUX
@pytest.mark.parametrize("isa", ["SSE4_2", "AVX", "AVX2", None])
def test_one_set_of_bits_for_each_instruction_set(isa):
    """Whatever the batch, the order and a stop; the number of processors is part of the machine."""
    if isa is None and own_set() == "AVX2":
        pytest.skip("the widest instruction set here is AVX2, which has a case of its own")
    nets = (["--net=small", "--side=32"], ["--net=cifar_resnet20", "--side=32"], ["--net=demo"])
    most = min(2, devices.processors())
    # A network is compiled anew in every process, so the large ones are tried with all processors
    # only.
    for net, n in [(nets[0], 1), *((net, most) for net in nets)]:
        found = run(*net, isa=isa, processors=n)
        assert len(set(found.values())) == 1, (net, n, found)


@pytest.mark.slow
@ON_LINUX
def test_with_threads_fixed_bits_do_not_depend_on_the_number_of_processors(monkeypatch):
    """With as many threads as processors this network has other bits on one than on two."""
    if devices.processors() < 2:
        pytest.skip("there is one processor only")
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    machine.fix_threads()
    threads = os.environ["PJRT_NPROC"]
    # Large enough that XLA splits its sums among threads; a few steps are enough for other bits.
    net = ("--net=cifar_resnet20", "--side=32", "--number=2", "--steps=2", "--batches=2")
    one, two = (run(*net, isa=None, processors=n, threads=threads) for n in (1, 2))
    assert one == two


def test_a_number_of_threads_that_is_set_stays(monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "6")
    machine.fix_threads()
    assert os.environ["PJRT_NPROC"] == "6"
