"""Ablation: exact zeros where a unit leads nowhere, closed forms, and the picture world's own
units.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from launch import demo
from launch.demo import world
from perturb.internals import (
    Answers,
    ablate,
    balanced_accuracy,
    class_units,
    interaction,
    joint_orders,
    matched_sets,
    rank_units,
    unit_p_values,
)
from perturb.statistics import discoveries

DEAD = 5


@pytest.fixture(scope="module")
def pictures():
    return world.render_batch(21, range(240))


@pytest.fixture(scope="module")
def cut_off():
    """The demo net, and one unit of its last layer without outgoing weights."""
    model = demo.load("demo")
    kernel = model.variables["params"]["classes"]["kernel"].at[DEAD].set(0.0)
    params = {
        **model.variables["params"],
        "classes": {**model.variables["params"]["classes"], "kernel": kernel},
    }
    return perturb.Model(model.apply, {"params": params})


@pytest.mark.parametrize("off", ["zero", "mean", "resample"])
def test_a_unit_without_outgoing_weights_has_an_effect_of_exactly_zero(cut_off, pictures, off):
    found = ablate(
        cut_off,
        pictures.image[:40],
        pictures.target[:40],
        layer="relu#6",
        off=off,
        key=jax.random.key(0),
    )
    assert not found.effect()[DEAD].any()
    assert not found.effect("margin")[DEAD].any()
    # Nearly all of the other 63 have some effect: the zeros are not those of a blind measure.
    assert (np.abs(found.effect()).max(1) > 0).sum() >= 60


def test_one_linear_layer_loses_what_the_unit_gave():
    weights = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    def f(w, x):
        return perturb.taps.tag(x.mean((1, 2)), "units") @ w

    model = perturb.Model(f, weights, channels=6)
    images = np.random.default_rng(1).random((20, 3, 3, 6)).astype(np.float32)
    targets = np.random.default_rng(2).integers(0, 4, 20)
    found = ablate(model, images, targets, layer="units", sets=[[1], [1, 4]], batch_size=8)
    # The layer by its definition, in double precision, without the units that are off.
    units = images.astype(np.float64).mean((1, 2))
    for row, chosen in enumerate([[], [1], [1, 4]]):
        logits = np.delete(units, chosen, 1) @ np.delete(weights, chosen, 0)
        assert (found.predicted[row] == logits.argmax(1)).all()
        true = logits[np.arange(20), targets]
        shifted = np.log(np.exp(logits).sum(1))
        # A softmax of four float32 logits.
        np.testing.assert_allclose(found.log_probability[row], true - shifted, atol=1e-5)
    means = ablate(model, images, targets, layer="units", sets=[[2]], off="mean")
    held = np.where(np.arange(6) == 2, units.mean(0), units) @ weights
    assert (means.predicted[1] == held.argmax(1)).all()


def test_parts_and_batches_give_the_same_bits(pictures):
    model = demo.load("demo")
    common = {"layer": "relu#5", "sets": [[0], [1, 2]], "batch_size": 16}
    whole = ablate(model, pictures.image[:60], pictures.target[:60], **common)
    parts = [
        ablate(model, pictures.image[:60], pictures.target[:60], pictures=span, **common)
        # 21 is no multiple of the batch: parts may be cut anywhere.
        for span in ((0, 21), (21, 60))
    ]
    joined = np.concatenate([p.log_probability for p in parts], 1)
    assert np.array_equal(whole.log_probability, joined)


def test_the_continuous_ranking_costs_more_than_the_published(pictures):
    model = demo.load("demo")
    tables = {
        by: class_units(
            model,
            pictures.image,
            pictures.target,
            layer="relu#6",
            sizes=(1, 4, 8),
            by=by,
            controls=4,
            key=jax.random.key(0),
            replicates=200,
        )
        for by in ("log_probability", "accuracy", "joint")
    }
    ours, published, joint = (np.array([i.value for i in t.off]) for t in tables.values())
    assert (ours <= published + 0.01).all()
    assert ours[-1] < 0.75 < published[-1]
    assert (joint <= published).all()
    assert joint[-1] <= ours[-1]
    orders = tables["joint"].orders
    # Every order names every unit once.
    assert (np.sort(orders, 1) == np.arange(64)).all()
    assert all(i.low > 0 for i in tables["log_probability"].lost[1:])


def test_units_that_stand_in_for_each_other_interact():
    def f(_, x):
        a = perturb.taps.tag(x.mean((1, 2)), "units")
        return jnp.stack([a.max(-1) * 4, jnp.full(len(a), 1.0)], -1)

    model = perturb.Model(f, jnp.zeros(1), channels=2)
    images = np.ones((8, 2, 2, 2), np.float32)
    found = ablate(model, images, np.zeros(8, int), layer="units", sets=[[0], [1], [0, 1]])
    # Either unit alone hides that the other is there; without both the answer falls by 4.
    assert found.effect("margin").mean(1).tolist() == [0.0, 0.0, 4.0]
    assert interaction(found, 2, [0, 1]).value == np.inf
    assert rank_units(found).tolist() == [2, 0, 1]


def test_units_that_say_the_same_are_taken_one_beside_the_other():
    # The first two units are one thing twice, the third is another: alone, either of the two says
    # nothing; each beside the other does.
    def f(_, x):
        a = perturb.taps.tag(x.mean((1, 2)), "units")
        one = 2 * jnp.maximum(a[:, 0], a[:, 1]) + a[:, 2]
        return jnp.stack([one, jnp.full(len(a), 0.5), jnp.full(len(a), -1.0)], -1)

    model = perturb.Model(f, jnp.zeros(1), channels=3)
    images = np.ones((7, 2, 2, 3), np.float32)
    common = {"layer": "units", "chunk": 2}
    found = joint_orders(model, images, np.zeros(7, int), count=3, **common)
    # The third costs something by itself; of the twins the first in number goes before the other.
    assert found.tolist() == [[2, 0, 1]]
    single = ablate(model, images, np.zeros(7, int), **common)
    # Logits 3, 0.5 and -1: beside the class 0.5 is the highest, and 1 less without the third unit.
    assert single.effect("soft").mean(1).tolist() == pytest.approx(
        [0, 0, 1 / (1 + np.exp(-2.5)) - 1 / (1 + np.exp(-1.5))], abs=1e-6
    )
    # By hand, on a linear layer: every step the costliest beside those before.
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(9, 4)).astype(np.float32)
    linear = perturb.Model(
        lambda w, x: perturb.taps.tag(x.mean((1, 2)), "units") @ w, weights, channels=9
    )
    images = rng.random((30, 2, 2, 9)).astype(np.float32)
    targets = rng.integers(0, 4, 30)
    found = joint_orders(linear, images, targets, count=4, **common)
    units = images.astype(np.float64).mean((1, 2))
    for c in range(4):
        own, off = units[targets == c], []
        for _ in range(4):
            kept = np.full(9, np.inf)
            for u in set(range(9)) - set(off):
                logits = np.delete(own, [*off, u], 1) @ np.delete(weights, [*off, u], 0)
                margin = logits[:, c] - np.delete(logits, c, 1).max(1)
                kept[u] = np.mean(1 / (1 + np.exp(-margin)))
            off.append(int(kept.argmin()))
        assert found[c].tolist() == off
    with pytest.raises(ValueError, match="count must be 1 to 9"):
        joint_orders(linear, images, targets, count=10, **common)


def test_shuffled_units_are_no_discoveries_and_a_planted_one_is():
    rng = np.random.default_rng(0)
    empty = np.zeros((1, 200))
    shares = []
    for _ in range(100):
        # Costs whose size depends on the picture and whose sign on nothing: no unit is special.
        cost = rng.exponential(size=(1, 200)) * rng.normal(size=(40, 200))
        found = Answers("a", np.eye(41), empty[0], empty, np.concatenate([empty, -cost]), empty)
        shares.append(discoveries(unit_p_values(found), rate=0.05).mean())
    # Under the null a draw has a discovery with chance .05; a share of units is less.
    assert np.mean(shares) <= 0.07
    # On every picture alike, as a unit costs that the network needs.
    cost[7] += 0.5
    found = found._replace(log_probability=np.concatenate([empty, -cost]))
    assert unit_p_values(found).argmin() == 7
    assert discoveries(unit_p_values(found)).sum() == 1
    # Nothing but ties: each unit costs no more than the others.
    flat = found._replace(log_probability=np.zeros((41, 200)))
    assert (unit_p_values(flat) == 1).all()


def test_matched_sets_have_about_the_same_mean_and_no_unit_twice():
    rng = np.random.default_rng(0)
    # Cubed, so that most means are small and a random set would have a far lower sum.
    means = rng.random(64) ** 3
    chosen = np.argsort(-means)[:8]
    sets = matched_sets(means, chosen, 50, rng)
    assert (sets.sum(1) == 8).all()
    assert np.abs((sets @ means).mean() / means[chosen].sum() - 1) < 0.2


def test_bad_input_is_refused(pictures):
    model = demo.load("demo")
    with pytest.raises(ValueError, match="off must be one of"):
        ablate(model, pictures.image, pictures.target, layer="relu#6", off="noise")
    with pytest.raises(ValueError, match="units of 'relu#6' are 0 to 63"):
        ablate(model, pictures.image, pictures.target, layer="relu#6", sets=[[64]])
    with pytest.raises(ValueError, match="targets must hold class"):
        balanced_accuracy([0, 0], [0, 0], 0)
