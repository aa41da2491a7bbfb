"""One importance map from nested masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model, embedded, field, importance_map, rewards
from perturb.attribution.nested import heat_of, slopes
from perturb.importance import Importance
from perturb.metrics import spearman
from perturb.solver import rules
from tests import planted

SIZE = (32, 32)
# Not in order: sorting them is the call's own work.
AREAS = (0.05, 0.4, 0.1, 0.2)


@pytest.fixture(scope="module")
def swept():
    """A small network on three random pictures."""
    images = np.random.default_rng(0).uniform(size=(3, *SIZE, 3)).astype(np.float32)
    model = planted.small_network()
    # Three pictures in batches of two: one batch is not full.
    found = importance_map(
        model, images, [0, 1, 2], areas=AREAS, first_steps=8, steps=6, batch_size=2
    )
    return model, images, found


@pytest.mark.slow
def test_masks_are_nested_and_areas_exact(swept):
    _, _, found = swept
    np.testing.assert_allclose(found.areas, [0.4, 0.2, 0.1, 0.05])
    assert (found.masks[:, 1:] <= found.masks[:, :-1]).all()
    counts = found.masks.sum((2, 3))
    # Of 1,024 px, and exactly: masks are cut at a count of pixels, not at a value.
    np.testing.assert_array_equal(counts, np.broadcast_to(np.round(found.areas * 1024), (3, 4)))


def test_the_map_holds_the_masks_and_is_monotone(swept):
    _, _, found = swept
    for a, area in enumerate(found.areas):
        np.testing.assert_array_equal(found.area <= area, found.masks[:, a] > 0.5)
    assert set(np.unique(found.area)) <= {np.float32(a) for a in (*found.areas, 1.0)}
    np.testing.assert_array_equal(found.heat, 1 - found.area)


@pytest.mark.slow_cases
@pytest.mark.parametrize("question", [None, "both"])
def test_neighbours_do_not_matter(swept, question):
    model, images, found = swept
    options = {"areas": AREAS, "first_steps": 8, "steps": 6, "question": question}
    if question:
        found = importance_map(model, images, [0, 1, 2], batch_size=2, **options)
    # The keys that the call makes of its own, by the picture's number, taken along in another
    # order.
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(3))
    again = importance_map(model, images[[2, 0]], [2, 0], keys=keys[np.array([2, 0])], **options)
    np.testing.assert_array_equal(again.area, found.area[[2, 0]])
    if question:
        # Blur and mean draw nothing, and areas come in a fixed order.
        other = importance_map(model, images[:1], [0], key=jax.random.key(7), **options)
        np.testing.assert_array_equal(other.area, found.area[:1])
    # All in one program, where asked: the same masks but for rounding, exact and nested too.
    whole = importance_map(model, images[:2], [0, 1], reproducible=False, **options)
    counts = np.broadcast_to(np.round(found.areas * 1024), (2, 4))
    np.testing.assert_array_equal(whole.masks.sum((2, 3)), counts)
    assert (whole.masks[:, 1:] <= whole.masks[:, :-1]).all()


@pytest.mark.slow
def test_a_planted_disc_comes_first():
    disc = planted.disc(SIZE, 0.1, (0.4, 0.6))
    model = planted.linear(np.stack([1.0 * disc, 0 * disc]) / disc.sum())
    images = np.full((1, *SIZE, 3), 0.9, np.float32)
    found = importance_map(
        model, images, [0], areas=(0.1, 0.3, 0.6), operator="fade", reward="logit", mirror=False
    )
    # At the disc's own area, where a random mask has an overlap of 0.05.
    assert planted.iou(found.area[0] <= 0.1, disc) > 0.7
    assert found.score_binary[0, 2] > 0.9 * found.score_original[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"areas": (0.1, 0.1)}, "areas must differ"),
        ({"areas": (0.1, 1.2)}, "areas must be in"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_served_is_named(more, words):
    images = np.zeros((1, *SIZE, 3), np.float32)
    with pytest.raises(ValueError, match=words):
        importance_map(planted.small_network(), images, [0], **more)


def test_the_map_of_slopes_holds_the_masks_and_sums_to_what_they_bring(swept):
    _, _, found = swept
    for i, heat in enumerate(heat_of(found)):
        for mask in found.masks[i]:
            inside = mask > 0.5
            assert heat[inside].min() > heat[~inside].max()
        points = zip(
            [0.0, *found.areas[::-1], 1.0],
            [found.score_floor[i], *found.score_binary[i][::-1], found.score_original[i]],
            strict=True,
        )
        areas, scores = (np.array(c, np.float64) for c in zip(*points, strict=True))
        for area, mask in zip(found.areas, found.masks[i], strict=True):
            # The hull at this area: the highest chord over it, on an axis that is the log of area
            # but for a beginning at nothing.
            axis = np.log(areas + areas[1] / 2)
            left, right = areas <= area, areas >= area
            x, y = axis[left][:, None], scores[left][:, None]
            width = np.maximum(axis[right] - x, 1e-12)
            place = np.log(area + areas[1] / 2) - x
            hull = (y + (scores[right] - y) * place / width).max()
            brought = (heat * (mask > 0.5)).sum() / heat.size
            wanted = max(hull, scores.max() if area >= areas[scores.argmax()] else hull)
            assert brought == pytest.approx(wanted - scores[0], rel=0.01, abs=0.01 * np.ptp(scores))


def test_slopes_are_those_of_the_hull():
    # From nothing to areas of 1, 2 and 4 quarters the axis is ln 1, 3, 5 and 9.
    found = slopes([1.0, 0.5, 0.25], [4.0, 1.0, 0.5], 0.0)
    # A rise that comes late is spread over what came before: the chord from nothing to the whole.
    np.testing.assert_allclose(found, [4 / np.log(9)] * 3)
    # A rise of 2 at first; what comes after lowers the score, and a hull never falls.
    np.testing.assert_allclose(slopes([1.0, 0.5], [1.0, 3.0], 1.0), [0.0, 2 / np.log(3)])


@pytest.mark.parametrize(
    ("question", "brought"), [("enough", 3.6), ("needed", 3.2), ("both", 3.4), (None, 3.6)]
)
def test_a_map_is_worth_what_its_question_asks(question, brought):
    """A quarter of the picture keeps 3.6 of 4, and without it 0.8 are left; half of it is all."""
    area = np.arange(1, 1025, dtype=np.float32).reshape(1, *SIZE) / 1024
    areas = np.array([0.5, 0.25], np.float32)
    found = Importance(
        area=area,
        areas=areas,
        masks=np.stack([area[0] <= a for a in areas])[None].astype(np.float32),
        score_binary=np.array([[4.0, 3.6]]),
        score_original=np.array([4.0]),
        score_floor=np.array([0.0]),
        score_removed=np.array([[0.0, 0.8]]),
    )
    heat = heat_of(found, question=question)[0]
    assert (np.diff(heat.ravel()) < 0).all()
    sums = [heat[area[0] <= a].sum() / heat.size for a in areas]
    np.testing.assert_allclose(sums, [4.0, brought], rtol=3e-3)
    # Of a picture that Ctrl-C came before there is no map.
    parts = {n: np.concatenate([v, v * np.nan]) for n, v in found._asdict().items() if n != "areas"}
    both = heat_of(found._replace(**parts), question=question)
    np.testing.assert_array_equal(both[0], heat)
    assert np.isnan(both[1]).all()


@pytest.mark.slow_cases
@pytest.mark.parametrize("question", ["enough", "needed", "both"])
def test_a_field_finds_a_planted_disc_whatever_is_asked(question):
    disc = planted.disc(SIZE, 0.1, (0.4, 0.6))
    # Ten times the mean brightness of the disc: 9 with all of it, 5 on the grey of the fill.
    model = planted.linear(np.stack([10.0 * disc, 0 * disc]) / disc.sum())
    images = np.full((1, *SIZE, 3), 0.9, np.float32)
    given = {"question": question, "operator": "fade", "reward": "logit", "steps": 40}
    found = importance_map(model, images, [0], areas=(0.1, 0.3), **given)
    # Chance is .05; one field for all areas is rougher than a mask of one.
    assert planted.iou(found.masks[0, 1] > 0.5, disc) > 0.4
    # 30 and 10 % of 1,024 px.
    np.testing.assert_allclose(found.masks.sum((2, 3))[0], [307, 102])
    for a, area in enumerate(found.areas):
        np.testing.assert_array_equal(found.area <= area + 1e-4, found.masks[:, a] > 0.5)
    # One field orders all pixels: no two of them are worth the same.
    assert len(np.unique(found.area)) == 1024
    # What is kept and what is taken, by hand.
    grey = np.where(found.masks[0] > 0.5, 0.9, 0.5)
    logit = (grey * disc).sum((1, 2)) / disc.sum() * 10
    np.testing.assert_allclose(found.score_binary[0], logit, atol=1e-4)
    # What is kept and what is taken share the disc: their scores add up to 9 + 5.
    np.testing.assert_allclose(found.score_removed[0], 14 - logit, atol=1e-4)
    heat = heat_of(found, question=question)
    assert heat[0][disc].mean() > 3 * heat[0][~disc].mean()


SMALL, LARGE = (planted.disc(SIZE, a, c) for a, c in ((0.05, (0.25, 0.3)), (0.12, (0.65, 0.7))))


def two_causes(_, images):
    """A class that either disc's brightness alone is enough for, against one that nothing moves."""
    grey = 2 * images.mean(-1) - 1
    shown = [(grey * disc).sum((1, 2)) / disc.sum() for disc in (SMALL, LARGE)]
    either = 1 - (1 - shown[0]) * (1 - shown[1])
    return 8 * jnp.stack([either, 0 * either + 0.5], 1)


