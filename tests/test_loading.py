"""`perturb.load_images`: photographs in one array, by the rules of the launchers."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import perturb
from launch.inputs import images


def model(**options):
    return perturb.Model(lambda w, x: x.mean((1, 2)), jnp.zeros(()), name="mine", **options)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    # Names that are not in the order of writing, and an ending in capitals.
    for name, size in (("b.png", (48, 40)), ("a.JPG", (64, 30)), ("c.png", (40, 40))):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_read_by_name_as_the_launchers_read_it(folder):
    net = model(geometry=perturb.squash((24, 32)))
    found = perturb.load_images(folder, net)
    assert found.shape == (3, 24, 32, 3)
    assert found.dtype == np.float32
    for got, name in zip(found, ("a.JPG", "b.png", "c.png"), strict=True):
        want = images.read(folder / name, net.geometry).pixels
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(perturb.load_images(str(folder / "b.png"), net)[0], found[1])
    # A list keeps its own order, unlike a folder.
    back = perturb.load_images([folder / "c.png", folder / "a.JPG"], net)
    np.testing.assert_array_equal(back, found[[2, 0]])


def test_grey_models_get_grey_pictures(folder):
    net = model(geometry=perturb.squash(16), channels=1)
    assert perturb.load_images(folder, net).shape == (3, 16, 16, 1)


def test_the_embedded_pictures_come_back_exactly(tmp_path):
    net, drawn, _ = perturb.demo(count=2)
    for i, picture in enumerate(drawn):
        # The drawn pictures are whole numbers over 255, so a PNG loses nothing.
        PIL.Image.fromarray(np.uint8(np.round(picture * 255))).save(tmp_path / f"{i}.png")
    np.testing.assert_array_equal(perturb.load_images(tmp_path, net), drawn)


def test_what_cannot_be_read_is_said_in_a_line(folder):
    # A path of more than a hundred letters: the message must shorten it.
    free, empty = model(), folder / ("long" * 30)
    empty.mkdir()
    broken = folder / "broken.png"
    # The head is whole, the pixels are not: it opens and fails while it is read.
    broken.write_bytes((folder / "b.png").read_bytes()[:200])
    cropped = dataclasses.replace(free, geometry=perturb.short_side(40).crop(64))
    for given, net, said in (
        ([], free, "paths must name a folder, a file or several files, got none"),
        (empty, free, "paths: no picture in the folder ..."),
        (folder / "none.png", free, "none.png: No such file"),
        (folder / "notes.txt", free, "notes.txt: not a picture in BMP"),
        (broken, free, "broken.png: cut off"),
        (folder / "c.png", cropped, "crop 64x64 px is larger than the image"),
        ([folder / "b.png", folder / "c.png"], free, "b.png gives 40 x 48 px"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)) as raised:
            perturb.load_images(given, net)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300
