"""What is imported is declared, and the wheel alone runs the demo in an empty environment."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("perturb", "gan_dissect", "launch")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages whose distribution has another name; those that are not here have the same.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
# Loaded only by a program that an extra is installed for.
WITH_AN_EXTRA = {"starlette": "studio"}


def plain(requirement):
    """The name of a requirement, as PyPI compares names."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


REQUIRED = {
    plain(line)
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
}
EXTRAS = {
    name: {plain(r) for r in given} for name, given in PROJECT["optional-dependencies"].items()
}


def imported(tree):
    """`(package, whether on being imported itself)` of every import."""
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            yield name.split(".")[0], id(node) not in later


def foreign():
    """`{distribution: (a file that imports it, whether one does at once)}`."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for package, at_once in imported(ast.parse(path.read_text())):
                if package in ROOMS or package in sys.stdlib_module_names:
                    continue
                name = DISTRIBUTIONS.get(package, package).lower().replace("_", "-")
                before = found.get(name, ("", False))
                found[name] = (str(path.relative_to(ROOT)), at_once or before[1])
    return found


def test_what_is_imported_is_declared():
    known, found = REQUIRED.union(*EXTRAS.values()), foreign()
    assert {name: file for name, (file, _) in found.items() if name not in known} == {}
    at_once = {name for name, (_, at_once) in found.items() if at_once}
    assert at_once - REQUIRED == set(WITH_AN_EXTRA)
    assert all(name in EXTRAS[extra] for name, extra in WITH_AN_EXTRA.items())


def test_what_is_declared_is_imported():
    # jaxlib is the half of jax that has a version of its own.
    assert REQUIRED - set(foreign()) - {"jaxlib"} == set()


def test_an_undeclared_import_is_noticed():
    tree = ast.parse("import yaml.loader\ndef f():\n    from numpy import linalg\n")
    assert dict(imported(tree)) == {"yaml": True, "numpy": False}
    assert "yaml" not in REQUIRED


def done(*command, cwd, **options):
    """Runs a command; its output if it ends well."""
    ran = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, **options
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(tmp_path):
    source = tmp_path / "source"
    for room in ROOMS:
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, source / room, ignore=hidden)
    # Copied, so that what lies in the folder besides (caches, builds) cannot come in.
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )
    if "No matching distribution" in built.stderr or "ConnectionError" in built.stderr:
        pytest.skip("no package index: setuptools cannot be had to build the wheel")
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for path in (p for room in ROOMS for p in (source / room).rglob("*")):
        kept = path.suffix in {".py", ".safetensors", ".json", ".css", ".js", ".html", ".typed"}
        if path.is_file() and kept:
            assert path.relative_to(source).as_posix() in held
    empty, away = tmp_path / "empty", tmp_path / "away"
    venv.create(empty, with_pip=True)
    away.mkdir()
    python, install = empty / "bin" / "python", ("-m", "pip", "install", "--quiet")
    done(python, *install, "--disable-pip-version-check", wheel, cwd=away)
    said = done(python, "-c", "import perturb; print(perturb.__file__)", cwd=away)
    # From another folder, so that not the sources beside it are what is imported.
    assert said.startswith(str(empty))
    shown = ("--out=run", "--pictures=2", "--checked=16")
    done(python, "-m", "launch.demo", *shown, cwd=away)
    assert (away / "run" / "report" / "index.html").stat().st_size > 10_000
    for command in PROJECT["scripts"]:
        help_text = done(empty / "bin" / command, "--help", cwd=away)
        # The one that prints a script for the shell has no flags of its own.
        assert "--" in help_text or command == "perturb-completion"
