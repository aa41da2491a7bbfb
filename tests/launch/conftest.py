"""What launcher tests share: pictures on disk, and a way to run a launcher in this process."""

import functools
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
from absl.testing import flagsaver

import perturb
from launch import flags, masks
from launch.job import faults
from perturb import methods


@pytest.fixture
def photos(tmp_path):
    """A folder of four pictures of different sizes, each with one coloured square."""
    folder = tmp_path / "photos"
    folder.mkdir()
    colours = {"a_red": (255, 0, 0), "b_green": (0, 255, 0), "c_blue": (0, 0, 255)}
    for i, (name, colour) in enumerate([*colours.items(), ("d_red", (255, 30, 30))]):
        # Heights differ: a launcher that applied no geometry could not put these into one batch.
        pixels = np.full((40 + 4 * i, 48, 3), 90, np.uint8)
        pixels[10:24, 6 + 8 * i : 20 + 8 * i] = colour
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def launch_masks(capsys, monkeypatch):
    """Runs launch.masks with these arguments; returns the exit code and what it wrote on stderr."""
    # The test run itself is to be stopped by SIGTERM, not only the launcher inside it.
    monkeypatch.setattr(faults, "leave_on_notice", lambda: None)

    def run(*arguments):
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            flags.run(masks.main, ["launch/masks.py", *map(str, arguments)])
        return end.value.code or 0, capsys.readouterr().err

    return run


TOY = (
    "--model=tests.launch.toy:load",
    "--steps=20",
    "--areas=0.1,0.2",
    "--batch_size=2",
    "--evidence=none",
    "--max_error_rate=1",
)


@pytest.fixture
def toy():
    """Arguments for a model that runs in no time."""
    return TOY


@pytest.fixture
def instant(monkeypatch):
    """Puts a stand-in for the solver that keeps the brightest pixels; returns the shapes it saw."""
    shapes = []

    @functools.wraps(perturb.extremal)
    def extremal(model, images, targets, *, areas, **more):
        shapes.append(images.shape)
        # A stable sort breaks ties by place, so that a flat picture has the same mask in every
        # batch.
        order = np.argsort(-images.mean(-1).reshape(len(images), 1, -1), stable=True)
        pixels = order.shape[-1]
        ranks = np.argsort(order, axis=-1).reshape(len(images), 1, *images.shape[1:3])
        masks = (ranks < np.round(np.array(areas) * pixels)[:, None, None]).astype(np.float32)
        outputs = np.asarray(model(images))[np.arange(len(images)), targets]
        scores = np.repeat(outputs[:, None], len(areas), 1)
        return Stand(masks, areas, masks.mean((2, 3)), outputs, scores, scores, 0 * outputs)

    monkeypatch.setitem(methods._NAMED, "extremal", extremal)
    return shapes


class Stand(NamedTuple):
    """What a method returns."""

    masks: Any
    areas: Any
    achieved_area: Any
    score_original: Any
    score_masked: Any
    score_binary: Any
    score_floor: Any
    status: Any = "ok"
    kind: str = "masks"


@pytest.fixture
def launched(capsys, monkeypatch, caplog):
    """Runs any launcher's `main` with these arguments; returns the exit code and what it wrote on
    stderr. `caplog` has its messages.
    """
    # As in `launch_masks`: the handlers of the test run are left as they are.
    monkeypatch.setattr(faults, "leave_on_notice", lambda: None)

    def run(launcher, *arguments):
        # Each time, because flags that are set back set the level of absl's logger back.
        caplog.set_level("INFO", logger="absl")
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            flags.run(launcher.main, ["launcher", *map(str, arguments)])
        return end.value.code or 0, capsys.readouterr().err

    return run
