"""Two runs side by side, files for other programs, and completion of the commands."""

import csv
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from launch import commands, completion, results
from launch.jobs.compare import page
from launch.jobs.masks import export
from tests.launch.test_page import Parsed
from tests.launch.test_results import committed, some_masks

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path):
    """Two runs of the same pictures, the second with one more."""
    first, second = some_masks(batch=3), some_masks(batch=4, seed=1)
    committed(tmp_path / "a", first, flags={"areas": [0.1, 0.3]})
    committed(tmp_path / "b", second, flags={"areas": [0.1, 0.3]})
    return tmp_path / "a", tmp_path / "b"


def test_two_runs_meet_picture_by_picture_and_area_by_area(runs, tmp_path):
    found = list(page.pairs(*runs))
    assert [(p.image, round(p.area, 3)) for p in found] == [
        (f"{i:02d}.png", a) for i in range(3) for a in (0.1, 0.3)
    ]
    a, b = (m > 0.5 for m in found[0].masks)
    assert found[0].overlap == pytest.approx((a & b).sum() / (a | b).sum())
    text = page.write(tmp_path, runs, ("A<b>", "B")).read_text()
    parsed = Parsed(text)
    assert parsed.tags.count("article") == 6
    assert "A<b>" not in text
    with (tmp_path / "compared.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert float(rows[0]["overlap"]) == pytest.approx(found[0].overlap)


def test_what_went_wrong_in_either_run_is_marked_on_its_side(runs, tmp_path):
    found = some_masks(batch=3)
    lost = found._replace(status=np.full((3, 2), "nonfinite"))
    committed(tmp_path / "lost", lost, flags={"areas": [0.1, 0.3]})
    text = page.write(tmp_path / "out", (runs[0], tmp_path / "lost"), ("A", "B")).read_text()
    # Three pictures at two areas, and of each the second side alone.
    assert text.count("<summary>nonfinite</summary>") == 6


def test_a_run_against_itself_agrees_everywhere(runs):
    found = list(page.pairs(runs[0], runs[0]))
    assert {p.overlap for p in found} == {1.0}
    assert all(p.effects[0] == p.effects[1] for p in found)


def test_what_cannot_be_compared_is_refused_in_a_line(runs, tmp_path):
    committed(tmp_path / "c", some_masks(batch=2), names=["x.png", "y.png"])
    with pytest.raises(ValueError, match="no picture of the same name"):
        list(page.pairs(runs[0], tmp_path / "c"))
    committed(tmp_path / "d", some_masks(batch=2), flags={"game": "delete"})
    with pytest.raises(ValueError, match="--game differs"):
        list(page.pairs(runs[0], tmp_path / "d"))


@pytest.mark.slow
def test_compare_is_a_word_of_the_launcher_of_masks(runs, tmp_path):
    command = [sys.executable, "-m", "launch.masks", "compare", *map(str, runs)]
    done = subprocess.run(
        [*command, f"--out={tmp_path}/out"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    done = subprocess.run(
        [*command[:-1], "demo"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "is a run and demo is none" in done.stderr


def test_a_table_and_a_drawing_a_mask_on_request(runs):
    written = export.write(runs[0], ["csv", "overlays"])
    assert len(written) == 1 + 6
    with (runs[0] / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = results.load(runs[0])["rows"]
    assert [float(r["score_binary"]) for r in rows] == [r["score_binary"] for r in kept]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written[1:])
    assert len({p.name for p in written}) == 7


def test_every_command_of_the_package_exists_and_completes():
    text = (ROOT / "pyproject.toml").read_text()
    named = {line.split(" = ")[0] for line in text.splitlines() if '"launch.commands:' in line}
    assert named == {f"perturb-{n}" for n in commands.__all__}
    assert {f"perturb-{n}" for n in completion.COMMANDS} < named


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_flags_and_their_values(tmp_path):
    known = {"masks": {"--game=": ("preserve", "delete"), "--method=": (), "--help": ()}}
    script = completion.script(known)
    ask = (
        '\nCOMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; _perturb perturb-masks; '
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )

    def completed(line):
        done = subprocess.run(
            ["bash", "-c", script + ask, "bash", line], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("perturb-masks --") == ["--game=", "--method=", "--help"]
    assert completed("perturb-masks --ga") == ["--game="]
    assert completed("perturb-masks --game=pre") == ["preserve"]
    assert completed("perturb-masks --game=") == ["preserve", "delete"]


@pytest.mark.slow
def test_the_script_knows_the_flags_of_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "launch.completion"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in completion.COMMANDS:
        assert f"perturb-{name})" in done.stdout
    assert "--export=" in done.stdout
    assert 'perturb-masks --game") values="preserve delete dual"' in done.stdout
