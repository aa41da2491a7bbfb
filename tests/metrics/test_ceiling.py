"""The greedy ceiling where the best order is known: of an additive model, by what each patch
adds.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import metrics
from perturb.metrics import Preset

PRESET = Preset(name="plain", steps=9, removed=0.0, start=0.0, output="logit")
# 1 to 9 in some order, no two alike: the best order is known and has no ties.
WEIGHTS = np.random.default_rng(0).permutation(9).astype(np.float32) + 1


def additive(w, x):
    cells = x.mean(-1).reshape(len(x), 3, 4, 3, 4).sum((2, 4)).reshape(len(x), 9)
    return jnp.stack([cells @ w, -cells @ w], 1)


@pytest.mark.parametrize("order", ["deletion", "insertion"])
def test_an_additive_model_is_taken_apart_by_what_each_patch_adds(order):
    model = perturb.Model(additive, jnp.asarray(WEIGHTS))
    images = np.ones((2, 12, 12, 3), np.float32)
    found = metrics.greedy_ceiling(model, images, [0, 1], order=order, cells=3, preset=PRESET)
    # One pixel of each cell of 4 px: a map is flat within its cells.
    cells = found[:, 2::4, 2::4].reshape(2, 9)
    np.testing.assert_array_equal(cells[0], WEIGHTS)
    # Against the second class the patches count the other way round.
    np.testing.assert_array_equal(cells[1], 10 - WEIGHTS)


def test_no_map_is_better_by_the_metric_it_was_made_with():
    model = perturb.Model(additive, jnp.asarray(WEIGHTS))
    images = np.ones((1, 12, 12, 3), np.float32)
    best = metrics.greedy_ceiling(model, images, [0], cells=3, preset=PRESET)
    area = metrics.deletion(model, images, [0], best, preset=PRESET).area[0]
    rng = np.random.default_rng(1)
    # Twenty of the 9! orders: none may be better than the best, and ties are allowed.
    for _ in range(20):
        other = rng.random((1, 3, 3)).repeat(4, 1).repeat(4, 2)
        assert metrics.deletion(model, images, [0], other, preset=PRESET).area[0] >= area


def test_wrong_arguments_are_named():
    model = perturb.Model(additive, jnp.asarray(WEIGHTS))
    with pytest.raises(ValueError, match="order must be"):
        metrics.greedy_ceiling(model, np.ones((1, 12, 12, 3)), [0], order="luck")
    with pytest.raises(ValueError, match="cells must be from 1 to 12"):
        metrics.greedy_ceiling(model, np.ones((1, 12, 12, 3)), [0], cells=13)
