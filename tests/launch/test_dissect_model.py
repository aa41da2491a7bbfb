"""The launcher on classifiers: the embedded world, pictures with masks, and what it refuses."""

import json

import numpy as np
import PIL.Image
import pytest

from launch import demo, dissect, results
from launch.demo import units as both
from launch.job import store
from launch.jobs.dissect.page import last
from launch.jobs.dissect_model import material, page, work


def _settings(out, **changed):
    return {
        "model": "demo_cheat",
        "weights": None,
        "images": None,
        "concepts": None,
        "layer": "relu#6",
        "samples": 24,
        "quantile": 0.99,
        "networks": 1,
        "rotations": 0,
        "seed": 0,
        "batch_size": 12,
        "out": str(out),
        **changed,
    }


@pytest.mark.slow
def test_a_run_leaves_rows_and_a_page_and_is_the_same_after_a_stop(tmp_path):
    out = store.path(str(tmp_path / "run"))
    assert work.run(out, _settings(out)) == (0, 3)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 64
    keys = {"kind", "layer", "unit", "concept", "iou", "p_value", "verdict", "cost"}
    assert keys <= rows[0].keys()
    assert {r["verdict"] for r in rows} <= {"passes", "fails"}
    stamps = sum(r["concept"] == "watermark" and r["iou"] > 0.04 for r in rows)
    assert stamps >= 50
    record, arrays = last(out)
    written = page.write(out).read_text()
    assert "units that pass" in written
    portraits = record["portraits"][0]
    assert len(portraits) == 24
    own = (out / "report" / f"unit-0-{portraits[0]['unit']}.html").read_text()
    assert f'href="unit-0-{portraits[0]["unit"]}.html"' in written
    assert "along its range" in own
    assert "Does it agree?" in own
    # The stamp is in every picture, so neither the top nor the range can tell.
    assert portraits[0]["checks"]["top"] is None
    assert arrays[f"page|0|{portraits[0]['unit']}"].shape == (9, 96, 96, 3)
    # Stopped after the first network: the rest comes out the same.
    for stem in results.committed(out)[1:]:
        stem.with_suffix(".json").unlink()
    assert work.run(out, _settings(out)) == (0, 3)
    again, same = last(out)
    assert again["rows"] == record["rows"]
    assert all(np.array_equal(same[k], v) for k, v in arrays.items())


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [False, True])
def test_pictures_with_a_folder_of_masks(tmp_path, labelled):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "masks" / "left").mkdir(parents=True)
    for n in range(6):
        picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        # A share that grows from picture to picture; the first has none of it, and no file.
        mask[:, : 8 * n] = 255
        PIL.Image.fromarray(picture).save(tmp_path / "pictures" / f"p{n}.png")
        if n:
            PIL.Image.fromarray(mask).save(tmp_path / "masks" / "left" / f"p{n}.png")
        # White everywhere: all of every picture was looked at for the concept.
        if labelled:
            _saved(tmp_path / "masks" / "labelled", f"p{n}.png", np.full((64, 64), 255, np.uint8))
    out = store.path(str(tmp_path / "run"))
    changed = {
        "images": str(tmp_path / "pictures"),
        "concepts": str(tmp_path / "masks"),
        # More than there are: a folder has what it has.
        "samples": 100,
        "layer": "relu#3",
        "batch_size": 4,
    }
    assert work.run(out, _settings(out, **changed)) == (0, 3)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 32
    assert {r["concept"] for r in rows} == {"left"}


def _saved(folder, name, pixels):
    folder.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(folder / name)


def test_a_table_has_masks_whole_pictures_and_what_is_not_known(tmp_path):
    for n in range(3):
        _saved(tmp_path / "pictures", f"p{n}.png", np.full((64, 64, 3), 50 * n, np.uint8))
    half = np.zeros((64, 64), np.uint8)
    half[:32] = 255
    _saved(tmp_path / "masks", "half.png", half)
    table = tmp_path / "concepts.csv"
    table.write_text("path,sky,night\np0.png,masks/half.png,1\np1.png,0,\np2.png,,0\n")
    asked = str(tmp_path / "pictures"), str(table), demo.load("demo")
    found = material.load(*asked, 10)
    assert found.names == ("sky", "night")
    # A file is a mask, 1 the whole picture, 0 none of it, and an empty cell is not known.
    shares = found.masks[0:3].mean((1, 2))
    assert shares.tolist() == [[0.5, 1], [0, 0], [0, 0]]
    assert found.labelled[0:3].all((1, 2)).tolist() == [[True, True], [True, False], [False, True]]
    assert found.labelled[0:3].any((1, 2)).tolist() == [[True, True], [True, False], [False, True]]
    everything = (
        table.read_text().replace("p1.png,0,", "p1.png,0,0").replace("p2.png,,", "p2.png,1,")
    )
    table.write_text(everything)
    # Where everything is known there is no need to say so, pixel by pixel.
    assert material.load(*asked, 10).labelled is None
    for text, said in (
        ("sky,night\n", "first line must be path,CONCEPT"),
        ("path,sky\np0.png,1\n", "no row of p1.png"),
        ("path,sky\np0.png,1\np1.png\np2.png,1\n", "p1.png has 0 values for 1"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=said):
            material.load(*asked, 10)
    table.write_text("path,sky\np0.png,none.png\np1.png,1\np2.png,1\n")
    with pytest.raises(ValueError, match=r"none\.png"):
        material.load(*asked, 10).masks[0:1]


def test_a_folder_says_where_anything_is_known(tmp_path):
    left = np.zeros((64, 64), np.uint8)
    left[:, :16] = 255
    for n in range(2):
        _saved(tmp_path / "pictures", f"p{n}.png", np.zeros((64, 64, 3), np.uint8))
    _saved(tmp_path / "masks" / "left", "p0.png", left)
    _saved(tmp_path / "masks" / "labelled", "p0.png", np.full((64, 64), 255, np.uint8))
    found = material.load(
        str(tmp_path / "pictures"), str(tmp_path / "masks"), demo.load("demo"), 10
    )
    assert found.names == ("left",)
    assert found.masks[0:2].mean((1, 2)).ravel().tolist() == [0.25, 0]
    # No file for the second picture: nothing of it is known, which is not the same as none.
    assert found.labelled[0:2].mean((1, 2)).ravel().tolist() == [1, 0]


def test_what_cannot_be_done_is_said(tmp_path):
    out = store.path(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="no such layer"):
        work.run(out, _settings(out, layer="relu#9"))
    with pytest.raises(ValueError, match="--concepts=stars: expected"):
        work.run(out, _settings(out, concepts="stars"))


@pytest.mark.slow
def test_both_networks_come_on_one_page(launched, tmp_path):
    code, err = launched(both, "--small", f"--out={tmp_path}/out")
    assert code == 0, err
    written = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "The honest one" in written
    assert "The cheat" in written


def test_a_generator_and_a_model_are_one_too_many(launched, tmp_path):
    code, err = launched(dissect, "--model=demo", "--generator=demo", f"--out={tmp_path}/out")
    assert code == 2
    assert "not both" in err
