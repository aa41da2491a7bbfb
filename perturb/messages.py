"""Words for messages: a value cut short, names that are like the one given, lists that fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "listed", "most_alike", "nearest", "one_of", "short"]


def short(value: object, most: int = 80) -> str:
    """Returns `repr(value)` on one line of at most `most` characters.

    >>> short("a" * 100, 12)
    "'aaaaaaaa..."
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Returns `"; did you mean x?"`, or nothing where no name is near.

    >>> did_you_mean("grad-cam", ["gradient", "grad_cam"])
    '; did you mean grad_cam?'
    >>> did_you_mean("zebra", ["gradient", "grad_cam"])
    ''
    """
    near = _near(name, names, 3, 0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(name: object, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Returns the name that is most like `name`, whatever its case and dashes; None below
    `cutoff`.
    """
    near = _near(name, names, 1, cutoff)
    return near[0] if near else None


def most_alike(name: object, names: Iterable[str]) -> str:
    """Returns the three names most like `name`, with commas: however far off, they show what
    names look like here.

    >>> most_alike("relu_9", ["relu", "relu#1", "conv", "mean"])
    'relu, relu#1, mean'
    """
    return listed(_near(name, names, 3, 0.0), 100)


def _near(name: object, names: Iterable[str], most: int, cutoff: float) -> list[str]:
    spelt = {n.lower().replace("-", "_"): n for n in names}
    # A long text is no misspelt name, and matching takes the product of the lengths.
    given = str(name)[:100].lower().replace("-", "_")
    return [spelt[n] for n in difflib.get_close_matches(given, spelt, most, cutoff)]


def one_of(what: str, name: object, names: Iterable[str]) -> ValueError:
    """Returns the error for a name that is not known, with the nearest one.

    >>> raise one_of("method", "extrema", ["extremal", "channels"])
    Traceback (most recent call last):
    ValueError: method must be one of extremal, channels, got 'extrema'; did you mean extremal?
    """
    known = list(names)
    said = f"got {short(name, 40)}{did_you_mean(name, known)}"
    # The names get what is left of 300 characters.
    room = 280 - len(what) - len(said)
    return ValueError(f"{what} must be one of {listed(known, room)}, {said}")


def listed(names: Iterable[str], most: int = 200) -> str:
    """Returns the names with commas, as many as `most` characters hold.

    >>> listed(["gradient", "grad_cam", "occlusion"], 24)
    'gradient, and 2 more'
    """
    known = list(names)
    text = ", ".join(known)
    for kept in range(len(known) - 1, -1, -1):
        if len(text) <= most:
            break
        text = ", ".join([*known[:kept], f"and {len(known) - kept} more"])
    return text
