"""The evidence card against models whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import evidence, stability
from perturb.evidence.verdict import Case, judge
from tests import planted

SIZE = (32, 32)
KEY = jax.random.key(3)


def stand_in(masks, scores=None):
    """A result of given masks `[B, A, H, W]`."""

    class Stand:
        pass

    found = Stand()
    found.masks = np.asarray(masks, np.float32)
    if scores is not None:
        found.scores = np.asarray(scores, np.float32)
    return found


def bright_patch():
    """A model that sums the brightness of one patch, an image bright there, and the patch."""
    # 61 px of radius 4.4 px, off the middle, so that a flip moves it.
    patch = planted.disc(SIZE, 0.06, (0.4, 0.6))
    # Divided by the area: the class's score is the patch's mean brightness, whatever its size.
    model = planted.linear(np.stack([1.0 * patch, -1.0 * patch, 0 * patch]) / patch.sum())
    image = np.full((*SIZE, 3), 0.1, np.float32)
    image[patch] = 0.9
    return model, image[None], patch


@pytest.mark.slow
def test_the_region_that_matters_holds():
    model, images, patch = bright_patch()
    found = evidence.card(
        model,
        images,
        [0],
        stand_in(patch[None, None], patch[None, None]),
        operator="fade",
        reward="logit",
        key=KEY,
    )
    assert found.verdict[0, 0] == "holds"
    assert found.gain[0, 0] == pytest.approx(1.0, abs=1e-5)
    assert found.control_percentile[0, 0] == 100.0
    assert set(found.floor) == {"fade", "blur", "half_blur", "double_blur", "mean"}
    # Every floor is that of the model by hand.
    for name, operator in {"fade": perturb.operators.get("fade"), **_held("fade")}.items():
        shown = operator.apply(operator.prepare(jnp.asarray(images[0]), None), jnp.zeros(SIZE))
        assert found.floor[name][0] == pytest.approx(float(model(shown[None])[0, 0]), abs=1e-5)
        if name != "fade":
            assert found.transfer[name][0, 0] == pytest.approx(1.0, abs=1e-4)
    assert found.transfer_ratio[0, 0] == pytest.approx(1.0, abs=1e-4)
    assert found.rival[0, 0] == 2
    # 6 % of the picture is enough: the first area tried that holds it is 10 %.
    assert found.sufficient_area[0, 0] == 0.1
    assert not found.overdriven[0, 0]


def _held(name):
    return evidence.held_out(perturb.operators.get(name))


def test_a_region_beside_the_answer_fails_and_says_why():
    model, images, patch = bright_patch()
    # The patch is 9 px high: moved by 12 it has no pixel in common with itself.
    beside = np.roll(patch, 12, 0)
    found = evidence.card(
        model, images, [0], stand_in(beside[None, None]), operator="fade", key=KEY
    )
    assert found.verdict[0, 0] == "fails"
    assert "keeps 0 %" in found.reasons[0][0][0]
    assert found.control_percentile[0, 0] <= 50
    assert found.curve is None
    assert np.isnan(found.sufficient_area[0, 0])


def card_of_patch(apply, patch, *, operator):
    """The card of a light patch on grey, as the mask of a model that is `apply`."""
    image = np.full((*SIZE, 3), 0.5, np.float32)
    image[patch] = 0.9
    model, mask = perturb.Model(apply, ()), stand_in(patch[None, None])
    return evidence.card(model, image[None], [0], mask, operator=operator, key=KEY)


def test_a_mask_that_lives_on_its_own_fill_is_doubtful():
    """The model pays for surroundings of the very grey that the fill has; other fills differ."""
    patch = planted.disc(SIZE, 0.1)

    def apply(w, x):
        grey = x.mean(-1)
        kept = (grey * patch).sum((1, 2)) / patch.sum()
        # One grey pays all of it; any other one 0.1 away pays exp(-10), next to the 0.05 that
        # stays.
        far = ((grey - 0.5) ** 2 * ~patch).sum((1, 2)) / (~patch).sum()
        return jnp.stack([kept * (0.05 + jnp.exp(-1e3 * far)), 0 * kept], 1)

    found = card_of_patch(apply, patch, operator="fade")
    assert found.gain[0, 0] == pytest.approx(1.0, abs=1e-5)
    assert found.transfer["mean"][0, 0] < 0.2
    assert found.transfer_ratio[0, 0] < 0.5
    assert found.verdict[0, 0] == "doubtful"
    assert "fills it was not found with" in found.reasons[0][0][0]


@pytest.mark.parametrize("key", [KEY, jax.random.key(8)])
def test_a_region_that_lives_on_one_draw_of_noise_is_doubtful(key):
    """The model wants the patch, and no noise beside it but that of the default search."""
    patch = planted.disc(SIZE, 0.1)
    image = np.where(patch, 0.9, 0.5)[..., None] * np.ones(3, np.float32)
    search = perturb.operators.Noise(common=True)
    shown = search.apply(search.prepare(jnp.asarray(image), None), jnp.asarray(patch, jnp.float32))
    pattern = (shown - image.mean()) * ~patch[..., None]
    pattern = pattern / (pattern**2).sum()

    def apply(w, x):
        kept = (x.mean(-1) * patch).sum((1, 2)) / patch.sum()
        rough = (jnp.diff(x.mean(-1), axis=1)[:, :, ~patch.any(0)] ** 2).mean((1, 2))
        known = jnp.clip((x * w).sum((1, 2, 3)), 0, 1)
        return jnp.stack([40 * (kept - 0.75) - 20 * (rough > 1e-3) * (1 - known), 0 * kept], 1)

    model = perturb.Model(apply, pattern, output="logits")
    # Under the noise that the search was shown the region is answered.
    assert float(model(shown[None])[0, 0]) > 2
    given = model, image[None], [0], stand_in(patch[None, None])
    found = evidence.card(*given, key=key)
    assert [float(found.answered[n][0, 0]) for n in ("blur", "mean", "noise")] == [1, 1, 0]
    assert found.verdict[0, 0] == "doubtful"
    assert "another draw" in found.reasons[0][0][-1]
    assert evidence.answers(*given, key=key).answered["noise"][0, 0] == 0


def test_what_does_not_hold_under_noise_says_how_to_seek_what_does():
    """The model wants smooth surroundings: every fill is, but for noise."""
    patch = planted.disc(SIZE, 0.1)
    # Without the patch's own edge, whose steps would count as rough under every fill.
    far = ~(patch | np.roll(patch, 1, 0) | np.roll(patch, -1, 0))

    def apply(w, x):
        grey = x.mean(-1)
        kept = (grey * patch).sum((1, 2)) / patch.sum()
        steps = jnp.diff(grey, axis=1, append=grey[:, -1:]) ** 2
        rough = (steps * far).sum((1, 2)) / far.sum()
        return jnp.stack([kept * (0.05 + jnp.exp(-50 * rough)), 0 * kept], 1)

    found = card_of_patch(apply, patch, operator="blur")
    assert found.verdict[0, 0] == "doubtful"
    assert "(noise)" in found.reasons[0][0][0]
    assert 'operator="blur+mean+noise"' in found.reasons[0][0][-1]


def test_a_region_that_scores_above_the_picture_is_flagged():
    patch = planted.disc(SIZE, 0.06, (0.4, 0.6))
    # The surroundings count against the class: without them the score rises above the whole
    # picture's.
    model = planted.linear(np.stack([patch - 0.05 * ~patch, 0 * patch]) / patch.sum())
    image = np.full((*SIZE, 3), 0.8, np.float32)
    found = evidence.card(
        model, image[None], [0], stand_in(patch[None, None]), operator="fade", key=KEY
    )
    assert found.overdriven[0, 0]
    assert "the region alone scores above the whole picture" in found.reasons[0][0]


def again_at(*masks, scores=None):
    """A search that finds these masks, whatever the keys, and notes them."""

    def method(model, images, targets, *, keys):
        method.keys, method.images = keys, images
        return stand_in(np.stack(masks)[None], scores)

    return method


def test_a_region_that_another_key_does_not_find_is_doubtful():
    model, images, patch = bright_patch()
    given = {"operator": "fade", "keys": KEY[None]}
    elsewhere, beside = np.roll(patch, 12, 0), np.roll(patch, 3, 0)
    result = stand_in(patch[None, None])
    plain = evidence.card(model, images, [0], result, **given)
    assert plain.verdict[0, 0] == "holds"
    assert np.isnan(plain.key_overlap[0, 0])
    for other, verdict in ((patch, "holds"), (beside, "holds"), (elsewhere, "doubtful")):
        search = again_at(other)
        found = evidence.card(model, images, [0], result, again=search, **given)
        assert found.key_overlap[0, 0] == planted.iou(patch, other)
        assert found.verdict[0, 0] == verdict
        assert search.keys[0] != KEY
        # Other rounding too, for a search that draws nothing.
        assert 0 < np.abs(search.images - images).max() < 1e-5
    words = "another start, key or rounding found another region: they overlap by 0 %"
    assert words in found.reasons[0][0]


def test_of_a_search_at_one_area_the_scores_are_cut_at_every_area():
    model, images, patch = bright_patch()
    half = planted.disc(SIZE, 0.03, (0.4, 0.6))
    result = stand_in(np.stack([half, patch])[None])
    # Scores that fall from the middle of the patch: cut at either area they give the two discs.
    y, x = np.mgrid[:32, :32]
    scores = -np.hypot(y + 0.5 - 0.4 * 32, x + 0.5 - 0.6 * 32)
    search = again_at(patch, scores=scores[None, None])
    found = evidence.card(model, images, [0], result, operator="fade", again=search, key=KEY)
    np.testing.assert_allclose(found.key_overlap[0], 1.0, atol=0.05)
    with pytest.raises(ValueError, match="again must return masks"):
        evidence.card(model, images, [0], result, operator="fade", again=again_at(patch), key=KEY)


@pytest.mark.parametrize(
    ("weak", "verdict"),
    [
        ({}, "holds"),
        ({"overdriven": True}, "holds"),
        ({"status": "not_converged"}, "holds"),
        ({"agreement": 0.4}, "holds"),
        ({"agreement": 0.2}, "doubtful"),
        ({"overdriven": True, "status": "not_converged"}, "doubtful"),
        ({"overdriven": True, "agreement": 0.4}, "doubtful"),
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else given,
)
def test_what_is_wrong_with_an_answered_region_lowers_the_verdict_in_words(weak, verdict):
    plain = {"overdriven": False, "status": "ok", "agreement": np.nan}
    case = Case(
        gain={"fade": 0.9, "mean": 0.8},
        answered={"fade": True, "mean": True},
        probability={},
        original=np.nan,
        trivial=frozenset(),
        sought=1,
        percentile=100.0,
        copies=12,
        delete=False,
        **(plain | weak),
    )
    found, reasons = judge(case)
    assert found == verdict
    # Beside the two that speak for it a sentence each, before them where they lower the verdict.
    assert len(reasons) == 3 + len(weak)
    assert reasons[0].startswith("the region keeps") == (verdict == "holds")


def test_a_region_that_is_too_small_says_what_the_answer_needs():
    model, images, _ = bright_patch()
    y, x = np.mgrid[:32, :32]
    # Around a point of the patch's edge: the patch itself is within, from some area on.
    scores = -np.hypot(y + 0.5 - 0.4 * 32, x + 0.5 - 0.5 * 32)
    region = planted.disc(SIZE, 0.01, (0.4, 0.5))
    result = stand_in(region[None, None], scores[None, None])
    found = evidence.card(model, images, [0], result, operator="fade", key=KEY)
    assert found.verdict[0, 0] == "fails"
    assert found.sufficient_area[0, 0] > 0.01
    needed = f"the answer needs {100 * found.sufficient_area[0, 0]:.0f} % of the picture"
    assert found.reasons[0][0][-1] == f"{needed}, cut from the same scores"


def test_delete_counts_what_is_taken():
    model, images, patch = bright_patch()
    found = evidence.card(
        model,
        images,
        [0],
        # Two masks: the patch, whose loss takes all of the score, and one beside it, whose loss
        # takes nothing.
        stand_in(np.stack([patch, np.roll(patch, 12, 0)])[None]),
        operator="fade",
        game="delete",
        key=KEY,
    )
    np.testing.assert_allclose(found.gain[0], [1.0, 0.0], atol=0.15)
    assert found.verdict[0].tolist() == ["holds", "fails"]
    assert found.reasons[0][0][0].startswith("the region takes")


def test_nothing_can_be_said_where_the_empty_picture_scores_as_high():
    model, images, patch = bright_patch()
    # Class 1 has the patch's weight with a minus: the patch lowers it, and an empty picture scores
    # higher.
    found = evidence.card(model, images, [1], stand_in(patch[None, None]), operator="fade", key=KEY)
    assert found.verdict[0, 0] == "fails"
    assert np.isnan(found.gain[0, 0])
    assert "as high as with the whole picture" in found.reasons[0][0][0]


@pytest.mark.slow
def test_evidence_does_not_depend_on_neighbours():
    model = planted.small_network()
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(3, *SIZE, 3)).astype(np.float32)
    masks = rng.uniform(size=(3, 2, *SIZE)).astype(np.float32)
    keys = jax.random.split(KEY, 3)
    whole = evidence.card(model, images, [0, 1, 2], stand_in(masks), keys=keys, controls=4)
    # The middle one of three, by itself, with the key it had among them.
    alone = evidence.card(model, images[1:2], [1], stand_in(masks[1:2]), keys=keys[1:2], controls=4)
    for name in ("gain", "transfer_ratio", "control_percentile", "rival"):
        np.testing.assert_array_equal(getattr(whole, name)[1], getattr(alone, name)[0])
    for name, values in whole.floor.items():
        assert values[1] == alone.floor[name][0]


def test_rewards_without_classes_have_no_rival():
    model, images, patch = bright_patch()
    found = evidence.card(
        model,
        images,
        [0],
        stand_in(patch[None, None]),
        operator="mean",
        reward="embedding",
        key=KEY,
    )
    assert found.rival[0, 0] >= -1
    assert found.verdict[0, 0] in evidence.VERDICTS


def test_shifts_are_never_small():
    # A shift of less than an eighth would leave most of a mask where it was, and be no control.
    moved = evidence.shifts(KEY, (32, 40), 200)
    for axis, n in enumerate((32, 40)):
        assert moved[:, axis].min() >= n // 8
        assert moved[:, axis].max() <= n - n // 8
    # 25 x 31 shifts are allowed: 200 draws repeat a few of them, never half.
    assert len(np.unique(moved, axis=0)) > 100


def test_masks_that_do_not_fit_are_refused():
    model, images, patch = bright_patch()
    with pytest.raises(ValueError, match="masks must be"):
        evidence.card(model, images, [0], stand_in(patch[None]))
    with pytest.raises(ValueError, match="controls must be at least 1"):
        evidence.card(model, images, [0], stand_in(patch[None, None]), controls=0)


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("asked", "passes"), [((0.1,), 36), ((0.15,), 38), ((0.05, 0.1, 0.2), 92)], ids=str
)
def test_forwards_of_the_default_card(asked, passes):
    """Some 36 forward passes a mask, where 100 steps cost more than 300; no region is shown twice.

    One area: whole, 7 fills with nothing and with the region, 8 cuts under the first fill, 12
    copies, less the cut that is the region, and batches of two. This model answers at every area:
    the smallest is shown under the two other fills and is enough.
    """
    rows = []

    def apply(w, x):
        jax.debug.callback(lambda r: rows.append(len(r)), x[:, 0, 0, 0])
        return (x**2).mean((1, 2))

    model = perturb.Model(apply, ())
    # Nothing is planted: only how often the model is asked counts here.
    images = np.random.default_rng(0).uniform(size=(1, *SIZE, 3)).astype(np.float32)
    scores = np.random.default_rng(1).uniform(size=(1, len(asked), *SIZE)).astype(np.float32)
    counts = [round(a * SIZE[0] * SIZE[1]) for a in asked]
    masks = np.stack([s >= np.sort(s.ravel())[-n] for s, n in zip(scores[0], counts, strict=True)])
    perturb.check_model(model, images)
    jax.effects_barrier()
    before = sum(rows)
    found = evidence.card(
        model, images, [0], stand_in(masks[None], scores), reward="logit", key=KEY
    )
    jax.effects_barrier()
    # Two batches of two are the checks of the model.
    assert sum(rows) - before - 4 == passes <= 38 * len(asked)
    for a, area in enumerate(asked):
        if area in evidence.AREAS:
            assert np.isfinite(found.curve[0, a, evidence.AREAS.index(area)])


@pytest.mark.slow
def test_the_area_that_is_enough_is_that_of_showing_every_area_under_every_fill():
    """By hand at 8 areas under 3 fills; the card shows most of them under one fill alone."""
    rng = np.random.default_rng(0)
    # Weights of either sign: what is not seen counts too, and differs between fills. The scores are
    # noisy, so that much of a picture is needed.
    weights = rng.normal(size=SIZE).astype(np.float32)
    bright = 0.5 + 0.1 * weights + rng.normal(0, 0.1, (12, *SIZE))
    images = np.repeat(np.clip(bright, 0, 1)[..., None], 3, -1).astype(np.float32)
    scores = (bright - 0.5) * weights + rng.normal(0, 0.2, bright.shape)

    def apply(w, x):
        score = (x.mean(-1) * w[0]).sum((1, 2))
        return jnp.stack([score, 0 * score + w[1]], 1)

    used = evidence.fills.sought(perturb.operators.DEFAULT)
    found, wanted, first = [], [], []
    for image, score in zip(images, scores, strict=True):
        # The class stands against a constant between the empty picture's score and the whole one's.
        empty, whole = image.mean() * weights.sum(), (image[..., 0] * weights).sum()
        least = empty + rng.uniform(0.2, 1) * (whole - empty)
        model = perturb.Model(apply, (weights, np.float32(least)))
        cuts = [score >= np.sort(score.ravel())[-round(a * score.size)] for a in evidence.AREAS]
        result = stand_in(cuts[3][None, None], score[None, None])
        card = evidence.card(model, image[None], [0], result, keys=KEY[None])
        key = evidence.fills.another_draw()
        views = [[evidence.show(fill, image, key, cut[None])[0] for cut in cuts] for fill in used]
        answered = [np.asarray(model(np.stack(v))).argmax(1) == 0 for v in views]
        found.append(card.sufficient_area[0, 0])
        wanted.append(min(np.array(evidence.AREAS)[np.all(answered, 0)], default=np.nan))
        first.append(min(np.array(evidence.AREAS)[answered[0]], default=np.nan))
    np.testing.assert_array_equal(found, wanted)
    # Not all alike, and now and then the first fill alone would say less.
    assert len(set(wanted)) > 2
    assert (np.array(first) < wanted).any()


@pytest.mark.slow
def test_the_long_form_reruns_the_method():
    """On a model that does not care where the patch is, flips and shifts find the same region."""
    model, images, patch = bright_patch()
    brightest = patch.sum()

    def method(model, pictures, targets, *, keys):
        grey = np.asarray(pictures).mean(-1).reshape(len(pictures), -1)
        # As many pixels as the patch has, the brightest: a method that finds it wherever it was
        # moved to.
        cut = -np.sort(-grey, axis=1)[:, brightest - 1]
        return stand_in((grey >= cut[:, None]).reshape(len(pictures), 1, *SIZE))

    found = stability.full(
        model,
        images,
        [0],
        stand_in(patch[None, None]),
        method=method,
        operator="fade",
        second=planted.linear(np.stack([0.0 * patch, 1.0 * patch])),
        controls=8,
        # Two seeds, eight controls: the method is exact, so more would only repeat it.
        seeds=2,
    )
    assert found.card.verdict[0, 0] == "holds"
    for agreement in (found.seeds, found.flip, found.shift):
        assert agreement[0, 0] == 1
    # Without the region nothing is left: the other game takes all of it too.
    assert found.other_game[0, 0] == pytest.approx(1.0, abs=1e-4)
    # A network that looks for another class keeps nothing to keep.
    assert np.isnan(found.second[0, 0])


@pytest.mark.slow
def test_operators_that_were_used_in_turn_are_not_held_out():
    turns = perturb.operators.Alternate(
        operators=(perturb.operators.Blur(), perturb.operators.Noise())
    )
    assert list(evidence.held_out(turns)) == ["half_blur", "double_blur", "mean", "fade"]
    default = perturb.operators.get(perturb.operators.DEFAULT)
    assert list(evidence.held_out(default)) == ["half_blur", "double_blur", "fade", "black"]
    model, images, patch = bright_patch()
    blur = perturb.operators.Blur()
    for used, names in {
        (blur, perturb.operators.Noise()): [
            "blur",
            "noise",
            "half_blur",
            "double_blur",
            "mean",
            "fade",
        ],
        (blur, blur): ["blur", "blur_2", "half_blur", "double_blur", "mean", "noise"],
    }.items():
        turns = perturb.operators.Alternate(operators=used)
        found = evidence.card(
            model, images, [0], stand_in(patch[None, None]), operator=turns, key=KEY
        )
        assert list(found.floor) == names
        assert list(found.transfer) == names[2:]


def test_a_mask_of_several_operators_is_held_to_its_mean_gain_under_them():
    """Two of three fills leave half of the answer: one that a mask was sought with, one held
    out.
    """
    patch = planted.disc(SIZE, 0.1)

    def apply(w, x):
        kept = (x[..., 0] * patch).sum((1, 2)) / patch.sum()
        # The grey of a half, and no other fill, is worth half of what is seen in the patch.
        # Exactly that grey and no other; 1e-3 is far above the rounding of a filled pixel.
        far = jnp.abs(x - 0.5).max(-1)
        grey = (far * ~patch).sum((1, 2)) / (~patch).sum() < 1e-3
        return jnp.stack([kept * jnp.where(grey, 0.5, 1.0), 0 * kept], 1)

    black, grey = perturb.operators.Fade(colour=0.0), perturb.operators.Fade(colour=0.5)
    image = np.zeros((*SIZE, 3), np.float32)
    image[patch] = 1.0
    model = perturb.Model(apply, (), output="any")
    given = {"model": model, "images": image[None], "targets": [0], "key": KEY, "reward": "logit"}
    shown = stand_in(patch[None, None])
    one, other, both = (
        evidence.card(**given, result=shown, operator=used)
        for used in (black, grey, perturb.operators.Alternate(operators=(black, grey)))
    )
    first, second = one.gain[0, 0], other.gain[0, 0]
    assert first == pytest.approx(1.0, abs=1e-5)
    assert second < 0.6
    least = min(v[0, 0] for v in both.transfer.values())
    assert both.gain[0, 0] == first
    assert both.transfer_ratio[0, 0] == pytest.approx(
        min(least, 1) / ((first + second) / 2), abs=1e-5
    )
