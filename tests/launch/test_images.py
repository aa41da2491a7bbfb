import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

import perturb
from launch.inputs import images
from launch.job.ahead import ahead


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data, channels=3):
    return np.asarray(images.decode(data, channels))


def test_16_bit_grey_is_scaled_not_cut():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    got = pixels(encoded(PIL.Image.fromarray(ramp)))
    # 65535 / 255 is 257.
    np.testing.assert_array_equal(got[..., 0], np.rint(ramp / 257).astype(np.uint8))


def test_alpha_is_composited_on_white_and_hides_what_it_hides():
    # Wholly clear red and black: what lies below must not show through.
    for mode, clear in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        got = pixels(encoded(PIL.Image.new(mode, (4, 4), clear)))
        np.testing.assert_array_equal(got, 255)
    palette = PIL.Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    np.testing.assert_array_equal(pixels(encoded(palette))[0, 0], (10, 20, 30))
    np.testing.assert_array_equal(pixels(encoded(palette, transparency=1)), 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((6, 9, 3), np.uint8)
    # One corner of an oblong: each of the eight orientations puts it elsewhere.
    upright[0, 0] = 255
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIL.Image.fromarray(np.ascontiguousarray(undo(upright))), exif=exif.tobytes())
    np.testing.assert_array_equal(pixels(data), upright)


def test_other_modes_become_rgb_or_grey():
    cmyk = pixels(encoded(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert cmyk[0, 0, 0] > 200 > 60 > cmyk[0, 0, 1]
    assert pixels(encoded(PIL.Image.new("1", (8, 8), 1))).shape == (8, 8, 3)
    assert pixels(encoded(PIL.Image.new("RGB", (8, 8), "white")), channels=1).shape == (8, 8)


def test_the_first_frame_of_an_animation_counts():
    frames = [PIL.Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(data)[0, 0], (255, 0, 0))


def bomb(side):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# Over our limit of 50 million; over the one where Pillow warns; over the one where it refuses.
@pytest.mark.parametrize("side", [8_000, 11_000, 20_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(side):
    with pytest.raises(images.BadImage, match=r"million pixels|exceeds limit"):
        images.decode(bomb(side))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_and_foreign_files_are_refused(kind):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    data = encoded(PIL.Image.fromarray(noise), kind)
    assert pixels(data).shape == (32, 32, 3)
    # Nothing, one byte, a part of the head, half of the data.
    for end in (0, 1, 10, len(data) // 2):
        with pytest.raises(images.BadImage):
            images.decode(data[:end])
    for other in (b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 500):
        with pytest.raises(images.BadImage, match="not a picture"):
            images.decode(other)


def test_read_reports_the_stage(tmp_path):
    path = tmp_path / "small.png"
    PIL.Image.new("RGB", (10, 10)).save(path)
    picture = images.read(path, perturb.squash(8))
    assert picture.pixels.shape == (8, 8, 3)
    assert (picture.size, len(picture.sha256)) == ((10, 10), 64)
    cases = [(tmp_path / "none.png", None, "read"), (tmp_path, None, "read")]
    cases.append((path, perturb.Geometry().crop(20), "geometry"))
    for where, geometry, stage in cases:
        with pytest.raises(images.BadImage) as caught:
            images.read(where, geometry)
        assert caught.value.stage == stage


def test_encode_keeps_small_pictures_exactly():
    # Multiples of 1/255, as pictures of 8 bits are: they must come back as they were.
    levels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.float32) / 255
    with PIL.Image.open(io.BytesIO(images.encode(levels).tobytes())) as image:
        np.testing.assert_array_equal(np.asarray(image), np.rint(levels * 255).astype(np.uint8))


def test_ahead_keeps_order_and_passes_errors_on():
    def work(i):
        if i == 5:
            raise RuntimeError("five")
        return i

    found = ahead(work, range(9), workers=3, window=4)
    # Five is under way by now, and its error waits for its turn.
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="five"):
        next(found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"\0" * 40, "all of them zero"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\0\0\0\x18ftypheic", "save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"whatever", "not a picture in"),
    ],
)
def test_what_is_no_picture_is_said_in_words(data, words):
    with pytest.raises(images.BadImage, match=words) as error:
        images.decode(data)
    assert error.value.stage == "decode"


def test_a_file_that_ends_early_is_said_to_be_cut_off():
    file = io.BytesIO()
    # Noise, so that 2000 bytes are a part of the data and not all of the file.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    PIL.Image.fromarray(noise).save(file, "JPEG")
    with pytest.raises(images.BadImage, match="cut off: the file ends before the picture"):
        images.decode(file.getvalue()[:-2000])
