"""Beyond one class of one photograph: other outputs, other images, other masks, with known
answers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import perturb
from perturb import guided, masks, operators, rewards
from tests import graphnet

pytestmark = pytest.mark.slow

FADE = operators.Fade(colour=0.0)
# What the planted models look at: squares of 16 x 16 images.
LEFT, RIGHT = np.zeros((16, 16), np.float32), np.zeros((16, 16), np.float32)
LEFT[2:7, 1:6] = RIGHT[8:13, 9:14] = 1
SEEN = jnp.asarray(np.stack([LEFT, RIGHT]))  # 25 px each
BRIGHT = np.ones((2, 16, 16, 3), np.float32)


def looks(variables, images):
    """Brightness in each square, `[B, 2]`."""
    # Four times the mean over 25 px and the channels: a square that is wholly seen gives 4.
    return 4 * jnp.einsum("bhwc,nhw->bn", images, variables) / (25 * images.shape[-1])


def detects(variables, images):
    """Two fixed boxes; the score of class 1 is the brightness in the box, class 0 sees nothing."""
    boxes = jnp.array([[1.0, 2, 6, 7], [9.0, 8, 14, 13]])
    scores = jnp.stack([jnp.zeros_like(found := looks(variables, images)), found], -1)
    return jnp.broadcast_to(boxes, (len(images), 2, 4)), scores


def solve(apply, output, targets, reward, images=BRIGHT, areas=25 / 256, variables=SEEN, **options):
    model = perturb.Model(apply, variables, output=output, channels=images.shape[-1])
    options = {"steps": 40, "operator": FADE, "mirror": False, **options}
    return perturb.extremal(model, images, targets, areas=areas, reward=reward, **options)


def overlap(mask, square):
    """Intersection over union of a mask and a square."""
    kept = np.asarray(mask) > 0.5
    return (kept & (square > 0)).sum() / (kept | (square > 0)).sum()


def test_rewards_by_hand():
    row = jnp.array([3.0, 4.0])
    value, label, labels, similarity = (
        rewards.get(name) for name in ("value", "label", "labels", "similarity")
    )
    assert value(row, 1, None) == 4
    assert value(jnp.float32(7), 0, None) == 7  # a regression of one number
    np.testing.assert_allclose(label(row, 0, None), 1 / (1 + np.exp(-3)), rtol=1e-6)
    # The logarithm of a sigmoid, of each label by itself.
    log_p = -np.log1p(np.exp(-np.array([3.0, 4.0])))
    np.testing.assert_allclose(labels(row, jnp.array([1.0, 1]), None), log_p.mean(), rtol=1e-5)
    np.testing.assert_allclose(labels(row, jnp.array([0.0, 1]), None), log_p[1], rtol=1e-5)
    np.testing.assert_allclose(similarity(row, jnp.array([4.0, 3.0]), None), 24 / 25, rtol=1e-6)
    # IoU 2/6 and 1/7 with the wanted box, apart, and empty: the first times its score wins.
    boxes = jnp.array([[0.0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 9, 9], [1, 1, 1, 1]])
    scores = jnp.array([[0.0, 0.6], [0, 0.9], [0, 1], [0, 1]])
    target = (1, jnp.array([0.0, 0, 4, 1]))
    paid = rewards.get("detection")((boxes, scores), target, None)
    np.testing.assert_allclose(paid, 0.6 * 2 / 6, rtol=1e-6)
    slope = jax.grad(lambda b: rewards.get("detection")((b, scores), target, None))(boxes)
    assert np.isfinite(slope).all()
    assert slope[0, 2] != 0


def test_a_reward_is_only_paid_for_outputs_it_can_read():
    for name, output in [("label", "logits"), ("probability", "embedding"), ("value", "logits")]:
        with pytest.raises(ValueError, match=f"reward {name} takes"):
            solve(looks, output, [0, 1], name)


def test_regression_with_a_target_and_an_area_for_each_image():
    areas = np.array([[25 / 256], [50 / 256]])
    found = solve(looks, "regression", [0, 1], "value", areas=areas)
    assert overlap(found.masks[0, 0], LEFT) > 0.8
    # Twice the square's area: the square is in it, and the rest lies anywhere.
    assert (found.masks[1, 0] > 0.5).sum() == 50
    assert ((found.masks[1, 0] > 0.5) & (RIGHT > 0)).sum() >= 23
    np.testing.assert_allclose(found.score_original, 4, rtol=1e-5)


def test_embedding_like_that_of_another_picture():
    # The likeness of (4, 4) with (0, 1) is the root of a half; of one square alone it is 1.
    towards = np.eye(2, dtype=np.float32)[[1, 0]]
    found = solve(looks, "embedding", towards, "similarity")
    # The picture has both; all of one and nothing of the other is the best likeness.
    for mask, wanted, other in zip(found.masks[:, 0], (RIGHT, LEFT), (LEFT, RIGHT), strict=True):
        assert ((mask > 0.5) & (other > 0)).sum() == 0
        assert ((mask > 0.5) & (wanted > 0)).sum() > 0
    np.testing.assert_allclose(found.score_original, 0.5**0.5, rtol=1e-5)
    np.testing.assert_allclose(found.score_binary, 1, rtol=1e-5)


def test_a_detection_rests_on_its_box():
    target = np.array([1, 1]), np.array([[1.0, 2, 6, 7], [9, 8, 15, 13]], np.float32)
    found = solve(detects, "detection", target, "detection")
    assert overlap(found.masks[0, 0], LEFT) > 0.8
    assert overlap(found.masks[1, 0], RIGHT) > 0.8
    # The second box asked for is 30 px, of which the detected one fills 25.
    np.testing.assert_allclose(found.score_original, [4, 4 * 25 / 30], rtol=1e-5)


def test_one_of_several_independent_labels():
    found = solve(looks, "multilabel", [0, 1], "label")
    assert overlap(found.masks[0, 0], LEFT) > 0.8
    assert overlap(found.masks[1, 0], RIGHT) > 0.8
    # Sigmoids of 4 with the picture and of 0 on black.
    np.testing.assert_allclose(found.probability_original, 1 / (1 + np.exp(-4.0)), rtol=1e-5)
    np.testing.assert_allclose(found.probability_floor, 0.5, rtol=1e-5)


def test_images_of_many_channels():
    images = np.ones((2, 16, 16, 7), np.float32)
    # Every other row black: of the square only what is bright is worth its area.
    images[:, ::2] = 0
    found = solve(looks, "regression", [0, 1], "value", images=images, areas=60 / 256)
    bright = LEFT * images[0, ..., 0]
    assert ((found.masks[0, 0] > 0.5) & (bright > 0)).sum() >= 0.9 * bright.sum()


def test_a_mask_may_not_leave_a_region():
    within = np.zeros((2, 16, 16))
    within[0, :, :8] = within[1, 4:] = 1
    both = perturb.Model(lambda w, x: looks(w, x).sum(-1), SEEN, output="regression")
    found = perturb.extremal(
        both, BRIGHT, [0, 0], within=within, areas=0.2, operator=FADE, reward="value", steps=40
    )
    # A fifth of 256 px, of the whole picture and not of the region.
    np.testing.assert_array_equal((found.masks > 0.5).sum((1, 2, 3)), 51)
    assert found.masks[:, 0][within == 0].max() < 1e-3
    np.testing.assert_allclose(found.masks.mean((1, 2, 3)), 0.2, rtol=0.01)
    assert ((found.masks[0, 0] > 0.5) & (LEFT > 0)).sum() >= 23


def test_masks_of_whole_groups_find_the_two_that_count():
    tiles = np.arange(16).reshape(4, 4).repeat(4, 0).repeat(4, 1)
    # Two of sixteen tiles, which share no side.
    wanted = np.isin(tiles, [5, 14])
    model = perturb.Model(lambda w, x: (x.mean(-1) * w).mean((1, 2)), wanted * 1.0, output="any")
    found = perturb.extremal(
        model,
        BRIGHT,
        [0, 0],
        areas=2 / 16,
        groups=tiles,
        operator=FADE,
        steps=30,
        reward=lambda row, target, original: row,
    )
    np.testing.assert_array_equal(found.masks[0, 0] > 0.5, wanted)
    np.testing.assert_array_equal(found.masks[1, 0] > 0.5, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"within": np.ones((3, 3))}, r"within must be \[16, 16\] or \[2, 16, 16\], got \(3, 3\)"),
        (
            {"within": LEFT, "areas": 0.2},
            "within has 25 px for image 0, too few for a mask of 51 px",
        ),
        ({"groups": LEFT}, "groups must be whole numbers from 0, got float32"),
        ({"groups": LEFT.astype(int), "within": LEFT}, "within and groups were both given"),
        ({"groups": LEFT.astype(int), "mask": masks.Pixels()}, "leave out mask"),
        ({"within": LEFT, "solver": "torchray"}, 'within and groups need solver="exact"'),
    ],
)
def test_guides_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        solve(looks, "regression", [0, 1], "value", **options)


def test_guided_masks_under_jit_and_vmap():
    way, area, end = guided.Inside(masks.Pixels()), jnp.float32(0.05), jnp.float32(1)
    params = jax.random.normal(jax.random.key(0), (2, 16, 16))
    where = jnp.stack([LEFT, RIGHT])

    @jax.jit
    def visible(p, guide):
        return way.mask(p, (16, 16), area, end, guide).visible

    each = jnp.stack([visible(p, g) for p, g in zip(params, where, strict=True)])
    np.testing.assert_allclose(jax.vmap(visible)(params, where), each, atol=1e-5)


def test_a_volume():
    cube = np.zeros((10, 10, 10), np.float32)
    # 64 of 1,000 voxels, an area of .064.
    cube[2:6, 5:9, 4:8] = 1
    model = perturb.Model(
        lambda w, x: (x[..., 0] * w).mean((1, 2, 3)),
        jnp.asarray(cube),
        output="regression",
        channels=1,
    )
    images = np.ones((1, 10, 10, 10, 1), np.float32)
    found = perturb.extremal(
        model, images, [0], areas=0.064, operator=FADE, reward="value", steps=30
    )
    assert found.masks.shape == (1, 1, 10, 10, 10)
    assert overlap(found.masks[0, 0], cube) > 0.7


def test_a_clip_of_which_one_frame_counts():
    shown = np.zeros((6, 12, 12), np.float32)
    # 36 px of one of six frames.
    shown[4, 3:9, 3:9] = 1
    model = perturb.Model(
        lambda w, x: (x.mean(-1) * w).mean((1, 2, 3)), jnp.asarray(shown), output="regression"
    )
    clips = np.ones((1, 6, 12, 12, 3), np.float32)
    # Along time a blob is narrower than a frame: neighbours stay apart.
    way = masks.Blobs(aspect=(1 / 16, 1, 1))
    found = perturb.extremal(
        model, clips, [0], areas=36 / shown.size, mask=way, operator=FADE, reward="value", steps=30
    )
    assert overlap(found.masks[0, 0], shown) > 0.7


def test_a_clip_is_blurred_frame_by_frame():
    clip = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    by_frame = operators.Blur(levels=2, aspect=(0, 1, 1)).prepare(clip, None)
    frame = operators.Blur(levels=2).prepare(clip[1], None)
    np.testing.assert_allclose(by_frame[:, 1], frame, atol=1e-6)
    with pytest.raises(ValueError, match=r"aspect must be one factor an axis of \(2, 16, 16\)"):
        operators.pyramid(clip, (1.0,), aspect=(1, 1))


def test_blobs_reach_as_far_as_their_aspect_says():
    u = jnp.zeros((9, 33)).at[4, 16].set(1.0)
    wide = masks.gaussian_upsample(u, (9, 33), step=(1, 1), sigma=(1.0, 4.0), reach=12)
    rows, columns = np.asarray(wide.sum(1)), np.asarray(wide.sum(0))
    for line, sigma in ((rows, 1.0), (columns, 4.0)):
        i = np.arange(line.size) - line.size // 2
        # The deviation of the blob along each axis, to 5 % for what is sampled and cut off.
        assert ((line * i**2).sum() / line.sum()) ** 0.5 == pytest.approx(sigma, rel=0.05)


def test_grey_digits_are_read_off_their_ink(data_dir):
    data = np.load(data_dir / "mnist" / "test_1000.npz")
    model = graphnet.model(data_dir / "weights" / "mnist_lenet5.json", channels=1)
    images = np.stack(
        [np.asarray(PIL.Image.fromarray(i).resize((32, 32), 2)) for i in data["images"][:4]]
    )
    images = images[..., None].astype(np.float32) / 255
    found = perturb.extremal(
        model, images, data["labels"][:4], areas=0.2, operator=FADE, reward="margin", steps=30
    )
    assert (found.score_binary[:, 0] > found.score_floor).all()
    assert (found.probability_binary[:, 0] > 0.9).all()
    # Black on black is nothing lost: what is kept is kept for its ink.
    kept = found.masks[:, 0] > 0.5
    ink = images[..., 0]
    assert ((ink * kept).sum((1, 2)) / ink.sum((1, 2))).mean() > 2 * 0.2
