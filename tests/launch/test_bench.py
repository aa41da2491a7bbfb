"""The bench: turns are taken fairly, shares and growth are computed right, and what is asked is
known.
"""

import json

import pytest
from absl.testing import flagsaver

from launch import bench, flags, rival
from launch.benchmarks import turns


def test_cases_take_turns_and_may_time_themselves():
    order = []

    def case(name, result=None):
        def run():
            order.append(name)
            return result

        return run

    found = turns.turns({"a": case("a"), "b": case("b", 2.5)}, 3)
    assert order == ["a", "b"] * 4  # one turn more, to compile
    assert found["b"] == [2.5] * 3
    assert len(found["a"]) == 3
    # The median, which one slow turn does not move: the mean would be 4.
    assert turns.middle({"x": [1.0, 9.0, 2.0]}, "x") == 2.0


def test_table_and_json(tmp_path, monkeypatch, capsys):
    row = turns.Row("a row", "2.0 x", {"ours": [1.0, 2.0]})
    # In place of the measured row: what is tested is the table, and a real row takes minutes.
    monkeypatch.setitem(bench._ROWS, "step", lambda how: [row])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        flags.run(bench.main, ["bench", "--rows=step", f"--out={tmp_path}"])
    assert not ended.value.code
    assert "| a row | 2.0 x |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["rows"] == [row._asdict()]
    assert kept["machine"]["cores"] >= 1
    assert "| a row | 2.0 x |" in (tmp_path / "bench.md").read_text()


def test_a_row_that_is_not_known_is_refused(capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        flags.run(bench.main, ["bench", "--rows=step,speed"])
    assert ended.value.code == flags.BAD_INPUT
    assert "'speed'" in capsys.readouterr().err


def test_torchray_is_said_to_be_missing_where_it_is():
    missing = rival.available()
    assert missing is None or "is not installed" in missing
