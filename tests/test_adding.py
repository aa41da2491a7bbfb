"""An attribution, a metric, a fill, a reward and a method: each is one new file and the one line
that CONTRIBUTING.md shows.
"""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from launch import results
from perturb import registry

ROOT = pathlib.Path(__file__).parents[1]
NEW = {
    "perturb/attribution/name.py": """
        import numpy as np
        def name(model, images, targets):
            return np.asarray(images).sum(-1)
    """,
    "perturb/metrics/name.py": """
        def name(model, images, targets, maps, truth, boxes, keys):
            return maps.max((1, 2))
    """,
    "perturb/operators/name.py": """
        import jax
        from perturb.operators import Fade
        class Name(Fade):
            pass
        jax.tree_util.register_dataclass(Name, ["colour"], [])
    """,
    "perturb/methods/name.py": """
        import perturb
        def name(model, images, targets, *, areas=(0.1, 0.2), steps=2, batch_size=None, keys=None,
                 progress=None):
            given = {"areas": areas, "steps": steps, "batch_size": batch_size, "keys": keys}
            return perturb.extremal(model, images, targets, operator="fade", **given)
    """,
    "perturb/rewards/name.py": """
        from perturb import rewards
        def name():
            return rewards.user(lambda row, target, original: 2 * row[target], name="name")
    """,
}
LIBRARY = """
import numpy as np, perturb
from perturb import attribution, operators, rewards
from perturb.metrics import suite
model = perturb.Model(lambda w, x: x[:, 2:4, 2:4].sum((1, 2)), ())
x = np.ones((2, 8, 8, 3))
maps = attribution.get("name")(model, x, [0, 1])
assert maps.shape == (2, 8, 8) and attribution.PASSES["name"] == 3
assert suite.get("name").call(model, x, [0, 1], maps, None, None, None).tolist() == [3, 3]
assert type(operators.get("blur+name").operators[1]).__name__ == "Name"
assert rewards.get("name").name == "name" and "name" in rewards.NAMES
"""


def lines():
    """What CONTRIBUTING.md adds: `(file, line before, new line)`."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.compile(r"\(`(perturb/[\w/]+\.py)`\):\n```diff\n (.*)\n\+(.*)\n```")
    return block.findall(text)


@pytest.mark.slow
def test_one_file_and_one_line_each(tmp_path):
    for package in ("perturb", "gan_dissect", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    for path, source in NEW.items():
        (tmp_path / path).write_text(re.sub(r"^ {8}", "", source, flags=re.MULTILINE))
    # A kind of part that CONTRIBUTING.md forgot would have a file here and no line there.
    assert len(lines()) == len(NEW)
    for path, before, new in lines():
        file = tmp_path / path
        text = file.read_text()
        # The line before must be there once: the new one goes where the page says, not anywhere.
        assert text.count(f"\n{before}\n") == 1, f"{path} has no line {before}"
        file.write_text(text.replace(f"\n{before}\n", f"\n{before}\n{new}\n"))

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]

    run("-c", LIBRARY)
    run(
        # Through the launcher too: its flags and its report must know the names without being told.
        *("-m", "launch.masks", "--operator=name+mean", "--reward=name", "--areas=0.1"),
        *("--steps=2", "--evidence=none", "--out=masks"),
    )
    run(
        *("-m", "launch.masks", "--method=name", "--areas=0.1", "--steps=2"),
        *("--evidence=none", "--out=method"),
    )
    found = results.load(tmp_path / "method")
    assert found["masks"].shape[1] == 1
    # The method's own default is two areas: one row says that the flag reached it.
    assert {round(row["area"], 6) for row in found["rows"]} == {0.1}
    assert "method name" in (tmp_path / "method" / "report" / "index.html").read_text()
    run("-m", "launch.evaluate", "--attributions=name", "--metrics=name", "--out=league")
    assert "name" in (tmp_path / "league" / "table.csv").read_text()
    assert "filled by name" in (tmp_path / "masks" / "report" / "index.html").read_text()


def test_an_entry_is_the_thing_or_where_it_is():
    assert registry.resolve("math:floor")(2.5) == 2
    assert registry.resolve(len) is len
