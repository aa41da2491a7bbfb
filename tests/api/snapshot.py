"""The public interface as text: names and signatures, flags and defaults, files and fields of a
run.

`python -m tests.api.snapshot [RUN]` writes the text beside this file, with the files and fields of
a finished run of `launch.masks` where its folder is given. `test_api.py` compares the text with the
code as it is: what users rely on may be added to, and is not removed or changed unnoticed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

FOLDER = pathlib.Path(__file__).parent
LIBRARIES = ("perturb", "gan_dissect")
LAUNCHERS = ("masks", "dissect", "walk", "evaluate", "convert", "bench")
# Import paths that the documentation names, beyond the packages' own attributes.
PATHS = (
    "launch.results",
    "perturb.geometry",
    "perturb.importance",
    "perturb.methods",
    "perturb.model",
    "perturb.nets",
    "gan_dissect.generator",
    "gan_dissect.nets",
)


def parameter(p: inspect.Parameter) -> str:
    """One parameter as a line: its name, how it is passed and its default."""
    star = {p.KEYWORD_ONLY: "key ", p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    if p.default is p.empty:
        return f"{star}{p.name}"
    # An address in memory is another one in every process.
    default = re.sub(r" at 0x[0-9a-f]+", "", repr(p.default))
    return f"{star}{p.name} = {default[:160]}"


def signature(value: Any) -> list[str]:
    """The parameters of a function or class, a line each."""
    try:
        return [parameter(p) for p in inspect.signature(value).parameters.values()]
    except (TypeError, ValueError):
        return []


def entry(path: str, value: Any) -> Iterator[tuple[str, list[str]]]:
    """A public name and, for a class, its fields, properties and methods."""
    yield path, signature(value) if callable(value) else []
    if inspect.isclass(value):
        parameters = {line.removeprefix("key ").split(" = ")[0] for line in signature(value)}
        # The class's own members: what it inherits stands with the class that it is inherited from.
        names = {name for name in vars(value) if not name.startswith("_")}
        if dataclasses.is_dataclass(value):
            names |= {field.name for field in dataclasses.fields(value)}
        for name in sorted(names - parameters):
            member = vars(value).get(name)
            member = getattr(member, "__func__", member)
            yield f"{path}.{name}", signature(member) if inspect.isfunction(member) else []


def modules() -> dict[str, types.ModuleType]:
    """The public modules: those that a library lists, and the documented paths."""
    found = {}
    for library in LIBRARIES:
        package = importlib.import_module(library)
        found[library] = package
        for name in package.__all__:
            if inspect.ismodule(getattr(package, name)):
                found[f"{library}.{name}"] = importlib.import_module(f"{library}.{name}")
    return found | {path: importlib.import_module(path) for path in PATHS}


def names() -> dict[str, list[str]]:
    """Every public name of the libraries with its parameters."""
    found: dict[str, list[str]] = {}
    for path, module in modules().items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value):
                found[f"{path}.{name}"] = ["module"]
            else:
                found.update(entry(f"{path}.{name}", value))
    nets = importlib.import_module("perturb.nets"), importlib.import_module("gan_dissect.nets")
    found["names of nets"] = sorted(nets[0].NAMES)
    found["names of generators"] = sorted(nets[1].NAMES)
    return dict(sorted(found.items()))


def flags(launcher: str) -> list[str]:
    """The flags that a launcher lists in its own help, with their defaults."""
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{launcher}", "--helpxml"], capture_output=True, text=True
    )
    tree = ET.fromstring(done.stdout)
    # absl lists the flags of every module it loads; those of the launcher itself are marked.
    own = [flag for flag in tree.iter("flag") if flag.findtext("key") == "yes"]
    return sorted(f"--{flag.findtext('name')} = {flag.findtext('default')}" for flag in own)


def commands() -> dict[str, list[str]]:
    """The launchers with their flags."""
    return {f"python -m launch.{name}": flags(name) for name in LAUNCHERS}


def fields(value: Any, before: str = "") -> Iterator[str]:
    """The keys of nested dictionaries, joined by points."""
    for key, inner in value.items():
        yield f"{before}{key}"
        if isinstance(inner, dict):
            yield from fields(inner, f"{before}{key}.")


def run_of(out: pathlib.Path) -> dict[str, list[str]]:
    """The files that a run leaves, and the fields of its rows."""
    names = {
        # Numbers and digests differ from run to run, and are one word each.
        re.sub(r"\d{3,}", "N", re.sub(r"-[0-9a-f]{8,}", "-HASH", str(path.relative_to(out))))
        for path in out.rglob("*")
        if path.is_file()
    }
    found = {"files": sorted(names)}
    # Rows need not have the same fields, so the fields of all of them count.
    for name in ("manifest.jsonl", "results.jsonl", "errors.jsonl"):
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        found[name] = sorted({field for row in rows for field in fields(row)})
    found["run.json"] = sorted(json.loads((out / "run.json").read_text()))
    return found


def text(sections: dict[str, list[str]]) -> str:
    """Sections as text: a heading a line, what it holds indented below."""
    return "".join(
        "\n".join([name, *(f"    {x}" for x in inside)]) + "\n" for name, inside in sections.items()
    )


def parse(written: str) -> dict[str, list[str]]:
    """Sections from their text."""
    found: dict[str, list[str]] = {}
    for line in written.splitlines():
        if line.startswith("    "):
            found[next(reversed(found))].append(line[4:])
        else:
            found[line] = []
    return found


def lost(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """What stood in `before` and is gone or changed, and parameters that are new and required."""
    missing = []
    for name, inside in before.items():
        if name not in now:
            missing.append(name)
            continue
        missing += [f"{name}: {line}" for line in inside if line not in now[name]]
        # An addition to a signature needs a default, or calls that work today fail.
        if inside != ["module"] and name.split(".")[0] in (*LIBRARIES, "launch"):
            added = [line for line in now[name] if line not in inside]
            missing += [
                f"{name}: new and without a default: {line}"
                for line in added
                if " = " not in line and not line.startswith("*")
            ]
    return missing


def main() -> None:
    """Writes the snapshot."""
    (FOLDER / "names.txt").write_text(text(names()))
    (FOLDER / "commands.txt").write_text(text(commands()))
    for out in sys.argv[1:]:
        (FOLDER / "run.txt").write_text(text(run_of(pathlib.Path(out))))


if __name__ == "__main__":
    main()
