"""Which parameters of the public functions are documented: `python -m tests.documented` lists the
rest.

A parameter counts when griffe, the parser behind the documentation site, finds it in the
Google-style docstring of its function or class, and the text there says what kind of thing to pass:
a shape, a range, a unit, a type in words, or the names to choose from.
"""

from __future__ import annotations

import collections
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

LIBRARIES = ("perturb", "gan_dissect")
# A shape, a range, a literal or code in backticks; a number; or a type or unit by its word.
KIND = re.compile(
    r"""`[^`]+` | "[^"]+" | \bpx\b | \[[^\]]+\] | \([0-9.]+,\s*[^)]*[\])] | \b\d+(\.\d+)?\b |
    \b(arrays?|numbers?|integers?|floats?|names?|functions?|keys?|dict(ionary|ionaries)?|tuples?
      |lists?|sequences?|pytrees?|strings?|paths?|files?|folders?|booleans?|whether
      |true|false|none|pixels?
      |steps?|seconds?|bytes?|shares?|fractions?|percent|probabilit(y|ies)|scores?|logits?|degrees?
      |standard\sdeviations?|masks?|images?|pictures?|units?|channels?|layers?|classes|class|models?
      |generators?|records?|results?|modules?|mesh|index|indices|vectors?|matrix|matrices|maps?
      |operators?|rewards?|callables?|iterables?|iterators?|objects?|how\smany|count|rate
      |positive|seed|latents?|directions?
      |parameters?|variables|weights?|axis|axes|rows?|columns?|text|words?|transformation)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def public(module: types.ModuleType, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """The functions and classes that `__all__` reaches, by path: of a module and the modules it
    lists.
    """
    seen = set() if seen is None else seen
    for name in module.__all__:
        value = getattr(module, name)
        # One function under two paths is documented once and counts once.
        if id(value) in seen:
            continue
        seen.add(id(value))
        if inspect.ismodule(value):
            if hasattr(value, "__all__"):
                yield from public(value, seen)
        elif inspect.isfunction(value) or inspect.isclass(value):
            yield f"{module.__name__}.{name}", value


def callables(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A function; or a class and the public methods written in it."""
    yield path, value
    if inspect.isclass(value):
        for name, member in vars(value).items():
            # A classmethod's function is behind the member.
            method = getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(method):
                yield f"{path}.{name}", method


def parameters(value: Any) -> list[str]:
    """The names of what a call passes: of a class, what its constructor takes."""
    try:
        listed = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in listed if name not in ("self", "cls") and not name.startswith("_")]


def described(value: Any) -> dict[str, str]:
    """What the docstring says of each parameter, as griffe reads it."""
    griffe = importlib.import_module("griffe")
    text = inspect.cleandoc(
        vars(value).get("__doc__") or "" if inspect.isclass(value) else value.__doc__ or ""
    )
    found = {}
    for section in griffe.Docstring(text).parse("google", warnings=False):
        if section.kind.value in ("parameters", "other parameters", "attributes"):
            for item in section.value:
                # Several parameters may share one entry, `size, order: ...`.
                for name in item.name.split(","):
                    found[name.strip().lstrip("*")] = item.description
    return found


def protocols() -> list[type]:
    """The interfaces that the library describes: what fills one need not repeat its docstrings."""
    found = (value for _, value in public(importlib.import_module("perturb")))
    return [value for value in found if inspect.isclass(value) and is_protocol(value)]


def is_protocol(value: type) -> bool:
    return bool(getattr(value, "_is_protocol", False))


def inherited(owner: Any, name: str, interfaces: list[type]) -> dict[str, str]:
    """What the interfaces that a class fills say of the parameters of its method `name`."""
    for interface in interfaces:
        methods = [n for n, m in vars(interface).items() if inspect.isfunction(m) and n[0] != "_"]
        # The last method of an interface may be left out, as `inverse` is where there is none.
        if name in methods and all(hasattr(owner, method) for method in methods[:2]):
            return described(getattr(interface, name))
    return {}


def missing(library: str) -> tuple[list[str], int]:
    """The parameters that are not documented, `path: name`, and how many there are in all."""
    lacking, total, interfaces = [], 0, protocols()
    for top, value in public(importlib.import_module(library)):
        for path, function in callables(top, value):
            if inspect.isclass(function) and is_protocol(function):
                continue  # nobody constructs one
            known = inherited(value, path.rpartition(".")[2], interfaces) | described(function)
            for name in parameters(function):
                total += 1
                if not KIND.search(known.get(name, "")):
                    lacking.append(f"{path}: {name}")
    return lacking, total


if __name__ == "__main__":
    for library in LIBRARIES:
        lacking, total = missing(library)
        print(f"{library}: {total - len(lacking)} of {total} ({1 - len(lacking) / total:.1%})")
        grouped = collections.defaultdict(list)
        for line in lacking:
            path, name = line.split(": ")
            grouped[path].append(name)
        for path, names in grouped.items():
            print(f"    {path}: {', '.join(names)}")
