"""Masks and label maps as labelling programs leave them, and what is said of those that do not
fit.
"""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from launch import demo
from launch.inputs import regions
from launch.jobs.dissect_model import material
from perturb import geometry


def _saved(folder, name, pixels, palette=None):
    folder.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(np.asarray(pixels, np.uint8))
    if palette:
        image = PIL.Image.fromarray(np.asarray(pixels, np.uint8), "P")
        image.putpalette(palette)
    image.save(folder / name)
    return folder / name


LEFT = np.zeros((64, 64), np.uint8)
LEFT[:, :16] = 1
# As of PASCAL VOC: dark colours, of which 2 would be black beside half of white.
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def test_a_mask_is_read_however_it_was_saved(tmp_path):
    alpha = np.zeros((64, 64, 4), np.uint8)
    alpha[:, :16] = 255
    for name, pixels, palette in (
        ("white", 255 * LEFT, None),
        ("one", LEFT, None),
        ("palette", 2 * LEFT, VOC),
        # The border that nobody labelled.
        ("border", np.where(np.arange(64) == 63, 255, LEFT), VOC + [9] * 3 * 253),
        ("greys", 255 * LEFT, [i // 3 for i in range(768)]),
        ("clear", alpha, None),
    ):
        file = _saved(tmp_path, f"{name}.png", pixels, palette)
        assert np.array_equal(regions.mask(file, None), LEFT > 0), name


def test_a_label_map_keeps_its_numbers_through_the_geometry(tmp_path):
    numbers = np.arange(96)[:, None] // 8 * 10 + np.arange(128) // 16
    file = _saved(tmp_path, "map.png", numbers)
    assert np.array_equal(regions.label_map(file, None), numbers)
    found = regions.label_map(file, geometry.short_side(48).crop(48))
    # Half the size, the middle of its width: no number that was not there.
    assert np.array_equal(found, numbers[1::2, 17:113:2])
    coloured = _saved(tmp_path, "voc.png", 2 * LEFT, VOC)
    assert np.unique(regions.label_map(coloured, None)).tolist() == [0, 2]
    with pytest.raises(ValueError, match="one number a pixel"):
        regions.label_map(_saved(tmp_path, "rgb.png", np.zeros((8, 8, 3))), None)


def test_label_maps_are_concepts_and_what_has_no_name_is_not_known(tmp_path):
    numbers = np.full((64, 64), 255)
    numbers[:16], numbers[16:32], numbers[32:40] = 0, 1, 2
    for n in range(2):
        _saved(tmp_path / "pictures", f"p{n}.png", np.zeros((64, 64, 3)))
        _saved(tmp_path / "maps", f"p{n}.png", numbers)
    asked = str(tmp_path / "pictures"), str(tmp_path / "maps"), demo.load("demo"), 10
    with pytest.raises(ValueError, match=r"put classes\.txt"):
        material.load(*asked)
    for name, text in (
        ("classes.txt", "sky\nroad\nunlabelled\n"),
        ("classes.json", '{"classes": {"0": "sky", "1": "road", "2": "void"}}'),
    ):
        (tmp_path / name).write_text(text)
        found = material.load(*asked)
        assert found.names == ("sky", "road")
        assert found.masks[0:2].mean((1, 2)).tolist() == [[0.25, 0.25]] * 2
        assert found.labelled[0:2].mean((1, 2)).tolist() == [[0.5]] * 2
    (tmp_path / "maps" / "p1.png").rename(tmp_path / "maps" / "q1.png")
    with pytest.raises(ValueError, match=r"no label map of p1\.png"):
        material.load(*asked).masks[0:2]


def test_what_does_not_fit_is_said(tmp_path):
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    for n, side in enumerate((64, 48)):
        _saved(pictures, f"p{n}.png", np.zeros((side, 64, 3)))
    model = demo.load("demo")
    _saved(masks / "left", "elsewhere.png", LEFT)
    with pytest.raises(ValueError, match=r"left/p0\.png is not there, left/elsewhere\.png is"):
        material.load(str(pictures), str(masks), model, 10)
    with pytest.raises(ValueError, match="need --images"):
        material.load(None, str(masks), model, 10)
    free = dataclasses.replace(model, geometry=None)
    with pytest.raises(ValueError, match=r"p0\.png is 64 by 64 px, p1\.png 48 by 64 px"):
        material.load(str(pictures), "edges", free, 10).images[0:2]
    (pictures / "p1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"p1\.png: not a picture"):
        material.load(str(pictures), "edges", free, 10).images[0:2]
