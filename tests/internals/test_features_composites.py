"""Groups, dictionaries and atlases on layers whose parts are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.internals import features
from perturb.internals.features.composites import factors


def _apply(weights, x):
    """Cells of 4 x 4 pixels: units 0 and 1 read red, 2 and 3 blue, 4 nothing."""
    b, h, w, _ = x.shape
    cells = x.reshape(b, h // 4, 4, w // 4, 4, 3).mean((2, 4))
    maps = taps.tag(jax.nn.relu(cells @ weights), "maps")
    return maps.mean((1, 2))[:, [0, 2]]


@pytest.fixture(scope="module")
def model():
    weights = np.zeros((3, 5), np.float32)
    weights[0, :2], weights[2, 2:4] = (1, 2), (3, 1)
    return perturb.Model(_apply, jnp.asarray(weights))


@pytest.fixture(scope="module")
def halves():
    """Red on the left, blue on the right."""
    picture = np.zeros((16, 16, 3), np.float32)
    picture[:, :8, 0], picture[:, 8:, 2] = 0.8, 0.6
    return picture


def test_factors_of_a_product_are_found_again():
    rng = np.random.default_rng(0)
    # Each of the three has rows and columns of its own, so that the product has one factorisation.
    where = rng.uniform(0, 1, (24, 3)) + 0.0
    where[:12] = np.kron(np.eye(3), rng.uniform(1, 2, (4, 1)))
    what = rng.uniform(0, 1, (3, 12))
    what[:, :6] = np.kron(np.eye(3), rng.uniform(1, 2, (1, 2)))
    first, second = factors(where @ what, 3)
    assert np.abs(first @ second - where @ what).max() <= 1e-3
    assert np.linalg.norm(second, axis=1) == pytest.approx(1)
    cosine = second @ (what / np.linalg.norm(what, axis=1, keepdims=True)).T
    assert (cosine.max(1) > 0.999).all()


@pytest.mark.slow
def test_groups_are_the_units_that_are_active_together(model, halves):
    found = features.groups(
        model, "maps", halves, count=2, target=0, steps=2, size=16, key=jax.random.key(0)
    )
    assert found.explained > 0.999
    red = int(found.places[0, :, :2].sum() < found.places[1, :, :2].sum())
    assert found.places[red, :, 2:].max() < 0.01 * found.places[red].max()
    # Units 0 and 1 are in proportion 1 to 2, and length 1.
    assert found.units[red] == pytest.approx(np.array([1, 2, 0, 0, 0]) / np.sqrt(5), abs=0.01)
    # The class reads unit 0 alone, .8 on half of the places.
    assert found.effect[red] == pytest.approx(0.4, abs=0.01)
    assert found.effect[1 - red] == pytest.approx(0, abs=0.01)
    assert found.images.shape == (2, 16, 16, 3)


@pytest.mark.slow
def test_a_dictionary_has_the_strongest_units_of_its_place_first(model, halves):
    found = features.semantic_dictionary(
        model, "maps", halves, (1, 3), count=3, steps=2, size=16, key=jax.random.key(0)
    )
    # Blue: unit 2 with weight 3, unit 3 with 1, and of the silent ones the first.
    assert found.units.tolist() == [2, 3, 0]
    assert found.values == pytest.approx([1.8, 0.6, 0])


@pytest.mark.slow
def test_a_caricature_has_more_of_what_the_picture_has(model, halves):
    recipe = features.Preset(parametrisation=features.Pixels(), steps=100, redirect=0)
    found = features.caricatures(model, "maps", halves[None], preset=recipe, key=jax.random.key(0))
    made = found.images[0]
    # The picture itself has .8 and .6.
    assert made[:, :8, 0].mean() > 0.85
    assert made[:, 8:, 2].mean() > 0.7


@pytest.mark.slow
def test_an_atlas_puts_every_vector_in_one_cell(model):
    rng = np.random.default_rng(0)
    colours = np.repeat([[0.9, 0, 0], [0, 0, 0.9]], 12, 0) + rng.uniform(0, 0.1, (24, 3))
    images = np.broadcast_to(colours[:, None, None], (24, 16, 16, 3)).astype(np.float32)
    sampled = features.sample(
        model, "maps", images, targets=[0] * 12 + [1] * 12, batch_size=8, key=jax.random.key(0)
    )
    assert sampled.vectors.shape == (24, 5)
    # Not at the border of 4 x 4 cells.
    assert ((sampled.places >= 1) & (sampled.places <= 2)).all()
    # Class 0 reads unit 0 over 16 places, class 1 unit 2.
    want = np.r_[sampled.vectors[:12, 0], sampled.vectors[12:, 2]] / 16
    assert sampled.effect == pytest.approx(want, rel=1e-4)
    found = features.atlas(
        model, "maps", sampled, grid=2, least=1, steps=2, size=16, key=jax.random.key(0)
    )
    assert found.counts.sum() == 24
    assert found.images.shape == (len(found.cells), 16, 16, 3)
    assert ((found.layout >= 0) & (found.layout <= 1)).all()


@pytest.mark.parametrize(
    ("name", "rest", "options", "words"),
    [
        ("semantic_dictionary", ((4, 0),), {}, "place must be within 4 x 4 cells"),
        ("semantic_dictionary", ((0, 0),), {"count": 6}, "count must be 1 to 5"),
        ("groups", (), {"count": 9}, "count must be 1 to 5"),
        ("caricatures", (), {}, "images must be"),
    ],
)
def test_bad_input_gets_one_line(model, halves, name, rest, options, words):
    call = getattr(features, name)
    with pytest.raises(ValueError, match=words) as error:
        call(model, "maps", halves, *rest, key=jax.random.key(0), **options)
    assert len(str(error.value)) < 300
