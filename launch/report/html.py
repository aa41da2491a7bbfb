"""The frame of every page: one file that needs nothing else, and runs no script but its own.

Style and script are inlined and named by their hashes in a content security policy that forbids
everything else; every name that comes from outside goes through `text`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import pathlib

__all__ = ["document", "number", "percent", "text"]

_HERE = pathlib.Path(__file__).parent


def text(value: object) -> str:
    """Returns `value` as text that is safe anywhere in a page, attributes included.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    # Control and direction marks in a file name could disguise what follows them.
    plain = "".join(
        c if c.isprintable() or c == "\N{NO-BREAK SPACE}" else "\N{REPLACEMENT CHARACTER}"
        for c in str(value)
    )
    return html.escape(plain, quote=True)


def number(value: float | None) -> str:
    """Returns a score the way a person reads it: three digits, or a dash where there is none.

    >>> number(14.1853), number(0.00123), number(None)
    ('14.2', '0.00123', '–')
    """
    if value is None:
        return "\N{EN DASH}"
    words = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return words.replace("-", "\N{MINUS SIGN}")


def percent(share: float | None) -> str:
    """Returns a share in percent, with a digit more where it is small.

    >>> [percent(s).replace("\\xa0", " ") for s in (0.05, 0.0123, 1e-5, -0.2, 0.9999, None)]
    ['5 %', '1.2 %', 'under 0.1 %', '−20 %', '99.9 %', '–']
    """
    if share is None:
        return "\N{EN DASH}"
    value = 100 * share
    if 0 < abs(value) < 0.05:
        return "under 0.1\N{NO-BREAK SPACE}%" if value > 0 else "0\N{NO-BREAK SPACE}%"
    if 99.5 <= value < 100:  # nearly all is not all
        value = math.floor(10 * value) / 10
    whole = 9.95 <= abs(value) < 99.5 or abs(value) >= 100
    digits = 0 if whole or abs(value - round(value)) < 0.05 else 1
    sign = "\N{MINUS SIGN}" if round(value, digits) < 0 else ""
    return f"{sign}{abs(value):.{digits}f}\N{NO-BREAK SPACE}%"


def document(title: str, body: str, *, style: str = "", script: str = "page.js") -> bytes:
    """Returns a whole page in UTF-8.

    Args:
      title: plain text.
      body: safe HTML.
      style: rules added to those of page.css.
      script: file of this folder that is inlined.
    """
    # Inlined, so that a page can be sent as one file; the policy below then allows these
    # bytes only.
    css = (_HERE / "page.css").read_text(encoding="utf-8") + style
    js = (_HERE / script).read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(css)}'; "
        f"script-src 'sha256-{_hash(js)}'; base-uri 'none'; form-action 'none'"
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
{body}
<script>{js}</script>
</body>
</html>
"""
    # A name from a file system may hold what UTF-8 cannot write.
    return page.encode("utf-8", "replace")


def _hash(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
