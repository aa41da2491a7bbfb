"""Names of a file as a wrapper left them: `module.conv.weight` is `conv.weight` where that fits
exactly.

Data-parallel training, compilation, Lightning and models inside models put a prefix before the
names of a net. It is removed only if the names then match those of the net exactly, so a file of
another net is refused under its own names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from perturb.types import Record
from perturb.weights import filling

__all__ = ["renamed", "unwrapped"]

Tensors = Mapping[str, Any]
# Wrappers nest (`_orig_mod.module.model.`); what lies deeper belongs to the net.
_DEPTH = 5


def renamed(tensors: Tensors, rename: Mapping[str, str]) -> Record:
    """Returns the tensors under other names: each pattern in turn, as in `re.sub`.

    Args:
      tensors: `{name: array}`.
      rename: `{pattern: text}`; a tensor whose name becomes empty is left out.
    Raises:
      ValueError: if a pattern is none or matches no name, or two names become one.

    >>> rules = {r"^net\\.": "", r"\\.w$": ".weight", "^head.*": ""}
    >>> list(renamed({"net.conv.w": 0, "head.w": 0}, rules))
    ['conv.weight']
    """
    found: Record = dict(tensors)
    for pattern, text in rename.items():
        try:
            named = {name: re.sub(pattern, text, name) for name in found}
        except (re.error, IndexError, TypeError) as error:
            raise ValueError(
                f"rename must give patterns as in re.sub, got {pattern!r}: {text!r} ({error})"
            ) from error
        # A pattern with a slip in it would do nothing, and the error would come from the net.
        if all(name == new for name, new in named.items()):
            names = ", ".join(list(found)[:3])
            raise ValueError(
                f"rename: the pattern {pattern!r} matches no name; the file's are {names}, ..."
            )
        kept = {name: t for name, t in found.items() if named[name]}
        found = filling.rename(kept, {pattern: text})
    return found


def unwrapped(
    tensors: Tensors,
    wanted: Sequence[Set[str]],
    *,
    net: str,
    spell: Callable[[Tensors], Tensors] = dict,
    ignore: Sequence[str] = filling.IGNORED,
) -> Record:
    """Returns the tensors without the prefix that their names have before those of a net, if there
    is one.

    Networks under other prefixes are left alone, such as the optimiser's or a projection head's.

    Args:
      tensors: `{name: array}`.
      wanted: sets of names, any of which a file may have.
      net: its name, for the error.
      spell: maps the names of other libraries to those of the net.
      ignore: patterns of names that count for nothing.
    Raises:
      ValueError: if several networks in the file fit.

    >>> file = {"module.fc.weight": 1, "module.fc.bias": 2, "queue": 3}
    >>> unwrapped(file, [{"fc.weight", "fc.bias"}], net="a layer")
    {'fc.weight': 1, 'fc.bias': 2}
    """

    def fits(found: Tensors) -> bool:
        try:
            names = {n for n in spell(found) if not any(fnmatch.fnmatchcase(n, p) for p in ignore)}
        except (
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
        ):  # a spelling of another net's file
            return False
        return any(names == set(names_) for names_ in wanted)

    # A file under the net's own names is never renamed.
    if fits(tensors):
        return dict(tensors)
    whole = _shared(list(tensors))
    for outer in whole:
        base = _without(tensors, outer)
        # The file may also lack a prefix that all names of the net have.
        for more in {_shared(list(w))[-1] for w in wanted if w}:
            if more and fits(put := {more + n: t for n, t in base.items()}):
                return put
        inner = {
            p: under
            for p in _prefixes(base)
            if fits(under := {n[len(p) :]: t for n, t in base.items() if n.startswith(p)})
        }
        if len(inner) > 1:
            first, second = list(inner)[:2]
            raise ValueError(
                f"weights: the file holds several {net}, under {first!r} and {second!r}: leave out "
                f"all but one with rename={{{'^' + re.escape(second) + '.*'!r}: ''}}"
            )
        if inner:
            return next(iter(inner.values()))
        # A wrapped body beside a head that is not.
        for p in _prefixes(base):
            # Only where no two names become one.
            merged = {n.removeprefix(p): t for n, t in base.items()}
            if len(merged) == len(base) and fits(merged):
                return merged
    return dict(tensors)


def _without(tensors: Tensors, prefix: str) -> Record:
    return {n[len(prefix) :]: t for n, t in tensors.items()}


def _shared(names: Sequence[str]) -> list[str]:
    """Returns the prefixes that all names have, "" the first."""
    return ["", *(p for p in _cuts(min(names, default="")) if all(n.startswith(p) for n in names))]


def _prefixes(tensors: Tensors) -> Iterator[str]:
    """Yields what stands before a dot or a slash in the names, the shortest first, each once."""
    seen = {p for name in tensors for p in _cuts(name)}
    yield from sorted(seen, key=lambda p: (len(re.findall(r"[./]", p)), p))


def _cuts(text: str) -> list[str]:
    return [text[: m.end()] for m in re.finditer(r"[./]", text)][:_DEPTH]
