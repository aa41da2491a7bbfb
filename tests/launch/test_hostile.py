import io
import struct

import numpy as np
import PIL.Image
import pytest

from launch.inputs import images
from tests.launch import hostile
from tests.launch.hostile import encoded

# Not square and different in every channel: a swap of axes or channels shows.
RAMP = np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8)
GREY = RAMP[..., 0]
DEEP = np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16)
RGB = PIL.Image.fromarray(RAMP)


def grey(levels):
    return np.repeat(np.asarray(levels, np.float64)[..., None], 3, -1)


def over_white(pixels, alpha):
    a = np.asarray(alpha, np.float64)[..., None] / 255
    return pixels * a + 255 * (1 - a)


def with_alpha(image, alpha):
    image = image.copy()
    image.putalpha(PIL.Image.fromarray(alpha))
    return image


def png_16_bit_rgb():
    """Pillow does not write these."""
    rows = np.zeros((16, 1 + 24 * 6), np.uint8)
    # Exact: 255 x 257 is 65535.
    deep = RAMP.astype(np.uint16) * 257
    # PNG stores the high byte first; each row begins with its filter, here 0 for none.
    rows[:, 1:] = deep.astype(">u2").view(np.uint8).reshape(16, -1)
    import zlib

    head = hostile.chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 16, 16, 2, 0, 0, 0))
    data = hostile.chunk(b"IDAT", zlib.compress(rows.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + head + data + hostile.chunk(b"IEND", b"")


def palette(**options):
    image = PIL.Image.fromarray(np.arange(384, dtype=np.uint8).reshape(16, 24) % 4, "P")
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 0, 9, 255, 255, 255])
    return encoded(image, "PNG", **options)