@pytest.mark.slow_cases
@pytest.mark.parametrize("question", ["enough", "needed"])
def test_of_two_causes_one_is_enough_and_both_are_needed(question):
    # On grey neither disc is seen.
    images = np.ones((1, *SIZE, 3), np.float32)
    options = {"areas": (0.05, 0.17), "operator": "fade", "steps": 40, "mirror": False}
    found = importance_map(Model(two_causes, ()), images, [0], question=question, **options)
    assert found.score_original[0] > np.log(0.95)
    small, both = found.masks[0, 1] > 0.5, found.masks[0, 0] > 0.5
    if question == "enough":
        # The smaller one is the cheaper, and with a mask of its size the answer stays.
        assert planted.iou(small, SMALL) > 0.5
        assert found.score_binary[0, 1] > np.log(0.8)
    else:
        # As many pixels as both have, and most of each is among them: without these it is gone.
        assert both[SMALL].mean() > 0.7
        assert both[LARGE].mean() > 0.7
        assert found.score_removed[0, 0] < np.log(0.5)


def test_a_certain_answer_still_has_something_to_lose():
    lost = rewards.to_lose(rewards.answer())

    def value(row):
        return lost(row, 0, row)

    for logit in (-3.0, 0.0, 2.0, 6.0):
        p = 1 / (1 + np.exp(-logit))
        # The closed form; its own rounding at 6, where 1 - p is .0025, is below 1e-4.
        expected = np.log((p + 0.02) / (1 - p))
        assert float(value(jnp.array([logit, 0.0]))) == pytest.approx(expected, abs=1e-4)
    slopes = {x: jax.grad(value)(jnp.array([x, 0.0]))[0] for x in (-60.0, 10.0, 60.0)}
    # Gone, next to certain, and 1 to float32: nothing more to lose, and the slope of the log odds.
    assert slopes[-60.0] == pytest.approx(0, abs=0.02)
    assert slopes[10.0] == pytest.approx(1, abs=0.02)
    assert slopes[60.0] == pytest.approx(1, abs=0.02)
    # What a user chose is what is lowered.
    assert rewards.to_lose(rewards.margin()) == rewards.margin()


