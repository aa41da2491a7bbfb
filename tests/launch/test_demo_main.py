import json
import re
import shutil

import numpy as np
import pytest
from absl.testing import flagsaver

import launch.demo.__main__ as demo_main
import perturb
from launch import flags, results
from launch.demo import world
from tests.launch.test_page import opened


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The demo's page, with regions that lie on the object for one network and the stamp for the
    other.
    """
    calls = []

    def extremal(model, images, targets, *, areas, batch_size, key, progress):
        calls.append(areas)
        shown = world.pictures(len(images), watermark="right")
        np.testing.assert_array_equal(images, np.stack([p.image for p in shown]))
        labels = [1 + p.target if len(calls) == 1 else world.WATERMARK for p in shown]
        masks = np.stack([p.label == label for p, label in zip(shown, labels, strict=True)])
        masks = masks[:, None].astype(np.float32)
        np.testing.assert_allclose(masks.mean((2, 3)), areas)
        count = len(images)
        blank = np.full((count, 1), 0.5, np.float32)
        return perturb.Result(
            masks,
            areas,
            areas,
            *[blank[:, 0]] * 2,
            *[blank] * 2,
            *[blank[:, 0]] * 2,
            *[blank] * 2,
            np.ones((count, 1), bool),
            np.ones((count, 1), np.int32),
            np.full((count, 1), "ok"),
        )

    monkeypatch.setattr(perturb, "extremal", extremal)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        flags.run(
            demo_main.main,
            ["launch/demo", f"--out={tmp_path}/out", "--pictures=4", "--checked=64"],
        )
    assert not end.value.code
    return tmp_path / "out" / "report" / "index.html"


@pytest.mark.slow
def test_the_demo_says_what_it_measured(page):
    summary = json.loads((page.parents[1] / "demo.json").read_text())
    assert summary["honest"]["on_object"] == pytest.approx(1)
    assert summary["honest"]["on_mark"] == 0
    assert summary["cheat"]["on_mark"] == pytest.approx(1)
    # Both are right on pictures of their own kind, and the cheat follows a stamp that lies.
    assert summary["honest"]["accuracy"]["none"] > 0.9
    assert summary["cheat"]["accuracy"]["right"] > 0.9
    assert summary["cheat"]["accuracy"]["wrong"] < 0.5
    run = results.load(page.parents[1])
    assert run["masks"].shape == (8, 1, 64, 64)
    assert [row["network"] for row in run["rows"]] == ["honest"] * 4 + ["cheat"] * 4
    assert all(row["evidence"]["verdict"] for row in run["rows"])
    text = page.read_text()
    for question in ("What did the network look at?", "How sure is that?", "do next?"):
        assert question in text
    assert text.count("<article") == 4
    assert len(re.findall("<img ", text)) == 12


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_demo(page, tmp_path):
    dom, log = opened(page, tmp_path / "profile")
    assert 'data-pictures="12/12"' in dom
    assert "CONSOLE" not in log
