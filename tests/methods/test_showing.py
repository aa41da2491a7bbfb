"""Results as pictures, tables and files."""

import csv
import re

import numpy as np
import PIL.Image
import pytest

from perturb import drawing
from perturb.methods._run import Result


@pytest.fixture
def result():
    """Two pictures of 12 x 16 px at two areas, the second area of the second picture another."""
    masks = np.zeros((2, 2, 12, 16), np.float32)
    masks[:, 0, 2:6, 2:6] = 1
    masks[:, 1, 2:10, 2:10] = 1
    table = np.arange(4, dtype=np.float32).reshape(2, 2)
    return Result(
        masks=masks,
        areas=np.array([1 / 12, 1 / 3]),
        achieved_area=masks.mean((2, 3)),
        score_original=np.array([5.0, 6.0]),
        score_floor=np.zeros(2),
        score_masked=table,
        score_binary=table,
        probability_original=np.array([0.9, 0.8]),
        probability_floor=np.zeros(2),
        probability_masked=table / 10,
        probability_binary=table / 10,
        converged=np.ones((2, 2), bool),
        steps=np.full((2, 2), 100),
        status=np.array([["ok", "ok"], ["ok", "not_converged"]]),
    )


IMAGES = np.full((2, 12, 16, 3), 0.5, np.float32)


def test_the_region_keeps_its_colours_and_the_rest_is_dim(result):
    # 12 x 16 px enlarged ten times: the first region lies at 20 to 60.
    drawn = result.overlay(IMAGES, side=160)
    assert drawn.shape == (2, 2, 120, 160, 3)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(
        drawn[0, 0, 40, 40], [128, 128, 128]
    )  # within rows and columns 2 to 6
    assert (drawn[0, 0, 110, 150] < 100).all()
    # The outline lies between them.
    assert (np.abs(drawn[0, 0, 40].astype(int) - drawing.OUTLINE).sum(-1) < 60).any()
    same = result.overlay((IMAGES * 255).round().astype(np.uint8), side=160)
    np.testing.assert_array_equal(same, drawn)
    np.testing.assert_array_equal(result.overlay(IMAGES[..., :1], side=160), drawn)


def test_all_regions_are_one_picture(result):
    shown = result.show(IMAGES, side=80)
    assert isinstance(shown, PIL.Image.Image)
    # Two by two pictures of 80 x 60 px with 4 px between them.
    assert shown.size == (80 * 2 + 4, 60 * 2 + 4)


def test_rows_and_files_say_what_the_arrays_say(result, tmp_path):
    rows = result.rows()
    assert [(r["image"], r["area"]) for r in rows] == [
        (0, 1 / 12),
        (0, 1 / 3),
        (1, 1 / 12),
        (1, 1 / 3),
    ]
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "not_converged"]
    folder = result.save(tmp_path / "new" / "run", IMAGES)
    with (folder / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(r["score_binary"]) for r in read] == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.load(folder / "masks.npz")["masks"], result.masks)
    assert len(list(folder.glob("*.png"))) == 4
    assert not list(result.save(tmp_path / "bare").glob("*.png"))
    agreeing = result._replace(agreement=np.full((2, 2), 0.5), areas=np.tile(result.areas, (2, 1)))
    assert agreeing.rows()[3]["agreement"] == 0.5
    assert agreeing.rows()[3]["area"] == 1 / 3


def test_a_cell_of_a_notebook_draws_the_regions(result):
    cell = result._repr_html_()
    assert len(re.findall("<img ", cell)) == 4
    assert "33.3 %, p 0.10" in cell
    # Twelve pictures, of which a cell shows eight.
    many = result._replace(
        **{
            name: np.repeat(getattr(result, name), 6, 0)
            for name in ("masks", "achieved_area", "probability_binary", "score_binary")
        }
    )
    assert "and 4 more images" in many._repr_html_()
    # Masks of signals are no pictures, and are told in words.
    lines = result._replace(masks=np.zeros((2, 2, 12)))
    assert lines._repr_html_().startswith("<pre>Result(")


def test_a_frame_needs_pandas(result):
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install pandas"):
            result.to_frame()
    else:
        assert list(result.to_frame()["image"]) == [0, 0, 1, 1]


@pytest.mark.parametrize("images", [IMAGES[:1], IMAGES[:, :, :10], IMAGES[..., :2], IMAGES[0]])
def test_pictures_of_other_masks_are_refused(result, images):
    with pytest.raises(ValueError, match="images must be the pictures of the masks") as error:
        result.overlay(images)
    assert len(str(error.value)) < 300