def test_steps_are_counted_in_moves_of_several():
    model, images = planted.small_network(), np.full((1, *SIZE, 3), 0.5, np.float32)
    told = []
    for steps, wanted in ((2, 2), (25, 7)):
        told.clear()
        importance_map(
            model,
            images,
            [0],
            question="both",
            steps=steps,
            progress=lambda done, total: told.append((done, total)),
        )
        assert told == [(n + 1, wanted) for n in range(wanted)]


@pytest.mark.slow_cases
@pytest.mark.parametrize("question", ["both", "enough"])
def test_rounding_hardly_changes_a_map(question):
    shown = embedded.demo("demo", 4)
    noise = np.random.default_rng(0).standard_normal(shown.images.shape)
    shaken = (shown.images + 1e-6 * noise).astype(np.float32)
    maps = [
        importance_map(shown.model, images, shown.targets, question=question).heat
        for images in (shown.images, shaken)
    ]
    assert np.median(spearman(*maps)) > 0.95


def test_a_gradient_that_is_not_finite_is_not_remembered():
    rule = rules.Normalised(rate=0.5)
    params = jnp.zeros((2, 3, 3))
    memory = jax.vmap(rule.transform().init)(params)
    grads = jnp.ones((2, 3, 3)).at[1, 0, 0].set(jnp.nan)
    first = field.move(rule, params, memory, grads, np.int32(0), np.int32(2))
    second, _ = field.move(rule, *first, jnp.ones((2, 3, 3)), np.int32(1), np.int32(2))
    # The one moved twice, the other once, and by the same length as a first step.
    assert (second[0] < first[0][0]).all()
    np.testing.assert_array_equal(first[0][1], 0)
    assert np.isfinite(second).all()
    assert (second[1] < 0).all()


def test_an_unknown_question_is_refused():
    model, images = planted.small_network(), np.zeros((1, *SIZE, 3), np.float32)
    with pytest.raises(ValueError, match="question must be one of enough, needed, both"):
        importance_map(model, images, [0], question="why")
