import importlib
import pkgutil
import subprocess
import sys

import pytest
from absl import flags as absl_flags

import launch
from launch import flags


def test_all_launchers_import_together_without_a_flag_defined_twice():
    names = [m.name for m in pkgutil.iter_modules(launch.__path__) if not m.ispkg]
    # absl refuses a second definition when the module is imported.
    launchers = [
        name for name in names if hasattr(importlib.import_module(f"launch.{name}"), "main")
    ]
    assert "masks" in launchers


def test_every_flag_of_masks_is_explained():
    importlib.import_module("launch.masks")
    own = absl_flags.FLAGS.get_key_flags_for_module("launch.masks")
    assert {"images", "areas", "out", "page_items"} <= {flag.name for flag in own}
    assert all(len(flag.help) > 20 for flag in own)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--imagse=x"], "imagse"),
        (["--areas=0.1,2"], "--areas"),
        (["--areas="], "--areas"),
        (["--areas=0.1,0.1"], "twice"),
        (["--areas=nan"], "--areas"),
        (["--counts=2.5"], "--counts"),
        (["--steps=0"], "--steps"),
        (["--batch_size=1"], "--batch_size"),
        (["--game=keep"], "--game"),
        (["--seed=-1"], "--seed"),
        (["--out=a", "--out=b"], "--out is given twice"),
        (["stray"], "'stray' is not a flag"),
        (["--method=extremal", "--layer=conv"], "--layer is not a setting of --method=extremal"),
        (["--method=meaningful", "--areas=0.1"], "--areas is not a setting"),
        (["--method=channels"], "needs --layer"),
        (["--images=x"], "--model is missing"),
    ],
)
def test_a_bad_command_line_ends_with_one_line_and_code_2(launch_masks, tmp_path, arguments, words):
    if not any(a.startswith("--out") for a in arguments):
        arguments = [*arguments, f"--out={tmp_path / 'out'}"]
    code, err = launch_masks(*arguments)
    assert code == 2
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    # A folder that was made for nothing would be in the way of the corrected command.
    assert not (tmp_path / "out").exists()


def test_help_lists_units_and_defaults_and_ends_well():
    # A process of its own, for --help ends the one that it is given to.
    ran = subprocess.run(
        [sys.executable, "-m", "launch.masks", "--help"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0
    assert "(default: '0.05,0.1,0.2')" in ran.stdout
    assert "shares of the visible picture" in ran.stdout
    assert ran.stderr == ""


def test_flags_from_a_file_may_be_overridden(launch_masks, tmp_path):
    file = tmp_path / "settings"
    file.write_text("--areas=0.3\n--model=no_such_net\n")
    # The command line wins over the file; refused before any model is looked for.
    code, err = launch_masks(f"--flagfile={file}", "--areas=7", f"--out={tmp_path}/out")
    assert code == 2
    assert "--areas" in err


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError("plain"), ValueError()])
def test_one_line(error):
    assert flags.one_line(error)
    assert "\n" not in flags.one_line(error)
