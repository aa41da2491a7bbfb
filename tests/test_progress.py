"""Long calls say how far they are where someone watches, and give back what is finished."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import termios
import textwrap
import time

import jax
import numpy as np
import pytest

import perturb
from perturb import progress

ROOT = pathlib.Path(__file__).parents[1]
SEEN = """
import os, pathlib, signal, sys, warnings
import jax, jax.numpy as jnp, numpy as np, perturb

# A shell's background jobs start with Ctrl-C ignored, and Python then leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)

def show(w, x):
    return x[:, 4:8, 4:8].mean((1, 2)) @ w
seen = perturb.Model(show, jnp.eye(3))
images, targets = np.random.default_rng(0).random((6, 16, 16, 3), np.float32), [0, 1, 2] * 2
key = jax.random.key(0)
"""


def interrupted(call, after):
    """Runs a call in a process of its own, sends SIGINT once `after` steps are told, and returns
    what it prints.
    """
    code = SEEN + textwrap.dedent(
        f"""
        def tell(done, total):
            if done >= {after} and not os.path.exists("sent"):
                pathlib.Path("sent").touch()
                os.kill(os.getpid(), signal.SIGINT)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = {call}
        """
    )
    code += "\nprint([str(w.message) for w in said if 'interrupted' in str(w.message)])\n"
    return code


def run(code, folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )


MASKS = (
    "perturb.{}(seen, images, targets, key=key, steps=40, batch_size=2, progress=tell, "
    "reproducible=False{})"
)
CHECK = """
lost = found.status == "interrupted"
assert 0 < lost.sum() < lost.size, found.status
assert np.isnan(found.masks[lost]).all() and np.isnan(found.score_binary[lost]).all()
assert not np.isnan(found.masks[~lost]).any() and (found.status[~lost] != "interrupted").all()
os.remove("sent"); pathlib.Path("sent").touch()
whole = {call}
assert (found.masks[~lost] == whole.masks[~lost]).all()
assert (whole.status != "interrupted").all() and len(found.to_csv("rows.csv").read_text()) > 100
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [("extremal", ', areas=(0.1, 0.2), operator="fade"'), ("meaningful", ', operator="fade"')],
)
def test_an_interrupted_search_gives_back_whole_masks_and_says_which(method, more, tmp_path):
    call = MASKS.format(method, more)
    done = run(interrupted(call, 100) + CHECK.format(call=call), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "masks are finished" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "after"),
    [('question="enough", steps=9', 12), ("areas=(0.3, 0.1), first_steps=6, steps=3", 2)],
)
def test_an_interrupted_map_gives_back_whole_maps(options, after, tmp_path):
    call = (
        f"perturb.importance_map(seen, images, targets, {options}, batch_size=2, key=key, "
        "progress=tell)"
    )
    check = """
    lost = np.isnan(found.score_original)
    assert 0 < lost.sum() < 6 and (np.diff(lost.astype(int)) >= 0).all(), lost
    assert np.isnan(found.area[lost]).all() and not np.isnan(found.area[~lost]).any()
    """
    done = run(interrupted(call, after) + textwrap.dedent(check), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of 6 maps are finished" in done.stdout


@pytest.mark.slow
def test_before_anything_is_finished_and_within_a_launcher_it_is_raised(tmp_path):
    call = MASKS.format("extremal", "")
    done = run(interrupted(call.replace("steps=40", "steps=400"), 10), tmp_path)
    assert done.returncode
    assert "KeyboardInterrupt" in done.stderr
    (tmp_path / "sent").unlink()
    code = interrupted(call, 100).replace(
        "found = ", "\n    with perturb.progress.quiet():\n        found = "
    )
    done = run(code, tmp_path)
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.slow
def test_a_bar_on_a_terminal_and_silence_in_a_pipe(tmp_path):
    pytest.importorskip("tqdm")
    code = (
        "import time\nfrom perturb import progress\n"
        "for _ in progress.each(range(8), 'masks'): time.sleep(0.4)"
    )
    assert run(code, tmp_path).stderr == ""
    ours, theirs = pty.openpty()
    # A pseudo-terminal has no columns of its own.
    termios.tcsetwinsize(theirs, (24, 80))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=env, cwd=tmp_path)
    os.close(theirs)
    shown, until = b"", time.monotonic() + 120
    # The bar comes once the call is seen to last, and a process may take long to start.
    while b"masks:" not in shown and time.monotonic() < until:
        try:
            shown += os.read(ours, 1000)
        except OSError:  # the other end is closed
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    os.close(ours)
    assert b"masks:" in shown


def test_a_callback_takes_the_bars_place_and_inner_calls_are_silent(monkeypatch):
    made = []
    # As on a terminal; the tests' own output is none.
    monkeypatch.setattr(progress, "_watched", lambda: True)
    monkeypatch.setattr(progress, "_bar", lambda what: made.append(what))
    with progress.shown("masks", lambda done, total: None) as tell:
        tell(1, 2)
        assert list(progress.each([1, 2], "inner")) == [1, 2]
    assert made == []
    with progress.shown("masks") as tell:
        tell(1, 2)
    # The callback told of the first call, and its loop inside was silent: one bar in all.
    assert made == ["masks"]


class Bar:
    n = total = 0

    def update(self, by):
        self.n += by

    def close(self):
        self.n = -1


def test_each_counts_what_is_done_with_and_closes_when_left(monkeypatch):
    bar = Bar()
    monkeypatch.setattr(progress, "_bar", lambda what: bar)
    for item in progress.each(range(5), "things"):
        # Counted when the next one is asked for: an item is done with once the loop's body is.
        assert bar.n == item
        assert bar.total == 5
        if item == 3:
            break
    assert bar.n == -1
    # A flag that stayed set would silence every later call.
    assert not progress._inner.get()


def test_nothing_is_given_back_of_nothing_or_to_another_call():
    with pytest.raises(KeyboardInterrupt):
        progress.give_back(0, 4, "masks")
    with progress.quiet(), pytest.raises(KeyboardInterrupt):
        progress.give_back(2, 4, "masks")
    with pytest.warns(progress.Interrupted, match="2 of 4 maps"):
        whole = progress.completed([np.ones((2, 3), np.float32), np.ones(2, bool)], 4, "maps")
    # Numbers that were not worked out are NaN; truth values have none, and are False.
    assert np.isnan(whole[0][2:]).all()
    assert whole[1].tolist() == [True, True, False, False]


@pytest.mark.slow
def test_metrics_and_maps_say_how_far_they_are(monkeypatch):
    from perturb import attribution, metrics

    made = []
    monkeypatch.setattr(progress, "_bar", lambda what: made.append(what) or Bar())
    seen = perturb.Model(lambda w, x: x[:, 2:6, 2:6].mean((1, 2)), ())
    x, t = np.random.default_rng(0).random((2, 8, 8, 3), np.float32), [0, 1]
    attribution.get("hsic")(seen, x, t, samples=8, cells=2)
    attribution.get("rise")(seen, x, t, samples=4, cells=2)
    maps = np.random.default_rng(1).random((2, 8, 8))
    metrics.insertion(seen, x, t, maps)
    metrics.road(seen, x, t, maps, key=jax.random.key(0))
    metrics.information(seen, x, t, maps)
    assert made == ["maps", "hundreds of masks", "pictures", "pictures", "pictures"]
