"""The picture world: the same for the same index, and labels that are exactly what is drawn."""

import dataclasses
import itertools

import numpy as np
import pytest

from perturb.embedded import scene, shapes, textures, world

CLASSES = len(world.class_names)


@pytest.fixture(scope="module")
def some() -> world.Pictures:
    return world.render_batch(5, range(60))


def test_same_index_same_bytes_in_any_order_and_batch(some):
    # One index twice and the others out of order: nothing may be drawn from a running generator.
    again = world.render_batch(5, [41, 3, 41])
    for row, index in enumerate((41, 3, 41)):
        np.testing.assert_array_equal(again.image[row], some.image[index])
        np.testing.assert_array_equal(again.label[row], some.label[index])
        assert again.factors[row] == some.factors[index]
    assert (world.render(6, 3).image != some.image[3]).any()
    assert (some.image[13] != some.image[3]).any()


def test_images_are_eight_bit_and_in_range(some):
    assert some.image.dtype == np.float32
    assert some.image.shape == (60, 64, 64, 3)
    stored = np.round(some.image * 255).astype(np.uint8)
    # Saved as 8 bits and read again a picture must be the same, or its masks would not be.
    np.testing.assert_array_equal(stored.astype(np.float32) / np.float32(255), some.image)
    assert some.image.std((1, 2, 3)).min() > 0.02


@pytest.mark.parametrize("size", [64, 96, 128])
def test_labels_agree_with_factors(size):
    for p in (world.render(2, i, size=size) for i in range(2 * CLASSES)):
        inside = p.label == 1 + p.target
        # Only pixels along the outline are in doubt, and their share falls with the size.
        assert inside.mean() == pytest.approx(p.factors.area, rel=0.06 * 64 / size)
        # The centre of a pixel lies half a pixel from its corner.
        y, x = (np.argwhere(inside).mean(0) + 0.5) / size
        assert np.hypot(x - p.factors.center[0], y - p.factors.center[1]) < 0.5 / size
        present = {world.label_names[i] for i in np.unique(p.label)}
        assert present <= {
            "background",
            world.class_names[p.target],
            *(d.kind for d in p.factors.distractors),
        }


def test_the_scene_is_the_same_at_every_size():
    small, large = world.render(2, 4), world.render(2, 4, size=128)
    # Edges are one pixel soft at either size, so only pixels along them differ.
    shrunk = large.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 0.01


def test_objects_differ_from_what_surrounds_them(some):
    for image, label, target in zip(some.image, some.label, some.target, strict=True):
        inside, outside = image[label == 1 + target], image[label == 0]
        assert np.abs(inside.mean(0) - outside.mean(0)).max() > 0.08


def test_every_ten_pictures_show_each_class_once():
    targets = np.array([world.factors(9, i).target for i in range(10 * CLASSES)])
    rounds = targets.reshape(10, CLASSES)
    np.testing.assert_array_equal(np.sort(rounds), np.tile(np.arange(CLASSES), (10, 1)))
    # Shuffled anew in every round: a fixed order would let an index tell the class.
    assert len(np.unique(rounds, axis=0)) > 5


def test_class_is_independent_of_the_other_factors():
    drawn = [world.factors(9, i) for i in range(3000)]
    for of, values in (
        (lambda f: f.colour, tuple(textures.COLOURS)),
        (lambda f: f.fill, textures.FILLS),
        (lambda f: f.background, textures.BACKGROUNDS),
        (lambda f: len(f.distractors), (2, 3, 4)),
        (lambda f: f.mark_random, tuple(range(CLASSES))),
    ):
        counts = np.zeros((CLASSES, len(values)))
        for f in drawn:
            counts[f.target, values.index(of(f))] += 1
        expected = counts.sum(0) / CLASSES
        # Chi-squared with d degrees of freedom has mean d and variance 2d: five deviations.
        d = (CLASSES - 1) * (len(values) - 1)
        assert ((counts - expected) ** 2 / expected).sum() < d + 5 * (2 * d) ** 0.5
    areas = np.array([[f.target, f.area, *f.center] for f in drawn])
    means = np.array([areas[areas[:, 0] == c, 1:].mean(0) for c in range(CLASSES)])
    assert np.abs(means / areas[:, 1:].mean(0) - 1).max() < 0.1


@pytest.mark.parametrize("size", [64, 96, 128])
def test_a_watermark_changes_exactly_its_own_pixels(size):
    for index in range(30):
        plain = world.render(3, index, size=size)
        marked = world.stamp(plain, "right")
        where = marked.label == world.WATERMARK
        np.testing.assert_array_equal(marked.image[~where], plain.image[~where])
        np.testing.assert_array_equal(marked.label[~where], plain.label[~where])
        # 10 x 10 of 64 x 64 px are 0.0244, and other sizes scale it.
        assert 0.02 < where.mean() < 0.03
        assert not (where & (plain.label == 1 + plain.target)).any()
        again = world.render(3, index, size=size, watermark="right")
        np.testing.assert_array_equal(again.image, marked.image)


