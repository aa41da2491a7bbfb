"""Examples in docstrings become code blocks: to Markdown, `>>>` is a quotation in a quotation."""

import re
from typing import Any

import griffe

# A prompt, and all that follows it up to an empty line.
EXAMPLE = re.compile(r"^([ \t]*)>>> .*(?:\n(?!\s*\n)[ \t]*\S.*)*", re.MULTILINE)


def fenced(text: str) -> str:
    """Returns a docstring with its examples in fences."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"

    return EXAMPLE.sub(block, text)


class Doctests(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Takes what has just been read."""
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
