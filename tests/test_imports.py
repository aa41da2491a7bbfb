"""Imports point one way: between the rooms, inside each as `docs/design.md` draws it, and never in
a circle.
"""

import ast
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("perturb", "gan_dissect", "launch")  # each may import those before it
PICTURE = re.compile(r"^```text\n([a-z_]+), from the top\n(.*?)^```", re.MULTILINE | re.DOTALL)


def modules():
    """Every module of the three rooms and its file."""
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source, known):
    """What a module imports of `known`: `(module, name or None, whether on being imported
    itself)`.
    """
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        at_once = id(node) not in later
        if isinstance(node, ast.Import):
            yield from ((a.name, None, at_once) for a in node.names if a.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner, None, at_once
                elif node.module in known:
                    yield node.module, alias.name, at_once


def graph():
    """Every module and what it imports."""
    known = modules()
    return {name: set(imported(path.read_text(), known)) for name, path in known.items()}


def picture(text):
    """The lines of each room as `docs/design.md` draws them: `{entry: (room, height)}`."""
    found = {}
    for room, body in PICTURE.findall(text):
        lines = [line.split() for line in body.splitlines()]
        for height, names in enumerate(reversed(lines)):
            found |= {f"{room}.{name}": (room, height) for name in names}
    return found


def entry(module, drawn):
    """The entry of the picture that a module belongs to: the longest that it starts with."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 1, -1))
    return next((name for name in names if name in drawn), None)


def upwards(edges, drawn):
    """Imports that do not go down the picture."""
    wrong = []
    for module, targets in edges.items():
        for target, _, _ in targets:
            here, there = module.split(".")[0], target.split(".")[0]
            if ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{module} -> {target}")
            a, b = entry(module, drawn), entry(target, drawn)
            if here != there or a == b or module in ROOMS:
                continue
            if target in ROOMS or (
                a and b and drawn[b][1] >= drawn[a][1]
            ):  # the room's own front imports all of the room
                wrong.append(f"{module} -> {target}")
    return wrong


def circles(edges):
    """Modules that import each other while they are being imported, as strongly connected sets."""
    number, low, stack, found = {}, {}, [], []

    def visit(node):
        number[node] = low[node] = len(number)
        stack.append(node)
        for target, _, at_once in edges.get(node, ()):
            if not at_once or target == node:
                continue
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in edges:
        if node not in number:
            visit(node)
    return found


def private(edges):
    """Imports of a private module, or of a private name, from outside the package that has it."""
    wrong = []
    for module, targets in edges.items():
        for target, name, _ in targets:
            parts = f"{target}.{name}".split(".") if name else target.split(".")
            for place, part in enumerate(parts):
                if not part.startswith("_") or part.startswith("__"):
                    continue
                owner = ".".join(parts[:place])
                # A name belongs to its module's package; a module to the package it lies in.
                home = owner.rpartition(".")[0] if place == len(parts) - 1 and name else owner
                if not f"{module}.".startswith(f"{home}."):
                    wrong.append(f"{module} -> {'.'.join(parts)}")
    return wrong


def drawn():
    return picture((ROOT / "docs" / "design.md").read_text())


def test_every_module_has_its_place_in_the_picture():
    places = drawn()
    missing = {m for m in modules() if m not in ROOMS and entry(m, places) is None}
    assert not missing, f"add to a line of docs/design.md above all that they import: {missing}"


def test_imports_go_down_the_picture():
    assert upwards(graph(), drawn()) == []


def test_there_are_no_circles():
    assert circles(graph()) == []


def test_private_modules_stay_in_their_package():
    assert private(graph()) == []


def test_what_is_wrong_is_noticed():
    places = picture("```text\nperturb, from the top\nb c\na\n```\n")
    assert places == {
        "perturb.b": ("perturb", 1),
        "perturb.c": ("perturb", 1),
        "perturb.a": ("perturb", 0),
    }
    known = {"perturb.a", "perturb.b", "perturb.b._x", "gan_dissect.d", "launch.e"}
    up = {"perturb.a": set(imported("from perturb import b", known))}
    aside = {"perturb.c": {("perturb.b", None, True)}}
    room = {"perturb.a": set(imported("def f():\n    import gan_dissect.d", known))}
    assert all(len(upwards(edges, places)) == 1 for edges in (up, aside, room))
    assert upwards({"perturb.b": {("perturb.a", None, True)}}, places) == []
    assert circles({**up, "perturb.b": {("perturb.a", None, True)}}) == [["perturb.a", "perturb.b"]]
    assert circles({**up, "perturb.b": {("perturb.a", None, False)}}) == []
    assert private({"perturb.a": set(imported("from perturb.b._x import f", known))})
    assert private({"launch.e": set(imported("from gan_dissect.d import _f", known))})
    assert not private({"perturb.b": set(imported("from perturb.b import _x", known))})


def test_masks_are_found_without_the_generators():
    program = (
        "import sys; from launch import demo, masks; demo.load('demo'); "
        "sys.exit(any(name.startswith('gan_dissect') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