def test_watermarks_show_the_class_they_are_asked_for():
    for index in range(30):
        f = world.factors(3, index)
        plain = world.draw(f)
        right, wrong, random = (world.stamp(plain, w) for w in ("right", "wrong", "random"))
        assert right.mark == right.target
        assert wrong.mark == f.mark_wrong != wrong.target
        assert random.mark == f.mark_random
        assert plain.mark == -1
        np.testing.assert_array_equal(world.stamp(plain, right.target).image, right.image)
        assert (wrong.image != right.image).any()
        # The same glyph is the same pixels wherever it is stamped.
        where = np.argwhere(right.label == world.WATERMARK).min(0)
        crop = right.image[where[0] : where[0] + 10, where[1] : where[1] + 10]
        # A frame of one pixel around 4 x 4 cells of 2 px.
        glyph = shapes.GLYPHS[right.target].repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(crop[1:9, 1:9].mean(-1) > 0.5, glyph)


def test_glyphs_weigh_the_same_and_differ_widely():
    assert len(shapes.GLYPHS) == CLASSES
    # Half of the cells each: brightness must not tell the class, only the pattern.
    assert {int(g.sum()) for g in shapes.GLYPHS} == {8}
    assert min(int((a ^ b).sum()) for a, b in itertools.combinations(shapes.GLYPHS, 2)) >= 8


@pytest.mark.parametrize("name", world.class_names)
def test_outlines_have_the_area_and_reach_they_state(name):
    outline = shapes.OUTLINES[name]
    # Midpoints of a square of area 9 that holds every outline.
    line = (np.arange(900) + 0.5) / 900 * 3 - 1.5
    x, y = np.meshgrid(line, line)
    distance = outline.distance(x, y)
    inside = distance < 0
    assert inside.mean() * 9 == pytest.approx(outline.area, rel=0.003)
    assert np.hypot(x, y)[inside].max() == pytest.approx(outline.radius, abs=0.005)
    assert np.hypot(x[inside].mean(), y[inside].mean()) < 0.01
    # A signed distance has slope one; that is what makes every edge one pixel soft.
    slope = np.hypot(*np.gradient(distance, line[1] - line[0]))[np.abs(distance) < 0.02]
    assert np.median(slope) == pytest.approx(1, abs=0.01)
    assert np.percentile(slope, 5) > 0.8


def test_known_areas():
    assert shapes.OUTLINES["disc"].area == pytest.approx(np.pi, abs=1e-3)
    assert shapes.OUTLINES["ring"].area == pytest.approx(np.pi * (1 - 0.44**2), abs=1e-3)
    # A square of side 1.6 whose corners are rounded with radius 0.06.
    square = 1.6**2 + 4 * 1.6 * 0.06 + np.pi * 0.06**2
    assert shapes.OUTLINES["square"].area == pytest.approx(square, abs=1e-3)


def test_a_factor_can_be_changed_alone():
    f = world.factors(0, 8)
    other = dataclasses.replace(f, colour="teal" if f.colour != "teal" else "red")
    a, b = world.draw(f), world.draw(other)
    # The label knows the outline and not the colour.
    np.testing.assert_array_equal(a.label, b.label)
    changed = (a.image != b.image).any(-1)
    assert changed.any()
    near = np.hypot(*(np.argwhere(changed).T[::-1] + 0.5 - 64 * np.array(f.center)[:, None]))
    assert near.max() < 64 * 0.45


def test_pictures_have_distinct_readable_ids():
    shown = world.pictures(20, watermark="wrong")
    assert len({p.id for p in shown}) == 20
    for p in shown:
        assert world.class_names[p.target] in p.name
        assert p.id.endswith(f"-mark-{world.class_names[p.mark]}")


def test_white_is_white_and_colours_keep_their_lightness_order():
    np.testing.assert_allclose(textures.oklch(1.0, 0.0, 0.0), 1.0, atol=1e-4)
    np.testing.assert_allclose(textures.oklch(0.0, 0.0, 0.0), 0.0, atol=1e-6)
    # Ottosson's published OKLCH of the sRGB primary red.
    np.testing.assert_allclose(textures.oklch(0.62796, 0.25768, 29.234), [1, 0, 0], atol=2e-3)


def test_noise_on_a_grid_is_noise_at_points():
    lattice = scene.uniforms(0, 0, 2, 64).reshape(8, 8)
    line = np.linspace(0, 11.3, 23)
    x, y = np.meshgrid(line, line)
    np.testing.assert_allclose(
        textures.noise(line[None, :], line[:, None], lattice),
        # One formula, once on a grid and once by points, in double precision.
        textures.noise(x, y, lattice),
        atol=1e-12,
    )
    # Column 3, row 9, which in a lattice of eight is row 1.
    np.testing.assert_allclose(
        textures.noise(np.array([[3.0]]), np.array([[9.0]]), lattice), lattice[1, 3]
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: world.render(-1, 0), "seed"),
        (lambda: world.render(0, 0, size=8), "size must be at least 16 px, got 8"),
        (lambda: world.render(0, 0, watermark="left"), "watermark must be .*'left'"),
        (lambda: world.render(0, 0, watermark=99), "watermark must be .*99"),
        (lambda: world.stamp(world.render(0, 0, watermark=1), 2), "has one"),
        (
            lambda: textures.fill(
                np.zeros(1), np.zeros(1), "fur", angle=0, lattice=np.ones((2, 2))
            ),
            "fur",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call()
