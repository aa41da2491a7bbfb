"""What users rely on stays: names and parameters, flags and defaults, files and fields of a run."""

import pytest

from tests.api import snapshot

WRITE = "if the change is meant, run `python -m tests.api.snapshot` and say why in the commit"


def stored(name):
    return snapshot.parse((snapshot.FOLDER / name).read_text())


def test_the_libraries_keep_their_names_and_parameters():
    gone = snapshot.lost(stored("names.txt"), snapshot.names())
    assert not gone, f"{WRITE}: {gone}"


def test_the_launchers_keep_their_flags_and_defaults():
    gone = snapshot.lost(stored("commands.txt"), snapshot.commands())
    assert not gone, f"{WRITE}: {gone}"


# The comparison itself is tried on changes that must be noticed: it would else pass by saying
# nothing.
@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"perturb.f": ["x"]}, {}),
        ({"perturb.f": ["x", "key y = 1"]}, {"perturb.f": ["x", "key y = 2"]}),
        ({"perturb.f": ["x"]}, {"perturb.f": ["x", "y"]}),
        ({"python -m a": ["--b = 1"]}, {"python -m a": []}),
    ],
    ids=["a name", "a default", "a new parameter that calls must give", "a flag"],
)
def test_what_is_lost_is_noticed(before, now):
    assert snapshot.lost(before, now)


def test_what_is_added_is_welcome():
    # A new keyword with a default, a new name and a new flag break no call that was written before.
    before = {"perturb.f": ["x"], "python -m a": ["--b = 1"]}
    now = {
        "perturb.f": ["x", "key y = 1"],
        "perturb.g": ["z"],
        "python -m a": ["--b = 1", "--c = 2"],
    }
    assert not snapshot.lost(before, now)
    assert snapshot.parse(snapshot.text(now)) == now
