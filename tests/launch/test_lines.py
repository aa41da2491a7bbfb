"""Hostile lines for every launcher, one of each kind; `tests.launch.lines` draws hundreds."""

import pytest

from tests.launch import lines


@pytest.fixture(scope="module")
def watch():
    # One for all: an audit hook cannot be taken off.
    return lines.Watch()


@pytest.mark.parametrize("name", lines.LAUNCHERS)
def test_hostile_lines_end_in_one_line_and_leave_nothing(name, watch):
    if name == "studio":
        pytest.importorskip("starlette", reason="the studio needs starlette and uvicorn")
        pytest.importorskip("uvicorn", reason="the studio needs starlette and uvicorn")
    # Every way of being wrong once.
    number = len(lines.LAUNCHERS[name][1])
    with lines.quiet() as folder:
        counts, wrong = lines.judged(name, number, folder, watch, seed=2)
        assert not wrong, wrong[:3]
        assert counts["lines"] == number
        assert not (folder / "canary").exists()


def test_what_is_wrong_with_the_end_of_a_line_is_seen(watch):
    """The judge judges: it must not pass whatever comes."""
    good = (2, "error: --seed: no\n", "", [], [], [], 0.1)
    assert lines.faults_of(*good) == []
    for at, value in [
        *((0, 0), (0, 1), (0, None), (1, ""), (1, "a\nb\n"), (1, "error: \x1b[31m\n")),
        *((1, "error: " + "x" * 301), (2, "KeyError()"), (4, ["out/run.json"])),
        *((5, ["os.system ls"]), (6, 60.0)),
    ]:
        ended = [*good]
        ended[at] = value
        assert lines.faults_of(*ended), (at, value)
    # The hook itself: opening a pipe to nothing would start a process.
    watch.seen, watch.on = [], True
    lines.os.posix_spawn("/bin/true", ["true"], {})
    watch.on = False
    assert [seen.split()[0] for seen in watch.seen] == ["os.posix_spawn"]
