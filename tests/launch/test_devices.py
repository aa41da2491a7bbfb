"""Jobs on several devices of one process give the tables of one device."""

import json
import os
import pathlib
import subprocess
import sys

import PIL.Image
import pytest

from launch.demo import world

ROOT = pathlib.Path(__file__).parents[2]

BOTH = """
import sys
import jax
from absl.testing import flagsaver
from launch import dissect, evaluate, features, flags, walk
from launch.job import faults
from perturb import devices
from perturb._numerics import devices as inner
assert jax.local_device_count() == 4
used, real = set(), devices.each
def each(function, tree, items):
    def noted(there, n, item):
        used.add((n, *{d for x in jax.tree.leaves(there) for d in x.devices()}))
        return function(there, n, item)
    return real(noted, tree, items)
devices.each = inner.each = each
folder = sys.argv[1]
jobs = {
    "evaluate": (evaluate, f"--images={folder}/photos", "--model=demo", "--batch_size=2",
                 "--attributions=gradient", "--metrics=deletion"),
    "dissect": (dissect, "--samples=64", "--effect_samples=24", "--controls=1", "--batch_size=8"),
    "walk": (walk, "--walks=5", "--frames=3", "--controls=1", "--fit_samples=60", "--batch_size=8"),
    "features": (features, "--model=demo", "--layer=conv4", "--steps=2"),
}
for name, (launcher, *arguments) in jobs.items():
    for number, place in ((4, None), (1, jax.devices()[2])):
        used.clear()
        with flagsaver.flagsaver(), jax.default_device(place):
            try:
                line = ["x", *arguments, f"--out={folder}/{name}{number}"]
                flags.run(launcher.main, line, own=getattr(launcher, "OWN", None))
            except SystemExit as end:
                assert not end.code, (name, end.code)
        # Of the pictures and of the units there are three shards, of all else enough for each.
        want = {1: 1, 4: 3 if name in ("evaluate", "features") else 4}[number]
        assert len(used) == want and len({d for _, d in used}) == want, (name, number, used)
print("done")
"""


def rows(folder):
    """The table, without the seconds that it took."""
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in found:
        row.get("values", {}).pop("seconds", None)
    return found


@pytest.mark.slow
def test_four_devices_give_the_tables_of_one(tmp_path):
    (tmp_path / "photos").mkdir()
    # Three shards of eight, the last of one picture.
    for i, picture in enumerate(world.pictures(17)):
        pixels = (picture.image * 255).astype("uint8")
        PIL.Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02d}.png")
    done = subprocess.run(
        [sys.executable, "-c", BOTH, str(tmp_path)],
        cwd=ROOT,
        # JAX counts its CPU devices once, at the start of a process: hence a process of its own.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done\n")
    for name in ("evaluate", "dissect", "walk", "features"):
        one, four = rows(tmp_path / f"{name}1"), rows(tmp_path / f"{name}4")
        assert len(one) > 5, name
        # The same program on every device, and sums in the order of the samples: equal, not close.
        assert one == four, name
    one, four = (sorted((tmp_path / f"features{n}" / "pictures").iterdir()) for n in (1, 4))
    assert len(one) == 48
    assert [(p.name, p.read_bytes()) for p in one] == [(p.name, p.read_bytes()) for p in four]