COLOURS = np.array([[0, 0, 0], [10, 20, 30], [200, 0, 9], [255, 255, 255]], np.float64)
INDEX = np.arange(384).reshape(16, 24) % 4
INKS = np.stack([RAMP[..., 0], RAMP[..., 1], 255 - RAMP[..., 2], GREY // 3], -1)
PAPER = 255 * (1 - INKS[..., :3] / 255.0) * (1 - INKS[..., 3:] / 255.0)
FLAT = PIL.Image.new("CMYK", (16, 16), (200, 30, 90, 20))
# One colour, for JPEG changes what has detail.
FLAT_RGB = 255 * (1 - np.array([200, 30, 90]) / 255) * (1 - 20 / 255)
SHADES = np.repeat(np.linspace(0, 255, 24).astype(np.uint8)[None], 16, 0)
MOVING = [RGB, PIL.Image.new("RGB", RGB.size, "red"), PIL.Image.new("RGB", RGB.size, "blue")]

# Every golden is worked out from the pixels that went in, with the rule of the module's
# documentation.
KINDS = {
    "rgb png": (encoded(RGB), RAMP, 0),
    "rgb bmp": (encoded(RGB, "BMP"), RAMP, 0),
    "rgb ppm": (encoded(RGB, "PPM"), RAMP, 0),
    "lossless webp": (encoded(RGB, "WEBP", lossless=True), RAMP, 0),
    "tiff lzw": (encoded(RGB, "TIFF", compression="tiff_lzw"), RAMP, 0),
    "tiff deflate, several pages": (
        encoded(RGB, "TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=MOVING),
        RAMP,
        0,
    ),
    "grey": (encoded(PIL.Image.fromarray(GREY)), grey(GREY), 0),
    "1 bit": (encoded(PIL.Image.fromarray(GREY > 99)), grey((GREY > 99) * 255.0), 0),
    "16-bit grey png": (encoded(PIL.Image.fromarray(DEEP)), grey(DEEP / 257), 1),
    "16-bit grey tiff": (encoded(PIL.Image.fromarray(DEEP), "TIFF"), grey(DEEP / 257), 1),
    "16-bit rgb png": (png_16_bit_rgb(), RAMP, 1),
    "palette": (palette(), COLOURS[INDEX], 0),
    "palette with a clear colour": (
        palette(transparency=1),
        np.where((INDEX == 1)[..., None], 255, COLOURS[INDEX]),
        0,
    ),
    "rgba": (encoded(with_alpha(RGB, SHADES)), over_white(RAMP, SHADES), 1),
    "rgba webp": (
        encoded(with_alpha(RGB, SHADES), "WEBP", lossless=True, exact=True),
        over_white(RAMP, SHADES),
        1,
    ),
    "grey with alpha": (
        encoded(with_alpha(PIL.Image.fromarray(GREY), SHADES)),
        over_white(grey(GREY), SHADES),
        1,
    ),
    # Pillow multiplies inks in whole levels.
    "cmyk tiff": (encoded(PIL.Image.fromarray(INKS, "CMYK"), "TIFF"), PAPER, 1.5),
    "cmyk jpeg": (encoded(FLAT, "JPEG", quality=100), np.broadcast_to(FLAT_RGB, (16, 16, 3)), 2),
    "animated png": (encoded(RGB, "PNG", save_all=True, append_images=MOVING), RAMP, 0),
    "animated webp": (
        encoded(RGB, "WEBP", lossless=True, save_all=True, append_images=MOVING),
        RAMP,
        0,
    ),
    # Zeros are no profile: whoever tried to apply it would fail.
    "colour profile, not applied": (encoded(RGB, "PNG", icc_profile=b"\0" * 128), RAMP, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_picture_is_read_by_its_rule(kind):
    data, golden, levels = KINDS[kind]
    got = np.asarray(images.decode(data), np.float64)
    np.testing.assert_allclose(got, golden, rtol=0, atol=levels)


def test_lossy_kinds_hold_the_picture_they_were_made_of():
    smooth = np.zeros((32, 48, 3), np.uint8)
    smooth[..., 0] = np.linspace(40, 200, 48)
    smooth[..., 1] = np.linspace(40, 200, 32)[:, None]
    image = PIL.Image.fromarray(smooth)
    plain = np.asarray(images.decode(encoded(image, "JPEG", quality=95)))
    assert np.abs(plain - smooth.astype(int)).max() <= 6
    moved = [image.rotate(180)]
    for kind, options in [
        ("JPEG", {"progressive": True}),
        ("MPO", {"save_all": True, "append_images": moved}),
    ]:
        data = encoded(image, kind, quality=95, **options)
        # The same coefficients in another order of storage: only the rounding of decoding is left.
        assert np.abs(np.asarray(images.decode(data)).astype(int) - plain).max() <= 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(PIL.Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
        (encoded(PIL.Image.fromarray(np.full((4, 4), 99_999, np.int32)), "TIFF"), "16 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"8BPS\0\1" + bytes(40), "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (encoded(RGB, "ICO"), "not a picture"),
        (encoded(RGB, "PDF"), "not a picture"),
    ],
)
def test_kinds_that_are_refused_say_why(data, words):
    with pytest.raises(images.BadImage, match=words):
        images.decode(data)


def test_mutations_and_bombs_are_read_or_refused_and_nothing_else():
    found = hostile.judge(hostile.mutations(90, seed=3))
    assert found["other"] == []
    assert found["read"] + found["refused"] == 90
    assert found["refused"] > 30
    found = hostile.judge(hostile.bombs())
    assert found["other"] == []
    # The two with large text or profile chunks are good pictures otherwise, and their chunks are
    # dropped.
    assert found["refused"] >= found["files"] - 2


def test_names_with_anything_in_them_stay_names(launch_masks, toy, instant, tmp_path):
    names = [
        "<script>alert(1)</script>.png",
        '"><img src=x onerror=alert(2)>.png',
        "=cmd|'!A0.png",
        "a\nb.png",
    ]
    # A name cannot hold the character that separates folders; this one looks like it.
    names = [name.replace("/", "∕") for name in names]
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        RGB.save(io.BytesIO(), "PNG")
        (folder / name).write_bytes(encoded(RGB))
    code, err = launch_masks(*toy, f"--images={folder}", f"--out={tmp_path}/out")
    assert code == 0, err
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Content-Security-Policy" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    inside = {p.name for p in (tmp_path / "out").rglob("*")}
    assert not any(name in inside for name in names)
