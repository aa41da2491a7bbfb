"""What a shell shows: one line, short, in the words of the command line rather than of Python."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["LONGEST", "as_flags", "brief", "printable"]

LONGEST = 300  # characters
# Arguments of the library whose flag has another name.
_OTHER = {"targets": "target", "attribution": "attributions", "metric": "metrics"}
_OTHER |= {"area": "areas", "count": "counts"}


def brief(text: str, most: int = LONGEST, lines: int = 4) -> str:
    r"""Returns a text of many lines as one: the first of them, how many more there are, and the
    end.

    >>> brief("weights do not fit: 5 missing\n" + "\n".join(f"  missing {i}" for i in range(5)))
    'weights do not fit: 5 missing: missing 0; missing 1; missing 2; and 2 more'
    >>> len(brief("long " * 1000 + "the cure"))
    300

    What a terminal would obey is shown instead, see `printable`.
    """
    parts = [printable(" ".join(line.split())) for line in text.splitlines() if line.strip()]
    first, rest = (parts or [""])[0], parts[1:]
    for kept in range(min(lines - 1, len(rest)), -1, -1):
        shown = rest[:kept]
        more = [f"and {len(rest) - kept} more"] if len(rest) > kept else []
        whole = f"{first}: {'; '.join([*shown, *more])}" if shown or more else first
        if len(whole) <= most:
            return whole
    # The end of a sentence says what to do.
    half = (most - 5) // 2
    return f"{whole[: most - 5 - half]} ... {whole[-half:]}"


def printable(text: str) -> str:
    r"""Returns a text with what is not printable written out: controls of a terminal, marks that
    turn the direction of writing, bytes that are no UTF-8.

    >>> print(printable("a\x1b[31mb \u202egnp.\udcff é"))
    a\x1b[31mb \u202egnp.\udcff é
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def as_flags(text: str, known: Collection[str]) -> str:
    """Returns a message of the library in the words of the command line.

    Args:
      known: names of the flags that there are.

    >>> as_flags("reward must be one of logit, kl; reward='score' takes any", ["reward"])
    '--reward must be one of logit, kl; --reward=score takes any'
    >>> as_flags("target 9 is out of range", ["target"])
    '--target: 9 is out of range'
    """

    def flag(name: str) -> str | None:
        found = name if name in known else _OTHER.get(name)
        return found if found in known else None

    def argument(match: re.Match[str]) -> str:
        found = flag(match[1])
        return f"--{found}={match[2]}" if found else match[0]

    text = re.sub(r"(?<![\w.-])(\w+)=[\'\"]([\w.+/:-]+)[\'\"]", argument, text)
    text = re.sub(
        r"^(\w+)( must\b)", lambda m: f"--{flag(m[1])}{m[2]}" if flag(m[1]) else m[0], text
    )
    if flag("target"):
        text = re.sub(r"^target (\S+) is", r"--target: \1 is", text)
    if "list_layers" in known:
        text = re.sub(
            r"(perturb\.|gan_dissect\.)?(taps\.names|layers) lists", "--list_layers lists", text
        )
    return text
