"""The default's course: few steps of many views, whose regions come back."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import solver
from perturb.solver import loop

extremal = importlib.import_module("perturb.methods.extremal")
SIDE = 32
Y, X = np.mgrid[:SIDE, :SIDE] + 0.5
# Off the middle in both directions, so that a mirror image is another picture.
DISC = np.hypot(Y - 11, X - 21) < 5


def score(weights, x):
    """The brighter the disc the surer; the mirrored disc counts as much, as for any real class."""
    grey = x.mean(-1)
    disc = jnp.asarray(DISC, jnp.float32)
    both = jnp.stack([disc, disc[:, ::-1]])
    seen = (grey[:, None] * both).sum((2, 3)) / disc.sum()
    best = 12 * (seen.max(1) - 0.5)
    return jnp.stack([best, -best], 1)


@pytest.fixture(scope="module")
def model():
    return perturb.Model(score, (), output="logits")


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    picture = 0.2 + 0.7 * DISC[..., None] + 0.05 * rng.standard_normal((SIDE, SIDE, 3))
    return np.clip(picture, 0, 1).astype(np.float32)[None]


def region(model, images, *, area=0.08, **options):
    found = perturb.extremal(model, images, [0] * len(images), areas=area, **options)
    return np.asarray(found.masks)[:, 0] > 0.5


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_it_finds_the_cause(model, image):
    found = region(model, image)[0]
    assert (found & DISC).sum() > 0.85 * DISC.sum()


def test_no_key_changes_a_bit(model, image):
    one, other = (
        perturb.extremal(model, image, [0], areas=0.08, key=jax.random.key(n)) for n in (0, 1)
    )
    np.testing.assert_array_equal(one.masks, other.masks)
    # View by view the noise of the key decides: the test above could fail.
    singly = {"areas": 0.08, "mask": perturb.masks.Blobs()}
    one, other = (
        perturb.extremal(model, image, [0], key=jax.random.key(n), **singly) for n in (0, 1)
    )
    assert (one.masks != other.masks).any()


def test_the_mirror_image_has_the_mirrored_region(model, image):
    found = region(model, image)[0]
    mirrored = region(model, np.ascontiguousarray(image[:, :, ::-1]))[0][:, ::-1]
    assert iou(found, mirrored) > 0.9


def test_near_areas_have_near_regions(model, image):
    # Both are cut from the scores of .1, so one lies within the other.
    small, large = (region(model, image, area=area)[0] for area in (0.09, 0.11))
    assert not (small & ~large).any()
    # From rung to rung the search is another.
    assert iou(region(model, image, area=0.08)[0], large) > 0.5


def begun(model, image):
    """The default's recipe, ready, and one slot of twelve steps."""
    given = {"operator": None, "reward": perturb.rewards.answer(), "channels": 3}
    recipe = extremal.steady(extremal.exact_recipe((SIDE, SIDE), **given), (SIDE, SIDE))
    model, recipe = solver.ready(model, recipe)
    items, state = solver.start(
        model,
        recipe,
        jnp.asarray(image),
        jnp.array([0]),
        jnp.array([0.08], jnp.float32),
        jnp.array([82]),
        jax.random.split(jax.random.key(0), 1),
        jnp.array([12]),
    )
    return model, recipe, items, state


def test_a_step_takes_the_sum_of_its_pairs(model, image):
    model, recipe, items, state = begun(model, image)
    pairs = [loop._slopes(model, recipe, items, state, np.int32(n)) for n in range(4)]
    grads = sum(g for g, _ in pairs)
    by_hand = loop._moved(recipe, items, state, grads, sum(s for _, s in pairs) / 8)
    taken = solver.advance(model, recipe, items, state, 1)
    np.testing.assert_allclose(taken.params, by_hand.params, atol=1e-6)
    np.testing.assert_allclose(taken.reward, by_hand.reward, atol=1e-6)
    # Pairs are of different masks and fills: no two slopes are alike.
    assert np.abs(pairs[0][0] - pairs[1][0]).max() > 1e-3 * np.abs(pairs[0][0]).max()


def test_the_result_is_the_mean_of_the_last_third(model, image):
    model, recipe, items, state = begun(model, image)
    passed = []
    for _ in range(12):
        state = solver.advance(model, recipe, items, state, 1)
        passed.append(np.asarray(state.params))
    np.testing.assert_allclose(state.best, np.mean(passed[8:], 0), atol=1e-5)


def test_steps_and_progress_are_counted_in_views(model, image):
    told = []
    found = perturb.extremal(
        model, image, [0], areas=0.08, steps=100, progress=lambda *n: told.append(n)
    )
    assert told[-1] == (96, 96)
    assert found.steps.tolist() == [[96]]


@pytest.mark.parametrize(
    "options",
    [{"steps": 59}, {"mask": perturb.masks.Blobs()}, {"operator": "blur"}, {"mirror": False}],
    ids=str,
)
def test_what_is_asked_otherwise_is_done_view_by_view(model, image, options):
    steps = options.get("steps", 60)
    told = []
    perturb.extremal(
        model,
        image,
        [0],
        areas=0.08,
        progress=lambda *n: told.append(n),
        **{"steps": steps, **options},
    )
    assert told[-1] == (steps, steps)


def test_neighbours_change_no_bit(model, image):
    two = np.concatenate([image, image[:, :, ::-1]])
    alone = perturb.extremal(model, image, [0], areas=0.08)
    beside = perturb.extremal(model, two, [0, 0], areas=(0.08, 0.2), batch_size=3)
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(alone.masks[0, 0], beside.masks[0, 0])


def test_other_causes_are_listed(model):
    picture = np.full((1, SIDE, SIDE, 3), 0.1, np.float32)
    picture[0][DISC | DISC[:, ::-1]] = 0.95
    found = perturb.extremal(model, picture, [0], areas=0.08, alternatives=2)
    masks = [found.masks[0, 0], *(other.mask for other in found.alternatives[0][0])]
    held = [
        [bool(((m > 0.5) & d).sum() > 0.7 * d.sum()) for m in masks] for d in (DISC, DISC[:, ::-1])
    ]
    assert len(masks) == 2
    assert all(any(h) for h in held)
