"""Geometry against Pillow pipelines with sizes and offsets worked out by hand, and real inputs."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perturb import Geometry, central, short_side, squash
from perturb.nets._net import IMAGENET_MEAN, IMAGENET_STD

BILINEAR = PIL.Image.Resampling.BILINEAR


def photograph(width, height, mode="RGB"):
    channels = {"RGB": (3,), "L": ()}[mode]
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, *channels), np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("width", "height", "to", "left", "top"),
    [
        (500, 375, (341, 256), 58, 16),  # 500 * 256 / 375 = 341.33; (341 - 224) / 2 = 58.5 -> 58
        (333, 501, (256, 385), 16, 80),  # 385.15; 80.5 -> 80
        (201, 201, (256, 256), 16, 16),
        (512, 255, (514, 256), 145, 16),  # 514.008
        (64, 3, (5461, 256), 2618, 16),  # 5461.33; 2618.5 -> 2618
    ],
)
def test_short_side_then_crop_is_the_pipeline_by_hand(width, height, to, left, top):
    image = photograph(width, height)
    pixels, box = short_side(256).crop(224).apply(image)
    window = (left, top, left + 224, top + 224)
    np.testing.assert_array_equal(
        pixels, np.asarray(image.resize(to, BILINEAR).crop(window), np.float32) / 255
    )
    # From pixels of the resized picture back to those of the photograph, x and y apart.
    scale = np.array([width / to[0], height / to[1]] * 2)
    np.testing.assert_allclose(box, np.array(window) * scale)


@pytest.mark.parametrize(
    ("width", "height", "window"),
    [
        (500, 375, (31, 23, 469, 351)),  # 437.5 -> 438, 328.125 -> 328
        (99, 33, (6, 2, 93, 31)),  # 86.625 -> 87, 28.875 -> 29
    ],
)
def test_central_is_the_pipeline_by_hand(width, height, window):
    image = photograph(width, height)
    pixels, box = central(0.875, 224).apply(image)
    by_hand = image.crop(window).resize((224, 224), BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(by_hand, np.float32) / 255)
    assert box == window


def test_squash_then_crop_is_the_pipeline_by_hand():
    image = photograph(341, 123)
    pixels, box = squash((256, 300)).crop((227, 201)).apply(image)
    by_hand = image.resize((300, 256), BILINEAR).crop((50, 14, 251, 241))  # 49.5 -> 50, 14.5 -> 14
    np.testing.assert_array_equal(pixels, np.asarray(by_hand, np.float32) / 255)
    np.testing.assert_allclose(
        box, (50 * 341 / 300, 14 * 123 / 256, 251 * 341 / 300, 241 * 123 / 256)
    )


def test_no_steps_leave_the_photograph():
    image = photograph(31, 17, "L")
    pixels, box = Geometry().apply(image)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(image, np.float32) / 255)
    assert pixels.shape == (17, 31, 1)
    assert box == (0, 0, 31, 17)


# One pixel wide or high is allowed: a side that rounds to nothing would end in an error here.
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 31, 32]))
def test_every_photograph_becomes_an_input(width, height, side):
    image = PIL.Image.new("RGB", (width, height), (255, 0, 51))
    for geometry in (
        short_side(side + 5).crop(side),
        central(0.875, side),
        squash(side + 1).crop(side),
    ):
        pixels, (left, top, right, bottom) = geometry.apply(image)
        assert geometry.size == (side, side) == pixels.shape[:2]
        # 51 of 255 is a fifth. One colour stays itself, however it is resized and cut.
        np.testing.assert_allclose(pixels.reshape(-1, 3), [[1, 0, 0.2]] * side**2, atol=1e-7)
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9


def test_box_is_the_part_of_the_photograph_that_is_seen():
    # A ramp says where a pixel came from.
    ramp = np.broadcast_to(np.linspace(0, 255, 200, dtype=np.uint8), (120, 200))
    for geometry in (short_side(60).crop(40), central(0.5, 40), squash(64).crop(32)):
        pixels, (left, _, right, _) = geometry.apply(PIL.Image.fromarray(ramp))
        # A pixel's centre lies half of its own width, at most 1.6 px, inside the box; the rest is a
        # ramp of 200 values over 199 intervals, in bytes.
        np.testing.assert_allclose(pixels[5, 0] * 200, left, atol=4)
        np.testing.assert_allclose(pixels[5, -1] * 200, right, atol=4)


def test_size_is_known_only_if_the_last_step_sets_it():
    assert Geometry().size is None
    assert short_side(256).size is None
    assert Geometry((("crop", (8, 8)), ("central", 0.5))).size is None
    assert squash((3, np.int64(4))).size == (3, 4)


def test_geometries_compare_and_hash_by_value():
    assert short_side(256).crop(224) == short_side(256).crop((224, 224))
    assert len({short_side(256), short_side(256), short_side(255)}) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squash((3, 4, 5)), r"squash size must be one side or \(height, width\)"),
        (lambda: squash(0), "squash size .* got 0"),
        (lambda: short_side(0), "short side .* got 0"),
        (lambda: short_side(256.5), "whole px, got 256.5"),
        (lambda: squash(8).crop("8"), "crop size .* got 8"),
        (lambda: central(0.0, 8), r"fraction must be in \(0, 1\], got 0.0"),
        (lambda: Geometry((("zoom", 2),)), "steps must be named .* got 'zoom'"),
        (
            lambda: squash(8).crop(9).apply(photograph(9, 9)),
            "crop 9x9 px is larger than the image of 8x8",
        ),
        (
            lambda: squash(8).apply(photograph(9, 9).convert("P")),
            "mode RGB or L, got P",
        ),
        (lambda: squash(8).apply(photograph(9, 9).convert("RGBA")), "mode RGB or L, got RGBA"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("golden", "geometry", "mean", "std"),
    [
        ("squeezenet1_1", short_side(256).crop(224), IMAGENET_MEAN, IMAGENET_STD),
        ("mobilenet_v2_1.0_224", central(0.875, 224), 128 / 255, 128 / 255),
    ],
)
def test_published_inputs_are_reproduced(data_dir, golden, geometry, mean, std):
    expected = np.load(data_dir / "golden" / f"{golden}.npz")
    for file, x in zip(expected["files"], expected["input"], strict=True):
        photo = data_dir / "imagenet" / "images" / str(file).removeprefix("images/")
        with PIL.Image.open(photo) as image:
            pixels, _ = geometry.apply(image.convert("RGB"))
        normalised = (pixels - np.float32(mean)) / np.float32(std)
        # float32 values up to 2.6, which are known to 2.4e-7, after a few operations in another
        # order.
        np.testing.assert_allclose(normalised, x.transpose(1, 2, 0), atol=2e-6)
