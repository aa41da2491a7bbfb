"""Pickles read as what they say, not run: a machine whose every object is inert.

A pickle is a program that calls whatever functions it names. Here its opcodes are decoded
(`pickletools.genops`) and carried out on plain data; a name stays a `Name` and a call a `Call`,
which callers may interpret. Nothing is imported, nothing is called. Names outside an allow-list are
refused, and so is what would be too large: a machine without budgets can be made to fill the memory
by a few bytes.

>>> import collections, pickle
>>> read(io.BytesIO(pickle.dumps({"a": [1, 2.5]})), allowed=())
{'a': [1, 2.5]}
>>> read(io.BytesIO(pickle.dumps(collections.Counter)), allowed=("collections.OrderedDict",))
Traceback (most recent call last):
ValueError: the pickle names collections.Counter, which no file of weights needs: refused
"""

from __future__ import annotations

import fnmatch
import io
import pickletools
from collections.abc import Callable, Sequence
from typing import IO, Any, BinaryIO, NamedTuple, cast

__all__ = ["Call", "Name", "read"]

# A tensor takes a few dozen.
MAX_OPCODES = 5_000_000

# An object of our own, which no pickle can make.
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes that push the value that they carry.
_VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ]
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# The memo, from which an object is taken that occurs again.
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


class Name(NamedTuple):
    """A function or class that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Call:
    """A call that was not made.

    Attributes:
      function: a `Name`.
      arguments: tuple of what it was to be given.
      state: what the result was to be given afterwards, None for nothing.
      items: `(key, value)` pairs to be set on the result, as for an ordered dict.
    """

    def __init__(self, function: Any, arguments: Any):
        self.function, self.arguments = function, arguments
        self.state: Any = None
        self.items: list[tuple[Any, Any]] = []

    def __repr__(self) -> str:
        return f"Call({self.function})"


def read(
    file: BinaryIO,
    *,
    allowed: Sequence[str],
    persistent: Callable[[Any], Any] | None = None,
    max_opcodes: int = MAX_OPCODES,
) -> Any:
    """Returns the object of one pickle, and leaves the file behind it.

    Args:
      file: at the start of the pickle.
      allowed: patterns (as in `fnmatch`) of `module.name` that it may name.
      persistent: what stands for an object kept outside, by its id; None refuses them.
      max_opcodes: budget.
    Raises:
      ValueError: if it is no pickle, names anything else, or exceeds a budget.
    """
    machine = _Machine(allowed, persistent)
    count = 0
    try:
        bounded = cast(IO[bytes], _Bounded(file))
        for opcode, argument, _ in pickletools.genops(bounded):
            count += 1
            if count > max_opcodes:
                raise _Refused(f"the pickle has more than {max_opcodes} opcodes: refused")
            # The file is left behind the pickle: old torch files are several, one after the other.
            if opcode.name == "STOP":
                return machine.stack[-1]
            machine.step(opcode.name, argument)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        UnicodeError,
    ) as error:
        raise ValueError(f"no readable pickle ({type(error).__name__}: {error})") from error
    raise ValueError("no readable pickle: it has no end")


class _Refused(Exception):
    pass


class _Bounded:
    """A file that gives no more than it has: a length in the pickle must not become an
    allocation.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        here = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(here)
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int = -1) -> bytes:
        """Returns `count` bytes."""
        if count > self._end - self._file.tell():
            raise ValueError(f"{count} bytes are asked for where there are fewer")
        return self._file.read(count)


class _Machine:
    def __init__(self, allowed: Sequence[str], persistent: Callable[[Any], Any] | None):
        self._allowed, self._persistent = allowed, persistent
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _PUT:
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            # MEMOIZE numbers by itself, in order.
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            count = _TUPLES[name]
            self._need(count)
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            # One method an opcode, and none for those that no file of weights uses.
            action = getattr(self, f"_{name.lower()}", None)
            if action is None:
                raise _Refused(f"the pickle uses {name}, which no file of weights needs: refused")
            action(argument)

    def _need(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("a value is taken from an empty stack")

    def _marked(self) -> list[Any]:
        """Takes everything above the last mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                found = self.stack[at + 1 :]
                del self.stack[at:]
                return found
        raise IndexError("a mark is missing")

    def _pop(self, _: object) -> None:
        self.stack.pop()

    def _pop_mark(self, _: object) -> None:
        self._marked()

    def _dup(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: object) -> None:
        self.stack.append(tuple(self._marked()))

    def _list(self, _: object) -> None:
        self.stack.append(self._marked())

    def _dict(self, _: object) -> None:
        values = self._marked()
        self.stack.append({})
        self._set(list(zip(values[::2], values[1::2], strict=True)))

    def _frozenset(self, _: object) -> None:
        self.stack.append(frozenset(_keys(self._marked())))

    def _append(self, _: object) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self, _: object) -> None:
        self._extend(self._marked())

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError(f"values are appended to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def _additems(self, _: object) -> None:
        values = _keys(self._marked())
        self.stack[-1].update(values)

    def _setitem(self, _: object) -> None:
        self._need(3)
        pair = tuple(self.stack[-2:])
        del self.stack[-2:]
        self._set([pair])

    def _setitems(self, _: object) -> None:
        values = self._marked()
        self._set(list(zip(values[::2], values[1::2], strict=True)))

    def _set(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        _keys([key for key, _ in pairs])
        if isinstance(target, Call):
            target.items.extend(pairs)
        elif isinstance(target, dict):
            target.update(pairs)
        else:
            raise TypeError(f"items are set on {type(target).__name__}")

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _name(self, module: Any, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name is no text")
        # Nothing is imported for a name in any case; the list says which ones a reader knows the
        # meaning of.
        found = Name(module, name)
        if not any(fnmatch.fnmatchcase(str(found), pattern) for pattern in self._allowed):
            raise _Refused(
                f"the pickle names {str(found)[:80]}, which no file of weights needs: refused"
            )
        self.stack.append(found)

    def _reduce(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Call(function, arguments))

    # A call and a new object look alike here: something named, and what it is given.
    _newobj = _reduce

    def _newobj_ex(self, _: object) -> None:
        keywords, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Call(kind, (*arguments, keywords)))

    def _obj(self, _: object) -> None:
        kind, *arguments = self._marked()
        self.stack.append(Call(kind, tuple(arguments)))

    def _build(self, _: object) -> None:
        state = self.stack.pop()
        # The state of a plain object is nothing that holds tensors.
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def _persid(self, argument: str) -> None:
        self._outside(argument)

    def _binpersid(self, _: object) -> None:
        self._outside(self.stack.pop())

    def _outside(self, identity: object) -> None:
        # What an id stands for only the reader of the file's kind can say.
        if self._persistent is None:
            raise _Refused("the pickle refers to objects kept outside it: refused")
        self.stack.append(self._persistent(identity))


def _keys(values: list[Any]) -> list[Any]:
    """Refuses keys that are not plain: hashing tuples of shared tuples takes time without end."""
    for value in values:
        if not isinstance(value, (str, int, float, bytes, Name, type(None))):
            raise TypeError(f"a key is a {type(value).__name__}")
    return values
