import csv
import functools
import json
import logging

import numpy as np
import pytest

from launch import evaluate, flags, results
from launch.inputs import images
from launch.job import run
from launch.jobs.evaluate import figures, page, work
from perturb import attribution

FAST = ("--model=tests.launch.toy:load", "--attributions=gradient", "--batch_size=4")


@pytest.fixture
def launch_evaluate(launched):
    """Runs launch.evaluate with these arguments; returns the exit code and what it wrote on
    stderr.
    """
    return functools.partial(launched, evaluate)


@pytest.fixture
def finished(launch_evaluate, photos, tmp_path):
    """A finished comparison of the gradient, maps of our own, and the controls."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in photos.iterdir():
        # The coloured square itself, where the toy model's 32 px input has it.
        np.save(folder / f"{path.stem}.npy", np.eye(32, dtype=np.float32))
    (tmp_path / "boxes.csv").write_text(
        "file,xmin,ymin,xmax,ymax\n" + "".join(f"x/{p.name},6,10,20,24\n" for p in photos.iterdir())
    )
    out = tmp_path / "league"
    arguments = [
        FAST[0],
        f"--attributions=gradient,maps:{folder}",
        f"--images={photos}",
        f"--boxes={tmp_path}/boxes.csv",
        "--metrics=insertion,sufficient_area,pointing,boxes",
        f"--out={out}",
    ]
    code, err = launch_evaluate(*arguments)
    assert code == 0, err
    return arguments, out, err


@pytest.mark.slow
def test_a_run_leaves_a_table_a_page_and_rows(finished):
    _, out, _ = finished
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    names = ["gradient", next(r["attribution"] for r in rows if "maps:" in r["attribution"])]
    names += attribution.CONTROLS
    # Four pictures, each under every attribution.
    assert len(rows) == 4 * len(names)
    assert {r["attribution"] for r in rows} == set(names)
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 * len(names)
    for line in table:
        assert float(line["low"]) <= float(line["mean"]) <= float(line["high"])
        own = [r["values"][line["metric"]] for r in rows if r["attribution"] == line["attribution"]]
        assert float(line["mean"]) == pytest.approx(np.mean(own), rel=1e-4)
        assert int(line["images"]) == 4
        assert 1 <= int(line["rank_low"]) <= int(line["rank_high"]) <= len(names)
    text = (out / "report" / "index.html").read_text()
    assert "gradient against it" in text
    # Three controls under four metrics.
    assert text.count('<tr class="control"') == 12
    markdown = page.as_markdown(page.table(out))
    assert "insertion ↑" in markdown
    assert "sufficient_area ↓" in markdown


def test_a_run_keeps_curves_maps_and_object_sizes_for_its_page(finished):
    _, out, _ = finished
    found, means = figures.read(out)
    names = results.settings(out)["flags"]["attributions"]
    assert len(found) == 4
    # The area that the table is of is the mean height of the curve that the page draws.
    areas = [np.mean([one.values[n]["insertion"] for one in found]) for n in names]
    assert list(means) == ["insertion"]
    np.testing.assert_allclose(means["insertion"].mean(1), areas, atol=0.02)
    for one in found:
        # A gradient and a map of our own, each over its own range: of the latter a diagonal.
        assert one.maps.shape == (2, 32, 32)
        np.testing.assert_array_equal(one.maps[1], 255 * np.eye(32))
        assert 0 < one.share < 1
    text = (out / "report" / "index.html").read_text()
    for heading in ("Curves", "Where they disagree"):
        assert f"<h2>{heading}</h2>" in text
    # A line an attribution, controls too, for the one metric that has a curve.
    assert text.count("<polyline") == len(names)


def picture(n, *, target="a", share=np.nan, values=None, maps=None):
    """A picture of a run as the page reads it."""
    encoded = images.encode(np.full((16, 16, 3), 0.5)).tobytes()
    values = {"one": {"insertion": 0.2}, "two": {"insertion": 0.4}} if values is None else values
    return figures.Picture(f"{n}.png", target, values, share, encoded, maps)


def test_the_pictures_whose_maps_are_least_alike_come_first():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    alike, turned, across = (np.stack([ramp, m]) for m in (ramp, ramp[::-1, ::-1], ramp.T))
    found = [picture(n, maps=m) for n, m in enumerate([alike, across, turned])]
    text = figures.disagreements(found, ["one", "two", "random"], "insertion")
    assert [text.index(f"{n}.png") for n in (2, 1, 0)] == sorted(
        text.index(f"{n}.png") for n in range(3)
    )
    # Of a map turned round the correlation is -1, of the same map 1.
    assert "alike \N{MINUS SIGN}1" in text
    assert "alike 1<" in text
    # Nothing to say of one map, or of a run that kept none.
    assert not figures.disagreements(found, ["one", "random"], "insertion")
    assert not figures.disagreements([picture(0)], ["one", "two"], "insertion")


def test_means_by_class_and_by_size_name_the_best():
    rng = np.random.default_rng(0)
    found = []
    for n in range(15):
        target = "a" if n < 6 else "b" if n < 11 else f"rare {n}"
        one, two = (0.9, 0.1) if n < 6 else (0.3, 0.5)
        values = {"one": {"insertion": one}, "two": {"insertion": two}, "random": {}}
        share = [0.05, 0.3, 0.6][n % 3] + 0.01 * rng.uniform()
        found.append(picture(n, target=target, share=share, values=values))
    text = figures.breakdown(found, ["one", "two", "random"], ["insertion"])
    assert '<th scope="row">a</th><td data-head="pictures">6</td>' in text
    assert '<b>0.900</b></td><td data-head="two">0.100' in text
    assert 'data-head="one">0.300</td><td data-head="two"><b>0.500</b>' in text
    # Four classes of one picture each.
    assert "; 4 others." in text
    assert "rare" not in text
    assert "small, 5 to 6 %" in text
    assert "large, 60 to 61 %" in text
    assert 'data-head="random"' not in text
    # Too few for either.
    assert not figures.breakdown(found[:3], ["one", "two"], ["insertion"])


def test_differences_are_paired(finished):
    _, out, _ = finished
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    cell = next(c for c in page.table(out) if (c.metric, c.attribution) == ("insertion", "centre"))
    by = {
        n: np.array([r["values"]["insertion"] for r in rows if r["attribution"] == n])
        for n in ("gradient", "centre")
    }
    assert cell.lead == pytest.approx((by["gradient"] - by["centre"]).mean(), abs=1e-6)


def test_a_repeated_command_computes_nothing_again(finished, launch_evaluate, monkeypatch):
    arguments, out, _ = finished
    before = (out / "table.csv").read_bytes()
    # Whatever computes a value now fails.
    monkeypatch.setattr(work.Worker, "_values", None)
    code, err = launch_evaluate(*arguments)
    assert code == 0, err
    assert (out / "table.csv").read_bytes() == before
    code, err = launch_evaluate(*arguments[:-1], "--seed=3", arguments[-1])
    assert code == 2
    assert "--seed" in err


def test_the_estimate_comes_first(launch_evaluate, photos, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        code, err = launch_evaluate(
            *FAST, f"--images={photos}", "--metrics=gini,grid_pointing", f"--out={tmp_path}/out"
        )
    assert code == 0, err
    told = [r.getMessage() for r in caplog.records]
    assert any("4 attributions x 2 metrics on 4 images of toy: about" in t for t in told) or (
        "about" in err
    )
    rows = [json.loads(x) for x in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    # Four pictures of three classes make no mosaic of two by two.
    assert {r["values"]["grid_pointing"] for r in rows} == {None}
    assert results.settings(tmp_path / "out")["flags"]["metrics"] == ["gini", "grid_pointing"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attributions=magic"], "attributions must be one of"),
        (["--metrics=luck"], "metrics must be one of"),
        (["--metrics=boxes"], "needs --boxes=FILE.csv"),
        (["--attributions=maps:/nowhere"], "maps:/nowhere: no such folder"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(
    launch_evaluate, photos, tmp_path, arguments, words
):
    given = {a.split("=")[0] for a in arguments}
    defaults = [a for a in FAST if a.split("=")[0] not in given]
    code, err = launch_evaluate(
        *defaults, *arguments, f"--images={photos}", f"--out={tmp_path}/out"
    )
    assert code == 2
    assert words in err.splitlines()[-1]


def test_shares_of_a_comparison_and_its_errors(launch_evaluate, photos, tmp_path, monkeypatch):
    # Two pictures a shard, so that five make three and both shares have some.
    monkeypatch.setattr(
        run.Run.__init__, "__kwdefaults__", {**run.Run.__init__.__kwdefaults__, "shard_rows": 2}
    )
    (photos / "e_broken.png").write_bytes(b"no")
    arguments = [*FAST, "--metrics=sufficient_area", f"--images={photos}"]
    code, err = launch_evaluate(*arguments, f"--out={tmp_path}/whole", "--max_error_rate=0.5")
    assert code == 0, err
    out = tmp_path / "parts"
    code, err = launch_evaluate(*arguments, f"--out={out}", "--shard=1/2")
    assert code == 0, err
    assert not (out / "results.jsonl").exists()
    code, err = launch_evaluate(*arguments, f"--out={out}", "--shard=0/2")
    assert code == flags.FAILED, err  # one of five, and 1 % may fail
    for name in ("manifest.jsonl", "errors.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Four pictures that were read, under four attributions.
    assert len((out / "results.jsonl").read_text().splitlines()) == 16
    code, err = launch_evaluate(*arguments, f"--out={out}", "--weights_sha256=00")
    assert code == 2
    assert "--weights_sha256 needs --weights=FILE" in err


def test_xrai_without_its_library_ends_with_one_line(launch_evaluate, tmp_path, monkeypatch):
    find = evaluate.importlib.util.find_spec
    # Only this one is missing; other libraries are found as ever.
    monkeypatch.setattr(
        evaluate.importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name)
    )
    code, said = launch_evaluate("--attributions=xrai", f"--out={tmp_path}/out")
    assert code == 2
    assert "pip install scikit-image" in said
    assert len(said.strip().splitlines()) == 1
