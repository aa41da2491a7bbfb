"""Several devices in one process: the masks of one, whoever worked on them."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import perturb
from perturb._numerics import devices
from tests import planted

ROOT = pathlib.Path(__file__).parents[1]

EQUAL = """
import jax, numpy as np, perturb
from perturb import solver
from tests import planted
assert jax.local_device_count() == 2
used, real = set(), solver.advance_in_place
def advance(model, recipe, items, state, k, **counts):
    used.update(state.step.devices())
    return real(model, recipe, items, state, k, **counts)
solver.advance_in_place = advance
model = planted.small_network()
images = np.random.default_rng(5).random((4, 16, 16, 3), np.float32)
keys = jax.vmap(jax.random.key)(np.arange(4))
options = {"areas": [0.1, 0.3], "steps": 20, "batch_size": 2, "operator": "fade"}
two = perturb.extremal(model, images, [0, 1, 2, 3], keys=keys, **options)
assert len(used) == 2, used
with jax.default_device(jax.devices()[1]):
    used.clear()
    one = perturb.extremal(model, images, [0, 1, 2, 3], keys=keys, **options)
    assert used == {jax.devices()[1]}, used
groups = [(images[i : i + 1], [i], keys[i : i + 1]) for i in range(4)]
parts = list(perturb.stream(perturb.extremal, model, groups, **options))
for name in ("masks", "scores", "score_binary", "steps"):
    whole = getattr(one, name)
    np.testing.assert_array_equal(getattr(two, name), whole, err_msg=name)
    np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), whole)
from perturb import evidence
from perturb.evidence import fills
ran, run_model = set(), fills._run_model
def running(model, views):
    ran.update(jax.tree.leaves(model.variables)[0].devices())
    return run_model(model, views)
fills._run_model = running
cards = []
for place in (None, jax.devices()[0]):
    ran.clear()
    with jax.default_device(place):
        cards.append(evidence.card(model, images, [0, 1, 2, 3], one, operator="fade", keys=keys))
    assert len(ran) == (2 if place is None else 1), ran
for name in ("gain", "control_gain", "transfer_ratio", "rival_score", "verdict"):
    np.testing.assert_array_equal(*(getattr(c, name) for c in cards), err_msg=name)
def fails(*arguments, **counts):
    if used and state_device(arguments) not in used:
        raise RuntimeError("RESOURCE_EXHAUSTED: none left")
    used.add(state_device(arguments))
    return real(*arguments, **counts)
def state_device(arguments):
    return next(iter(arguments[3].step.devices()))
used.clear()
solver.advance_in_place = fails
try:
    perturb.extremal(model, images, [0, 1, 2, 3], keys=keys, **options)
except RuntimeError as error:
    assert "RESOURCE_EXHAUSTED" in str(error)
else:
    raise AssertionError("an error of the second device was lost")
print("equal")
"""


@pytest.mark.slow
def test_two_devices_give_the_masks_of_one_and_their_errors_are_heard():
    done = subprocess.run(
        [sys.executable, "-c", EQUAL],
        cwd=ROOT,
        # JAX counts its CPU devices once, at the start of a process: hence a process of its own.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


def test_the_mesh_is_that_of_the_model_where_it_was_put():
    device = jax.devices()[0]
    weights = jax.device_put(np.ones(3), device)
    mesh = devices.local(like=weights)
    assert mesh.devices.tolist() == [device]
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)
    # Numbers that are no arrays stay what they are: on a device they would be traced values.
    (there,) = devices.alike({"w": weights, "rate": 0.1}, mesh)
    assert there["rate"] == 0.1
    assert there["w"].devices() == {device}


@pytest.mark.slow
def test_groups_whose_shapes_differ_come_in_their_order():
    model = planted.small_network()
    keys = jax.random.split(jax.random.key(0), 1)
    # Two sizes are two compiled programs, of which the smaller one could overtake the first.
    groups = [(np.full((1, side, side, 3), 0.5), [1], keys) for side in (16, 12)]
    options = {"areas": 0.2, "steps": 2, "batch_size": 2, "operator": "fade"}
    found = perturb.stream(perturb.extremal, model, iter(groups), **options)
    assert [r.masks.shape[-1] for r in found] == [16, 12]
    with pytest.raises(ValueError, match="patience"):
        next(perturb.stream(perturb.extremal, model, groups, patience=0, **options))
