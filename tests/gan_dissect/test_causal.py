"""Causal sets against a planted cause, the constraint by hand, and top-IoU sets of a tile
generator.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import Concepts, Generator, Normal, ace, causal_effects, dissect, ranked, sample
from gan_dissect.causal import _on_budget, find_places
from perturb import taps
from perturb.units.concepts import labels
from tests.gan_dissect.test_units import tiles

KEY = jax.random.key(4)
UNITS, GRID, SIDE = 10, 4, 8


def apply(variables, z):
    """Unit 2 paints, and only where unit 7 is above 1; unit 5 knows of it but does nothing."""
    x = jax.nn.relu(jnp.einsum("bd,dhwu->bhwu", z, variables["noise"]))
    paint = x[..., 7] * (x[..., 7] > 0.5)
    # Unit 5 is as good a sign of paint as unit 2.
    x = x.at[..., 2].set(paint).at[..., 5].set(2 * paint)
    x = taps.tag(x, "units")
    large = x.repeat(SIDE // GRID, 1).repeat(SIDE // GRID, 2)
    score = large[..., 2] * (1 + large[..., 7])
    # Ground wins with .6 wherever nothing else is above it, so an unpainted place has a name.
    scores = jnp.stack([jnp.full_like(score, 0.6), score, 0.5 * large[..., 1]], -1)
    drawn = jnp.argmax(scores, -1)
    return {"image": jax.nn.sigmoid(scores), "labels": drawn, "scores": 4 * scores}


def planted():
    noise = np.random.default_rng(0).standard_normal((6, GRID, GRID, UNITS)).astype(np.float32)
    names = ("ground", "paint", "other")
    return Generator(apply, {"noise": jnp.asarray(noise)}, latent=Normal((6,)), label_names=names)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["budget", "code", "paper"])
def test_planted_cause(scaling):
    generator = planted()
    found = ace(
        generator,
        layer="units",
        concept="paint",
        samples=300,
        key=KEY,
        scaling=scaling,
        size=2,
        epochs=30,
    )
    # The unit that looks exactly like the concept but does nothing is not among the causes.
    assert set(found.order[:2]) == {2, 7}
    table = dissect(generator, layer="units", samples=300, key=KEY)
    assert 5 in ranked(table, "paint", 2)
    assert found.alpha.min() >= 0
    assert found.alpha.max() <= 1
    # A single step is noisy: means of five at both ends are compared.
    assert found.history[-5:].mean() > found.history[:5].mean()
    if scaling == "budget":
        np.testing.assert_allclose(found.alpha.sum(), 2, atol=1e-4)
    if scaling == "code":
        sets = [[2, 7], [2, 5], [5], [2]]
        effect = causal_effects(
            generator,
            layer="units",
            concept="paint",
            sets=sets,
            value=found.places.value,
            samples=(300, 600),
            key=KEY,
            replicates=200,
        )
        # Off: no paint is left where unit 2 is off. On: it takes both to paint.
        np.testing.assert_array_equal(effect.ablated[[0, 1, 3]], 0)
        assert effect.ablated[2] == effect.present
        assert effect.inserted[0] > 0.9
        assert effect.inserted[2] == 0
        np.testing.assert_allclose(effect.effect, effect.inserted - effect.ablated)
        assert effect.effect[0] > effect.effect[[1, 2, 3]].max()
        # Where every draw is the same the three are one sum, rounded in three orders: of 200 terms
        # below 1e-5.
        assert (effect.effect_low <= effect.effect + 1e-5).all()
        assert (effect.effect <= effect.effect_high + 1e-5).all()
        # Areas only move between concepts.
        np.testing.assert_allclose(effect.leak_ablated.sum(1), 0, atol=1e-6)
        assert effect.leak_ablated[0, 1] < 0 < effect.leak_inserted[0, 1]
        np.testing.assert_array_equal(effect.control_sizes, [1, 2])
        assert effect.p_value[0] < 0.15


def test_places_are_where_they_should_be():
    generator = planted()
    places = find_places(generator, layer="units", concept="paint", samples=200, key=KEY, pairs=50)
    z = sample(generator, KEY, 200)
    outputs, values = taps.read(generator, "units")(z)
    share = np.asarray(outputs["labels"] == 1).reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(200, 16)
    assert (share[places.present, places.present_cells] > 0).all()
    # The defect of the published code: insertion at the cell where the concept is already.
    np.testing.assert_array_equal(share[places.absent, places.absent_cells], 0)
    x = np.asarray(values["units"]).reshape(200, 16, UNITS)
    want = np.einsum("bc,bcu->u", share, x) / share.sum()
    np.testing.assert_allclose(places.value, want, rtol=1e-4)
    # The same places whichever way the latents come.
    other = find_places(generator, layer="units", concept="paint", latents=z, pairs=50)
    for a, b in zip(places[:4], other[:4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_budget_is_the_nearest_point():
    # Some below 0 and some above 1: both ends of the constraint are met.
    a = np.random.default_rng(0).normal(0.3, 0.6, 40).astype(np.float32)
    got = np.asarray(_on_budget(jnp.asarray(a), 8.0))
    np.testing.assert_allclose(got.sum(), 8, atol=1e-4)
    # Optimality: what lies inside moved by one and the same amount, what is clipped by no more.
    inside = (got > 1e-5) & (got < 1 - 1e-5)
    shift = (got - a)[inside]
    np.testing.assert_allclose(shift, shift[0], atol=1e-5)
    assert (a[got <= 1e-5] + shift[0] <= 1e-4).all()
    assert (a[got >= 1 - 1e-5] + shift[0] >= 1 - 1e-4).all()
    each = jax.vmap(_on_budget, (None, 0))(jnp.asarray(a), jnp.array([2.0, 20.0]))
    np.testing.assert_allclose(each.sum(1), [2, 20], atol=1e-4)


@pytest.mark.slow
def test_beats_iou_on_tiles(data_dir):
    """A short form of `python -m benchmarks.gan_figures ace`: one concept, held-out latents."""
    generator, layer = tiles(data_dir), "main.pyramid:64:relu"
    common = {"layer": layer, "concept": "water", "key": KEY}
    # Sets are chosen on the first latents and compared on the next.
    train = (0, 512)
    table = dissect(generator, layer=layer, samples=train, key=KEY, replicates=0)
    found = ace(generator, **common, samples=train, start=table.iou[:, 10], pairs=60, epochs=10)
    sets = [found.order[:8], ranked(table, "water", 8)]
    effect = causal_effects(
        generator,
        **common,
        sets=sets,
        value=found.places.value,
        samples=(512, 1024),
        pairs=60,
        controls=7,
    )
    assert effect.effect[0] > effect.effect[1]
    assert effect.effect[0] > effect.control_effect.max()


@pytest.mark.slow
def test_errors():
    generator = planted()
    common = {"layer": "units", "concept": "paint", "samples": 40, "key": KEY}
    for options, match in (
        ({"concept": "sky"}, "concept must be one of ground, paint, other, got 'sky'"),
        ({"scaling": "sum"}, "scaling must be one of budget, paper, code"),
        ({"size": 11}, "size must be in 1 to 10"),
        ({"start": np.zeros(10)}, "start must be 10 numbers"),
        ({"layer": "unit"}, "no layer 'unit'"),
    ):
        with pytest.raises(ValueError, match=match):
            ace(generator, **common | options)
    names = generator.label_names
    hard = Concepts(labels(generator).apply, names)
    with pytest.raises(ValueError, match="no soft form"):
        ace(generator, **common, concepts=hard)
    never = Concepts(lambda v, o: jnp.zeros((*o["image"].shape[:3], 1), bool), ("never",))
    with pytest.raises(ValueError, match="must occur in at least 2 samples, got 0 of 40"):
        ace(generator, **common | {"concept": "never", "concepts": never})
    with pytest.raises(ValueError, match="are 0 to 9, got 10"):
        causal_effects(generator, **common, sets=[[10]], value=np.zeros(10))
    with pytest.raises(ValueError, match=r"value must be \[10\]"):
        causal_effects(generator, **common, sets=[[1]], value=np.zeros(3))
