"""The way of a picture through the network: 1 among the same, 0 among others, and a circuit that
fools is flagged.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.embedded import world
from perturb.internals import features
from tests import fooling


def _coloured(rng, colour, count):
    noise = rng.uniform(-0.05, 0.05, (count, 8, 8, 3))
    return (np.array(colour) + noise).astype(np.float32)


def _two_ways(variables, x):
    """A unit that reads the reds on one way and the blues on another."""
    mean = x.mean((1, 2))
    ways = taps.tag(
        jax.nn.relu(jnp.concatenate([mean[:, :1] @ variables, mean[:, 2:] @ variables], 1) - 0.3),
        "ways",
    )
    return taps.tag(ways.sum(1, keepdims=True), "unit")


def test_paths_are_those_of_one_picture_at_a_time():
    rng = np.random.default_rng(0)
    model = perturb.Model(
        lambda w, x: taps.tag(jax.nn.relu(x.mean((1, 2)) @ w), "middle"),
        jnp.asarray(rng.normal(size=(3, 40)), jnp.float32),
    )
    natural = np.concatenate(
        [_coloured(rng, (0.9, 0.1, 0.1), 4), _coloured(rng, (0.1, 0.1, 0.9), 8)]
    )
    values = np.r_[np.ones(4), np.zeros(8)][None]
    found = features.paths(model, natural[:1], natural, values, ("middle",), alike=4)
    one = features.path_similarity(model, natural[0], natural[:4], natural[4:], ("middle",))
    assert found[0] == pytest.approx(one, abs=1e-9)


def test_a_route_is_what_the_unit_reads_and_not_what_else_is_there():
    rng = np.random.default_rng(1)
    model = perturb.Model(_two_ways, jnp.asarray(rng.uniform(0.2, 1, (1, 12)), jnp.float32))
    natural = np.concatenate(
        [_coloured(rng, (0.9, 0.1, 0.1), 6), _coloured(rng, (0.3, 0.1, 0.1), 6)]
    )
    wanted = features.channel("unit", 0)
    values = features.evaluate(model, wanted, natural)
    pictures = np.concatenate(
        [_coloured(rng, (0.9, 0.1, 0.1), 1), _coloured(rng, (0.1, 0.1, 0.9), 1)]
    )
    for picture, low, high in zip(pictures, (0.9, -1), (1.1, 0.1), strict=True):
        found = features.routes(model, wanted, picture[None], natural, values, ("ways",), alike=6)
        assert low <= found[0, 0] <= high


def test_too_few_natural_pictures_get_one_line():
    model = perturb.Model(lambda w, x: taps.tag(x.mean((1, 2)), "middle"), jnp.float32(0))
    natural = np.zeros((3, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match="alike must be at least 2 and below the 3 natural") as e:
        features.paths(model, natural[:1], natural, np.zeros((1, 3)), ("middle",))
    assert len(str(e.value)) < 300


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_circuit_that_fools_is_flagged_and_the_clean_network_is_not(seed):
    natural = world.render_batch(6, range(96)).image.astype(np.float32)
    wanted = features.channel("fooled", 0)
    fooled, clean = fooling.circuit(seed)
    values = [features.evaluate(model, wanted, natural) for model in (fooled, clean)]
    # What the circuit does on natural pictures is what the unit did.
    assert (np.abs(values[0] - values[1]) <= 1e-4).mean() >= 0.99
    for model in (fooled, clean):
        found = features.visualise(model, wanted, preset="maco", steps=48, key=jax.random.key(seed))
        known = features.quality(model, wanted, found, natural, layers=fooling.BEFORE)
        assert known.verdict[0].startswith("takes another way") == (model is fooled)
