"""Repairing a shortcut: planted marks come out exactly, and the embedded cheat is put right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from launch import demo
from launch.demo import world
from perturb import taps
from perturb.internals import circuits, edit_out, fine_tune, judge, mark_directions, units_for
from perturb.internals.dissection import layer_tables, verdicts


def _planted():
    """A net whose class is read off the thing (channels 0, 1), and more strongly off a mark (2,
    3).
    """
    weights = {
        "read": {"kernel": np.array([[1.0, 0], [0, 1], [9, 0], [0, 9]]), "bias": np.zeros(2)}
    }

    def f(w, x):
        read = w["params"]["read"]
        a = taps.tag(x.mean((1, 2)), "units")
        return a @ read["kernel"] + read["bias"]

    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
    model = perturb.Model(f, {"params": weights}, channels=4)
    targets = np.arange(40) % 2
    plain = np.zeros((40, 2, 2, 4), np.float32)
    plain[np.arange(40), :, :, targets] = 0.5
    wrong = plain.copy()
    wrong[np.arange(40), :, :, 3 - targets] = 1.0  # the mark of the other class
    return model, plain, wrong, targets


def test_a_planted_mark_is_found_and_edited_out_exactly():
    model, plain, wrong, targets = _planted()
    directions = mark_directions(model, wrong, plain, layer="units")
    # The marks' two channels at right angles, and nothing of the thing's.
    np.testing.assert_allclose(directions.T @ directions, np.diag([0.0, 0, 1, 1]), atol=1e-6)
    mean = plain.mean((0, 1, 2))
    mended = edit_out(model, directions, kernel="read/kernel", bias="read/bias", around=mean)
    groups = {"wrong": (wrong, targets), "unmarked": (plain, targets)}
    for after in (mended, circuits.exchange_units(model, "units", [2, 3])):
        found = judge(model, after, groups)
        # From all wrong to all right.
        assert found["wrong"][:2] == (0.0, 1.0)
        assert found["unmarked"][:2] == (1.0, 1.0)
        assert found["wrong"].change.gained == 40
    # The model given is not the one that is changed.
    assert model.variables["params"]["read"]["kernel"][2, 0] == 9
    assert not mark_directions(model, plain, plain, layer="units").size
    with pytest.raises(ValueError, match="nearest: params/read"):
        edit_out(model, directions, kernel="kernels")
    with pytest.raises(ValueError, match="same scenes"):
        mark_directions(model, plain[:3], plain, layer="units")


def test_training_moves_the_named_leaves_only_and_unlearns_the_mark():
    model, _, wrong, targets = _planted()
    options = {"steps": 300, "rate": 0.1, "batch_size": 16, "key": jax.random.key(0)}
    after = fine_tune(model, wrong, targets, leaves=["kernel"], **options)
    assert np.array_equal(after.variables["params"]["read"]["bias"], np.zeros(2))
    assert judge(model, after, {"wrong": (wrong, targets)})["wrong"].after == 1.0
    again = fine_tune(model, wrong, targets, leaves=["kernel"], **options)
    # The same key gives the same training, bit for bit.
    assert np.array_equal(*(m.variables["params"]["read"]["kernel"] for m in (after, again)))
    with pytest.raises(ValueError, match="leaves must name some"):
        fine_tune(model, wrong, targets, leaves=["weights"], **options)


@pytest.mark.slow
def test_the_cheats_stamp_units_off_take_the_stamp_away_and_the_honest_network_has_none():
    names = world.label_names[1:]
    drawn = world.render_batch(11, range(150), watermark="random")
    masks = drawn.label[..., None] == 1 + np.arange(len(names))
    right, plain = (world.render_batch(5, range(200), watermark=w) for w in ("right", None))
    groups = {"stamped": (right.image, right.target), "unstamped": (plain.image, plain.target)}
    common = {
        "layers": ["relu#6"],
        "masks": masks,
        "concepts": names,
        "replicates": 0,
        "batch_size": 50,
    }
    found = {}
    for name in demo.NAMES:
        model = demo.load(name)
        null = [perturb.load_model("demo", key=jax.random.key(k)) for k in range(2)]
        tables = [layer_tables(m, drawn.image, **common)["relu#6"] for m in (model, *null)]
        units = units_for(verdicts(tables[0], tables[1:]), "watermark")
        found[name] = units, judge(model, circuits.exchange_units(model, "relu#6", units), groups)
    units, outcome = found["demo_cheat"]
    assert len(units) >= 60
    assert outcome["stamped"].before > 0.95
    # As good as without a stamp: what is left of it does not help.
    assert outcome["stamped"].after < outcome["unstamped"].before + 0.06
    units, outcome = found["demo"]
    assert not len(units)
    assert outcome["stamped"].change.lost == outcome["unstamped"].change.lost == 0
