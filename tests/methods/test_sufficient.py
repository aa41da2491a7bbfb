"""The smallest area that suffices, on models of which it is known how much of a picture they
need.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import evidence
from tests import planted

SIZE = (24, 24)
AREAS = (0.1, 0.2, 0.3, 0.5)
STEPS = 12
# Chequered cells of one pixel: their mean and their blur are grey, so that what is seen of them is
# exactly the share of the picture that is shown.
CHEQUERS = np.where(np.indices(SIZE).sum(0) % 2, 1.0, -1.0)


def wants(share, needed=0.15):
    """The contrast at which `needed` of the full contrast takes that share of the picture."""
    return needed / share


def chequered(*contrasts):
    return np.stack([(0.5 + 0.5 * c * CHEQUERS)[..., None] * np.ones(3) for c in contrasts]).astype(
        np.float32
    )


def seen(pattern, images):
    """Class 0 by the contrast seen, class 1 always what 15 % of the full contrast give."""
    contrast = 2 * (images.mean(-1) * pattern).mean((1, 2))
    return 40 * jnp.stack([contrast, 0.15 + 0 * contrast], 1)


MODEL = perturb.Model(seen, jnp.asarray(CHEQUERS, jnp.float32))


def found(contrasts, **options):
    options = {"areas": AREAS, "steps": STEPS} | options
    images = chequered(*contrasts)
    return perturb.sufficient_region(MODEL, images, [0] * len(images), **options)


@pytest.fixture(scope="module")
def four():
    """Pictures that need 15, 25, 45 and 75 %, of which a region of any place keeps the same."""
    return found([wants(0.15), wants(0.25), wants(0.45), wants(0.75)])


def test_the_smallest_area_that_suffices_is_known(four):
    # The next area of the list above what each needs.
    assert four.area.tolist() == [0.2, 0.3, 0.5, 0.5]
    assert four.answered.tolist() == [True, True, True, False]
    shown = (four.masks > 0.5).reshape(4, -1).sum(1)
    assert shown.tolist() == [round(a * CHEQUERS.size) for a in four.area]
    assert four.masks.shape == four.scores.shape == (4, *SIZE)


def test_the_result_is_that_of_each_images_own_area(four):
    np.testing.assert_array_equal(four.result.areas[:, 0], four.area.astype(np.float32))
    np.testing.assert_array_equal(four.result.masks[:, 0], four.masks)
    images = chequered(wants(0.15), wants(0.25), wants(0.45), wants(0.75))
    for i, area in enumerate(four.area):
        keys = jax.random.fold_in(jax.random.key(0), i)[None]
        alone = perturb.extremal(MODEL, images[i : i + 1], [0], areas=area, steps=STEPS, keys=keys)
        for name, values in alone._asdict().items():
            if values is not None and name != "areas":
                np.testing.assert_array_equal(getattr(four.result, name)[i], values[0], name)
    assert [row["area"] for row in four.result.rows()] == pytest.approx(four.area)


def test_as_a_method_it_gives_the_result(four):
    images = chequered(wants(0.15), wants(0.25))
    method = perturb.methods.get("sufficient")
    again = method(MODEL, images, [0, 0], areas=AREAS, steps=STEPS)
    np.testing.assert_array_equal(again.masks, four.result.masks[:2])
    assert again.kind == "masks"


def test_what_was_tried_is_told_and_no_more_is(four):
    assert four.areas.tolist() == list(AREAS)
    assert list(four.probability) == list(four.gain) == ["blur", "mean"]
    known = ~np.isnan(four.probability["mean"])
    assert known.sum(1).tolist() == [2, 3, 4, 4]
    np.testing.assert_array_equal(known, ~np.isnan(four.gain["blur"]))
    # Two classes: the answer changes at one half, and what is seen is the share that is shown.
    contrast = np.array([wants(0.15), wants(0.25), wants(0.45), wants(0.75)])
    logit = 40 * (contrast[:, None] * np.array(AREAS) - 0.15)
    by_hand = 1 / (1 + np.exp(-logit))
    # A region has a whole number of pixels, and a few more dark than bright ones.
    for name in ("blur", "mean"):
        np.testing.assert_allclose(four.probability[name][known], by_hand[known], atol=0.2)
    assert (four.probability_original > 0.5).all()


def test_a_picture_s_region_does_not_depend_on_its_neighbours(four):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4))
    alone = found([wants(0.45)], keys=keys[2:3])
    np.testing.assert_array_equal(alone.masks[0], four.masks[2])
    np.testing.assert_array_equal(alone.probability["blur"][0], four.probability["blur"][2])
    # And it is what `extremal` finds at that area.
    direct = perturb.extremal(
        MODEL, chequered(wants(0.45)), [0], areas=0.5, steps=STEPS, keys=keys[2:3]
    )
    np.testing.assert_array_equal(direct.masks[0, 0], alone.masks[0])


@pytest.mark.slow
def test_every_fill_must_be_answered():
    """A dark picture that needs little under one fill and most of itself under another."""
    needs_dark = perturb.Model(
        lambda w, x: 40 * jnp.stack([1 - x.mean((1, 2, 3)), 0.55 + 0 * x[:, 0, 0, 0]], 1), ()
    )
    images = np.zeros((1, *SIZE, 3), np.float32)
    white, grey = (perturb.operators.Fade(colour=c) for c in (1.0, 0.5))

    def area(fills):
        options = {"areas": (0.2, 0.4, 0.6), "steps": 3, "fills": fills}
        return perturb.sufficient_region(needs_dark, images, [0], **options).area.tolist()

    # Class 0 wants 55 % of dark: of grey a region of a tenth is enough, of white one of .55.
    assert area(grey) == [0.2]
    assert area(white) == [0.6]
    assert area(perturb.operators.Alternate(operators=(grey, white))) == [0.6]


@pytest.mark.slow
def test_without_classes_the_score_keeps_a_share():
    contrast = perturb.Model(
        lambda w, x: 2 * (x.mean(-1) * w).mean((1, 2))[:, None],
        jnp.asarray(CHEQUERS, jnp.float32),
        output="regression",
    )
    areas = {
        least: perturb.sufficient_region(
            contrast, chequered(1.0), [0], areas=AREAS, least=least, reward="value", steps=STEPS
        )
        for least in (0.25, 0.45, 0.9)
    }
    # The score is the share that is shown, to the few pixels by which dark and bright may differ.
    assert [float(f.area[0]) for f in areas.values()] == [0.3, 0.5, 0.5]
    assert [bool(f.answered[0]) for f in areas.values()] == [True, True, False]
    assert np.isnan(areas[0.9].probability["blur"]).all()


@pytest.mark.slow
def test_regions_may_be_kept_to_a_part_of_each_picture():
    """The options of one image go with it to the next area."""
    upper = np.zeros((2, *SIZE), bool)
    upper[0, :14], upper[1, 10:] = True, True
    result = found([1.0, wants(0.45)], within=upper, steps=4)
    assert result.area.tolist() == [0.2, 0.5]
    assert not (result.masks > 0.5)[~upper].any()


def test_progress_rises_to_all():
    told = []
    found([1.0, wants(0.25)], steps=4, progress=lambda *of: told.append(of))
    shares = [done / total for done, total in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_ctrl_c_gives_back_what_is_decided():
    """The first picture is answered at the second area; in the third Ctrl-C comes."""

    def stop(done, total):
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.warns(perturb.progress.Interrupted, match="1 of 2 regions are finished"):
        result = found([wants(0.15), wants(0.75)], progress=stop)
    assert result.answered.tolist() == [True, False]
    assert result.area[0] == 0.2
    assert np.isnan(result.area[1])
    assert np.isnan(result.masks[1]).all()
    assert result.status[1] == "interrupted"
    # What was learnt of the smaller areas stays.
    assert np.isfinite(result.probability["mean"][1, :2]).all()
    with pytest.raises(KeyboardInterrupt):
        found([wants(0.75)], progress=stop)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"areas": (0.2, 0.1)}, r"areas must be .* rising order, as in .* got \(0.2, 0.1\)"),
        ({"areas": ()}, "areas must be"),
        ({"areas": "small"}, "areas must be .* got 'small'"),
        ({"areas": (0.1, 1.5)}, r"areas must be in \(0, 1\)"),
        ({"least": 0.0}, r"least must be a share of the score in \(0, 1\], got 0.0"),
        ({"fills": "blurr"}, "blurr"),
        ({"game": "delete"}, "game is no option of sufficient_region"),
        ({"alternatives": 2}, "alternatives is no option .* call extremal"),
    ],
)
def test_wrong_calls_end_in_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        found([1.0], **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_answers_are_those_of_a_card():
    """One rule for both: answered, probability and gain of the card's own fills."""
    model = planted.small_network()
    images = np.random.default_rng(0).random((2, 20, 20, 3), np.float32)
    targets = np.asarray(model(images)).argmax(1)
    masks = (
        np.random.default_rng(1).random((2, 3, 20, 20)) > np.array([0.01, 0.3, 0.8])[:, None, None]
    )
    given = {"operator": "blur+mean", "key": jax.random.key(1)}
    shown = types.SimpleNamespace(masks=masks)
    card = evidence.card(model, images, targets, shown, controls=2, **given)
    ours = evidence.answers(model, images, targets, shown, least=0.5, **given)
    for name in ("blur", "mean"):
        np.testing.assert_allclose(ours.probability[name], card.probability[name], rtol=1e-5)
        np.testing.assert_array_equal(ours.answered[name], card.answered[name])
    np.testing.assert_allclose(ours.gain["blur"], card.gain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.original, card.probability_original, rtol=1e-6)
    assert 0 < ours.under_all.mean() < 1
