"""A brush of units on a generator in which a door can be painted on a wall and not in the sky."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import Generator, Normal, context_effects
from perturb import taps

KEY = jax.random.key(2)
NAMES = ("sky", "wall", "door")
GRID, SIDE, UNITS = 6, 12, 5


def apply(variables, z):
    """The first latent says whether all of it is wall; unit 3 paints a door on wall alone."""
    wall = jnp.broadcast_to((z[:, :1, None] > 0).astype(jnp.float32), (len(z), GRID, GRID))
    x = jnp.zeros((len(z), GRID, GRID, UNITS)).at[..., 1].set(wall)
    x = taps.tag(x + 0 * variables["nothing"], "units")
    large = x.repeat(SIDE // GRID, 1).repeat(SIDE // GRID, 2)
    labels = jnp.where(large[..., 1] > 0.5, jnp.where(large[..., 3] > 0.5, 2, 1), 0)
    return {"image": jnp.repeat(labels[..., None] / 2.0, 3, -1), "labels": labels}


@pytest.fixture(scope="module")
def generator():
    variables = {"nothing": jnp.zeros(())}
    return Generator(apply, variables, latent=Normal((2,)), label_names=NAMES)


def test_a_door_takes_on_the_wall_and_not_in_the_sky(generator):
    found = context_effects(
        generator, layer="units", concept="door", units=[3], value=1.0, samples=60, key=KEY
    )
    on = dict(zip(found.contexts, found.context_change, strict=True))
    assert on["wall"] == 1
    assert on["sky"] == 0
    assert np.isnan(on["door"])
    number = dict(zip(found.contexts, found.context_samples, strict=True))
    assert number["wall"] + number["sky"] == 60
    assert found.change == pytest.approx(number["wall"] / 60)
    assert found.change_low < found.change < found.change_high
    # What the door takes the wall loses, and nothing changes beside the brush.
    np.testing.assert_allclose(found.others, [0, -found.change, found.change], atol=1e-6)
    np.testing.assert_allclose(found.outside, 0, atol=1e-6)
    assert "door" in found._repr_html_()


def test_the_same_places_whatever_the_batch(generator):
    with_walls = {"layer": "units", "concept": "wall", "units": [1], "value": 0.0, "key": KEY}
    one, other = (
        context_effects(generator, **with_walls, samples=50, batch_size=size) for size in (8, 50)
    )
    assert one.change == pytest.approx(other.change, abs=1e-6)
    # Off under the brush: the wall is gone there, wherever there was one.
    assert one.change == pytest.approx(-one.before)


def test_random_units_are_the_control(generator):
    asked = {"layer": "units", "concept": "door", "value": 1.0, "samples": 20, "key": KEY}
    found = context_effects(generator, **asked, units=[3], controls=19)
    # Of five units one paints, so that about a fifth of the random sets are it.
    assert set(np.round(found.control_change, 6)) <= {0.0, round(found.change, 6)}
    ties = (found.control_change > 0).sum()
    assert found.p_value == pytest.approx(2 * (1 + ties) / 20)
    assert np.isnan(context_effects(generator, **asked, units=[3]).p_value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"side": 7}, "side must be in 1 to 6 cells of units, got 7"),
        ({"units": [[1], [3]]}, "units must be one set of units, got 2 sets"),
        ({"value": np.zeros(3)}, r"value must be a number or \[5\], got shape \[3\]"),
        ({"concept": "roof"}, "concept must be one of sky, wall, door, got 'roof'"),
    ],
)
def test_what_does_not_fit_is_refused(generator, change, words):
    asked = {"layer": "units", "concept": "door", "units": [3], "value": 1.0, "samples": 4}
    with pytest.raises(ValueError, match=words):
        context_effects(generator, **(asked | {"key": KEY} | change))
