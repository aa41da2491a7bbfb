"""launch.features: rows, pictures, page and resume on a tiny run, and the stamps of the picture
world.
"""

import itertools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

import perturb
from launch import features, flags
from launch.demo import glyphs, world
from launch.job import faults
from launch.jobs.features import natural, page, work
from launch.report.pictures import framed
from perturb import taps
from perturb.internals.features.quality import _verdict


@pytest.fixture
def launch_features(capsys, monkeypatch):
    # The test run itself is to be stopped by SIGTERM, not only the launcher inside it.
    monkeypatch.setattr(faults, "leave_on_notice", lambda: None)

    def run(*arguments):
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            flags.run(features.main, ["launch/features.py", *map(str, arguments)], own=features.OWN)
        return end.value.code or 0, capsys.readouterr().err

    return run


@pytest.mark.slow
def test_a_run_leaves_a_row_and_a_picture_a_unit_and_continues(tmp_path, launch_features):
    asked = ("--model=demo", "--layer=conv4", "--units=3,17", "--steps=2", f"--out={tmp_path}")
    assert launch_features(*asked)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["unit"] for row in rows] == [3, 17]
    for row in rows:
        assert {"unit", "started", "reach", "verdict", "image"} <= set(row)
        assert (tmp_path / row["image"]).is_file()
        assert 0 <= row["reach"] <= 1
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<figure>") == 2
    assert page.count('class="natural"') == 2
    before = (tmp_path / "results.jsonl").read_bytes()
    # Again, when all is committed: nothing is climbed and nothing is written anew.
    assert launch_features(*asked)[0] == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before
    code, said = launch_features(*asked, "--seed=3")
    assert code == 2
    assert "holds another run" in said


def test_patches_are_what_the_unit_sees_of_the_pictures_it_answers_to_most():
    # Unit 0 is the red of a pixel, unit 1 the blue: what each sees of a picture is one pixel.
    def network(w, x):
        return taps.tag(x[..., ::2] * w, "pairs").mean((1, 2))

    colours = perturb.Model(network, jnp.float32(1))
    images = np.full((5, 8, 8, 3), 0.5, np.float32)
    red, blue = np.array([1, 0.2, 0]), np.array([0, 0.4, 1])
    images[1, 2, 3], images[4, 7, 0] = red, 0.9 * red
    images[3, 5, 5], images[0, 0, 7] = blue, 0.9 * blue
    strongest = np.array([[1, 4, 2, 0, 3], [3, 0, 2, 1, 4]])
    found = natural.patches(colours, "pairs", np.arange(2), images, strongest)
    assert found.shape == (2, natural.TOP, natural.SIDE, natural.SIDE, 3)
    for unit, wanted in ((0, (red, 0.9 * red, 0.5)), (1, (blue, 0.9 * blue, 0.5))):
        for tile, colour in zip(found[unit], wanted, strict=True):
            assert np.abs(tile - 255 * np.asarray(colour)).max() <= 1
    # Classes have no places: the whole picture is shown.
    whole = natural.patches(colours, None, np.arange(2), images, strongest)
    assert (whole[0, 0] == framed(images[1], natural.SIDE)).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--model=demo", "--layer=conv4", "--units=3,48"),
            "unit 48 does not exist: conv4 has 0 to 47",
        ),
        (("--model=demo", "--layer=conv9"), "--layer=conv9: demo has no such layer"),
        (("--model=demo", "--units=best"), "--units must be all, top or numbers"),
        (("--layer=conv4",), "--layer needs --model"),
        (("--model=demo", "--units=3,3"), "a unit is given twice"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, launch_features, arguments, words):
    code, said = launch_features(*arguments, f"--out={tmp_path / 'run'}")
    assert code == 2
    assert words in said
    assert len(said.strip().splitlines()[-1]) < 300


def test_every_verdict_is_explained_where_it_stands():
    either = (False, True)
    cases = itertools.product(either, either, either, (1.0, 1e3), (0.0, 1.0))
    verdicts = {_verdict(*case) for case in cases}
    # Where there are no natural pictures to compare with, as well.
    for finite, started in itertools.product((False, True), repeat=2):
        found = SimpleNamespace(finite=[finite], started=[started])
        verdicts.add(work._unknown(found, 0))
    assert len(verdicts) == 7
    assert verdicts <= page._MEANS.keys()


def test_stamps_are_read():
    right = [
        glyphs.find(world.render(3, i, watermark="right").image)[0] == world.render(3, i).target
        for i in range(4)
    ]
    assert all(right)
