"""Curves and bars show what was found, and without matplotlib a line says what to install."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from perturb import plots
from tests.launch.test_results import some_masks


def dichromat(colour, matrix):
    levels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.clip(matrix @ levels, 0, 1)


# Machado, Oliveira and Fernandes 2009, severity 1: protanopia and deuteranopia.
SIGHT = (
    np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
)


def test_colours_that_follow_each_other_are_told_apart_by_all_kinds_of_colour_vision():
    pairs = list(zip(plots.PALETTE, plots.PALETTE[1:], strict=False))
    for matrix in (np.eye(3), *SIGHT):
        for a, b in pairs:
            assert np.abs(dichromat(a, matrix) - dichromat(b, matrix)).max() > 0.15, (a, b)


def test_without_matplotlib_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'perturb-dissect\[plots\]'"):
        plots.bars(["a"], [1.0])


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="one for each of 2 names"):
        plots.bars(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="at least one"):
        plots.curves({})


def test_what_is_drawn_is_what_was_found():
    pytest.importorskip("matplotlib")
    scores = np.array([[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]])
    axes = plots.curves({"one": scores, "two": SimpleNamespace(scores=scores / 2)}).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 0.75, 1])
    assert axes.get_legend().get_texts()[1].get_text() == "two (0.312)"
    figure = plots.bars(["a", "b"], [0.1, -0.2], low=[0, -0.3], high=[0.2, -0.1])
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.1, -0.2]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_areas_of_a_result_and_effects_beside_random_units():
    pytest.importorskip("matplotlib")
    found = some_masks(batch=2)
    result = SimpleNamespace(
        **found._asdict(),
        probability_binary=np.full((2, 2), 0.5),
        probability_original=np.full(2, 0.9),
    )
    assert len(plots.areas(result).axes[0].lines) == 4
    change = np.array([[0.1, -0.2]])
    effects = SimpleNamespace(
        concepts=("sky", "grass"),
        sets=np.array([[True, False, True]]),
        change=change,
        change_low=change - 0.05,
        change_high=change + 0.05,
        control_sizes=np.array([2]),
        control_change=np.array([[[-0.01, 0.02], [0.03, -0.04]]]),
    )
    patches = plots.effects(effects).axes[0].patches
    assert [round(p.get_width(), 6) for p in patches] == [0.04, 0.06, 0.1, -0.2]
    with pytest.raises(ValueError, match="from 0 to 0"):
        plots.effects(effects, number=3)
