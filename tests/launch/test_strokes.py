"""Pictures of the world with parts painted in and out, against the world's own drawing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.demo import latents, strokes, train_generator, world
from launch.demo.strokes import GRID, NAMES, Strokes

COUNT = 6
KIND = {name: i for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def sheets():
    return strokes.draw(7, 0, COUNT)


@pytest.fixture(scope="module")
def drawn():
    z = [np.random.default_rng([7, i]).standard_normal(latents.SIZE) for i in range(COUNT)]
    return [world.draw(latents.scene(one)) for one in z]


def everywhere(name, level):
    """Strokes over whole pictures: on at a level, or off at 0."""
    on = np.zeros((COUNT, *GRID, len(NAMES)), np.float32)
    on[..., KIND[name]] = level
    off = np.zeros_like(on, bool)
    off[..., KIND[name]] = level == 0
    return Strokes(jnp.asarray(on), jnp.asarray(off))


def test_without_strokes_it_is_the_world(sheets, drawn):
    images, labels = strokes.compose(sheets)
    # The world rounds once, the parts are rounded one by one.
    np.testing.assert_allclose(images, [p.image for p in drawn], atol=2 / 255)
    np.testing.assert_array_equal(labels, [latents.segments(p) for p in drawn])


@pytest.mark.parametrize("name", latents.BACKGROUNDS)
def test_a_background_switched_on_is_the_same_scene_on_it(sheets, drawn, name):
    images, labels = strokes.compose(sheets, everywhere(name, 2.0))
    for i, picture in enumerate(drawn):
        changed = {"background": name, "background_angle": latents.ANGLES[name]}
        f = world.Factors(**{**vars(picture.factors), **changed})
        np.testing.assert_allclose(images[i], world.draw(f).image, atol=2 / 255)
        np.testing.assert_array_equal(labels[i], latents.segments(world.draw(f)))


def test_at_the_same_strength_stripes_cover_all_and_a_gradient_nothing(sheets, drawn):
    shown = [p.factors.background for p in drawn]
    assert len(set(shown)) == 4
    for name, wins in (("stripes", True), ("gradient", False)):
        _, labels = strokes.compose(sheets, everywhere(name, 1.0))
        for i, own in enumerate(shown):
            background = np.asarray(labels[i])[~sheets.inside[i]]
            expected = KIND[name] if wins else KIND[own]
            assert (background == expected).all()


def test_the_object_off_leaves_its_background_and_a_background_off_the_canvas(sheets, drawn):
    images, labels = strokes.compose(sheets, everywhere("object", 0))
    np.testing.assert_allclose(
        images, sheets.backgrounds[np.arange(COUNT), sheets.shown] / 255, atol=1e-6
    )
    assert (np.asarray(labels) < KIND["object"]).all()
    for name in latents.BACKGROUNDS:
        images, labels = strokes.compose(sheets, everywhere(name, 0))
        for i, picture in enumerate(drawn):
            outside = ~sheets.inside[i]
            bare = picture.factors.background == name
            assert (np.asarray(labels[i])[outside] == strokes.BARE).all() == bare
            if bare:
                untouched = sheets.keep[i] == 255
                np.testing.assert_allclose(np.asarray(images[i])[untouched][0], strokes.CANVAS)


def test_what_is_switched_in_one_place_changes_that_place(sheets):
    on = np.zeros((COUNT, *GRID, len(NAMES)), np.float32)
    on[:, 4:8, 8:12, KIND["object"]] = 1
    painted = Strokes(jnp.asarray(on), jnp.zeros(on.shape, bool))
    images, labels = (np.asarray(x) for x in strokes.compose(sheets, painted))
    before, plain = (np.asarray(x) for x in strokes.compose(sheets))
    place = np.zeros((64, 64), bool)
    place[16:32, 32:48] = True
    assert (labels[:, 18:30, 34:46] >= KIND["object"]).all()
    np.testing.assert_array_equal(images[:, ~place], before[:, ~place])
    np.testing.assert_array_equal(labels[:, ~place], plain[:, ~place])


def test_random_strokes_are_of_every_kind():
    found = strokes.some(jax.random.key(0), jnp.zeros(300, jnp.int32), 300)
    touched = np.asarray((found.on > 0) | found.off)
    plain = ~touched.any((1, 2, 3))
    # Two of five; three standard errors of 300 draws are .085.
    assert plain.mean() == pytest.approx(0.4, abs=0.085)
    assert touched.any((0, 1, 2)).all()
    assert not np.asarray((found.on > 0) & found.off).any()
    assert touched[~plain].any(-1).all((1, 2)).any()


def test_groups_are_units_of_the_first_layer_once_each():
    units = np.ravel(train_generator.GROUPS)
    assert len(set(units)) == len(units) == 8 * len(NAMES)
    levels = jnp.arange(40.0).reshape(5, 8) + 1
    edit = train_generator._edit(everywhere("object", 2.0), levels, jax.random.key(0))
    strength, value = (np.asarray(part)[:, 3, 3, :8] for part in edit)
    # Six to eight of the object's units are set, at twice their levels.
    assert set(strength.sum(1)) <= {6, 7, 8}
    np.testing.assert_array_equal(value[strength > 0], np.tile(2 * levels[4], (6, 1))[strength > 0])
    off = train_generator._edit(everywhere("grass", 0), levels, jax.random.key(0))
    grass = list(train_generator.GROUPS[KIND["grass"]])
    assert (np.asarray(off.strength)[..., grass].sum(-1) >= 6).all()
    assert not np.asarray(off.value)[..., grass].any()


def test_two_units_of_a_group_alone_are_there_to_do_nothing():
    none = jnp.zeros((200, *GRID, len(NAMES)))
    edit = train_generator._edit(Strokes(none, none > 0), jnp.ones((5, 8)), jax.random.key(1))
    strength = np.asarray(edit.strength)[..., np.asarray(train_generator.GROUPS)]
    each = strength.sum(-1)
    assert set(np.unique(each)) == {0, 2}
    # Of one group at most, in two pictures of five; three standard errors are .1.
    used = each.any((1, 2))
    assert used.sum(1).max() == 1
    assert used.any(1).mean() == pytest.approx(0.4, abs=0.1)
